"""The worker: a real process, with stages that cost nothing."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import psutil
import pytest
from standins import PLAN, Runner
from standins import segment as segment_here

from napari_medai import worker_values
from napari_medai.core.errors import InputError, MedaiError, NotFiniteError, WorkerError
from napari_medai.core.plan import Plan
from napari_medai.core.stage import Cancelled, Progress
from napari_medai.core.volume import Volume
from napari_medai.io.lazy import PlanesArray, lazy
from napari_medai.models.spec import Model
from napari_medai.stages import STAGES
from napari_medai.worker import Worker
from napari_medai.worker_values import Packing, Unpacking

PARAMS = STAGES["segment"].params()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One process for all tests; they fail if it leaves a process, a thread or a file."""
    before = _there()
    worker = Worker(preload=())
    yield worker
    worker.close()
    assert _there() <= before


def _there() -> set[Any]:
    """Files, threads and processes of workers of this process; tests of the window may have one too."""
    places = {Path(tempfile.gettempdir()), Path("/dev/shm")}
    files = {found for place in places for found in place.glob(f"medai-worker-{os.getpid()}-*")}
    threads = {thread for thread in threading.enumerate() if thread.name == "medai-worker"}
    children = psutil.Process().children()
    return files | threads | {child.pid for child in children if "worker_child" in " ".join(child.cmdline())}


@pytest.fixture(autouse=True)
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runner:
    for name, row in Runner.stages().items():
        monkeypatch.setitem(STAGES, name, row)
    folder = tmp_path / "runner"
    folder.mkdir()
    return Runner(folder)


@pytest.fixture
def brain(runner: Runner) -> Model:
    return next(model for model in runner.find("segment") if model.id == "brain")


def scan(array: Any = None) -> Volume:
    array = np.random.default_rng(0).random((12, 64, 64)).astype(np.float32) if array is None else array
    return Volume(array, "zyx", np.diag([4.0, 1.0, 1.0, 1.0]), "mm", "MR", "head", {"window": (0.0, 1.0)}, "a file")


class Heard(Progress):
    """Keeps what was said; does something once a text was said."""

    def __init__(self, at: str = "", then: Callable[[], Any] = lambda: None) -> None:
        self.said: list[tuple[float, float, str]] = []
        self.notes: list[str] = []
        self.plans: list[Plan] = []
        self.found: list[tuple[np.ndarray, tuple[slice, ...]]] = []
        self.cancelled = False
        self._at, self._then = at, then

    def update(self, done: float, total: float, message: str = "") -> None:
        self.said.append((done, total, message))
        if self._at and message == self._at:
            self._at = ""
            self._then()
        self.check()

    def note(self, message: str) -> None:
        self.notes.append(message)

    def check(self) -> None:
        if self.cancelled:
            raise Cancelled

    def planned(self, plan: Plan) -> None:
        self.plans.append(plan)

    def partial(self, found: np.ndarray, where: tuple[slice, ...]) -> None:
        self.found.append((np.array(found[where]), where))

    def cancel(self) -> None:
        self.cancelled = True


def run(worker: Worker, volume: Volume, model: Model, progress: Progress | None = None) -> Any:
    return worker.run("segment", volume, model, PARAMS, progress)


def test_the_result_is_that_of_this_process_to_the_last_bit(worker: Worker, runner: Runner, brain: Model) -> None:
    for array in (None, scan().array.transpose(2, 1, 0)[::-1], scan().array[:2, :3, :4], scan().array.astype(">i2")):
        volume = scan(array)
        here = segment_here(volume, brain, PARAMS, Progress())
        there = run(worker, volume, brain)
        assert runner.calls[-1]["pid"] == worker.pid != os.getpid()
        np.testing.assert_array_equal(there.labels.array, here.labels.array)
        assert there.labels.array.dtype == here.labels.array.dtype
        assert there.provenance == here.provenance
        assert list(there.table) == list(here.table)
        for name, column in here.table.items():
            np.testing.assert_array_equal(there.table[name], column)
        np.testing.assert_array_equal(there.labels.affine, volume.affine)
        assert (there.labels.name, there.labels.units, there.names) == ("head brain", "mm", {1: "brain"})
        there.labels.array[0] = 1  # its own memory, to be painted on


def test_what_the_result_keeps_of_the_image_is_the_image_itself(worker: Worker, brain: Model) -> None:
    levels = (scan().array, scan().array[:, ::2, ::2].copy())
    volume = scan(levels[0]).replace(meta={"levels": levels})
    kept = run(worker, volume, brain).labels.meta["levels"]
    assert kept[0] is levels[0]
    np.testing.assert_array_equal(kept[1], levels[1])


def test_says_what_the_stage_says(worker: Worker, runner: Runner, brain: Model) -> None:
    runner.does(plan=True, partial=True, note="smaller tile", pause=0.08)
    heard = Heard()
    run(worker, scan(), brain, heard)
    assert heard.said[-1] == (3.0, 4.0, "Tile 4 of 4")
    assert {text for *_, text in heard.said} == {f"Tile {n} of 4" for n in range(1, 5)}
    assert heard.notes == ["smaller tile"]
    assert heard.plans == [PLAN]
    assert len(heard.found) >= 3
    seen = np.zeros(12, int)
    for found, where in heard.found:
        assert found.min() == 1
        assert found.shape[1:] == (64, 64)
        seen[where[0]] += 1
    assert (seen == 1).all()


def test_many_words_are_few_messages(worker: Worker, runner: Runner, brain: Model) -> None:
    runner.does(steps=5000)
    heard = Heard()
    run(worker, scan(), brain, heard)
    assert 1 <= len(heard.said) < 500
    assert heard.said[-1][0] == 4999


def test_plans_without_running(worker: Worker, runner: Runner, brain: Model) -> None:
    runner.does(plan=True, ends="kill")
    assert worker.plan("segment", scan(), brain, PARAMS) == PLAN
    runner.does()
    assert worker.plan("segment", scan(), brain, PARAMS) is None
    assert len(runner.calls) == 2
    learning = brain.model_copy(update={"spec": brain.spec.model_copy(update={"runner": "self"})})
    assert worker.plan("segment", scan(), learning, PARAMS) is None
    assert len(runner.calls) == 2  # there are no tiles: nothing is run to find that out


def test_lazy_pixels_are_read_by_the_process_itself(worker: Worker, runner: Runner, brain: Model) -> None:
    """A chunk that ends whoever computes it here."""
    here = os.getpid()

    def chunk(block: np.ndarray) -> np.ndarray:
        assert os.getpid() != here, "computed in the parent"
        return block + 1

    array = da.from_array(scan().array, chunks=(4, 64, 64)).map_blocks(chunk, dtype=np.float32)
    result = run(worker, scan(array), brain)
    expected = scan().array + 1
    assert runner.calls[-1]["lazy"]
    assert runner.calls[-1]["sum"] == pytest.approx(float(expected.sum(dtype=np.float64)))
    np.testing.assert_array_equal(result.labels.array, expected > np.quantile(expected, 2 / 3))


class Planes:
    """Planes that only count themselves."""

    shape, dtype, ndim = (1, 3, 4, 5), np.dtype(np.float32), 4

    def plane(self, t: int, z: int) -> np.ndarray:
        return np.full((4, 5), z, np.float32)

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.stack([self.plane(0, z) for z in range(3)])[None][key]


def test_planes_on_disk_are_read_whole_over_there_too(tmp_path: Path) -> None:
    array = lazy(Planes())[0][:, ::-1]
    there = Unpacking(Packing([tmp_path]).pack(array), mapped=True).unpack()
    assert isinstance(there, PlanesArray)
    np.testing.assert_array_equal(np.asarray(there), np.asarray(array))


def test_lazy_pixels_that_only_this_process_can_read_are_computed_here(worker: Worker, brain: Model) -> None:
    lock = threading.Lock()

    def chunk(block: np.ndarray) -> np.ndarray:
        with lock:
            return block + 1

    array = da.from_array(scan().array, chunks=(4, 64, 64)).map_blocks(chunk, dtype=np.float32)
    volume = scan(array).replace(meta={"levels": (array, array[:, ::2])})
    result = run(worker, volume, brain)
    np.testing.assert_array_equal(result.labels.array, run(worker, scan(scan().array + 1), brain).labels.array)


@pytest.mark.parametrize(("kind", "made"), [("InputError", InputError), ("NotFiniteError", NotFiniteError)])
def test_our_errors_arrive_as_what_they_are(
    worker: Worker, runner: Runner, brain: Model, kind: str, made: type[MedaiError]
) -> None:
    runner.does(error=(kind, "Every pixel has the value 3."))
    pid = worker.pid
    with pytest.raises(made, match=r"^Every pixel has the value 3") as raised:
        run(worker, scan(), brain)
    assert type(raised.value) is made
    runner.does()
    run(worker, scan(), brain)
    assert worker.pid == pid


def test_other_errors_name_their_kind_and_nothing_of_the_patient(
    worker: Worker, runner: Runner, brain: Model, caplog: pytest.LogCaptureFixture
) -> None:
    runner.does(error=("ZeroDivisionError", "Doe^Jane divided by zero"))
    with caplog.at_level(logging.ERROR), pytest.raises(WorkerError, match=r"unexpectedly \(ZeroDivisionError\)"):
        run(worker, scan(), brain)
    assert "standins.py" in caplog.text
    assert "in _half_way" in caplog.text
    assert "Doe" not in caplog.text


def test_cancel_at_the_next_tile_keeps_the_process(worker: Worker, runner: Runner, brain: Model) -> None:
    run(worker, scan(), brain)
    pid = worker.pid
    runner.does(hold=True)
    heard = Heard("Tile 3 of 4")
    heard._then = heard.cancel
    with pytest.raises(Cancelled):
        run(worker, scan(), brain, heard)
    assert worker.pid == pid
    runner.does()
    run(worker, scan(), brain)


def test_cancel_in_the_middle_of_a_long_tile_ends_the_process(worker: Worker, runner: Runner, brain: Model) -> None:
    run(worker, scan(), brain)
    process = psutil.Process(worker.pid)
    runner.does(ends="deaf")
    heard = Heard("Tile 3 of 4")
    heard._then = heard.cancel
    with pytest.raises(Cancelled):
        run(worker, scan(), brain, heard)
    assert not process.is_running()
    assert worker.pid is None
    runner.does()
    run(worker, scan(), brain)
    assert worker.pid not in (None, process.pid)


@pytest.mark.parametrize(("ends", "how"), [("kill", "SIGKILL .perhaps for lack of memory"), ("segfault", "SIGSEGV")])
def test_a_process_that_dies_is_an_error_and_the_next_run_works(
    worker: Worker, runner: Runner, brain: Model, ends: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    runner.does(ends=ends, partial=True)
    with pytest.raises(WorkerError, match=f"ended by {how}.*Run again") as raised:
        run(worker, scan(), brain)
    assert "head" not in str(raised.value)
    assert ("in _half_way" in caplog.text) == (ends == "segfault")
    runner.does()
    assert run(worker, scan(), brain).labels.array.any()


def test_a_process_that_was_killed_while_nothing_ran_is_replaced(worker: Worker, brain: Model) -> None:
    worker.start()
    pid = worker.pid
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=5)
    run(worker, scan(), brain)
    assert worker.pid not in (None, pid)


def test_two_threads_have_their_turns_and_waiting_can_be_cancelled(
    worker: Worker, runner: Runner, brain: Model
) -> None:
    runner.does(hold=True)
    started, ends = threading.Event(), []
    first = Heard("Tile 3 of 4", started.set)
    waiting = Heard()

    def attempt(progress: Heard) -> None:
        try:
            ends.append((progress, run(worker, scan(), brain, progress)))
        except Cancelled as error:
            ends.append((progress, error))

    threads = [threading.Thread(target=attempt, args=(first,))]
    threads[0].start()
    assert started.wait(30)
    threads.append(threading.Thread(target=attempt, args=(waiting,)))
    threads[1].start()
    waiting.cancel()
    threads[1].join(10)
    assert [progress for progress, _ in ends] == [waiting]
    assert isinstance(ends[0][1], Cancelled)
    runner.go()
    threads[0].join(10)
    assert ends[1][0] is first
    assert len(runner.calls) == 1


def test_no_room_is_an_error_and_leaves_nothing(worker: Worker, brain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Any, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(worker_values, "_header", full)
        with pytest.raises(WorkerError, match=r"no room for the image in .*No space left"):
            run(worker, scan(), brain)
    run(worker, scan(), brain)


def test_devices_are_known_while_something_runs(worker: Worker, runner: Runner, brain: Model) -> None:
    runner.does(hold=True)
    found: list[Any] = []
    heard = Heard("Tile 3 of 4", lambda: found.extend(worker.devices()))
    timer = threading.Thread(target=lambda: (_until(lambda: bool(found)), runner.go()))
    timer.start()
    run(worker, scan(), brain, heard)
    timer.join()
    assert found[-1].kind == "cpu"
    assert "torch" not in found[-1].name


def test_devices_are_asked_again_where_a_cancelled_run_took_the_process_along(
    worker: Worker, runner: Runner, brain: Model
) -> None:
    runner.does(hold=True)
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(worker.devices()))

    def stop() -> None:
        pid = worker.pid
        os.kill(pid, signal.SIGSTOP)  # it answers nobody
        asking.start()
        _until(lambda: len(worker._process._inboxes) == 2)
        heard.cancel()

    heard = Heard("Tile 3 of 4", stop)
    with pytest.raises(Cancelled):
        run(worker, scan(), brain, heard)
    asking.join(60)
    assert found[0][-1].kind == "cpu"


def _until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)


SCRIPT = """
    import sys, time
    from standins import Runner
    from napari_medai.core.volume import Volume
    from napari_medai.stages import STAGES
    from napari_medai.worker import Worker
    from pathlib import Path
    import numpy as np

    STAGES.update(Runner.stages())
    runner = Runner(Path(sys.argv[1]))
    runner.does(hold=sys.argv[2] == "hold")
    (brain,) = [model for model in runner.find("segment") if model.id == "brain"]
    worker = Worker(preload=())
    worker.start()
    homes = [str(home) for home in worker._process._homes]
    print(worker.pid, *homes, flush=True)
    volume = Volume(np.arange(40000, dtype=np.float32).reshape(4, 100, 100), "zyx", units="mm", modality="MR")
    print(worker.run("segment", volume, brain, STAGES["segment"].params()).labels.shape)
"""


def _script(tmp_path: Path, how: str) -> subprocess.Popen[str]:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    (tmp_path / "said").mkdir()
    command = [sys.executable, str(path), str(tmp_path / "said"), how]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_script_without_a_main_guard_runs_and_ends(tmp_path: Path) -> None:
    script = _script(tmp_path, "go on")
    said, _ = script.communicate(timeout=60)
    pid, *homes = said.splitlines()[0].split()
    assert said.splitlines()[1:] == ["(4, 100, 100)"]
    assert script.returncode == 0
    _until(lambda: not psutil.pid_exists(int(pid)) and not any(Path(home).exists() for home in homes))
    assert not psutil.pid_exists(int(pid))
    assert not [home for home in homes if Path(home).exists()]


def test_the_process_ends_with_a_parent_that_is_killed_in_a_run(tmp_path: Path) -> None:
    script = _script(tmp_path, "hold")
    pid, *homes = script.stdout.readline().split()
    _until(lambda: bool(list((tmp_path / "said").glob("call*.json"))))
    assert psutil.pid_exists(int(pid))
    script.kill()
    script.communicate()
    _until(lambda: not psutil.pid_exists(int(pid)) and not any(Path(home).exists() for home in homes))
    assert not psutil.pid_exists(int(pid))
    assert not [home for home in homes if Path(home).exists()]


def test_starting_one_costs_no_torch_and_no_window() -> None:
    code = "import sys, napari_medai.worker; print([m for m in ('torch', 'monai', 'napari') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
