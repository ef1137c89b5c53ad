"""Every stage with its real model through its panel, on small phantoms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from napari.layers import Image, Labels, Points, Shapes

from napari_medai.core.geometry import scaling
from napari_medai.core.result import Mask, Scores
from napari_medai.core.volume import Volume
from napari_medai.ui import widgets
from napari_medai.ui.layers import volume_to_layers

pytestmark = pytest.mark.usefixtures("no_leaked_threads")


def discs(shape: tuple[int, ...], centres: list[tuple[int, ...]], radius: float) -> np.ndarray:
    """Soft bright discs or balls on a dim, noisy ground."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    pixels = 100 + np.random.default_rng(0).normal(0, 8, shape)
    for centre in centres:
        far = np.sqrt(((index - np.array(centre)) ** 2).sum(axis=-1))
        pixels += 900 / (1 + np.exp(far - radius))
    return np.clip(pixels, 0, None).astype(np.uint16)


def slide() -> Volume:
    """Four nuclei of 24 pixels, two with a micronucleus beside them, on 0.5 um pixels."""
    pixels = discs((160, 160), [(40, 40), (40, 115), (115, 40), (115, 115)], 12)
    small = discs((160, 160), [(40, 60), (115, 134)], 3)
    return Volume(np.maximum(pixels, small), "yx", scaling((1, 0.5, 0.5)), "um", "fluorescence", "slide")


def corner() -> Volume:
    """A quarter of the slide."""
    whole = slide()
    return whole.replace(array=whole.array[:64, :64])


def stack() -> Volume:
    """Three balls of 10 voxels in 2 x 1 x 1 mm."""
    pixels = discs((20, 64, 64), [(6, 16, 16), (10, 44, 40), (14, 20, 50)], 5)
    return Volume(pixels, "zyx", scaling((2, 1, 1), (-20, 10, 30)), "mm", "MR", "stack")


@pytest.mark.parametrize(
    ("stage", "model", "scan", "params", "kind"),
    [
        ("denoise", "self2d", corner, {"steps": 5}, Image),
        ("segment", "nuclei", slide, {}, Labels),
        ("classify", "quality", stack, {}, None),
        ("detect", "micronuclei", slide, {}, Shapes),
        ("detect", "blobs3d", stack, {}, Points),
        ("explain", "quality", stack, {"method": "gradcam++"}, Image),
        ("explain", "nuclei", slide, {"method": "gradcam++"}, Image),
    ],
)
def test_stage(
    make_napari_viewer: Any, qtbot: Any, stage: str, model: str, scan: Any, params: dict[str, Any], kind: type | None
) -> None:
    viewer = make_napari_viewer()
    volume = scan()
    for data, keywords, _ in volume_to_layers(volume):
        viewer.add_image(data, **keywords)
    panel = getattr(widgets, f"{stage}_panel")(viewer)
    viewer.window.add_dock_widget(panel, name=stage)
    assert panel.models.choose(model)
    panel.devices.setCurrentIndex(panel.devices.findData("cpu"))
    for name, value in params.items():
        panel.form.set_value(name, value)
    panel.run_button.click()
    assert panel.running
    qtbot.waitUntil(lambda: not panel.running, timeout=120_000)
    result = panel.outcome.result
    assert result is not None, panel.status.text()
    record = result.provenance
    assert (record.stage, record.model, record.device, record.inputs) == (stage, model, "cpu", (volume.name,))
    if kind is None:
        assert isinstance(result, Scores)
        assert result.attention.sum() == pytest.approx(1)
        assert len(viewer.layers) == 1
        return
    made = viewer.layers[-1]
    assert type(made) is kind
    assert len(viewer.layers) == 2
    if kind in (Image, Labels):
        np.testing.assert_allclose(made.extent.world, viewer.layers[0].extent.world)
    if isinstance(result, Mask):
        assert len(result.table["label"]) >= 4
        panel.outcome.table.select(0)
