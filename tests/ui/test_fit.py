"""What the panel says of an image and a model before anything is run."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
from napari.components import ViewerModel
from standins import MODELS, Runner

from napari_medai.core.geometry import scaling
from napari_medai.core.volume import Volume
from napari_medai.models.spec import Model
from napari_medai.ui.fit import FitView
from napari_medai.ui.layers import volume_to_layers
from napari_medai.ui.panel import StagePanel


def changed(model: Model, **accepts: Any) -> Model:
    spec = model.spec
    return model.model_copy(
        update={"spec": spec.model_copy(update={"accepts": spec.accepts.model_copy(update=accepts)})}
    )


BRAIN = next(model for model in MODELS if model.id == "brain")
WINDOWED = changed(BRAIN, intensity=(0.0, 1.0))


def head(modality: str = "MR", value: float = 500.0, lazy: bool = False) -> Volume:
    array = np.full((8, 20, 24), value)
    array[0] = 0
    return Volume(
        da.from_array(array) if lazy else array, "zyx", scaling((4, 1, 1)), "mm", modality, f"{modality} head"
    )


def panel_on(qtbot: Any, *volumes: Volume) -> tuple[StagePanel, ViewerModel]:
    layers = ViewerModel()
    for volume in volumes:
        for data, keywords, kind in volume_to_layers(volume):
            assert kind == "image"
            layers.add_image(data, **keywords)
    panel = StagePanel(layers, "segment")
    qtbot.addWidget(panel)
    panel.models.choose("brain")
    return panel, layers


def test_another_modality_blocks_until_it_is_overridden(qtbot: Any, runner: Runner) -> None:
    panel, layers = panel_on(qtbot, head("CT"))
    assert "made for MR; this image is CT" in panel.fit.text.text()
    assert not panel.run_button.isEnabled()
    assert not panel.fit.anyway.isHidden()
    panel.fit.anyway.setChecked(True)
    assert panel.run_button.isEnabled()
    panel.run_button.click()
    qtbot.waitUntil(lambda: not panel.running, timeout=10_000)
    assert runner.calls[-1]["params"]["override"] is True
    # another image is another question
    for data, keywords, _ in volume_to_layers(head("PT")):
        panel.layers.choose(layers.add_image(data, **keywords))
    assert not panel.fit.anyway.isChecked()
    assert not panel.run_button.isEnabled()


def test_an_image_that_fits_is_taken_before_one_that_does_not(qtbot: Any, runner: Runner) -> None:
    _, layers = panel_on(qtbot, head("MR"), head("CT"))
    layers.layers.selection.active = None
    fresh = StagePanel(layers, "segment")
    qtbot.addWidget(fresh)
    fresh.models.choose("brain")
    assert fresh.layers.layer is layers.layers["MR head"]
    assert fresh.fit.text.text() == ""
    assert fresh.fit.text.isHidden()
    assert fresh.run_button.isEnabled()


def test_what_cannot_be_computed_cannot_be_overridden(qtbot: Any) -> None:
    view = FitView()
    qtbot.addWidget(view)
    view.ask(head().take("z", 0), BRAIN, "segment")
    assert "works on 3-D images" in view.obstacle
    assert view.anyway.isHidden()
    view.ask(None, BRAIN, "segment")
    assert view.obstacle == ""


@pytest.mark.parametrize("lazy", [False, True])
def test_values_are_looked_at_and_a_lazy_image_in_a_thread(qtbot: Any, lazy: bool) -> None:
    view = FitView()
    qtbot.addWidget(view)
    view.ask(head(lazy=lazy), WINDOWED, "segment")
    if lazy:
        assert view.findings == ()
        with qtbot.waitSignal(view.changed, timeout=5000):
            pass
    assert [f.about for f in view.findings] == ["values"]
    assert "500" in view.text.text()
    assert view.obstacle == ""
    view.stop()
