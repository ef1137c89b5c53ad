"""The panel of a stage: choose an image and a model, run, see the result. One class for all stages."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Layer
from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtWidgets import QApplication, QCheckBox, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from napari_medai.core.errors import MedaiError
from napari_medai.core.stage import Cancelled, fields_of
from napari_medai.core.volume import Volume
from napari_medai.engine import can_be_planned
from napari_medai.stages import STAGES
from napari_medai.ui.card import CardDialog
from napari_medai.ui.choosers import DeviceChooser, LayerChooser, ModelChooser
from napari_medai.ui.earlier import Earlier
from napari_medai.ui.fit import FitView
from napari_medai.ui.form import Form, form_layout, scrolling
from napari_medai.ui.layers import layer_to_volume
from napari_medai.ui.offers import NEWS, doubtful, is_heatmap, misfit, model_for, models_for
from napari_medai.ui.outcome import Outcome, told
from napari_medai.ui.partial import Partial
from napari_medai.ui.reports import report
from napari_medai.ui.runlist import RunList
from napari_medai.ui.running import LINE, Run, Running, plan_text, warm_up
from napari_medai.ui.viewing import attach

if TYPE_CHECKING:
    from napari.viewer import Viewer

_POLL_MS = 200  # each look may draw the panel anew, and with it Qt puts the whole window together


class StagePanel(QWidget):
    """A dock widget that runs one stage on a layer of the viewer.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Whose layers are offered and who gets the results.
    stage : str
        A key of `napari_medai.stages.STAGES`.
    """

    def __init__(self, viewer: Viewer, stage: str) -> None:
        super().__init__()
        self.stage = STAGES[stage]
        # napari hands plugins a proxy, and a proxy makes a new object of the same layer each time it is asked: then
        # nothing tells which layer was chosen
        self._viewer = viewer = getattr(viewer, "__wrapped__", viewer)
        attach(viewer)
        self._model_pinned = False  # the person chose a model: layers follow it, not the other way round
        self._placing = False  # our own new layers do not become the next input
        self.earlier = Earlier(viewer)
        self._running = Running()
        self._partials: dict[Run, Partial] = {}
        self._timer = QTimer(self)
        self._timer.setInterval(_POLL_MS)
        self._timer.timeout.connect(self._poll)
        self._build()
        self._connect()
        warm_up()
        self._refresh()
        self._follow_active()

    # building

    def _build(self) -> None:
        self.layers = LayerChooser()
        self.refusal = QLabel()
        self.refusal.setWordWrap(True)
        self.refusal.setMinimumWidth(1)  # a long name must not widen the dock
        self.models = ModelChooser(models_for(self.stage.name))
        self.models.choose(self.stage.default_model)
        self.card_button = QPushButton("Card")
        self.card_button.setToolTip("<p>The model's card: what it is for, how it was made, its figures.</p>")
        self.about = QLabel()
        self.about.setWordWrap(True)
        self.about.setObjectName("about")
        self.fit = FitView()
        self.devices = DeviceChooser()
        # the device has a list, and what may be overridden is asked where it is found
        fields = [field for field in fields_of(self.stage.params) if field.name not in ("device", "override")]
        self.form = Form(fields)
        self.replace = QCheckBox("Replace the earlier result")
        self.replace.setToolTip(
            "<p>Off: every run adds new layers. On: the layers of the last run of this model on this image go, "
            "unless they were edited.</p>"
        )
        self.replace.setVisible(self.stage.name != "classify")  # scores are no layer
        self.run_button, self.estimate_button = QPushButton("Run"), QPushButton("Estimate")
        self.run_button.setMinimumHeight(28)
        self.estimate_button.setMinimumHeight(28)
        self.estimate_button.setToolTip("<p>Say how many tiles, how long and how much memory a run would take.</p>")
        self.runs = RunList()
        self.status = QLabel()
        self.status.setWordWrap(True)
        self.status.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.outcome = Outcome(self._viewer)

        top = form_layout()
        top.addRow("Image", self.layers)
        top.addRow(self.refusal)
        model_row = QHBoxLayout()
        model_row.setSpacing(4)
        model_row.addWidget(self.models, 1)
        model_row.addWidget(self.card_button)
        top.addRow("Model", model_row)
        top.addRow(self.about)
        top.addRow(self.fit)
        top.addRow("Device", self.devices)
        content = QWidget()
        column = QVBoxLayout(content)
        column.setContentsMargins(8, 6, 8, 6)
        column.setSpacing(6)
        column.addLayout(top)
        column.addWidget(self.form)
        column.addWidget(self.replace)
        buttons = QHBoxLayout()
        buttons.addWidget(self.run_button, 1)
        buttons.addWidget(self.estimate_button)
        column.addLayout(buttons)
        column.addWidget(self.runs)
        column.addWidget(self.status)
        column.addWidget(self.outcome, 1)
        column.addStretch(0)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(scrolling(content))
        self.setMinimumWidth(280)

    def _connect(self) -> None:
        self.layers.layer_chosen.connect(self._on_layer)
        self.models.activated.connect(self._pin_model)
        self.models.currentIndexChanged.connect(self._refresh)
        self.card_button.clicked.connect(self._show_card)
        NEWS.changed.connect(self._on_models)
        self.fit.changed.connect(self._update_button)
        self.form.changed.connect(self._ask)
        self.run_button.clicked.connect(lambda _: self.start())
        self.estimate_button.clicked.connect(lambda _: self.estimate())
        self.runs.cancelled.connect(self._cancel)
        layers = self._viewer.layers
        for event in (layers.events.inserted, layers.events.removed, layers.events.reordered, layers.events.renamed):
            event.connect(self._refresh)
        layers.selection.events.active.connect(self._on_active)
        # whichever way a panel ends, its run ends with it
        self.destroyed.connect(self._running.stop)
        QApplication.instance().aboutToQuit.connect(self.stop)

    # what is offered

    def _misfit(self, layer: Layer) -> str:
        """Why the chosen model does not take a layer; empty if it does."""
        model = self.models.chosen
        if model is None:
            return "There is no model for this stage."
        return misfit(layer, model, self.stage.name, list(self._viewer.layers))

    def _doubtful(self, layer: Layer) -> bool:
        model = self.models.chosen
        return model is not None and doubtful(layer, model, self.stage.name, list(self._viewer.layers))

    def _refresh(self, *_: Any) -> None:
        images = [layer for layer in reversed(self._viewer.layers) if isinstance(layer, Image)]
        self.layers.offer(images, self._misfit, self._doubtful)
        model = self.models.chosen
        self.about.setText(f"{model.spec.summary}" if model else "Install a package that carries a model.")
        self.card_button.setEnabled(model is not None)
        self.estimate_button.setVisible(model is not None and can_be_planned(self.stage.name, model))
        if self.stage.name == "segment":
            self.form.set_row_visible("diameter", model is not None and model.spec.gives.kind == "instances")
        if "target" in self.form.names() and model is not None:
            names = [label.name for label in model.spec.gives.labels]
            self.form.set_choices("target", [("most probable", ""), *((name, name) for name in names)])
        self._on_layer()

    def _on_models(self) -> None:
        """Offer the models that are here by now; the chosen one stays chosen if it is still here."""
        self.models.offer(models_for(self.stage.name))
        self._refresh()

    def _on_layer(self) -> None:
        """Show the rows that make sense for the chosen image."""
        layer = self.layers.layer
        volume = self._volume(layer) if layer is not None else None
        for name, axis in (("channel", "c"), ("frame", "t")):
            if name in self.form.names():
                size = volume.size(axis) if volume is not None else 1
                self.form.set_maximum(name, max(size - 1, 0))
                self.form.set_row_visible(name, size > 1)
        self._ask()
        self._update_button()

    def _ask(self) -> None:
        """Have the gate look at the chosen image and model."""
        layer = self.layers.layer
        chosen = {name: value for name, value in self.form.values().items() if name in ("channel", "frame")}
        self.fit.ask(self._volume(layer) if layer is not None else None, self.models.chosen, self.stage.name, **chosen)

    def _volume(self, layer: Layer) -> Volume | None:
        try:
            return layer_to_volume(layer, list(self._viewer.layers))
        except MedaiError:
            return None

    def _on_active(self, _: Any = None) -> None:
        if not self._placing:
            self._follow_active()

    @contextmanager
    def _placing_ours(self) -> Iterator[None]:
        """What is selected meanwhile was not selected by a person."""
        self._placing = True
        try:
            yield
        finally:
            self._placing = False

    def _follow_active(self) -> None:
        """Take the layer that is selected in napari, and unless one was chosen a model that takes it."""
        layer = self._viewer.layers.selection.active
        if not isinstance(layer, Image) or is_heatmap(layer):
            self.layers.choose(None)
            return
        if not self._model_pinned:
            volume = self._volume(layer)
            model = model_for(self.stage.name, volume, self.models.models) if volume is not None else None
            if model is not None:
                self.models.choose(model.id)
        self.layers.choose(layer)

    def _pin_model(self, _: int) -> None:
        self._model_pinned = True

    def _show_card(self) -> None:
        if self.models.chosen is not None:
            CardDialog(self.models.chosen, self).show()

    def _obstacle(self) -> str:
        """Why nothing can be run now; empty if it can."""
        if self.models.chosen is None:
            return f"There is no model for {self.stage.title.lower()}; install a package that carries one."
        if self.layers.layer is not None:
            return self.fit.obstacle
        if not self.layers.reasons:
            return "No image is open. Open or add one first."
        name, reason = next(iter(self.layers.reasons.items()))
        return f"No open image fits. {name}: {reason}"

    def _update_button(self) -> None:
        obstacle = self._obstacle()
        self.refusal.setText(self.layers.refusal)
        self.refusal.setVisible(bool(self.layers.refusal))
        self.run_button.setEnabled(not obstacle)
        self.estimate_button.setEnabled(not obstacle)
        self.run_button.setToolTip(f"<p>{obstacle or self.stage.summary}</p>")
        said = "" if self.fit.obstacle else obstacle  # the gate's own lines say it already
        if said or self.status.property("obstacle"):
            self._say(said)
            self.status.setProperty("obstacle", bool(said))

    def _say(self, text: str) -> None:
        self.status.setText(text)
        self.status.setProperty("obstacle", False)

    # running

    def values(self) -> dict[str, Any]:
        """The parameters as they are set."""
        return {**self.form.values(), "device": self.devices.value, "override": self.fit.override}

    @property
    def running(self) -> bool:
        """Whether a run is under way or waits for its turn."""
        return bool(self._running.runs)

    def start(self) -> None:
        """Run the stage on the chosen image with the chosen model, when it is its turn."""
        self._go(only_plan=False)

    def estimate(self) -> None:
        """Say what `start` would take, when it is its turn."""
        self._go(only_plan=True)

    def _go(self, *, only_plan: bool) -> None:
        layer, model = self.layers.layer, self.models.chosen
        if layer is None or model is None:
            return
        try:
            volume = layer_to_volume(layer, list(self._viewer.layers))
            params = self.stage.params(**self.values())
        except MedaiError as error:
            self._say(report(error))
            return
        run = Run(self.stage, layer, volume, model, params, only_plan=only_plan)
        self._running.runs.append(run)
        self._partials[run] = Partial(self._viewer, run)
        self.runs.add(run)
        self._say("")
        self._timer.start()

    def cancel(self) -> None:
        """Have the first run stop at its next tile."""
        if self._running.runs:
            self._cancel(self._running.runs[0])

    def _cancel(self, run: Run) -> None:
        run.job.cancel()
        self.runs.show_state(run)

    def _poll(self) -> None:
        for run in list(self._running.runs):
            if run not in self._running.runs:  # napari's bar let other events in
                continue
            if run.job.state.finished:
                self._finish(run)
            else:
                self._look(run)
        if not self.running:
            self._timer.stop()

    def _look(self, run: Run) -> None:
        """Show how far a run is; of what napari takes long to make, one thing at a time."""
        self.runs.show_state(run)
        if run.place.waiting_for:
            return
        state, partial = run.job.state, self._partials[run]
        begun = partial.begun
        with self._placing_ours():
            partial.look()
        if begun:
            activity = self._running.activity(run, f"{self.stage.title} {run.layer.name}")
            activity.show(state)  # lets Qt handle events: the run may be over after it
            if activity.cancelled and not state.cancelling:
                run.job.cancel()

    def _finish(self, run: Run) -> None:
        """End a run: its layers now, the rest at the next look, for the window has its turn between."""
        state, partial = run.job.state, self._partials[run]
        try:
            found = run.job.result()
            if run.only_plan:
                said = plan_text(found)
            elif partial.made is None:
                partial.made = self._place(run, found.layers, partial)
                return
            else:
                self.outcome.show_result(found.result, run.layer, run.volume, partial.made)
                said = told(found.result, state, changed=run.changed(self._volume(run.layer)))
        except Cancelled:
            said = f"Cancelled after {state.seconds:.1f} s; nothing was changed."
        except Exception as error:  # noqa: BLE001  # the run's, or napari's with its layers: no row or layer may stay
            said = report(error)
        self._running.forget(run)
        self.runs.remove(run)
        with self._placing_ours():
            self._partials.pop(run).remove()
        self._update_button()
        self._say(said)  # also where the image went or no longer fits
        if LINE.in_use:  # before the next run ends Python does not do it by itself
            gc.collect()

    def _place(self, run: Run, layers: list[Layer], partial: Partial) -> list[Layer]:
        """Put layers of a result into the viewer, wherever its image is by now; those that are there then."""
        with self._placing_ours():
            if self.replace.isChecked():
                self.earlier.drop(run)
            layers = [partial.become(layer) for layer in layers]
            layers = [layer if layer in self._viewer.layers else self._viewer.add_layer(layer) for layer in layers]
        self.earlier.add(run, layers)
        return layers

    # ending

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802  (Qt's name)
        """Taken out of its dock, which is how napari closes a panel, it ends its run."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self.stop()

    def stop(self) -> None:
        """Cancel all runs of this panel, and wait for their threads."""
        self._timer.stop()
        runs = list(self._running.runs)
        self._running.stop()
        self.fit.stop()
        with self._placing_ours():
            for run in runs:
                self.runs.remove(run)
                self._partials.pop(run).remove()
        self._update_button()
