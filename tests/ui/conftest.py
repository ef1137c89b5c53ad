"""One worker for all tests of the window, and stages in it that cost nothing."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from standins import Runner

from napari_medai.stages import STAGES
from napari_medai.ui import offers, running
from napari_medai.worker import Worker


@pytest.fixture(scope="session")
def one_worker() -> Iterator[Worker]:
    """A process for the whole session; leaving it, a thread or a file behind is an error."""
    worker = Worker(preload=())
    yield worker
    worker.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "medai-worker"]
    assert not [child for child in psutil.Process().children() if "worker_child" in " ".join(child.cmdline())]
    for place in (Path(tempfile.gettempdir()), Path("/dev/shm")):
        assert not list(place.glob(f"medai-worker-{os.getpid()}-*"))


@pytest.fixture(autouse=True)
def worker(one_worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """The panels use it."""
    monkeypatch.setattr(running, "WORKER", one_worker)
    return one_worker


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Runner]:
    """The stages and models that cost nothing; fails a test that leaves a run behind."""
    folder = tmp_path / "runner"
    folder.mkdir()
    runner = Runner(folder)
    monkeypatch.setattr(offers, "find_models", runner.find)
    for name, row in Runner.stages().items():
        monkeypatch.setitem(STAGES, name, row)
    yield runner
    runner.go()
    for thread in threading.enumerate():
        if thread.name.startswith("medai") and thread.name != "medai-worker":
            thread.join(10)
            assert not thread.is_alive()
    assert not running.LINE._places
