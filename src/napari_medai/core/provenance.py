"""What was run on what, with which model, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# The note of a result whose labels were painted over since.
EDITED = "edited in the viewer after the run"


@dataclass(frozen=True)
class Provenance:
    """The record that every result carries.

    Attributes
    ----------
    stage : str
        Name of the stage.
    inputs : tuple of str
        Names of the volumes (never patient identity).
    model : str
        Model id; empty if the stage needs none.
    model_sha256 : str
        Over the weights; empty if there are none.
    params : mapping
        The stage's parameters.
    device, precision : str
        E.g. ``"cpu"``, ``"float32"``.
    tiles : int
        Number of forward passes over tiles.
    notes : tuple of str
        What was changed on the way: resampling, fallbacks after lack of memory, overridden checks.
    versions : mapping
        Versions of the software that took part.
    seconds : float
        Wall time of the run.
    peak_memory_mb : float
        Peak memory of the device if it is an accelerator, else of the process, in MiB.
    """

    stage: str
    inputs: tuple[str, ...] = ()
    model: str = ""
    model_sha256: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    precision: str = "float32"
    tiles: int = 0
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_mb: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        record = asdict(self)
        record["params"], record["versions"] = dict(self.params), dict(self.versions)
        return record
