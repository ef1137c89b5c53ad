"""What runs in the process of a worker: one job after another, until the process that gave them has gone.

Started by `napari_medai.worker`. Three threads: the first one computes, one listens, one tells what was said last.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import os
import pickle
import queue
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import MedaiError
from napari_medai.core.plan import Plan
from napari_medai.core.stage import Cancelled, Planned, Progress
from napari_medai.engine.device import release_host_memory
from napari_medai.worker_values import Packing, Parcel, Unpacking, receive, reserve, roomy, send

# Said more often, progress costs more than it tells
_SECONDS_BETWEEN = 0.05
_IMPORT_NICE = 10
# Labels larger than this are not shown while they are found: the copy would cost more memory than it is worth
_MOST_SHOWN = 1 << 30


class Voice(Progress):
    """Tells the process that waits; asked by the stage whether to go on.

    Parameters
    ----------
    number : int
        Of the job.
    folders : sequence of Path
        Where labels are put as they are found, the quickest first.
    dry : bool
        Leave it at the plan.
    """

    def __init__(self, number: int, wire: Wire, folders: Sequence[Path], store: Path | None, dry: bool) -> None:
        self._number, self._wire, self._folders, self.dry = number, wire, folders, dry
        self.store = store
        self.cancelled = threading.Event()
        self._latest: tuple[float, float, str] | None = None  # replaced as a whole; told by another thread
        self._shown: _Shown | None = None

    def update(self, done: float, total: float, message: str = "") -> None:
        """See `Progress.update`."""
        self._latest = (float(done), float(total), message or (self._latest[2] if self._latest else ""))
        self.check()

    def note(self, message: str) -> None:
        """See `Progress.note`."""
        self._wire.say(self._number, "note", message)

    def check(self) -> None:
        """See `Progress.check`."""
        if self.cancelled.is_set():
            raise Cancelled

    def planned(self, plan: Plan) -> None:
        """See `Progress.planned`."""
        if self.dry:
            raise Planned(plan)
        self._wire.say(self._number, "planned", plan)

    def partial(self, found: NDArray[Any], where: tuple[slice, ...]) -> None:
        """See `Progress.partial`."""
        if self._shown is None or (self._shown.shape, self._shown.dtype) != (found.shape, found.dtype):
            self._shown = _Shown(found, self._folders)
        self._shown.put(found, where)

    def tell(self) -> None:
        """Say what was said last and not told yet."""
        latest, self._latest = self._latest, None
        if latest is not None:
            self._wire.say(self._number, "progress", latest)
        shown = self._shown
        if shown is not None and (new := shown.news()) is not None:
            self._wire.say(self._number, "partial", (shown.path, new))


class _Shown:
    """Labels in a file that the window reads while they are found."""

    def __init__(self, found: NDArray[Any], folders: Sequence[Path]) -> None:
        self.shape, self.dtype = found.shape, found.dtype
        self._lock = threading.Lock()
        self._new: tuple[slice, ...] | None = None
        self._copy: NDArray[Any] | None = None
        nbytes = int(np.prod(found.shape, dtype=np.int64)) * np.dtype(found.dtype).itemsize
        folder = roomy(folders, nbytes)
        self.path = folder / f"found{sum(path.name.startswith('found') for path in folder.iterdir())}.npy"
        if nbytes > _MOST_SHOWN:
            return
        with contextlib.suppress(OSError):  # no room: they are seen at the end
            reserve(self.path, found.shape, np.dtype(found.dtype), nbytes)
            self._copy = np.load(self.path, mmap_mode="r+")

    def put(self, found: NDArray[Any], where: tuple[slice, ...]) -> None:
        """Copy what is new."""
        if self._copy is None:
            return
        self._copy[where] = found[where]
        box = tuple(slice(*part.indices(size)[:2]) for part, size in zip(where, self.shape, strict=False))
        with self._lock:
            old = self._new or box
            pairs = zip(old, box, strict=True)
            self._new = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in pairs)

    def news(self) -> tuple[slice, ...] | None:
        """The box of what is new since it was asked last."""
        with self._lock:
            new, self._new = self._new, None
        return new


class Wire:
    """The pipe to the process that waits; whole messages, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def say(self, number: int, kind: str, what: Any = None) -> None:
        """Send one message."""
        with self._lock:
            send(self._write, (number, kind, what))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]


class Child:
    """Takes jobs from a pipe and answers on another."""

    def __init__(self, stream: IO[bytes], wire: Wire, homes: Sequence[Path]) -> None:
        self._stream, self._wire, self._homes = stream, wire, homes
        self._jobs: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._voice: tuple[int, Voice] | None = None

    def listen(self) -> None:
        """Hear jobs and cancellations; the end of the pipe is the end of this process."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, kind, what = receive(self._stream)
                if kind == "cancel":
                    self._cancelled.add(number)
                    voice = self._voice
                    if voice is not None and voice[0] == number:
                        voice[1].cancelled.set()
                elif kind == "devices":
                    threading.Thread(target=self._devices, args=(number,), daemon=True).start()
                else:
                    self._jobs.put((number, (kind, what)))
        for home in self._homes:
            shutil.rmtree(home, ignore_errors=True)
        os._exit(0)

    def tell(self) -> None:
        """Pass on what the running stage said, twenty times a second."""
        pause = threading.Event()
        while not pause.wait(_SECONDS_BETWEEN):
            voice = self._voice
            if voice is not None:
                voice[1].tell()

    def work(self) -> None:
        """Do the jobs, for ever."""
        while True:
            number, (kind, what) = self._jobs.get()
            self._wire.say(number, *self._answer(number, kind, what))
            del what
            _tidy()

    def _answer(self, number: int, kind: str, what: tuple[Parcel, Sequence[Path]]) -> tuple[str, Any]:
        """Do one job; the last message about it."""
        parcel, folders = what
        try:
            unpacking = Unpacking(parcel, mapped=True)
            job = unpacking.unpack()
            _know(job["tables"])
            voice = Voice(number, self._wire, folders, job["store"], kind == "plan")
            self._voice = (number, voice)
            if number in self._cancelled:
                voice.cancelled.set()
            try:
                result = _run(job, voice)
                voice.check()  # cancelled after its last tile is cancelled too
            finally:
                self._voice = None
            voice.tell()
            given = [unpacking.array(n) for n in range(len(parcel.items))]
            return "done", Packing(folders, given).pack(result)
        except MedaiError as error:
            return "error", _told(error)
        except Exception as error:  # noqa: BLE001  # whatever it is, the window is told, and the next job goes on
            return "fault", (type(error).__name__, _where(error))

    def _devices(self, number: int) -> None:
        try:
            from napari_medai.engine.device import available_devices

            self._wire.say(number, "done", available_devices())
        except Exception as error:  # noqa: BLE001  # a driver that is not what torch was made for
            self._wire.say(number, "fault", (type(error).__name__, _where(error)))


def _run(job: dict[str, Any], voice: Voice) -> Any:
    from napari_medai.api import plan_stage, run_stage

    do = plan_stage if voice.dry else run_stage
    return do(job["stage"], job["volume"], job["model"], job["params"], voice)


def _know(tables: dict[str, dict[str, Any]]) -> None:
    """Learn the stage as the process that asks has it, and the rows of tables that were added there."""
    from napari_medai.engine import RUNNERS
    from napari_medai.models import SOURCES
    from napari_medai.stages import STAGES

    STAGES.update(tables["STAGES"])  # type: ignore[attr-defined]
    for table, name in ((RUNNERS, "RUNNERS"), (SOURCES, "SOURCES")):
        for key, row in tables[name].items():
            table.setdefault(key, row)  # type: ignore[attr-defined]


def _told(error: MedaiError) -> tuple[type[MedaiError], str, dict[str, Any]]:
    """Kind, text and attributes of an error; the kind is the nearest that the other side can know."""
    text = str(error)
    for kind in type(error).__mro__:
        with contextlib.suppress(Exception):
            told = (kind, text, vars(error) if kind is type(error) else {})
            pickle.dumps(told)
            return told
    return MedaiError, text, {}


def _where(error: BaseException) -> str:
    """Where an error came from. Its text stays here: it may hold names of files, and those of patients."""
    return "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__


def _tidy() -> None:
    """Give memory back to the system: a worker may wait for hours."""
    gc.collect()
    release_host_memory()


def _preload(modules: Sequence[str]) -> None:
    """Import what a run will need, with less priority than the window; a run that comes earlier imports it itself."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _IMPORT_NICE)
    for module in modules:
        with contextlib.suppress(ImportError):  # said by the run that needs it
            importlib.import_module(module)


def main(stream: IO[bytes], homes: list[str], preload: list[str]) -> None:
    """Serve the process at the other end of standard input and output until it goes."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    faulthandler.enable()
    wire = Wire(os.dup(1))
    os.dup2(2, 1)  # what is printed goes to standard error
    child = Child(stream, wire, [Path(home) for home in homes])
    for target in (child.listen, child.tell):
        threading.Thread(target=target, daemon=True).start()
    threading.Thread(target=_preload, args=(preload,), daemon=True).start()
    child.work()
