"""How long the window stands still while a stage runs.

``python -m benchmarks.responsiveness`` opens a napari window, runs stages through their panels on the samples, and
prints the longest gaps between two turns of the event loop. A timer of 5 ms asks for a turn; what comes later is a
stall that a person can feel from about 100 ms on. Without a screen, put ``xvfb-run -a`` in front.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field

import napari
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QApplication
from rich.console import Console
from rich.table import Table

from napari_medai.samples import sample
from napari_medai.ui.layers import volume_to_layers
from napari_medai.ui.panel import StagePanel

INTERVAL_MS = 5
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

    turns: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.timer = QTimer()
        self.timer.setTimerType(Qt.TimerType.PreciseTimer)
        self.timer.setInterval(INTERVAL_MS)
        self.timer.timeout.connect(lambda: self.turns.append(time.perf_counter()))

    def gaps(self, start: float, end: float) -> list[float]:
        """Milliseconds between neighbouring turns that end within a span of time."""
        return [1000 * (b - a) for a, b in zip(self.turns, self.turns[1:], strict=False) if start <= b and a <= end]


def turn(seconds: float) -> None:
    """Let the event loop go on for a while."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        QApplication.processEvents()
        time.sleep(0.001)


def measure(stage: str, name: str, model: str, watch: Watch) -> dict[str, float] | str:
    """Run one stage; longest gaps in milliseconds, at rest, while it runs, and when the result arrives."""
    viewer = napari.Viewer(title="responsiveness")
    try:
        for layer in volume_to_layers(sample(name)):
            viewer.add_layer(napari.layers.Layer.create(*layer))
        panel = StagePanel(viewer, stage)
        viewer.window.add_dock_widget(panel, name=stage)
        if not panel.models.choose(model):
            return "the model is not installed"
        turn(8.0)  # devices are looked for, and torch is imported for that
        before = time.perf_counter()
        turn(1.0)
        started = time.perf_counter()
        panel.start()
        while panel.running:
            QApplication.processEvents()
            time.sleep(0.0005)
            if panel._run is not None and not panel._run.job.state.finished:
                last = time.perf_counter()
        arrived = time.perf_counter()
        turn(1.0)
        if panel.outcome._result is None and not len(panel._results):
            return panel.status.text()
        ended = time.perf_counter()
        running = watch.gaps(started, last)
        return {
            "seconds": arrived - started,
            "at rest": max(watch.gaps(before, started)),
            "running": max(running),
            "running, 99 %": statistics.quantiles(running, n=100)[98],
            "result arrives": max(watch.gaps(last, ended)),
        }
    finally:
        viewer.close()
        turn(0.5)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", help="only these stages")
    chosen = parser.parse_args().stages
    watch = Watch()
    table = Table(title="Longest gap between two turns of the event loop, ms")
    for column in ("stage", "sample", "model", "run s", "at rest", "running", "99 %", "result arrives"):
        table.add_column(column, justify="left" if column in ("stage", "sample", "model") else "right")
    QApplication.instance() or napari.qt.get_qapp()
    watch.timer.start()
    for stage, name, model in RUNS:
        if chosen and stage not in chosen:
            continue
        found = measure(stage, name, model, watch)
        if isinstance(found, str):
            print(f"{stage} {name} {model}: {found}")
            continue
        figures = [f"{found['seconds']:.1f}"]
        figures += [f"{found[key]:.0f}" for key in ("at rest", "running", "running, 99 %", "result arrives")]
        table.add_row(stage, name, model, *figures)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
