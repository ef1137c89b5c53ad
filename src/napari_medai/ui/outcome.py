"""The lower part of a panel: the table or the scores of the last result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Labels, Layer, Points, Shapes
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from napari_medai.core.errors import MedaiError
from napari_medai.core.result import Boxes, Denoised, Heatmap, Mask, Result, Scores, Table
from napari_medai.core.volume import Volume
from napari_medai.ui.job import State
from napari_medai.ui.navigate import current_index, go_to
from napari_medai.ui.reports import report
from napari_medai.ui.scoresview import ScoresView, verdict
from napari_medai.ui.tableview import TableView

if TYPE_CHECKING:
    from napari.viewer import Viewer

_MOST_NAMED = 6  # labels in one sentence


class Outcome(QWidget):
    """A table for objects, a plot for scores, nothing for images.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Moved to the object or slice that is chosen.
    """

    def __init__(self, viewer: Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._result: Result | None = None
        self._scan: Layer | None = None
        self._made: list[Layer] = []
        self._axes = ""
        self._fixed: dict[str, float] = {}
        self._table: Table = {}
        self.heading = QLabel()
        self.heading.setWordWrap(True)
        self.heading.setMinimumWidth(1)  # a long name must not widen the dock
        self.table = TableView()
        self.scores = ScoresView()
        self.copy_button = QPushButton("Copy")
        self.copy_button.setToolTip("<p>Put the table on the clipboard, for a spreadsheet.</p>")
        self.save_button = QPushButton("Save …")
        self.save_button.setToolTip("<p>Save as CSV, or as JSON with the record of the run.</p>")
        row = QHBoxLayout()
        row.addWidget(self.heading, 1)
        row.addWidget(self.copy_button)
        row.addWidget(self.save_button)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addLayout(row)
        layout.addWidget(self.table, 1)
        layout.addWidget(self.scores)
        self.hide()
        self.table.row_chosen.connect(self._on_row)
        self.scores.slice_chosen.connect(self._on_slice)
        self.copy_button.clicked.connect(self.table.copy)
        self.save_button.clicked.connect(self._on_save)
        viewer.dims.events.current_step.connect(self._on_step)

    @property
    def result(self) -> Result | None:
        """What is shown; none before the first run."""
        return self._result

    def show_result(self, result: Result, scan: Layer, volume: Volume, made: list[Layer]) -> None:
        """Show what a result has to show.

        Parameters
        ----------
        result : Result
            Of any stage.
        scan : Layer
            The image it was computed on; may have left the viewer.
        volume : Volume
            What that layer held when the run began; its axes name the layer's.
        made : list of Layer
            The layers made of the result, where the chosen object is marked.
        """
        self._result, self._scan, self._made, self._axes = result, scan, made, volume.axes
        params = result.provenance.params
        self._fixed = {
            axis: float(params[name])
            for axis, name in (("t", "frame"), ("c", "channel"))
            if name in params and axis in volume.axes
        }
        self._table = result.table if isinstance(result, Mask | Boxes) else {}
        rows = len(next(iter(self._table.values()), ()))
        self.setVisible(isinstance(result, Mask | Boxes | Scores))
        self.table.setVisible(isinstance(result, Mask | Boxes))
        self.scores.setVisible(isinstance(result, Scores))
        self.copy_button.setVisible(isinstance(result, Mask | Boxes))
        self.table.set_table(self._table)
        what = "Scores" if isinstance(result, Scores) else f"{rows} row{'' if rows == 1 else 's'}"
        # it stays while other images are chosen and run
        self.heading.setText(f"{what} of {volume.name} ({result.provenance.model})")
        self.heading.setToolTip(self.heading.text())
        if isinstance(result, Scores):
            self.scores.set_scores(result)
            self._on_step()

    def _on_row(self, row: int) -> None:
        if self._scan is None:
            return
        place = dict(self._fixed)
        place |= {axis: float(self._table[axis][row]) for axis in "tzyx" if axis in self._table}
        go_to(self._viewer, self._scan, self._axes, place)
        for layer in self._made:
            mark(layer, row, self._table, self._result.names if isinstance(self._result, Mask) else {})

    def _on_slice(self, index: int) -> None:
        if self._scan is not None:
            go_to(self._viewer, self._scan, self._axes, {**self._fixed, "z": index}, centre=False)

    def _on_step(self, _: Any = None) -> None:
        if isinstance(self._result, Scores) and self._scan is not None and "z" in self._axes:
            self.scores.set_current(current_index(self._viewer, self._scan, self._axes, "z"))

    def _on_save(self) -> None:
        chosen, _ = QFileDialog.getSaveFileName(self, "Save the result", "", "CSV (*.csv);;JSON (*.json)")
        if chosen:
            self.save(Path(chosen))

    def save(self, path: Path) -> None:
        """Write the result as CSV or JSON, by suffix; an error is shown to the user."""
        from napari_medai.io import save

        if self._result is None:
            return
        if path.suffix.lower() not in (".csv", ".json"):
            path = path.with_name(path.name + ".csv")
        try:
            save(self._result, path)
        except MedaiError as error:
            report(error)


def mark(layer: Layer, row: int, table: Table, names: Mapping[int, str]) -> None:
    """Mark the object of a row in a layer made from the same result."""
    if isinstance(layer, Labels):
        label = table["label"][row]
        values = {name: value for value, name in names.items()}
        layer.selected_label = int(values.get(label, label))
    elif isinstance(layer, Points | Shapes) and row < len(layer.data):
        layer.selected_data = {row}


def _named(table: Table) -> str:
    """The labels by name, with their volumes where they are in ml."""
    labels = [str(label) for label in table["label"]]
    if "volume_ml" in table and "t" not in table:
        labels = [f"{label} {_ml(volume)}" for label, volume in zip(labels, table["volume_ml"], strict=True)]
    labels = list(dict.fromkeys(labels))
    more = len(labels) - _MOST_NAMED
    return ", ".join(labels[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _ml(volume: float) -> str:
    return f"{volume:,.0f} ml" if volume >= 100 else f"{volume:.3g} ml"


def told(result: Result, state: State, *, changed: bool = False) -> str:
    """What is said of the run that gave a result: what came out, how long it took, and what was done on the way."""
    of_what = ("The image was changed while it ran; this is for what it was before.",) if changed else ()
    notes = "".join(f"\n• {note}" for note in dict.fromkeys((*of_what, *state.notes, *result.provenance.notes)))
    return f"{summary(result)}\n{state.seconds:.1f} s on {result.provenance.device.upper()}{notes}"


def summary(result: Result) -> str:
    """One sentence on what came out."""
    match result:
        case Mask() if result.names:
            return f"Found: {_named(result.table)}." if len(result.table.get("label", ())) else "Nothing found."
        case Mask():
            rows = len(result.table.get("label", ()))
            return f"{rows} object{'' if rows == 1 else 's'} found."
        case Boxes():
            return f"{len(result)} object{'' if len(result) == 1 else 's'} found."
        case Scores():
            return verdict(result)
        case Heatmap():
            return f"Heat for {result.target}, by {result.method}."
        case Denoised():
            return "Denoised."
