"""Objects of MONAI from a `Plan`: every class out of the reviewed tables, every argument checked before."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from monai.transforms import MapTransform, Transform
from torch import nn

from napari_medai.core.errors import ModelError
from napari_medai.engine.monai.tensors import function
from napari_medai.models.monai import reviewed
from napari_medai.models.monai.plan import Mark, Named, Part, TensorFunction
from napari_medai.nets import registry

_KINDS: dict[str, tuple[type, ...]] = {
    "transform": (Transform,),
    "inferer": (Inferer,),
    "network": (nn.Module,),
    "helper": (nn.Module,),
}
_NOT_BUILT = reviewed.READERS | reviewed.WRITERS | reviewed.LEFT_OUT
_MODULES = {"torch": torch, "numpy": np}


class Builder:
    """Builds parts; one `Part` becomes one object.

    Parameters
    ----------
    device : torch.device
        Where the run computes: what a bundle calls its device.
    network : Module, optional
        What stands for the bundle's network where another part refers to it, and the part that it is of.
    """

    def __init__(self, device: torch.device, network: tuple[Part, nn.Module] | None = None) -> None:
        self.device = device
        self._made: dict[int, Any] = {id(network[0]): network[1]} if network else {}

    def part(self, part: Part) -> Any:
        """The object of a part.

        Raises
        ------
        ModelError
            MONAI does not take the arguments.
        """
        if id(part) not in self._made:
            self._made[id(part)] = self._new(part)
        return self._made[id(part)]

    def value(self, value: Any, argument: str = "") -> Any:
        """The value of an argument: parts are built, names and marks become what they stand for."""
        if isinstance(value, Part):
            return self.part(value)
        if isinstance(value, Named):
            module, _, name = value.name.partition(".")
            return getattr(_MODULES[module], name)
        if isinstance(value, TensorFunction):
            return function(value.source)
        if value is Mark.DEVICE or (argument in reviewed.DEVICES and isinstance(value, str) and value != "cpu"):
            return self.device
        if isinstance(value, list | tuple):
            items = [item for item in value if not (isinstance(item, Part) and item.name in _NOT_BUILT)]
            return type(value)(self.value(item, argument) for item in items)
        if isinstance(value, dict):
            return {key: self.value(item) for key, item in value.items()}
        return value

    def _new(self, part: Part) -> Any:
        row = reviewed.ROWS.get(part.name)
        if row is None:
            raise ModelError(f"{part.name} stands at {part.where} of the bundle, where nothing is read or written.")
        given = {key: self.value(value, key) for key, value in part.arguments.items()}
        if "progress" in given:
            given["progress"] = False  # the run has its own
        try:
            if part.name in registry.REVIEWED:
                return registry.make(part.name, **given)
            module, _, name = row.target.partition(":")
            made = getattr(import_module(module), name)(**given)
            for method, arguments in part.calls:
                getattr(made, method)(**{key: self.value(item, key) for key, item in arguments.items()})
        except (TypeError, ValueError, KeyError, IndexError, AssertionError, NotImplementedError) as error:
            raise ModelError(f"MONAI cannot make {part.name} at {part.where} of the bundle: {error}.") from error
        if not isinstance(made, _KINDS[row.kind]):
            raise ModelError(f"{part.name} at {part.where} of the bundle is no {row.kind}.")
        return made


def without_truth(transform: Any) -> list[str]:
    """Let transforms pass over the ground truth, ``label``, which an image at hand does not have; those it did."""
    steps = getattr(transform, "transforms", (transform,))
    named = [step for step in steps if isinstance(step, MapTransform) and "label" in step.keys]
    for step in named:
        step.allow_missing_keys = True
    return [type(step).__name__ for step in named]
