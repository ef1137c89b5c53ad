"""The demo: all stages, through the panels a person uses, on real images in a real window."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import napari
from napari.utils.notifications import notification_manager
from qtpy.QtWidgets import QApplication
from rich.console import Console
from rich.table import Table

from napari_medai.core.errors import MedaiError
from napari_medai.core.result import Result
from napari_medai.io import save
from napari_medai.samples import SAMPLES, sample
from napari_medai.stages import STAGES
from napari_medai.ui.layers import volume_to_layers
from napari_medai.ui.outcome import summary
from napari_medai.ui.panel import StagePanel

if TYPE_CHECKING:
    from napari.viewer import Viewer

WINDOW = (1500, 950)
STEP_LIMIT_S = 600.0  # a step that takes longer has hung


@dataclass(frozen=True)
class Step:
    """One stage on one sample.

    Attributes
    ----------
    stage, sample, model : str
        Keys of the tables of stages, samples and models.
    params : dict
        Values of the panel's form.
    suffixes : tuple of str
        Files that are saved of the result.
    fresh : bool
        Begin with an empty viewer.
    look : dict
        Axis -> share of the way through it at which the screenshot is taken.
    """

    stage: str
    sample: str
    model: str
    params: dict[str, Any] = field(default_factory=dict)
    suffixes: tuple[str, ...] = (".nii.gz",)
    fresh: bool = True
    look: float = 0.5


STEPS = (
    Step("segment", "head_mr", "brain", suffixes=(".nii.gz", ".csv")),
    Step("classify", "head_mr", "quality", suffixes=(".json", ".csv")),
    Step("explain", "head_mr", "brain"),
    Step("denoise", "head_ct", "self2d"),
    Step("classify", "head_ct", "quality", suffixes=(".json",), fresh=False),
    Step("explain", "head_ct", "quality", fresh=False),
    Step("denoise", "micronuclei_slide", "self2d", suffixes=(".tif",)),
    Step("segment", "micronuclei_slide", "nuclei", suffixes=(".tif", ".csv")),
    Step("detect", "micronuclei_slide", "micronuclei", suffixes=(".csv", ".json"), fresh=False),
    Step("explain", "micronuclei_slide", "nuclei", suffixes=(".tif",)),
    Step("detect", "nuclei_3d", "blobs3d", suffixes=(".csv", ".json")),
)


@dataclass(frozen=True)
class Row:
    """A line of the table at the end."""

    step: Step
    device: str
    seconds: float
    result: str


def run(out: Path, *, keep_open: bool = True, steps: tuple[Step, ...] = STEPS) -> list[Row]:
    """Run the demo and save screenshots, results and a table into a folder.

    Parameters
    ----------
    out : Path
        Made if it is not there.
    keep_open : bool
        Leave the window to the person at the end, if there is a screen.
    steps : tuple of Step
        Default: all five stages.

    Returns
    -------
    list of Row
        One per step.

    Raises
    ------
    MedaiError
        A step failed; the message says which and why.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with _window() as viewer:
        for number, step in enumerate(steps, 1):
            print(f"{number}/{len(steps)} {step.stage} {SAMPLES[step.sample].title} with {step.model}", flush=True)
            rows.append(_run_step(viewer, number, step, out))
        _print(rows)
        print(f"screenshots and results: {out}")
        if keep_open and QApplication.platformName() not in ("offscreen", "minimal") and _has_screen():
            napari.run()
    return rows


def _has_screen() -> bool:
    # a virtual screen started for the demo alone shows nothing to anybody
    from os import environ

    return not environ.get("XAUTHORITY", "").startswith("/tmp/xvfb-run.")


@contextmanager
def _window() -> Iterator[Viewer]:
    viewer = napari.Viewer(title="napari-medai")
    viewer.window._qt_window.resize(*WINDOW)
    try:
        yield viewer
    finally:
        for dock in list(viewer.window.dock_widgets):
            viewer.window.remove_dock_widget(viewer.window.dock_widgets[dock])
        viewer.close()


def _run_step(viewer: Viewer, number: int, step: Step, out: Path) -> Row:
    panel = _prepare(viewer, step)
    for name, value in step.params.items():
        panel.form.set_value(name, value)
    result = _finish(panel, step)
    name = f"{number:02d}_{step.stage}_{step.sample}_{step.model}"
    for suffix in step.suffixes:
        save(result, out / f"{name}{suffix}")
    _pump(0.5)
    viewer.window.screenshot(str(out / f"{name}.png"), canvas_only=False, flash=False)
    record = result.provenance
    return Row(step, record.device, record.seconds, summary(result))


def _prepare(viewer: Viewer, step: Step) -> StagePanel:
    """The sample in the viewer, and the stage's panel beside it with its model chosen."""
    volume = sample(step.sample)
    present = [layer for layer in viewer.layers if layer.name == volume.name]
    if step.fresh or not present:
        viewer.layers.clear()
        for data, keywords, kind in volume_to_layers(volume):
            getattr(viewer, f"add_{kind}")(data, **keywords)
    scan = next(layer for layer in viewer.layers if layer.name == volume.name)
    viewer.dims.set_point(range(viewer.dims.ndim), [(r.start + r.stop) * step.look for r in viewer.dims.range])
    for dock in list(viewer.window.dock_widgets):
        viewer.window.remove_dock_widget(viewer.window.dock_widgets[dock])
    panel: StagePanel
    dock, panel = viewer.window.add_plugin_dock_widget("napari-medai", STAGES[step.stage].title)
    dock.setMinimumWidth(420)
    viewer.layers.selection.active = scan
    panel.models.choose(step.model)
    _pump(0.2)
    viewer.reset_view()  # the canvas has its final size only now
    return panel


def _finish(panel: StagePanel, step: Step) -> Result:
    """Press Run and wait, with the window alive."""
    failures: list[str] = []
    notification_manager.notification_ready.connect(lambda event: failures.append(event.message))
    panel.start()
    end = time.monotonic() + STEP_LIMIT_S
    while panel.running and time.monotonic() < end:
        _pump(0.02)
    panel.cancel()
    result = panel.outcome.result
    if result is None:
        why = "; ".join(failures) or panel.status.text()
        raise MedaiError(f"The demo's step {step.stage} on {step.sample} with {step.model} gave no result: {why}")
    return result


def _pump(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.005)


def _print(rows: list[Row]) -> None:
    table = Table("stage", "input", "model", "device", "seconds", "result", title="napari-medai demo")
    for row in rows:
        cells = (row.step.stage, row.step.sample, row.step.model, row.device, f"{row.seconds:.1f}", row.result)
        table.add_row(*cells)
    Console(width=120).print(table)
