"""How long the window stands still while a stage runs.

``python -m benchmarks.responsiveness`` opens a napari window, runs stages through their panels on the samples, and
prints the longest gaps between two turns of the event loop. A timer of 5 ms asks for a turn; what comes later is a
stall that a person can feel from about 100 ms on. On Linux the time that the window's thread stood in the queue for
a core is taken off. A busy machine lengthens gaps in other ways, too: "own work" is the longest time that the window's
thread computed between two turns while the stage ran. Without a screen, put ``xvfb-run -a`` in front.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import napari
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QApplication
from rich.console import Console
from rich.table import Table

from napari_medai.samples import sample
from napari_medai.ui.layers import volume_to_layers
from napari_medai.ui.panel import StagePanel

INTERVAL_MS = 5
# listing devices, nothing, pressing Run, computing (longest, 99th percentile, longest of the window's own work), and
# putting the result into the viewer
SPANS = ("devices", "at rest", "start", "running", "99 %", "own work", "result arrives")
RUNS = (
    ("segment", "head_mr", "brain"),
    ("classify", "head_mr", "quality"),
    ("explain", "head_mr", "quality"),
    ("denoise", "head_ct", "self2d"),
    ("segment", "micronuclei_slide", "nuclei"),
    ("detect", "micronuclei_slide", "micronuclei"),
    ("detect", "nuclei_3d", "blobs3d"),
)


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

    def gaps(self, start: float, end: float) -> list[float]:
        """Milliseconds between neighbouring turns that begin in a span of time, without waiting for a core."""
        pairs = zip(self.turns, self.turns[1:], strict=False)
        return [1000 * ((b - a) - (d - c)) for (a, c, _), (b, d, _) in pairs if start <= a < end]

    def work(self, start: float, end: float) -> list[float]:
        """Milliseconds that the window's thread computed between neighbouring turns that begin in a span of time."""
        pairs = zip(self.turns, self.turns[1:], strict=False)
        return [1000 * (b[2] - a[2]) for a, b in pairs if start <= a[0] < end]


def turn(seconds: float) -> None:
    """Let the event loop go on for a while."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        QApplication.processEvents()
        time.sleep(0.001)


def measure(stage: str, name: str, model: str, watch: Watch) -> dict[str, float] | str:
    """Run one stage; longest gaps in ms: while devices are listed, at rest, in the run, as the result arrives."""
    viewer = napari.Viewer(title="responsiveness")
    try:
        for layer in volume_to_layers(sample(name)):
            viewer.add_layer(napari.layers.Layer.create(*layer))
        panel = StagePanel(viewer, stage)
        viewer.window.add_dock_widget(panel, name=stage)
        if not panel.models.choose(model):
            return "the model is not installed"
        turn(2.0)  # the first drawing
        opened = time.perf_counter()
        panel.devices.look()  # asks the worker, which imports torch for that
        while panel.devices.count() == 2 and panel.devices.itemText(0) == "Automatic":
            turn(0.1)
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
        if panel.outcome.result is None and not panel.earlier:
            return panel.status.text()
        ended = time.perf_counter()
        running = watch.gaps(started, last)
        return {
            "seconds": arrived - pressed,
            "devices": max(watch.gaps(opened, before), default=0.0),
            "at rest": max(watch.gaps(before, pressed), default=0.0),
            "start": max(watch.gaps(pressed, started), default=0.0),
            "running": max(running),
            "99 %": statistics.quantiles(running, n=100)[98],
            "own work": max(watch.work(started, last)),
            "result arrives": max(watch.gaps(last, ended), default=0.0),
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
