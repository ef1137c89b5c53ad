"""What all tests share: a screen, a napari that leaves no trace on this machine, small phantoms."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest

from napari_medai.core.geometry import Affine
from napari_medai.core.provenance import Provenance
from napari_medai.core.volume import Volume

_SCREEN = pytest.StashKey[subprocess.Popen]()

# Warnings are errors. These come out of other packages, say nothing about our code, and cannot be avoided by it.
_IGNORED = (
    # vispy closes its GL canvases in any order when a viewer goes
    "ignore:.*QOpenGLWidget.*:RuntimeWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    for line in _IGNORED:
        config.addinivalue_line("filterwarnings", line)
    # read by napari when it is first imported: no settings of a person are used or changed
    os.environ.setdefault("NAPARI_CONFIG", "")
    # networks of tests are so small that threads of torch would only wait for each other, at full load; read by OpenMP
    # when torch is first imported, and by the processes that tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # widgets that outlive their test fail it
    os.environ.setdefault("NAPARI_STRICT_QT", "raise")
    config.stash[_SCREEN] = None
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        config.stash[_SCREEN] = _start_screen()


def pytest_unconfigure(config: pytest.Config) -> None:
    screen = config.stash.get(_SCREEN, None)
    if screen is not None:
        screen.terminate()
        screen.wait(timeout=10)
        os.environ.pop("DISPLAY", None)


def _start_screen() -> subprocess.Popen | None:
    """A virtual screen with OpenGL; without Xvfb, Qt draws off the screen and tests of pictures cannot run."""
    program = shutil.which("Xvfb")
    if program is None:
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
        return None
    end, start = os.pipe()
    screen = subprocess.Popen(
        [program, "-displayfd", str(start), "-screen", "0", "1600x1000x24", "-nolisten", "tcp"],
        pass_fds=[start],
        stderr=subprocess.DEVNULL,
    )
    os.close(start)
    with os.fdopen(end) as answer:
        os.environ["DISPLAY"] = f":{answer.readline().strip()}"
    return screen


@pytest.fixture
def no_leaked_threads() -> Iterator[None]:
    """Fail a test that leaves a thread running; daemons of napari and Qt's own pool aside."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while left := [t for t in threading.enumerate() if t not in before and t.is_alive() and not t.daemon]:
        assert time.monotonic() < deadline, f"threads still run: {left}"
        time.sleep(0.02)


def rotation(axis: int, degrees: float) -> np.ndarray:
    """3x3 rotation about world axis 0 (z), 1 (y) or 2 (x)."""
    angle = np.deg2rad(degrees)
    first, second = (n for n in range(3) if n != axis)
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


class Done(NamedTuple):
    """What a command left: its exit code, standard output and standard error."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command ``medai`` in this process, as its entry point calls it."""
    from napari_medai import terminal
    from napari_medai.cli import main

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["medai", *map(str, words)])
        capfd.readouterr()
        # whoever runs the tests in the background may have had the signal ignored
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            # main() arranges the process for a command that ends with it
            signal.signal(signal.SIGINT, before)
            terminal._interrupted.clear()
            logging.captureWarnings(False)
        return Done(code, *capfd.readouterr())

    return run


@pytest.fixture
def oblique_affine() -> Affine:
    """4 x 1.5 x 2 mm voxels, turned by 12 and 17 degrees, away from the world's origin."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(0, 12) @ rotation(2, 17) @ np.diag([4.0, 1.5, 2.0])
    affine[:3, 3] = (-20.0, -80.0, 55.0)
    return affine


@pytest.fixture
def oblique_scan(oblique_affine: Affine) -> Volume:
    """An MR of 6 x 20 x 16 voxels whose values count up, on an oblique grid."""
    pixels = np.arange(6 * 20 * 16, dtype=np.float32).reshape(6, 20, 16)
    return Volume(pixels, "zyx", oblique_affine, "mm", "MR", "5_t1", {"window": (0.0, 1000.0)})


@pytest.fixture
def slide() -> Volume:
    """A fluorescence image of 40 x 50 pixels of 0.5 um."""
    pixels = np.zeros((40, 50), np.uint16)
    pixels[10:20, 12:30] = 900
    return Volume(pixels, "yx", np.diag([1.0, 0.5, 0.5, 1.0]), "um", "fluorescence", "slide")


@pytest.fixture
def provenance() -> Provenance:
    """A record with the fields that a run fills."""
    return Provenance("segment", ("5_t1",), "brain", "ab12", {"threshold": 0.5}, seconds=1.5)
