"""How long it takes to start: the package, the command's help, and napari with and without the plugin.

``python -m benchmarks.start [--json] [--repeats 9]`` measures fresh processes in turns. Time is of the clock, from the
birth of the process, and of the processor; medians. Without the plugin means that napari does not find it installed.
Where there is no screen, ``xvfb-run`` is used.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

# Prints seconds of the clock since the process was born, and of the processor
_SAY = """
import time, os, psutil
clock = time.time() - psutil.Process().create_time()
busy = time.process_time()
print(clock, busy, flush=True)
os._exit(0)
"""
# npe2 asks for every installed package; both sides go through the same filter
_NAPARI = """
import importlib.metadata as metadata, sys
every, hidden = metadata.distributions, sys.argv[1]
metadata.distributions = lambda **given: (d for d in every(**given) if d.metadata["Name"] != hidden)
import napari
from qtpy.QtWidgets import QApplication
viewer = napari.Viewer()
QApplication.processEvents()
"""
_HELP = """
import contextlib, io, sys
from napari_medai.cli import main
sys.argv = ["medai", *sys.argv[1:]]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
"""


@dataclass(frozen=True)
class Took:
    """Seconds, medians: of the clock and of the processor."""

    clock: float
    busy: float


def compare(cases: dict[str, tuple[str, Sequence[str]]], repeats: int) -> dict[str, Took]:
    """Code with its arguments, each in fresh processes, in turns; the first round warms the disk and is not counted."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, (code, arguments) in cases.items():
            seconds = _once(code, arguments)
            if turn:
                found[name].append(seconds)
    return {name: Took(*map(statistics.median, zip(*runs, strict=True))) for name, runs in found.items()}


def _once(code: str, arguments: Sequence[str]) -> tuple[float, float]:
    command = [sys.executable, "-W", "ignore", "-c", code + _SAY, *arguments]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"NAPARI_CONFIG": os.path.join(folder, "settings.yaml")}
        if code is _NAPARI and "DISPLAY" not in environment and shutil.which("xvfb-run"):
            command = ["xvfb-run", "-a", *command]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    clock, busy = done.stdout.split()[-2:]
    return float(clock), float(busy)


def package(repeats: int = 9) -> dict[str, Took]:
    """``import napari_medai`` beside an interpreter that imports nothing."""
    return compare({"python": ("", ()), "import napari_medai": ("import napari_medai", ())}, repeats)


def command(repeats: int = 5) -> dict[str, Took]:
    """The help of the command and of one of its subcommands."""
    words = (("--help",), ("info", "--help"), ("segment", "--help"))
    return compare({f"medai {' '.join(w)}": (_HELP, w) for w in words}, repeats)


def napari(repeats: int = 9) -> dict[str, Took]:
    """napari with a viewer, with and without the plugin."""
    return compare({"with": (_NAPARI, ("nothing",)), "without": (_NAPARI, ("napari-medai",))}, repeats)


def lines(quick: bool = False) -> list[dict[str, Any]]:
    """Rows of the table of `benchmarks.engine`."""
    own = package(2 if quick else 9)
    rows = [_line("import napari_medai", "an empty interpreter", own["import napari_medai"], own["python"], 0.25)]
    for name, took in command(1 if quick else 5).items():
        rows.append({"work": name, "peer": "", "ours": f"{took.clock:.2f} s"})
    window = napari(1 if quick else 9)
    return [*rows, _line("napari with a viewer: the plugin adds", "without it", window["with"], window["without"], 0.1)]


def _line(work: str, peer: str, ours: Took, theirs: Took, goal: float) -> dict[str, Any]:
    # The difference is of the processor's time: another program's turn is no part of it
    more = ours.busy - theirs.busy
    return {
        "work": work,
        "peer": peer,
        "ours": f"{ours.clock:.2f} s ({ours.busy:.2f} s of the processor)",
        "theirs": f"{theirs.clock:.2f} s ({theirs.busy:.2f} s)",
        "ratio": f"{more:+.3f} s",
        "goal": f"< {goal:g} s more",
        "reached": more < goal,
    }


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    found = package(given.repeats) | command(given.repeats)
    found |= {f"napari {name} the plugin": took for name, took in napari(given.repeats).items()}
    if given.json:
        print(json.dumps({name: asdict(took) for name, took in found.items()}, indent=2))
        return
    print(f"{'':28} {'clock':>8} {'busy':>8}")
    for name, took in found.items():
        print(f"{name:28} {took.clock:7.3f}s {took.busy:7.3f}s")


if __name__ == "__main__":
    main()
