"""Runs in a line, and what is left of one that fails."""

from __future__ import annotations

import gc
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from standins import Runner

from napari_medai.stages import STAGES
from napari_medai.ui import partial, running
from napari_medai.ui.panel import StagePanel


@pytest.fixture
def panel(make_napari_viewer: Any, runner: Runner) -> StagePanel:
    """On a scan, in a window."""
    viewer = make_napari_viewer(strict_qt=True)
    pixels = np.random.default_rng(0).random((6, 20, 30)).astype(np.float32)
    viewer.add_image(pixels, name="head", units=("mm",) * 3, axis_labels=tuple("zyx"))
    panel = StagePanel(viewer, "segment")
    viewer.window.add_dock_widget(panel, name="segment")
    return panel


class Knot:
    """Garbage that only Python's collector finds."""

    def __init__(self) -> None:
        self.itself = self


def test_old_garbage_waits_for_the_end_of_a_run_and_not_of_the_line(
    panel: StagePanel, runner: Runner, qtbot: Any
) -> None:
    before = gc.get_threshold()
    runner.does(hold=True)
    panel.start()
    panel.start()
    qtbot.waitUntil(lambda: bool(runner.calls), timeout=20_000)
    assert gc.get_threshold()[:2] == before[:2]
    assert gc.get_threshold()[2] > 10**9
    left = Knot()
    gone = weakref.ref(left)
    gc.collect()  # it is old now
    del left
    first = panel._running.runs[0]
    first.job.cancel()
    qtbot.waitUntil(lambda: len(runner.calls) == 2, timeout=20_000)
    qtbot.waitUntil(lambda: first not in panel._running.runs, timeout=5000)
    assert gone() is None
    assert panel.running
    runner.go()
    qtbot.waitUntil(lambda: not panel.running, timeout=20_000)
    assert gc.get_threshold() == before


def test_a_run_that_gets_no_thread_does_not_stand_in_the_way(
    panel: StagePanel, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(running, "Job", no_thread)
        with pytest.raises(RuntimeError, match="new thread"):
            running.Run(
                STAGES["segment"],
                panel._viewer.layers[0],
                panel._volume(panel._viewer.layers[0]),
                panel.models.chosen,
                STAGES["segment"].params(),
            )
    assert not running.LINE.in_use
    panel.start()
    qtbot.waitUntil(lambda: not panel.running, timeout=20_000)
    assert len(panel._viewer.layers) == 2


def test_a_layer_that_napari_fails_to_change_goes_and_is_told(panel: StagePanel, runner: Runner, qtbot: Any) -> None:
    def another_plugin(_: Any) -> None:
        raise ZeroDivisionError

    layers = panel._viewer.layers
    runner.does(hold=True, partial=True)
    panel.start()
    qtbot.waitUntil(lambda: len(layers) == 2, timeout=20_000)
    layers[-1].events.name.connect(another_plugin)
    runner.go()
    qtbot.waitUntil(lambda: not panel.running, timeout=20_000)
    assert "unexpectedly" in panel.status.text()
    assert [layer.name for layer in layers] == ["head"]
    panel.start()
    qtbot.waitUntil(lambda: not panel.running, timeout=20_000)
    assert [layer.name for layer in layers] == ["head", "head brain"]


def test_labels_of_more_than_napari_draws_at_once_are_seen_at_the_end(
    panel: StagePanel, runner: Runner, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "_MOST_PIXELS", 20 * 30)  # a slice of it, not the volume
    layers, dims = panel._viewer.layers, panel._viewer.dims
    for ndisplay, seen in ((2, 1), (3, 0)):
        dims.ndisplay = ndisplay
        before = len(layers)
        runner.does(hold=True, partial=True)
        panel.start()
        first = panel._running.runs[0]
        qtbot.waitUntil(lambda first=first: first.job.found is not None, timeout=20_000)
        qtbot.wait(500)
        assert len(layers) == before + seen
        runner.go()
        qtbot.waitUntil(lambda: not panel.running, timeout=20_000)
        assert len(layers) == before + 1


def test_estimates_are_offered_of_runs_that_have_tiles(panel: StagePanel, runner: Runner) -> None:
    assert not panel.estimate_button.isHidden()
    explain = StagePanel(panel._viewer, "explain")
    panel._viewer.window.add_dock_widget(explain, name="explain")
    assert explain.estimate_button.isHidden()


def test_diameters_are_asked_for_objects(panel: StagePanel) -> None:
    row = panel.form.editor("diameter")
    panel.models.choose("nuclei")
    assert not row.isHidden()
    row.setValue(30)
    panel.models.choose("brain")
    assert row.isHidden()
    assert panel.values()["diameter"] == 0


def test_large_labels_lie_in_a_folder_for_as_long_as_their_result_is_kept(
    make_napari_viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(running, "_MOST_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    viewer = make_napari_viewer()
    pixels = np.random.default_rng(0).normal(100, 8, (160, 160))
    pixels[30:60, 30:60] = pixels[90:130, 80:110] = 900
    viewer.add_image(pixels.astype(np.uint16), name="slide", units=("um",) * 2, axis_labels=tuple("yx"))
    panel = StagePanel(viewer, "segment")
    viewer.window.add_dock_widget(panel, name="segment")
    assert panel.models.choose("nuclei")
    made = []
    for _ in range(2):
        panel.start()
        qtbot.waitUntil(lambda panel=panel: not panel.running, timeout=120_000)
        labels = panel.outcome.result.labels
        assert labels.is_lazy, panel.status.text()
        gc.collect()
        (folder,) = tmp_path.glob("napari-medai-*")  # that of the run before has gone
        made.append(folder)
        np.testing.assert_array_equal(viewer.layers[-1].data, labels.numpy())
    assert made[0] != made[1]
    viewer.window.remove_dock_widget(panel)
    del panel, labels

    def gone() -> bool:
        gc.collect()
        return not list(tmp_path.glob("napari-medai-*"))

    qtbot.waitUntil(gone, timeout=5000)  # Qt deletes what was in the dock a moment later
    assert viewer.layers[-1].data.max() == 2  # in memory: it can be painted on
