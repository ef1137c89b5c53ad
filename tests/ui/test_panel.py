"""The panel in a real viewer, with stages that cost nothing."""

from __future__ import annotations

import gc
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer, Points, Shapes
from napari.utils import progress
from napari.utils._proxies import PublicOnlyProxy
from napari.utils.notifications import ErrorNotification, notification_manager
from qtpy.QtWidgets import QApplication
from standins import MODELS, PLAN, Runner

from napari_medai.core.volume import Volume
from napari_medai.stages import STAGES
from napari_medai.ui import partial, running, widgets
from napari_medai.ui.card import CardDialog
from napari_medai.ui.layers import layer_to_volume, result_to_layers, volume_to_layers
from napari_medai.ui.panel import StagePanel
from napari_medai.ui.reslicing import PaintedView
from napari_medai.ui.runlist import RunRow

PANELS = {
    "denoise": widgets.denoise_panel,
    "segment": widgets.segment_panel,
    "classify": widgets.classify_panel,
    "detect": widgets.detect_panel,
    "explain": widgets.explain_panel,
}


@pytest.fixture(autouse=True)
def nothing_left(runner: Runner) -> Iterator[None]:
    """Fails a test that leaves a bar behind."""
    yield
    assert not progress._all_instances


@pytest.fixture
def viewer(make_napari_viewer: Any) -> Any:
    return make_napari_viewer(strict_qt=True)


@pytest.fixture
def layers(qtbot: Any) -> Any:
    """A viewer without a window: enough for what a panel offers, and ten times as fast."""
    return ViewerModel()


def volume() -> np.ndarray:
    return np.random.default_rng(0).random((6, 20, 30)).astype(np.float32)


def add_scan(viewer: Any, name: str = "head", **keywords: Any) -> Image:
    place = {
        "scale": (4.0, 1.0, 1.0),
        "translate": (-40.0, 5.0, 7.0),
        "units": ("mm",) * 3,
        "axis_labels": tuple("zyx"),
    }
    return viewer.add_image(volume(), name=name, **(place | keywords))


def add_slide(viewer: Any, name: str = "slide") -> Image:
    return viewer.add_image(volume()[0], name=name, units=("mm",) * 2, axis_labels=tuple("yx"))


def dock(viewer: Any, stage: str) -> StagePanel:
    panel = PANELS[stage](viewer)
    viewer.window.add_dock_widget(panel, name=stage)
    return panel


def undocked(qtbot: Any, layers: Any, stage: str) -> StagePanel:
    panel = PANELS[stage](layers)
    qtbot.addWidget(panel)
    return panel


def run(panel: StagePanel, qtbot: Any) -> None:
    assert panel.run_button.isEnabled()
    panel.run_button.click()
    assert panel.running
    qtbot.waitUntil(lambda: not panel.running, timeout=10_000)


def messages() -> list[str]:
    return [record.message for record in notification_manager.records]


# what is offered


@pytest.mark.parametrize("stage", STAGES)
def test_offers_the_models_of_its_stage(layers: Any, qtbot: Any, stage: str) -> None:
    panel = undocked(qtbot, layers, stage)
    ids = [model.id for model in panel.models.models]
    if stage == "explain":
        assert ids == ["brain", "nuclei", "quality"]
    else:
        assert ids == [model.id for model in MODELS if model.spec.stage == stage]


def test_nothing_open_says_so(layers: Any, qtbot: Any) -> None:
    panel = undocked(qtbot, layers, "segment")
    assert not panel.run_button.isEnabled()
    assert "No image is open" in panel.run_button.toolTip()
    assert "No image is open" in panel.status.text()
    panel.start()  # as a script might
    assert not panel.running
    add_scan(layers)
    assert panel.run_button.isEnabled()
    assert panel.status.text() == ""


def test_layers_that_do_not_fit_are_shown_with_the_reason(layers: Any, qtbot: Any) -> None:
    slide, head = add_slide(layers), add_scan(layers)
    layers.add_labels(np.zeros((4, 4), int), name="drawn")
    panel = undocked(qtbot, layers, "segment")
    assert panel.models.choose("brain")
    assert [panel.layers.itemText(n) for n in range(panel.layers.count())] == ["head", "slide"]
    assert panel.layers.layer is head
    assert not panel.layers.choose(slide)
    assert panel.layers.reasons == {"slide": "Model 'brain' works on 3-D images; this one is 2-D with the axes 'yx'."}
    panel.models.choose("nuclei")
    assert panel.layers.layer is slide
    assert list(panel.layers.reasons) == ["head"]


def test_no_fitting_layer_gives_the_reason(layers: Any, qtbot: Any) -> None:
    add_slide(layers)
    panel = undocked(qtbot, layers, "segment")
    panel.models.choose("brain")
    assert not panel.run_button.isEnabled()
    assert panel.status.text() == (
        "No open image fits. slide: Model 'brain' works on 3-D images; this one is 2-D with the axes 'yx'."
    )


def test_follows_the_selected_layer_and_takes_a_model_for_it(layers: Any, qtbot: Any) -> None:
    slide, head = add_slide(layers), add_scan(layers)
    layers.layers.selection.active = slide
    panel = undocked(qtbot, layers, "detect")
    assert (panel.layers.layer, panel.models.chosen.id) == (slide, "micronuclei")
    layers.layers.selection.active = head
    assert (panel.layers.layer, panel.models.chosen.id) == (head, "blobs3d")


def test_selected_image_that_does_not_fit_is_told_and_taken_once_it_does(layers: Any, qtbot: Any) -> None:
    slide, head = add_slide(layers), add_scan(layers)
    panel = undocked(qtbot, layers, "denoise")
    panel.models.choose("self3d")
    panel._pin_model(0)
    assert panel.refusal.isHidden()
    layers.layers.selection.active = slide
    assert panel.layers.layer is head
    assert not panel.refusal.isHidden()
    assert panel.refusal.text() == (
        "The selected image 'slide' does not fit: Model 'self3d' works on 3-D images; this one is 2-D with the axes "
        "'yx'. The image here is still 'head'."
    )
    panel.models.choose("self2d")  # takes both
    assert panel.layers.layer is slide
    assert panel.refusal.isHidden()
    panel.models.choose("self3d")
    layers.layers.selection.active = head
    layers.layers.selection.active = slide
    assert not panel.refusal.isHidden()
    layers.layers.selection.active = head
    assert panel.refusal.isHidden()
    layers.layers.selection.active = slide
    layers.layers.remove(slide)
    assert panel.refusal.isHidden()


def test_model_that_a_person_chose_stays(layers: Any, qtbot: Any) -> None:
    slide, head = add_slide(layers), add_scan(layers)
    layers.layers.selection.active = slide
    panel = undocked(qtbot, layers, "detect")
    panel.models.activated.emit(0)
    layers.layers.selection.active = head
    assert (panel.layers.layer, panel.models.chosen.id) == (slide, "micronuclei")


def test_volumes_are_denoised_as_volumes(layers: Any, qtbot: Any) -> None:
    add_scan(layers)
    assert undocked(qtbot, layers, "denoise").models.chosen.id == "self3d"


def test_list_follows_adding_renaming_and_removing(layers: Any, qtbot: Any) -> None:
    panel = undocked(qtbot, layers, "classify")
    head = add_scan(layers)
    add_scan(layers, "second")
    names = lambda: [panel.layers.itemText(n) for n in range(panel.layers.count())]  # noqa: E731
    assert names() == ["second", "head"]
    head.name = "first"
    assert names() == ["second", "first"]
    layers.layers.selection.active = head
    assert panel.layers.layer is head
    layers.layers.remove(head)
    assert names() == ["second"]
    assert panel.layers.layer.name == "second"


def test_proxy_of_a_viewer_that_napari_gives_to_plugins(layers: Any, qtbot: Any) -> None:
    add_slide(layers)
    head, _ = add_scan(layers), add_scan(layers, "second")
    panel = undocked(qtbot, PublicOnlyProxy(layers), "segment")
    layers.layers.selection.active = head
    assert panel.layers.layer is head
    panel.models.activated.emit(0)  # brain: slides do not fit
    add_slide(layers, "later")  # fills the list again
    assert panel.layers.layer is head


def test_channel_and_time_are_asked_for_where_there_are_any(layers: Any, qtbot: Any) -> None:
    data = np.random.default_rng(0).random((3, 2, 20, 20)).astype(np.float32)
    many = layers.add_image(data, name="many", axis_labels=tuple("tcyx"), units=("pixel",) * 4)
    slide = add_slide(layers)
    layers.layers.selection.active = many
    panel = undocked(qtbot, layers, "classify")
    assert panel.form.editor("channel").maximum() == 1
    assert panel.form.editor("frame").maximum() == 2
    assert panel.form._rows.isRowVisible(panel.form.editor("frame"))
    panel.form.set_value("frame", 2)
    layers.layers.selection.active = slide
    assert panel.layers.layer is slide
    assert not panel.form._rows.isRowVisible(panel.form.editor("frame"))
    assert panel.values()["frame"] == 0


def test_explain_offers_the_classes_of_its_model(layers: Any, qtbot: Any) -> None:
    add_scan(layers)
    panel = undocked(qtbot, layers, "explain")
    assert panel.models.chosen.id == "quality"
    target = panel.form.editor("target")
    texts = [target.itemText(n) for n in range(target.count())]
    assert texts == ["most probable", "noise", "blur", "motion", "ghosting", "bias field", "clipping"]
    panel.models.choose("brain")
    assert [target.itemText(n) for n in range(target.count())] == ["most probable", "brain"]


def test_card_opens_and_closes_with_the_panel(layers: Any, qtbot: Any) -> None:
    panel = undocked(qtbot, layers, "segment")
    panel.card_button.click()
    (dialog,) = panel.findChildren(CardDialog)
    assert "Stands in for" in dialog.text.toPlainText()


# running


def test_sends_the_params_and_the_volume_to_the_worker(viewer: Any, runner: Runner, qtbot: Any) -> None:
    head = add_scan(viewer)
    panel = dock(viewer, "denoise")
    panel.form.set_value("strength", 0.5)
    panel.form.set_value("seed", 7)
    run(panel, qtbot)
    (call,) = runner.calls
    assert (call["stage"], call["model"], call["name"]) == ("denoise", "self3d", "head")
    params = call["params"]
    assert (params["strength"], params["seed"], params["device"]) == (0.5, 7, "auto")
    assert call["sum"] == pytest.approx(float(head.data.sum(dtype=np.float64)))
    assert (call["axes"], call["units"], call["spacing"]) == ("zyx", "mm", [4.0, 1.0, 1.0])
    assert call["pid"] == running.WORKER.pid != os.getpid()


@pytest.mark.parametrize(
    ("stage", "kind"), [("denoise", Image), ("segment", Labels), ("detect", Points), ("explain", Image)]
)
def test_result_lies_on_the_scan(viewer: Any, qtbot: Any, stage: str, kind: type) -> None:
    head = add_scan(viewer)
    panel = dock(viewer, stage)
    run(panel, qtbot)
    assert len(viewer.layers) == 2
    made = viewer.layers[1]
    assert type(made) is kind
    assert made.axis_labels == ("z", "y", "x")
    assert [str(unit) for unit in made.units] == ["millimeter"] * 3
    assert made.metadata["medai"]["provenance"]["stage"] == stage
    if kind is not Points:
        np.testing.assert_allclose(made.extent.world, head.extent.world)
    assert panel.layers.layer is head  # not its own result
    assert panel.runs.isHidden()


def test_second_run_adds_a_layer(viewer: Any, runner: Runner, qtbot: Any) -> None:
    add_scan(viewer)
    panel = dock(viewer, "segment")
    run(panel, qtbot)
    run(panel, qtbot)
    assert [layer.name for layer in viewer.layers] == ["head", "head brain", "head brain [1]"]
    assert [call["name"] for call in runner.calls] == ["head", "head"]


def test_second_run_replaces_if_asked_but_never_what_was_edited(viewer: Any, qtbot: Any) -> None:
    add_scan(viewer)
    panel = dock(viewer, "segment")
    panel.replace.setChecked(True)
    run(panel, qtbot)
    first = viewer.layers[1]
    run(panel, qtbot)
    assert len(viewer.layers) == 2
    assert viewer.layers[1] is not first
    viewer.layers[1].paint((2, 5, 5), 3)
    run(panel, qtbot)
    assert len(viewer.layers) == 3


def row(panel: StagePanel, n: int = 0) -> RunRow:
    return list(panel.runs.rows.values())[n]


def test_button_cancels(viewer: Any, runner: Runner, qtbot: Any) -> None:
    add_scan(viewer)
    panel = dock(viewer, "segment")
    runner.does(hold=True)
    panel.run_button.click()
    shown = row(panel)
    assert shown.title.text() == "head · Brain"
    qtbot.waitUntil(lambda: "Tile 3 of 4" in shown.text.text(), timeout=20_000)
    assert shown.bar.value() == 50
    assert panel.run_button.isEnabled()
    shown.button.click()
    assert not shown.button.isEnabled()
    qtbot.waitUntil(lambda: not panel.running, timeout=5000)
    assert panel.status.text().startswith("Cancelled after")
    assert not panel.runs.rows
    assert len(viewer.layers) == 1
    runner.does()
    run(panel, qtbot)
    assert len(viewer.layers) == 2


def test_activity_dock_shows_progress_and_cancels(viewer: Any, runner: Runner, qtbot: Any) -> None:
    add_scan(viewer)
    panel = dock(viewer, "segment")
    runner.does(hold=True)
    panel.run_button.click()
    qtbot.waitUntil(lambda: len(progress._all_instances) == 1, timeout=20_000)
    (bar,) = progress._all_instances
    assert "Segment head" in bar.desc
    qtbot.waitUntil(lambda: bar.n == 50, timeout=5000)
    bar.cancel()
    qtbot.waitUntil(lambda: not panel.running, timeout=5000)
    assert panel.status.text().startswith("Cancelled after")
    assert not progress._all_instances


def test_runs_of_two_docks_queue(viewer: Any, runner: Runner, qtbot: Any) -> None:
    add_scan(viewer)
    segment, denoise = dock(viewer, "segment"), dock(viewer, "denoise")
    runner.does(hold=True)
    segment.run_button.click()
    denoise.run_button.click()
    segment.models.choose("nuclei")
    segment.models.choose("brain")
    segment.run_button.click()
    segment.run_button.click()
    qtbot.waitUntil(lambda: "Tile 3 of 4" in row(segment).text.text(), timeout=20_000)
    assert len(segment.runs.rows) == 3
    assert row(denoise).waiting.text() == "Waiting for Segment head"
    assert row(denoise).bar.isHidden()
    assert row(segment, 1).waiting.text() == "Waiting for 2 runs, first Segment head"
    row(segment, 2).button.click()  # waiting can be cancelled
    qtbot.waitUntil(lambda: len(segment.runs.rows) == 2, timeout=5000)
    assert len(runner.calls) == 1
    runner.go()
    qtbot.waitUntil(lambda: not segment.running and not denoise.running, timeout=20_000)
    assert [call["stage"] for call in runner.calls] == ["segment", "denoise", "segment"]
    # each dock looks for itself whether its run is over
    assert {layer.name for layer in viewer.layers} == {"head", "head brain", "head denoised", "head brain [1]"}


def test_plan_stands_in_the_dock_while_it_runs(viewer: Any, runner: Runner, qtbot: Any) -> None:
    add_scan(viewer)
    panel = dock(viewer, "segment")
    runner.does(hold=True, plan=True)
    panel.run_button.click()
    qtbot.waitUntil(lambda: str(PLAN) in row(panel).text.text(), timeout=20_000)
    runner.go()
    qtbot.waitUntil(lambda: not panel.running, timeout=5000)


def test_estimate_says_the_plan_and_changes_nothing(viewer: Any, runner: Runner, qtbot: Any) -> None:
    add_scan(viewer)
    panel = dock(viewer, "segment")
    runner.does(plan=True)
    panel.estimate_button.click()
    assert row(panel).title.text() == "Estimate head · Brain"
    qtbot.waitUntil(lambda: not panel.running, timeout=20_000)
    assert panel.status.text() == f"{PLAN}."
    runner.does()
    panel.estimate_button.click()
    qtbot.waitUntil(lambda: not panel.running, timeout=20_000)
    assert panel.status.text() == "This model does not go over the image in tiles."
    assert len(viewer.layers) == 1
    assert panel.outcome.isHidden()


def placed(viewer: Any, scan: Volume, **how: Any) -> Image:
    (data, keywords, _) = volume_to_layers(scan, **how)[0]
    return viewer.add_image(data, **keywords)


def test_labels_are_seen_as_they_are_found(
    viewer: Any, runner: Runner, qtbot: Any, oblique_scan: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "_SECONDS_BETWEEN", 0.0)
    itself = placed(viewer, oblique_scan)
    # in the space of another scan, whose axes are the world's, it is seen through a view
    tilted = placed(viewer, oblique_scan.replace(name="tilted"), to_world=np.eye(4))
    panel = dock(viewer, "segment")
    panel.fit.anyway.setChecked(True)
    for scan in (itself, tilted):
        viewer.layers.selection.active = scan
        panel.layers.choose(scan)
        runner.does(hold=True, partial=True, pause=0.06)
        panel.run_button.click()
        qtbot.waitUntil(lambda: len(viewer.layers) == 3, timeout=20_000)
        seen = viewer.layers[-1]
        assert isinstance(seen, Labels)
        assert seen.name == f"{scan.name} brain (running)"
        assert viewer.layers.selection.active is scan
        assert not seen.editable
        if scan is itself:  # a view of labels has finer voxels than that of the image
            np.testing.assert_allclose(seen.extent.world, scan.extent.world)
        assert isinstance(seen.data, PaintedView) == (scan is tilted)
        qtbot.waitUntil(lambda: np.asarray(seen.data).any(), timeout=20_000)  # noqa: B023
        # three of four parts are found when it holds, planes 0..3 of 6
        source = seen.data.source if isinstance(seen.data, PaintedView) else seen.data
        assert source.shape == (6, 20, 16)
        viewer.dims.set_current_step(0, viewer.dims.nsteps[0] // 2)
        qtbot.waitUntil(lambda: np.asarray(source).sum() == 4 * 20 * 16, timeout=5000)  # noqa: B023
        qtbot.waitUntil(lambda: np.asarray(seen._slice.image.raw).any(), timeout=5000)  # noqa: B023
        seen.opacity = 0.25
        runner.go()
        qtbot.waitUntil(lambda: not panel.running, timeout=20_000)
        (made,) = [layer for layer in viewer.layers if isinstance(layer, Labels)]
        assert made is seen  # it has become the result
        assert made.name == f"{scan.name} brain"
        assert (made.opacity, made.editable) == (0.25, True)
        assert made.features["name"].tolist()[-1] == "brain"
        fresh = Layer.create(*result_to_layers(panel.outcome.result, scan)[0])
        np.testing.assert_array_equal(np.asarray(made.data), np.asarray(fresh.data))
        np.testing.assert_allclose(made.extent.world, fresh.extent.world)
        assert made.metadata["medai"].keys() == fresh.metadata["medai"].keys()
        np.testing.assert_array_equal(layer_to_volume(made).array, panel.outcome.result.labels.array)
        made.paint((2, 5, 5), 1)
        viewer.layers.remove(made)


def test_labels_that_a_person_removed_come_back_with_the_result(viewer: Any, runner: Runner, qtbot: Any) -> None:
    add_scan(viewer)
    panel = dock(viewer, "segment")
    runner.does(hold=True, partial=True)
    panel.run_button.click()
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=20_000)
    viewer.layers.remove(viewer.layers[-1])
    runner.go()
    qtbot.waitUntil(lambda: not panel.running, timeout=20_000)
    assert [layer.name for layer in viewer.layers] == ["head", "head brain"]


@pytest.mark.parametrize("how", ["cancel", "error"])
def test_labels_found_so_far_go_with_their_run(viewer: Any, runner: Runner, qtbot: Any, how: str) -> None:
    add_scan(viewer)
    panel = dock(viewer, "segment")
    runner.does(hold=True, partial=True, error=("InputError", "No.") if how == "error" else None)
    panel.run_button.click()
    qtbot.waitUntil(lambda: len(viewer.layers) == 2 and viewer.layers[-1].data.any(), timeout=20_000)
    panel.cancel() if how == "cancel" else runner.go()
    qtbot.waitUntil(lambda: not panel.running, timeout=5000)
    assert [layer.name for layer in viewer.layers] == ["head"]
    assert panel.run_button.isEnabled()


def test_a_dead_worker_is_an_error_and_the_next_run_works(viewer: Any, runner: Runner, qtbot: Any) -> None:
    add_scan(viewer)
    panel = dock(viewer, "segment")
    run(panel, qtbot)
    runner.does(hold=True, partial=True)
    panel.run_button.click()
    qtbot.waitUntil(lambda: len(viewer.layers) == 3 and viewer.layers[-1].data.any(), timeout=20_000)
    os.kill(running.WORKER.pid, signal.SIGKILL)
    qtbot.waitUntil(lambda: not panel.running, timeout=5000)
    assert "ended by SIGKILL" in panel.status.text()
    assert messages()[-1] == panel.status.text()
    assert [layer.name for layer in viewer.layers] == ["head", "head brain"]
    runner.does()
    run(panel, qtbot)
    assert len(viewer.layers) == 3


def test_our_errors_are_told_in_plain_words(viewer: Any, runner: Runner, qtbot: Any) -> None:
    add_scan(viewer)
    panel = dock(viewer, "segment")
    text = "Every pixel has the value 3: there is nothing to look at."
    runner.does(error=("InputError", text))
    run(panel, qtbot)
    assert panel.status.text() == text
    record = notification_manager.records[-1]
    assert record.message == text
    assert not isinstance(record, ErrorNotification)
    assert len(viewer.layers) == 1
    runner.does()
    run(panel, qtbot)
    assert len(viewer.layers) == 2


def test_table_says_whose_it_is_when_the_next_image_fails(viewer: Any, runner: Runner, qtbot: Any) -> None:
    add_scan(viewer)
    panel = dock(viewer, "segment")
    run(panel, qtbot)
    assert panel.outcome.heading.text() == "1 row of head (brain)"
    viewer.layers.selection.active = add_scan(viewer, "chest")
    runner.does(error=("InputError", "Nothing there."))
    run(panel, qtbot)
    assert panel.layers.layer.name == "chest"
    assert panel.status.text() == "Nothing there."
    assert panel.outcome.heading.text() == "1 row of head (brain)"


def test_unexpected_errors_say_their_kind(viewer: Any, runner: Runner, qtbot: Any) -> None:
    add_scan(viewer)
    panel = dock(viewer, "segment")
    runner.does(error=("ZeroDivisionError", "Doe^Jane divided by zero"))
    run(panel, qtbot)
    assert "unexpectedly (ZeroDivisionError)" in panel.status.text()
    assert "Doe" not in panel.status.text()
    assert panel.run_button.isEnabled()


def test_notes_reach_the_status_and_the_metadata(viewer: Any, runner: Runner, qtbot: Any) -> None:
    add_scan(viewer)
    panel = dock(viewer, "segment")
    note = "smaller tile after lack of memory"
    runner.does(note=note)
    run(panel, qtbot)
    assert panel.status.text().count(f"• {note}") == 1
    assert note in viewer.layers[1].metadata["medai"]["provenance"]["notes"]


def test_layer_removed_during_a_run(viewer: Any, runner: Runner, qtbot: Any) -> None:
    head = add_scan(viewer)
    extent = head.extent.world.copy()
    panel = dock(viewer, "segment")
    runner.does(hold=True)
    panel.run_button.click()
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=20_000)
    viewer.layers.remove(head)
    assert [layer.name for layer in viewer.layers] == ["head brain (running)"]
    runner.go()
    qtbot.waitUntil(lambda: not panel.running, timeout=20_000)
    (mask,) = viewer.layers
    np.testing.assert_allclose(mask.extent.world, extent)
    panel.outcome.table.select(0)
    assert not panel.run_button.isEnabled()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (np.zeros_like, True),
        (lambda data: data[2:, :8], True),
        (lambda data: data[0], True),
        (lambda data: data, False),
    ],
)
def test_image_changed_during_a_run(viewer: Any, runner: Runner, qtbot: Any, change: Any, told: bool) -> None:
    head = add_scan(viewer)
    extent = head.extent.world.copy()
    panel = dock(viewer, "segment")
    runner.does(hold=True)
    panel.run_button.click()
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=20_000)
    head.data = change(head.data)
    runner.go()
    qtbot.waitUntil(lambda: not panel.running, timeout=20_000)
    mask = viewer.layers[-1]
    assert mask.data.shape == volume().shape
    np.testing.assert_allclose(mask.extent.world, extent)
    assert ("The image was changed while it ran" in panel.status.text()) is told
    panel.outcome.table.select(0)


@pytest.mark.parametrize("how", ["dock", "viewer"])
def test_closing_ends_the_runs(make_napari_viewer: Any, runner: Runner, qtbot: Any, how: str) -> None:
    viewer = make_napari_viewer()
    add_scan(viewer)
    panel = dock(viewer, "segment")
    runner.does(hold=True)
    panel.run_button.click()
    panel.run_button.click()
    qtbot.waitUntil(lambda: bool(runner.calls), timeout=20_000)
    jobs = [run.job for run in panel._running.runs]
    if how == "dock":
        viewer.window.remove_dock_widget(panel)
    else:
        del panel
        viewer.close()
    qtbot.waitUntil(lambda: all(job.state.finished for job in jobs), timeout=5000)
    assert not progress._all_instances
    if how == "dock":
        assert len(viewer.layers) == 1


def test_closed_panel_leaves_nothing(viewer: Any, qtbot: Any) -> None:
    add_scan(viewer)
    panel = dock(viewer, "segment")
    run(panel, qtbot)
    viewer.window.remove_dock_widget(panel)
    gone = weakref.ref(panel)
    del panel
    gc.collect()
    assert gone() is None
    add_scan(viewer, "later")  # no callback of the panel is left


# the dock's lower part


def test_row_moves_the_viewer_to_its_object(viewer: Any, qtbot: Any) -> None:
    head = add_scan(viewer)
    panel = dock(viewer, "detect")
    run(panel, qtbot)
    panel.outcome.table.select(1)
    # centre of a (6, 20, 30) grid: index 2.5, 9.5, 14.5; world 4 * 2.5 - 40, 9.5 + 5, 14.5 + 7
    assert viewer.dims.point == pytest.approx((-30.0, 14.5, 21.5), abs=2.0)
    assert viewer.scene.camera.center[1:] == pytest.approx((14.5, 21.5))
    assert viewer.layers[1].selected_data == {1}
    assert head in viewer.layers


def test_row_of_an_instance_chooses_its_label(viewer: Any, qtbot: Any) -> None:
    add_slide(viewer)
    panel = dock(viewer, "segment")
    run(panel, qtbot)
    assert panel.outcome.heading.text() == "2 rows of slide (nuclei)"
    panel.outcome.table.select(1)
    assert viewer.layers[1].selected_label == 2


def test_boxes_of_a_slide_are_shapes(viewer: Any, qtbot: Any) -> None:
    add_slide(viewer)
    panel = dock(viewer, "detect")
    run(panel, qtbot)
    assert isinstance(viewer.layers[1], Shapes)
    assert panel.status.text().startswith("4 objects found.")
    panel.outcome.copy_button.click()
    assert QApplication.clipboard().text().splitlines()[1].startswith("0\tmicronucleus\t0.9\t")


def test_scores_move_the_slider_and_follow_it(viewer: Any, qtbot: Any) -> None:
    add_scan(viewer)
    panel = dock(viewer, "classify")
    run(panel, qtbot)
    assert len(viewer.layers) == 1
    assert not panel.outcome.scores.isHidden()
    assert panel.outcome.table.isHidden()
    panel.outcome.scores.slice_chosen.emit(4)
    assert viewer.dims.point[0] == pytest.approx(-24.0)
    assert panel.outcome.scores.timeline._current == 4
    viewer.dims.set_current_step(0, 1)
    assert panel.outcome.scores.timeline._current == 1


def test_saves_the_table(viewer: Any, qtbot: Any, tmp_path: Path) -> None:
    add_scan(viewer)
    panel = dock(viewer, "detect")
    run(panel, qtbot)
    panel.outcome.save(tmp_path / "objects")
    lines = (tmp_path / "objects.csv").read_text().splitlines()
    assert lines[0].startswith("index,label,score,z,y,x,z_mm,y_mm,x_mm")
    assert len(lines) == 5


def test_save_that_fails_is_told(viewer: Any, qtbot: Any, tmp_path: Path) -> None:
    add_scan(viewer)
    panel = dock(viewer, "detect")
    run(panel, qtbot)
    before = len(messages())
    panel.outcome.save(tmp_path / "nowhere" / "objects.csv")
    assert len(messages()) == before + 1
    assert [left.name for left in tmp_path.iterdir() if left.name != "runner"] == []


def test_narrow_dock_shows_everything(make_napari_viewer: Callable[..., Any], qtbot: Any) -> None:
    viewer = make_napari_viewer()
    add_scan(viewer, "head_" + 60 * "x")
    panel = dock(viewer, "segment")
    run(panel, qtbot)
    panel._pin_model(0)
    viewer.layers.selection.active = add_slide(viewer)
    assert panel.layers.layer.name in panel.refusal.text()
    assert panel.layers.layer.name in panel.outcome.heading.text()
    assert panel.run_button.parentWidget().minimumSizeHint().width() <= 350
    assert panel.form.minimumSizeHint().width() <= 330
