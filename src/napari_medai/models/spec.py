"""ModelSpec: what a model accepts, how it is prepared and undone, and what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from napari_medai.core.errors import ModelError


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Accepts(_Part):
    """What a Volume must be.

    Attributes
    ----------
    ndim : tuple of int
        Numbers of spatial dimensions, out of 2 and 3.
    modality : tuple of str
        Modalities the model was made for; empty means any. An unknown modality passes with a note.
    rgb : bool
        Whether colour images are taken as they are (else they are turned to luminance with a note).
    min_size : int
        Smallest size along every spatial axis but z, in voxels.
    """

    ndim: tuple[Literal[2, 3], ...]
    modality: tuple[str, ...] = ()
    rgb: bool = False
    min_size: int = 8


class Prepare(_Part):
    """How the pixels are brought to what the network was trained on; the engine undoes it exactly.

    Attributes
    ----------
    spacing_mm : tuple of 3 floats, optional
        (z, y, x) spacing to resample to; none keeps the image's.
    isotropic : bool
        Resample to cubic voxels of the smallest spacing (if ``spacing_mm`` is not given).
    object_diameter : float, optional
        Typical object diameter in pixels to which 2-D images are scaled.
    normalise : str
        ``"percentile"`` maps the percentiles ``low`` and ``high`` to 0 and 1; ``"zscore"`` mean 0, deviation 1;
        ``"none"``.
    low, high : float
        Percentiles.
    clip : bool
        Clip to 0..1 after the percentiles.
    """

    spacing_mm: tuple[float, float, float] | None = None
    isotropic: bool = False
    object_diameter: float | None = None
    normalise: Literal["percentile", "zscore", "none"] = "percentile"
    low: float = 1.0
    high: float = 99.8
    clip: bool = False


class Label(_Part):
    """A label value, class or kind of object: its name and colour (r, g, b in 0..1)."""

    value: int
    name: str
    color: tuple[float, float, float] | None = None
    threshold: float = 0.5


class Gives(_Part):
    """What comes out.

    Attributes
    ----------
    kind : str
        ``"labels"`` (semantic), ``"instances"``, ``"classes"``, ``"boxes"`` or ``"image"``.
    labels : tuple of Label
        Labels, classes or kinds of objects, in the order of the network's outputs.
    """

    kind: Literal["labels", "instances", "classes", "boxes", "image"]
    labels: tuple[Label, ...] = ()


class Tiling(_Part):
    """Tile in voxels along the network's axes, and the share by which neighbours overlap."""

    size: tuple[int, ...] = ()
    overlap: float = Field(default=0.25, ge=0, lt=1)
    multiple: int = 16


class ModelSpec(_Part):
    """All that is known of a model before its weights are read.

    Attributes
    ----------
    id, title, summary, version : str
        ``id`` is what people type: ``"nuclei"``.
    stage : str
        The stage that runs it.
    runner : str
        Name in `napari_medai.engine.RUNNERS` of the code that prepares its input and decodes its output.
    network, arguments
        Name in `napari_medai.nets.NETWORKS` and the arguments it is built with; empty if there are no weights of ours.
    weights : str
        File name beside this description; empty if the model has none or a package carries them.
    sha256 : str
        Over the weights.
    licence, citation : str
        SPDX id; how to cite.
    intended_use : str
        One sentence; every card also says that this is research software, not a medical device.
    options : dict
        Numbers that the runner needs (thresholds and the like), chosen on validation data.
    """

    id: str
    title: str
    summary: str
    stage: str
    version: str = "1"
    accepts: Accepts
    prepare: Prepare = Prepare()
    gives: Gives
    tiling: Tiling = Tiling()
    runner: str
    network: str = ""
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str = ""
    sha256: str = ""
    licence: str = "BSD-3-Clause"
    citation: str = ""
    intended_use: str = "Research only; not a medical device."
    options: dict[str, float | int | str | bool] = Field(default_factory=dict)


class Model(_Part):
    """A model that can be run: its description and where its files are.

    Attributes
    ----------
    spec : ModelSpec
        The description.
    folder : Path
        Holds the weights and the card.
    source : str
        Name of the row in `SOURCES` that found it.
    """

    spec: ModelSpec
    folder: Path
    source: str

    @property
    def id(self) -> str:
        """What people type."""
        return self.spec.id

    @property
    def weights(self) -> Path | None:
        """The file of weights, if there is one."""
        return self.folder / self.spec.weights if self.spec.weights else None

    @property
    def card(self) -> str:
        """The model card (Markdown)."""
        path = self.folder / "card.md"
        return path.read_text(encoding="utf-8") if path.is_file() else f"# {self.spec.title}\n\n{self.spec.summary}\n"


def read_spec(path: Path) -> ModelSpec:
    """Read a ``model.json``.

    Raises
    ------
    ModelError
        The file is missing or a field is wrong; the message names the field.
    """
    try:
        return ModelSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError(f"The model description {path.name} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ModelError(f"The model description {path.name} is not valid: {wrong}.") from error
