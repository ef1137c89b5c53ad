"""Programs of packages run in a process of their own: what they see, what they give, how they end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from napari_medai import models
from napari_medai.core.errors import InputError, ModelError, UntrustedError
from napari_medai.core.stage import Cancelled, Progress
from napari_medai.core.volume import Volume
from napari_medai.engine import RUNNERS
from napari_medai.engine.isolated import _failed, _listen
from napari_medai.engine.isolated_process import started
from napari_medai.engine.run import Run, start
from napari_medai.models.package import package_sha256
from napari_medai.models.spec import Model
from napari_medai.models.trust import Grant
from napari_medai.stages import STAGES
from tests.engine import carried

NAMES = ["labels", "looks", "fails", "refuses"]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(models.SOURCES, "carried", "tests.engine.carried")
    for name in NAMES:
        assert callable(getattr(carried, name))
        monkeypatch.setitem(RUNNERS, name, f"tests.engine.carried:{name}")
    # so that what is left behind shows
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def nothing_left(tmp_path: Path):
    yield
    assert not list((tmp_path / "temporary").iterdir())
    assert not [c for c in psutil.Process().children(recursive=True) if "isolated" in " ".join(c.cmdline())]


def package(folder: Path, runner: str, stage: str = "segment", says: str = "", needs=("python",)) -> Path:
    place = folder / "package"
    place.mkdir(exist_ok=True)
    record = {"runner": runner, "stage": stage, "says": says, "needs": list(needs)}
    (place / "carried.json").write_text(json.dumps(record))
    return place


def granted(place: Path, *capabilities: str) -> Model:
    grant = Grant(package_sha256(place), frozenset(capabilities or ("python",)))
    return models.load(models.probe(place), grant)


class Seen(Progress):
    """Keeps what was said; stops once a text was said."""

    def __init__(self, stop_at: str = "") -> None:
        self.updates: list[tuple[float, float, str]] = []
        self.notes: list[str] = []
        self.stop_at = stop_at

    def update(self, done: float, total: float, message: str = "") -> None:
        self.updates.append((done, total, message))
        super().update(done, total, message)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def check(self) -> None:
        if self.stop_at and any(text == self.stop_at for _, _, text in self.updates):
            raise Cancelled


def execute(model: Model, volume: Volume, progress: Progress | None = None):
    progress = progress or Progress()
    stage = model.spec.stage
    with start(stage, volume, model, STAGES[stage].params(device="cpu"), progress) as run:
        return run.runner(volume, run, run.params), run


@pytest.fixture
def scan() -> Volume:
    pixels = np.arange(4 * 9 * 8, dtype=np.float32).reshape(4, 9, 8)
    affine = np.diag([3.0, 1.0, 1.0, 1.0])
    return Volume(pixels, "zyx", affine, "mm", "MR", "Doe^Jane", {"window": (0.0, 1.0)}, "/data/Doe^Jane")


@pytest.mark.usefixtures("nothing_left")
def test_a_stage_runs_a_granted_package_from_a_thread_and_records_it(
    tmp_path: Path, scan: Volume, no_leaked_threads: None
) -> None:
    from napari_medai.stages.segment import SegmentParams, run

    place = package(tmp_path, "labels")
    seen, got = Seen(), []
    model = granted(place)
    thread = threading.Thread(target=lambda: got.append(run(scan, model, SegmentParams(device="cpu"), seen)))
    thread.start()
    thread.join(100)
    mask = got[0]
    expected = (scan.numpy() > scan.numpy().mean()).astype(np.uint8)
    np.testing.assert_array_equal(mask.labels.numpy(), expected)
    record = mask.provenance
    assert record.tiles == 4
    assert record.device == "cpu"
    assert "the middle of the range is the threshold" in record.notes
    allowed = next(note for note in record.notes if "as its owner allowed" in note)
    assert package_sha256(place) in allowed
    assert "python" in allowed
    assert (1.0, 1.0, "thresholding") in seen.updates
    assert [note for note in record.notes if note.startswith("ran in a process of its own: ")]
    assert not [t for t in threading.enumerate() if t.name == "medai-isolated" and _still(t)]


def _still(thread: threading.Thread) -> bool:
    thread.join(5)
    return thread.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.usefixtures("nothing_left")
def test_it_sees_nothing_of_this_process_of_the_patient_or_of_the_network(
    tmp_path: Path, scan: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    # a package that is shown as one thing and hashed as another runs as what was hashed
    shown = models.probe(package(tmp_path, "fails", says="shown"))
    place = package(tmp_path, "looks", says=json.dumps({"outside": str(outside)}))
    model = models.load(shown, Grant(package_sha256(place), frozenset({"python"})))
    with (tmp_path / "open").open("wb") as file:
        os.set_inheritable(file.fileno(), True)
        labels, run = execute(model, scan)
    assert labels.max() == 0
    sees = {}
    for note in run.notes:
        assert "Doe" not in note
        if note.startswith("sees "):
            key, _, value = note.removeprefix("sees ").partition(": ")
            sees[key] = json.loads(value)
    assert not {"AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "DISPLAY", "SSH_AUTH_SOCK"} & set(sees["environment"])
    assert sees["secrets"] == []
    assert str(tmp_path / "open") not in sees["files"]
    assert sees["volume"] == ["image", "", {}]
    # the copy, not the package
    assert not sees["package"].startswith(str(tmp_path / "package"))
    assert sees["group"]
    done = dict(note.split(": ") for note in run.notes if re.fullmatch(r"\w+: (done|refused)", note))
    assert done["own"] == "done"
    limits = next(note for note in run.notes if note.startswith("ran in a process of its own"))
    if "no network" not in limits or "no files" not in limits:
        pytest.skip(f"this kernel lets a process give up less: {limits}")
    assert {name for name, how in done.items() if how == "refused"} >= {
        "socket", "unix", "write", "read", "shell", "parent", "session",
    }  # fmt: skip
    assert not (outside / "marker").exists()


@pytest.mark.usefixtures("nothing_left")
def test_what_the_program_raises_is_an_error_here(tmp_path: Path, scan: Volume) -> None:
    with pytest.raises(ModelError, match=r"'Carried' failed: ValueError: what the program says \[31m\."):
        execute(granted(package(tmp_path, "fails")), scan)


# --- the process, without a model in it


def heard(tmp_path: Path, function: str, progress: Progress | None = None) -> tuple[dict, str]:
    work = tmp_path / "work"
    work.mkdir()
    call = f"tests.engine.misbehaving:{function}"
    with started(call, work, (), ("tests.engine.misbehaving",)) as process:
        return _listen(process, bare_run(progress)), process.end()


def bare_run(progress: Progress | None) -> Run:
    volume = Volume(np.zeros((9, 8), np.float32), "yx")
    return Run(
        "segment", volume, models.load_model("nuclei"), STAGES["segment"].params(device="cpu"), progress or Seen()
    )


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("exits", "it ended with the code 7; its last words: last [31mwords"),
        ("segfaults", "it was ended by SIGSEGV"),
        ("killed", "it was ended by SIGKILL (perhaps for lack of memory)"),
        ("raises", "it ended with the code 1; its last words: KeyError: 'nobody catches it'"),
    ],
)
def test_however_it_ends_it_is_told_how(tmp_path: Path, function: str, expected: str) -> None:
    message, end = heard(tmp_path, function)
    assert "done" not in message
    assert end == expected
    error = _failed(models.load_model("nuclei").spec, message.get("error"), end)
    assert str(error) == f"The process that ran 'Nuclei in fluorescence images' stopped without a result: {expected}."


@pytest.mark.skipif(os.name != "posix", reason="processes as POSIX has them")
@pytest.mark.parametrize("function", ["hangs", "leaves", "vanishes"])
def test_it_is_ended_with_all_that_it_started(tmp_path: Path, function: str) -> None:
    progress = Seen(stop_at="hanging")
    if function == "hangs":
        with pytest.raises(Cancelled):
            heard(tmp_path, function, progress)
    else:
        message, _ = heard(tmp_path, function, progress)
        assert ("done" in message) == (function == "leaves")
    told = next(note for note in progress.notes if note.startswith("processes: "))
    deadline = time.monotonic() + 2
    while alive := [p for p in map(int, told.split()[1:]) if _lives(p)]:
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("function", ["babbles", "endless_line"])
def test_messages_that_are_none_are_refused(tmp_path: Path, function: str) -> None:
    progress = Seen()
    with pytest.raises(ModelError, match="said something that is no message"):
        heard(tmp_path, function, progress)
    if function == "babbles":
        assert progress.notes == ["['a', {'b': 1}]"]
        assert all(0 <= done <= total for done, total, _ in progress.updates)
        assert max(len(text) for _, _, text in progress.updates) <= 300


def test_a_flood_of_notes_is_cut(tmp_path: Path) -> None:
    progress = Seen()
    message, _ = heard(tmp_path, "floods", progress)
    assert message["done"] == {}
    assert len(progress.notes) == 100
    assert {len(note) for note in progress.notes} == {1000}


@pytest.mark.skipif(os.name != "posix", reason="processes as POSIX has them")
def test_it_goes_when_this_process_goes(tmp_path: Path) -> None:
    """Whoever started it is killed, so that nothing can be tidied up."""
    code = (
        "import pathlib, os, sys\n"
        "from napari_medai.engine.isolated_process import started\n"
        f"work = pathlib.Path({str(tmp_path / 'work')!r}); work.mkdir()\n"
        "with started('tests.engine.misbehaving:orphan', work, (), ('tests.engine.misbehaving',)) as process:\n"
        "    while not (message := process.message()): pass\n"
        "    print(message['note'], flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ended.returncode == -9
    pid = int(ended.stdout)
    deadline = time.monotonic() + 5
    while _lives(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- what is refused before anything is started


@pytest.mark.parametrize(("kind", "expected"), [("InputError", InputError), ("KeyboardInterrupt", ModelError)])
def test_errors_of_ours_keep_their_kind(kind: str, expected: type[Exception]) -> None:
    error = _failed(models.load_model("nuclei").spec, {"kind": kind, "text": "Four\nslices."}, "")
    assert type(error) is expected
    assert "Four slices." in str(error)


@pytest.mark.usefixtures("nothing_left")
def test_a_package_that_changed_since_it_was_loaded_does_not_run(tmp_path: Path, scan: Volume) -> None:
    place = package(tmp_path, "labels")
    model = granted(place)
    (place / "more.py").write_text("evil")
    with pytest.raises(UntrustedError, match="Somebody changed it"):
        execute(model, scan)


def test_a_permission_for_less_does_not_count(tmp_path: Path, scan: Volume) -> None:
    place = package(tmp_path, "labels", needs=("python", "pickle"))
    spec = models.probe(place)
    with pytest.raises(UntrustedError, match="--allow pickle --allow python"):
        models.load(spec, Grant(package_sha256(place), frozenset({"pickle"})))
    # and a model put together by hand is refused where it would run
    grant = Grant(package_sha256(place), frozenset({"pickle"}))
    model = Model(spec=spec, folder=place, source="carried", grant=grant)
    with pytest.raises(UntrustedError, match="python"):
        execute(model, scan)
    with pytest.raises(UntrustedError, match="pickle, python"):
        execute(model.model_copy(update={"grant": None}), scan)


def test_a_package_that_began_to_need_more_is_refused(tmp_path: Path, scan: Volume) -> None:
    shown = models.probe(package(tmp_path, "labels", needs=("pickle",)))
    place = package(tmp_path, "labels", needs=("pickle", "python"))
    model = models.load(shown, Grant(package_sha256(place), frozenset({"pickle"})))
    with pytest.raises(UntrustedError, match="needs what was not allowed: python"):
        execute(model, scan)
