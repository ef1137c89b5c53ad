"""How long the window stands still while a stage runs.

``python -m benchmarks.responsiveness`` opens a napari window, runs stages through their panels on the samples, and
prints the longest gaps between two turns of the event loop. A timer of 5 ms asks for a turn; what comes later is a
stall that a person can feel from about 100 ms on. On Linux the time that the window's thread stood in the queue for
a core is taken off. A busy machine lengthens gaps in other ways, too: "own work" is the longest time that the window's
thread computed between two turns. Without a screen, put ``xvfb-run -a`` in front.

napari makes a layer, its controls and what draws it in one piece. "layer" are the gaps in which that happens and
those just after, in which it is drawn for the first time; "napari alone" are the same when a copy of the layer is added
by ``viewer.add_layer`` while nothing runs. All other columns leave them out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import napari
from napari.layers import Layer
from napari.viewer import Viewer
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QApplication
from rich.console import Console
from rich.table import Table

from napari_medai.samples import sample
from napari_medai.ui.layers import volume_to_layers
from napari_medai.ui.panel import StagePanel

INTERVAL_MS = 5
# listing devices; nothing; pressing Run; computing (longest, 99th percentile); the result; own work in the last three;
# the layer in the viewer, and the same without us
SPANS = ("devices", "at rest", "start", "running", "99 %", "result", "own work", "layer", "napari alone")
DRAWN_SECONDS = 0.4  # after which a new layer has been drawn
RUNS = (
    ("segment", "head_mr", "brain"),
    ("classify", "head_mr", "quality"),
    ("explain", "head_mr", "quality"),
    ("denoise", "head_ct", "self2d"),
    ("segment", "micronuclei_slide", "nuclei"),
    ("detect", "micronuclei_slide", "micronuclei"),
    ("detect", "nuclei_3d", "blobs3d"),
)

Span = tuple[float, float]  # of time, in seconds


@dataclass
class Watch:
    """A timer in the event loop that notes when its turns come."""

    turns: list[tuple[float, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.timer = QTimer()
        self.timer.setTimerType(Qt.TimerType.PreciseTimer)
        self.timer.setInterval(INTERVAL_MS)
        self._queue = Path("/proc/thread-self/schedstat").open() if sys.platform == "linux" else None  # noqa: SIM115
        self.timer.timeout.connect(self._note)

    def _note(self) -> None:
        waited = 0.0
        if self._queue is not None:
            self._queue.seek(0)
            waited = int(self._queue.read().split()[1]) * 1e-9
        self.turns.append((time.perf_counter(), waited, time.thread_time()))

    def gaps(self, start: float, end: float, but: Sequence[Span] = (), *, work: bool = False) -> list[float]:
        """Milliseconds between neighbouring turns that begin in a span of time and touch none of others.

        Without waiting for a core; ``work`` gives what the window's thread computed between them.
        """
        found = []
        for (a, queue_a, work_a), (b, queue_b, work_b) in zip(self.turns, self.turns[1:], strict=False):
            if start <= a < end and not any(a <= last and b >= first for first, last in but):
                found.append(1000 * (work_b - work_a if work else (b - a) - (queue_b - queue_a)))
        return found

    def during(self, spans: Sequence[Span]) -> float:
        """The longest gap that touches one of some spans of time."""
        everything = (self.turns[0][0], self.turns[-1][0])
        return max(set(self.gaps(*everything)) - set(self.gaps(*everything, spans)), default=0.0)


def inserted(viewer: Viewer) -> list[Span]:
    """Grows by a span of time whenever the viewer is given a layer: until it has been drawn."""
    spans: list[Span] = []
    begun: list[float] = []
    viewer.layers.events.inserting.connect(lambda _: begun.append(time.perf_counter()))
    viewer.layers.events.inserted.connect(lambda _: spans.append((begun[-1], time.perf_counter() + DRAWN_SECONDS)))
    return spans


def turn(seconds: float) -> None:
    """Let the event loop go on for a while."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        QApplication.processEvents()
        time.sleep(0.001)


def measure(stage: str, name: str, model: str, watch: Watch) -> dict[str, float] | str:
    """Run one stage: seconds, and the longest gaps in ms by the names of `SPANS`; or why it cannot be run."""
    viewer = napari.Viewer(title="responsiveness")
    try:
        for layer in volume_to_layers(sample(name)):
            viewer.add_layer(Layer.create(*layer))
        panel = StagePanel(viewer, stage)
        viewer.window.add_dock_widget(panel, name=stage)
        if not panel.models.choose(model):
            return "the model is not installed"
        turn(2.0)  # the first drawing
        opened = time.perf_counter()
        panel.devices.look()  # asks the worker, which imports torch for that
        while panel.devices.count() == 2 and panel.devices.itemText(0) == "Automatic":
            turn(0.1)
        scans, ours = list(viewer.layers), inserted(viewer)
        before = time.perf_counter()
        turn(1.0)
        pressed = time.perf_counter()
        turn(0.02)
        panel.start()
        turn(0.02)
        started = time.perf_counter()
        while panel.running:
            QApplication.processEvents()
            time.sleep(0.0005)
            if panel._running.runs and not panel._running.runs[0].job.state.finished:
                last = time.perf_counter()
        arrived = time.perf_counter()
        turn(1.0)
        made = [layer for layer in viewer.layers if layer not in scans]
        if panel.outcome.result is None and not made:
            return panel.status.text()
        ended = time.perf_counter()
        theirs = inserted(viewer)
        for layer in made:
            viewer.add_layer(Layer.create(*layer.as_layer_data_tuple()))
        turn(1.0)
        running = watch.gaps(started, last, ours)
        return {
            "seconds": arrived - pressed,
            "devices": max(watch.gaps(opened, before), default=0.0),
            "at rest": max(watch.gaps(before, pressed), default=0.0),
            "start": max(watch.gaps(pressed, started, ours), default=0.0),
            "running": max(running),
            "99 %": statistics.quantiles(running, n=100)[98],
            "result": max(watch.gaps(last, ended, ours), default=0.0),
            "own work": max(watch.gaps(pressed, ended, ours, work=True)),
            "layer": watch.during(ours[: len(made)]),
            "napari alone": watch.during(theirs),
        }
    finally:
        viewer.close()
        turn(0.5)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="only these stages, samples or models")
    chosen = parser.parse_args().only
    watch = Watch()
    table = Table(title="Longest gap between two turns of the event loop, ms")
    for column in ("stage", "sample", "model"):
        table.add_column(column)
    for column in ("run s", *SPANS):
        table.add_column(column, justify="right")
    QApplication.instance() or napari.qt.get_qapp()
    watch.timer.start()
    for stage, name, model in RUNS:
        if chosen and not {stage, name, model} & set(chosen):
            continue
        found = measure(stage, name, model, watch)
        if isinstance(found, str):
            print(f"{stage} {name} {model}: {found}")
            continue
        figures = [f"{found['seconds']:.1f}", *(f"{found[span]:.0f}" for span in SPANS)]
        table.add_row(stage, name, model, *figures)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
