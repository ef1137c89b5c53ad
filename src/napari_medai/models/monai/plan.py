"""What is to be built of a bundle, as plain data: parts by their reviewed names, with arguments that were checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Mark(Enum):
    """Values that stand for something that only the engine has."""

    DEVICE = "the device of the run"
    BROKEN = "what could not be resolved; its reason stands among the needs"
    DISABLED = "a part that is switched off"


@dataclass(frozen=True)
class Named:
    """A constant of torch or numpy by its reviewed name, such as ``"torch.float32"``."""

    name: str


@dataclass(frozen=True)
class TensorFunction:
    """A function of one tensor out of a lambda, of which every operation is in the reviewed list.

    Attributes
    ----------
    source : str
        The lambda as it stands in the configuration.
    """

    source: str


@dataclass(eq=False)
class Part:
    """An object to be built; one Part is one object, however often it is referred to.

    Attributes
    ----------
    name : str
        Its row in the reviewed tables: a transform, an inferer, a network.
    arguments : dict of str to values
        Plain values, and `Part`, `Named`, `TensorFunction` or `Mark.DEVICE`.
    where : str
        The JSON path it was found at.
    calls : list of (method, arguments)
        Reviewed methods that are called on it after it was made.
    """

    name: str
    arguments: dict[str, Any]
    where: str
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """A bundle's four parts that make an image into a result.

    Attributes
    ----------
    network, inferer : Part
        The network without weights, and how it is applied.
    preprocessing, postprocessing : tuple of Part
        Transforms in their order, with those that read and write files in their places.
    compose, compose_after : Part
        The two `Compose` that hold them.
    amp : bool
        Whether the bundle computes in half precision where there is an accelerator.
    """

    network: Part
    inferer: Part
    preprocessing: tuple[Part, ...]
    postprocessing: tuple[Part, ...]
    compose: Part
    compose_after: Part
    amp: bool = True

    def arguments_of(self, name: str) -> dict[str, Any]:
        """Arguments of the first transform of preprocessing with a name; empty if there is none."""
        return next((part.arguments for part in self.preprocessing if part.name.removesuffix("d") == name), {})
