"""Labels as they are found: a layer on the scan from the beginning of the run, which becomes that of the result."""

from __future__ import annotations

import time
from contextlib import suppress
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels, Layer

from napari_medai.core.errors import MedaiError
from napari_medai.core.volume import labels
from napari_medai.ui.layers import LayerData, running_layer
from napari_medai.ui.running import Run

if TYPE_CHECKING:
    from napari.viewer import Viewer

# How often what is visible is drawn anew; where that takes long, this share of the time at most
_SECONDS_BETWEEN = 0.5
_SHARE = 0.05
# napari looks at each pixel that it draws: of more (a large slide, a volume in 3-D) the window would stand still
_MOST_PIXELS = 2**22


class Partial:
    """The layer of one run that gives labels.

    napari needs a quarter of a second to make a layer of labels, and as long to remove one. Hence it is made as the run
    begins, not while the network computes, and stays for the result.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Where it is shown.
    run : Run
        Whose labels it shows; of other runs nothing is shown.

    Attributes
    ----------
    begun : bool
        Whether it was looked at before, or there is no layer to be made.
    made : list of Layer or None
        The layers of the result, once they are in the viewer.
    """

    def __init__(self, viewer: Viewer, run: Run) -> None:
        self._viewer, self._run = viewer, run
        self._seen = 0
        self._next = 0.0
        self._kept: Any = None  # the array that the layer shows
        self.begun = run.stage != "segment" or run.only_plan
        self.made: list[Layer] | None = None
        self.layer: Layer | None = None

    def look(self) -> None:
        """Make the layer, or show what was found since the last time if it is time to."""
        if not self.begun:
            self.begun = True
            if self._pixels <= _MOST_PIXELS:
                self._add()
            return
        found = self._run.job.found
        now = time.monotonic()
        layer = self.layer
        if layer is None or found is None or found[1] == self._seen or now < self._next:
            return
        self._seen = found[1]
        if found[0].shape != self._shape or self._pixels > _MOST_PIXELS:
            return  # one frame of a series would be seen in all of them
        if found[0] is not self._kept:
            self._kept = found[0]
            layer.data = self._data(found[0])[0]
            layer.editable = False
        elif layer.visible and layer in self._viewer.layers:
            # only the slices in view are read and drawn
            layer.refresh(thumbnail=False, highlight=False, extent=False)
        end = time.monotonic()
        self._next = end + max(_SECONDS_BETWEEN, (end - now) / _SHARE)

    def become(self, made: Layer) -> Layer:
        """Make this layer that of the result, and give it; how a person looks at it stays.

        Parameters
        ----------
        made : napari Layer
            Of the result, not in the viewer. Given back if it is of another kind, or if a person removed this one.
        """
        layer = self.layer
        if layer is None or not isinstance(made, Labels) or layer not in self._viewer.layers:
            return made
        with layer.events.blocker_all():
            for name in ("affine", "scale", "translate"):
                if not np.array_equal(getattr(layer, name), getattr(made, name)):  # set, it is sliced anew
                    setattr(layer, name, getattr(made, name))
        layer.metadata = made.metadata
        layer.data = made.data
        layer.features = made.features
        layer.name = made.name
        layer.editable = True
        self.layer = None
        return layer

    def remove(self) -> None:
        """Take the layer away."""
        layer, self.layer = self.layer, None
        if layer is not None and layer in self._viewer.layers:
            self._viewer.layers.remove(layer)

    @property
    def _pixels(self) -> int:
        """How many are drawn at once."""
        dims = self._viewer.dims
        shape = (1,) * (dims.ndim - len(self._shape)) + self._shape
        return prod(shape[axis] for axis in dims.displayed)

    @property
    def _shape(self) -> tuple[int, ...]:
        volume = self._run.volume
        return tuple(volume.size(axis) for axis in volume.axes if axis not in "cs")

    def _data(self, found: Any) -> LayerData:
        volume, gives = self._run.volume, self._run.model.spec.gives
        named = {label.value: label.name for label in gives.labels} if gives.kind == "labels" else {}
        colors = {label.value: label.color for label in gives.labels if label.color and gives.kind == "labels"}
        name = f"{volume.name} {self._run.model.id} (running)"
        return running_layer(labels(found, volume, named, name=name), colors, self._run.layer)

    def _add(self) -> None:
        gives = self._run.model.spec.gives
        most = max((label.value for label in gives.labels), default=0)
        kind = np.int32 if gives.kind != "labels" else np.uint8 if most < 256 else np.uint16
        with suppress(MedaiError):  # it cannot be shown; the result says why
            # nothing is found yet, and takes no memory
            self.layer = Layer.create(*self._data(np.broadcast_to(np.zeros((), kind), self._shape)))
        if self.layer is None:
            return
        self.layer.editable = False
        active = self._viewer.layers.selection.active
        self._viewer.add_layer(self.layer)
        self._viewer.layers.selection.active = active
