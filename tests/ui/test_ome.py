"""OME-TIFF and OME-Zarr in a real viewer: opened, segmented and measured in their pixel size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari.layers import Labels

from napari_medai.core.geometry import scaling
from napari_medai.core.volume import Volume
from napari_medai.io import save
from napari_medai.ui import widgets
from napari_medai.ui.readers import ome_reader, read_ome


def nuclei() -> np.ndarray:
    """Four nuclei of 24 pixels."""
    y, x = np.mgrid[:160, :160]
    pixels = 100 + 900 / (1 + np.exp(np.hypot(y % 80 - 40, x % 80 - 40) - 12))
    return np.clip(pixels + np.random.default_rng(0).normal(0, 8, pixels.shape), 0, None).astype(np.uint16)


def test_claims() -> None:
    assert ome_reader("a.ome.tif") is ome_reader(["b.OME.TIFF", "c.ome.zarr/"]) is read_ome
    assert ome_reader("a.tif") is ome_reader(["a.ome.tif", "b.tif"]) is ome_reader("folder") is None


def write_pyramid(path: Path, pixels: np.ndarray) -> None:
    """As scanners write it: two channels, three levels, pixels of 0.5 um."""
    both = np.stack([pixels, pixels // 2])
    metadata = {"axes": "CYX"}
    metadata |= {f"PhysicalSize{axis}": 0.5 for axis in "XY"} | {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(both, subifds=2, metadata=metadata, tile=(32, 32))
        for step in (2, 4):
            file.write(both[:, ::step, ::step], subfiletype=1, tile=(32, 32))


@pytest.mark.parametrize("name", ["slide.ome.tif", "slide.ome.zarr"])
def test_ome_opens_with_its_pixel_size_and_is_measured_in_it(
    make_napari_viewer: Any, qtbot: Any, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    if name.endswith(".tif"):
        write_pyramid(path, nuclei())
    else:
        save(Volume(nuclei(), "yx", scaling((1, 0.5, 0.5)), "um", "fluorescence", "slide"), path)
    viewer = make_napari_viewer()
    opened = viewer.open(str(path), plugin="napari-medai")
    assert len(opened) == (2 if name.endswith(".tif") else 1)
    for layer in opened:
        assert tuple(layer.scale) == (0.5, 0.5)
        assert {str(unit) for unit in layer.units} == {"micrometer"}
    if name.endswith(".tif"):
        assert [tuple(level.shape) for level in opened[0].data] == [(160, 160), (80, 80), (40, 40)]
    viewer.layers.selection.active = opened[0]
    panel = widgets.segment_panel(viewer)
    viewer.window.add_dock_widget(panel, name="segment")
    assert (panel.layers.layer, panel.models.chosen.id) == (opened[0], "nuclei")
    panel.devices.setCurrentIndex(panel.devices.findData("cpu"))
    qtbot.waitUntil(panel.run_button.isEnabled, timeout=20_000)
    panel.run_button.click()
    qtbot.waitUntil(lambda: not panel.running, timeout=120_000)
    made = viewer.layers[-1]
    assert isinstance(made, Labels), panel.status.text()
    assert made.data.shape == (160, 160)  # on the finest level
    np.testing.assert_allclose(made.extent.world, opened[0].extent.world)
    table = panel.outcome.result.table
    counted = np.bincount(np.asarray(made.data).ravel())[table["label"]]
    np.testing.assert_allclose(table["area_um2"], counted * 0.25)
    assert len(counted) >= 4
