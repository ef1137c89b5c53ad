"""Every entry that the plugin adds to napari's menus does what it says."""

from __future__ import annotations

import pytest
from napari._app_model import get_app_model

from napari_medai.core.errors import SampleError
from napari_medai.samples import SAMPLES, sample_path
from napari_medai.stages import STAGES


def entries(menu):
    return {
        item.command.id: item.command.title for item in get_app_model().menus.get_menu(menu) if hasattr(item, "command")
    }


def test_entries(make_napari_viewer):
    make_napari_viewer()
    for stage in STAGES.values():
        assert entries(stage.menu)[f"napari-medai.{stage.name}"] == f"{stage.title} (napari-medai)"
        assert f"napari-medai.{stage.name}" in entries("napari/plugins/napari-medai")
    assert {"napari-medai.open_dicom_folder", "napari-medai.open_dicom_files"} <= set(
        entries("napari/file/io_utilities")
    )
    samples = entries("napari/file/samples/napari-medai")
    assert samples == {f"napari-medai.{key}": sample.title for key, sample in SAMPLES.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_stage_opens_its_dock(make_napari_viewer, stage):
    viewer = make_napari_viewer()
    get_app_model().commands.execute_command(f"napari-medai.{stage}").result()
    assert f"{STAGES[stage].title} (napari-medai)" in viewer.window.dock_widgets


@pytest.mark.parametrize("key", SAMPLES)
def test_sample_opens(make_napari_viewer, key):
    try:
        sample_path(key)
    except SampleError as error:
        pytest.skip(str(error))
    viewer = make_napari_viewer()
    layers = viewer.open_sample("napari-medai", key)
    assert layers
    for layer in layers:
        assert len(layer.units) == len(layer.axis_labels) == layer.ndim
        assert layer.metadata["medai"]["volume"] is not None


def test_missing_sample_is_said_plainly(make_napari_viewer, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDAI_CACHE", str(tmp_path))
    monkeypatch.delenv("MEDAI_MIRROR", raising=False)
    viewer = make_napari_viewer()
    with pytest.raises(SampleError, match="medai samples"):
        viewer.open_sample("napari-medai", "head_mr")
    assert len(viewer.layers) == 0
