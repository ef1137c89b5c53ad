"""Labels as they are found: a layer on the scan for as long as the run goes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from napari.layers import Layer

from napari_medai.core.errors import MedaiError
from napari_medai.core.volume import labels
from napari_medai.ui.layers import running_layer
from napari_medai.ui.running import Run

if TYPE_CHECKING:
    from napari.viewer import Viewer

# How often what is visible is drawn anew; where that takes long (a volume in 3-D), this share of the time at most
_SECONDS_BETWEEN = 0.5
_SHARE = 0.05


class Partial:
    """The layer of one run; there from the first labels on.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Where it is shown.
    run : Run
        Whose labels it shows.
    """

    def __init__(self, viewer: Viewer, run: Run) -> None:
        self._viewer, self._run = viewer, run
        self.layer: Layer | None = None
        self._seen = 0
        self._next = 0.0

    def look(self) -> None:
        """Show what was found since the last time, if it is time to."""
        found = self._run.job.found
        now = time.monotonic()
        if found is None or found[1] == self._seen or now < self._next:
            return
        if self.layer is None and self._seen == 0:
            self._add(found[0])
        elif self.layer is not None and self.layer in self._viewer.layers and self.layer.visible:
            # only the slices in view are read and drawn
            self.layer.refresh(thumbnail=False, highlight=False, extent=False)
        self._seen = found[1]
        end = time.monotonic()
        self._next = end + max(_SECONDS_BETWEEN, (end - now) / _SHARE)

    def _add(self, found: Any) -> None:
        volume, gives = self._run.volume, self._run.model.spec.gives
        if tuple(found.shape) != tuple(volume.size(axis) for axis in volume.axes if axis not in "cs"):
            return  # one frame of a series: it would be seen in all of them
        named = {label.value: label.name for label in gives.labels} if gives.kind == "labels" else {}
        colors = {label.value: label.color for label in gives.labels if label.color and gives.kind == "labels"}
        name = f"{volume.name} {self._run.model.id} (running)"
        try:
            seen = labels(found, volume, named, name=name)
            self.layer = Layer.create(*running_layer(seen, colors, self._run.layer))
        except MedaiError:
            return  # it cannot be shown; the result says why
        self.layer.editable = False
        active = self._viewer.layers.selection.active
        self._viewer.add_layer(self.layer)
        self._viewer.layers.selection.active = active

    def remove(self) -> dict[str, Any]:
        """Take the layer away; how it was looked at, for the one that follows."""
        layer, self.layer = self.layer, None
        if layer is None:
            return {}
        if layer in self._viewer.layers:
            self._viewer.layers.remove(layer)
        return {"visible": layer.visible, "opacity": layer.opacity}
