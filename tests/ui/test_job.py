"""A job in a thread, without Qt."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from napari_medai.core.errors import InputError
from napari_medai.core.stage import Cancelled, Part, Progress
from napari_medai.ui.job import Job


def until(gate: threading.Event, progress: Progress) -> str:
    """Work that goes on until it is let go or cancelled."""
    while not gate.wait(0.005):
        progress.check()
    return "through"


def test_gives_the_result_of_work_done_in_another_thread() -> None:
    job = Job(lambda _: threading.current_thread().name, name="medai-test")
    assert job.result().startswith("medai-test")
    assert job.join(1)
    assert job.state.finished
    assert job.error is None


def test_state_is_the_last_thing_said() -> None:
    gate, said = threading.Event(), threading.Event()

    def work(progress: Progress) -> None:
        progress.update(1, 4, "Tile 1 of 4")
        progress.note("smaller tile")
        Part(progress, 0.5, 1.0).update(1, 2)
        said.set()
        until(gate, progress)

    job = Job(work)
    assert job.state.fraction is None or job.state.fraction >= 0.25
    assert said.wait(5)
    state = job.state
    assert state.fraction == 0.75
    assert state.message == "Tile 1 of 4"
    assert state.notes == ("smaller tile",)
    assert not state.finished
    gate.set()
    assert job.join(5)
    assert job.state.finished


def test_total_of_nothing_has_no_fraction_and_overshoot_is_cut() -> None:
    def work(progress: Progress) -> None:
        progress.update(0, 0, "counting")

    job = Job(work)
    job.join(5)
    assert job.state.fraction is None
    job = Job(lambda progress: progress.update(5, 4))
    job.join(5)
    assert job.state.fraction == 1.0


def test_cancel_ends_work_at_its_next_check() -> None:
    gate = threading.Event()
    job = Job(lambda progress: until(gate, progress))
    assert not job.join(0.02)
    job.cancel()
    assert job.state.cancelling
    assert job.join(5)
    with pytest.raises(Cancelled):
        job.result()
    assert isinstance(job.error, Cancelled)


def test_update_checks_too() -> None:
    def work(progress: Progress) -> None:
        while True:
            progress.update(0, 1)

    job = Job(work)
    job.cancel()
    assert job.join(5)
    assert isinstance(job.error, Cancelled)


def test_error_is_kept_with_its_traceback() -> None:
    def work(progress: Progress) -> None:
        raise InputError("Every pixel has the value 3.")

    job = Job(work)
    assert job.join(5)
    assert isinstance(job.error, InputError)
    assert job.error.__traceback__ is not None
    with pytest.raises(InputError, match="value 3"):
        job.result()


def test_clock_stands_still_at_the_end() -> None:
    job = Job(lambda _: None)
    job.join(5)
    while job._ended is None:
        pass
    assert job.state.seconds == job.state.seconds


def test_no_thread_is_left() -> None:
    job = Job(lambda _: None, name="medai-gone")
    job.join(5)
    for thread in threading.enumerate():
        if thread.name.startswith("medai-gone"):
            thread.join(5)
            assert not thread.is_alive()


def test_a_job_needs_no_qt() -> None:
    code = "import sys, napari_medai.ui.job; print([m for m in sys.modules if 'qt' in m.lower() or m == 'napari'])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_panels_leave_torch_out() -> None:
    code = "import sys, napari_medai.ui.widgets; print([m for m in ('torch', 'monai') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip() == "[]"
