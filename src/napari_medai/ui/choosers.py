"""The lists at the top of a panel: which image, which model, which device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtWidgets import QComboBox, QWidget

from napari_medai.models.spec import Model
from napari_medai.ui import running
from napari_medai.ui.job import Job

if TYPE_CHECKING:
    from napari.layers import Layer

    from napari_medai.engine.device import DeviceInfo

# How soon after a panel appears its devices are looked for: not while napari still lays out the dock.
_LOOK_AFTER_MS = 400
_POLL_MS = 100


class Chooser(QComboBox):
    """A list that may be narrower than its longest entry, as a dock is."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(8)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)

    def wheelEvent(self, event: Any) -> None:  # noqa: N802  (Qt's name)
        """Scrolling the panel must not change what is chosen."""
        event.ignore()


class LayerChooser(Chooser):
    """Offers layers; those that do not fit stay in the list, disabled, with the reason as their tooltip.

    Signals
    -------
    layer_chosen
        Another layer is the chosen one, by a person or because the last one went or no longer fits; or `refusal`
        says something else.
    """

    layer_chosen = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._layers: list[Layer] = []
        self._chosen: Layer | None = None
        self._refused: Layer | None = None  # was to be chosen and did not fit
        self.reasons: dict[str, str] = {}
        self.currentIndexChanged.connect(self._on_index)

    def offer(
        self,
        layers: Iterable[Layer],
        misfit: Callable[[Layer], str],
        doubtful: Callable[[Layer], bool] = lambda _: False,
    ) -> None:
        """Fill the list; the chosen layer stays chosen if it is still there and fits, unless one that was refused does.

        Parameters
        ----------
        layers : iterable of Layer
            In the order of the list.
        misfit : callable
            Gives the reason why a layer does not fit, empty if it does.
        doubtful : callable
            Whether a layer that fits is better not taken unless a person chooses it.
        """
        blocked = self.blockSignals(True)
        self.clear()
        self._layers = list(layers)
        self.reasons = {}
        fitting = []
        for n, layer in enumerate(self._layers):
            self.addItem(layer.name)
            reason = misfit(layer)
            if reason:
                self.reasons[layer.name] = reason
                item = self.model().item(n)
                item.setEnabled(False)
                item.setToolTip(f"<p>{reason}</p>")
            else:
                fitting.append(layer)
        if not any(layer is self._refused for layer in self._layers):
            self._refused = None
        if any(layer is self._refused for layer in fitting):
            chosen, self._refused = self._refused, None
        elif not any(layer is self._chosen for layer in fitting):
            chosen = next((layer for layer in fitting if not doubtful(layer)), fitting[0] if fitting else None)
        else:
            chosen = self._chosen
        self.setCurrentIndex(self._index(chosen))
        self.blockSignals(blocked)
        self.setEnabled(bool(self._layers))  # open even if none fits: the list tells why
        if not fitting:
            self.setPlaceholderText("no fitting image" if self._layers else "no image open")
        if chosen is not self._chosen:
            self._chosen = chosen
            self.layer_chosen.emit()

    def _index(self, layer: Layer | None) -> int:
        return next((n for n, candidate in enumerate(self._layers) if candidate is layer), -1)

    def _on_index(self, index: int) -> None:
        self._refused = None
        self._chosen = self._layers[index] if index >= 0 else None
        self.layer_chosen.emit()

    @property
    def layer(self) -> Layer | None:
        """The chosen layer, if any fits."""
        return self._chosen

    def choose(self, layer: Layer | None) -> bool:
        """Choose a layer; whether it is in the list and fits. None: no layer is asked for any longer."""
        index = -1 if layer is None else self._index(layer)
        fits = index >= 0 and self.model().item(index).isEnabled()
        before, self._refused = self._refused, layer if index >= 0 and not fits else None
        if fits and index != self.currentIndex():
            self.setCurrentIndex(index)
        elif self._refused is not before:
            self.layer_chosen.emit()
        return fits

    @property
    def refusal(self) -> str:
        """Why the layer that was to be chosen is not, and which one is; empty if none was refused."""
        if self._refused is None or self._chosen is None:
            return ""
        name, chosen = self._refused.name, self._chosen.name
        return f"The selected image {name!r} does not fit: {self.reasons[name]} The image here is still {chosen!r}."


class ModelChooser(Chooser):
    """Offers models by title."""

    def __init__(self, models: Sequence[Model], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.models: tuple[Model, ...] = ()
        self.setPlaceholderText("no model installed")
        self.offer(models)

    def offer(self, models: Sequence[Model]) -> None:
        """Fill the list; the chosen model stays chosen if it is still there."""
        chosen = self.chosen
        blocked = self.blockSignals(True)
        self.clear()
        self.models = tuple(models)
        for n, model in enumerate(self.models):
            self.addItem(model.spec.title)
            self.setItemData(n, f"<p><b>{model.id}</b>: {model.spec.summary}</p>", Qt.ItemDataRole.ToolTipRole)
        if chosen is not None:
            self.choose(chosen.id)
        self.blockSignals(blocked)

    @property
    def chosen(self) -> Model | None:
        """The chosen model."""
        index = self.currentIndex()
        return self.models[index] if index >= 0 else None

    def choose(self, model_id: str) -> bool:
        """Choose a model by its id; whether it is in the list."""
        for n, model in enumerate(self.models):
            if model.id == model_id:
                self.setCurrentIndex(n)
                return True
        return False


class DeviceChooser(Chooser):
    """Offers the devices with their free memory, asked of the worker: this process needs no torch."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.addItem("Automatic", "auto")
        self.addItem("CPU", "cpu")
        self.setToolTip("<p>Where the model runs; automatic takes an accelerator if there is one.</p>")
        self._job: Job[Sequence[DeviceInfo]] | None = None
        self._looked = False
        self._timer = QTimer(self)
        self._timer.setInterval(_POLL_MS)
        self._timer.timeout.connect(self._poll)

    @property
    def value(self) -> str:
        """What the parameter ``device`` takes."""
        return str(self.currentData())

    def showEvent(self, event: Any) -> None:  # noqa: N802  (Qt's name)
        """The first time it is seen it looks for devices."""
        super().showEvent(event)
        if not self._looked:
            QTimer.singleShot(_LOOK_AFTER_MS, self.look)

    def showPopup(self) -> None:  # noqa: N802
        """Opened, it brings the free memory up to date."""
        self.look()
        super().showPopup()

    def look(self) -> None:
        """Look for devices; the list changes when they are known."""
        if self._job is None:
            self._looked = True
            self._job = Job(lambda _: _devices(), name="medai-devices")
            self._timer.start()

    def _poll(self) -> None:
        if self._job is None or not self._job.state.finished:
            return
        job, self._job = self._job, None
        self._timer.stop()
        if job.error is not None:
            self.setToolTip(f"<p>The devices could not be listed: {job.error}</p>")
            return
        self._fill(job.result())

    def _fill(self, devices: Sequence[DeviceInfo]) -> None:
        value = self.value
        best: dict[str, DeviceInfo] = {}
        for device in devices:  # of several of a kind the first one is taken: it has most memory free
            best.setdefault(device.kind, device)
        blocked = self.blockSignals(True)
        self.clear()
        first = next(iter(best.values()))
        self.addItem(f"Automatic ({first.kind.upper()})", "auto")
        for kind, device in best.items():
            self.addItem(f"{device.title}, {device.free_mb / 1024:.1f} GiB free", kind)
            self.setItemData(self.count() - 1, str(device), Qt.ItemDataRole.ToolTipRole)
        self.setCurrentIndex(max(self.findData(value), 0))
        self.blockSignals(blocked)


def _devices() -> Sequence[DeviceInfo]:
    return running.WORKER.devices()
