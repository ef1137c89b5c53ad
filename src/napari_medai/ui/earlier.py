"""The layers that earlier runs of a panel made, and which of them a person has edited since."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from napari.layers import Layer

from napari_medai.ui.running import Run

if TYPE_CHECKING:
    from napari.viewer import Viewer


class Earlier:
    """Results that the next one may replace.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        That they are in.
    """

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self._edited: set[Layer] = set()
        self._rows: list[tuple[str, Layer, list[Layer]]] = []  # model, scan, layers made from them

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, run: Run, made: Sequence[Layer]) -> None:
        """Remember what a run made, and whether a person changes it, so that it is never replaced."""
        self._rows.append((run.model.id, run.layer, list(made)))
        for layer in made:
            for name in ("data", "paint", "labels_update"):
                if name in layer.events.emitters:
                    layer.events.emitters[name].connect(self._on_edited)

    def drop(self, run: Run) -> None:
        """Remove what runs of the same model on the same image made, except what was edited."""
        for model, scan, layers in self._rows:
            if model == run.model.id and scan is run.layer:
                for layer in layers:
                    if layer in self._viewer.layers and layer not in self._edited:
                        self._viewer.layers.remove(layer)
        self._rows = [row for row in self._rows if any(layer in self._viewer.layers for layer in row[2])]

    def _on_edited(self, event: Any) -> None:
        self._edited.add(event.source)
