"""A warm process that runs stages for a window, or for whoever wants its own process to stay free and alive.

torch and the weights stay loaded between runs. What happens to the process (a crash, lack of memory, an end from
outside) is an error here and nothing more, and the next run starts a new one. The process ends with this one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from napari_medai.core.errors import MedaiError, WorkerError
from napari_medai.core.plan import Plan
from napari_medai.core.result import Result
from napari_medai.core.stage import Params, Progress
from napari_medai.core.volume import Volume
from napari_medai.engine import RUNNERS
from napari_medai.engine.device import DeviceInfo
from napari_medai.engine.isolated_process import end_tree, how_it_ended
from napari_medai.engine.scratch import lock, sweep, unlock
from napari_medai.models import SOURCES
from napari_medai.models.spec import Model
from napari_medai.stages import STAGES
from napari_medai.worker_values import UNPICKLABLE, Packing, Unpacking, receive, send

# What most runs need; imported while nobody waits
PRELOAD = ("napari_medai.engine.run", "napari_medai.engine.network", "napari_medai.stages.measure")
# The script of this process is not imported again: one without a main guard works too.
_BOOT = """\
import json, sys
start = json.loads(sys.stdin.buffer.readline())
sys.path[:] = start["path"]
from napari_medai.worker_child import main
main(sys.stdin.buffer, start["homes"], start["preload"])
"""
_SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "medai-worker-"
_LOOK_SECONDS = 0.05
# A pass through a network cannot be stopped: one of a large tile may take this long and longer
_CANCEL_SECONDS = 2.0
_END_SECONDS = 5.0
_DEVICES_SECONDS = 60.0
_LAST_BYTES = 1 << 14
_STACK = ("Fatal Python error", "Current thread", "Thread 0x", '  File "')

_log = logging.getLogger(__name__)


class Worker:
    """Runs stages in a process of its own, one at a time; started when it is first needed.

    Parameters
    ----------
    preload : sequence of str
        Modules that the process imports before it is asked for anything. Default: what most runs need.
    """

    def __init__(self, preload: Sequence[str] = PRELOAD) -> None:
        self._preload = tuple(preload)
        self._turn = threading.Lock()  # held by who runs
        self._starting = threading.Lock()
        self._process: _Process | None = None

    def start(self) -> None:
        """Start the process if it is not there; it imports what it will need in the background.

        Raises
        ------
        WorkerError
            No process can be started.
        """
        self._alive()

    @property
    def pid(self) -> int | None:
        """Number of the process; None where there is none."""
        process = self._process
        return process.popen.pid if process is not None and process.alive else None

    def run(
        self, stage: str, volume: Volume, model: str | Model, params: Params, progress: Progress | None = None
    ) -> Result:
        """Run a stage in the process; as `napari_medai.api.run_stage`.

        Pixels in memory go through a file, lazy ones are read by the process itself. ``progress`` is told what the
        stage says, in this thread, and may stop it: the process is given two seconds to come to the end of its
        tile, then it is ended.

        Raises
        ------
        MedaiError
            As the stage documents.
        WorkerError
            The process ended, or met a fault of the program.
        """
        return cast(Result, self._do("run", stage, volume, model, params, progress or Progress()))

    def plan(
        self, stage: str, volume: Volume, model: str | Model, params: Params, progress: Progress | None = None
    ) -> Plan | None:
        """What a run would take, found out in the process; as `napari_medai.api.plan_stage`.

        Raises
        ------
        MedaiError, WorkerError
            As `run`.
        """
        return cast("Plan | None", self._do("plan", stage, volume, model, params, progress or Progress()))

    def devices(self) -> tuple[DeviceInfo, ...]:
        """The devices that the process can use, also while it runs something: this process needs no torch.

        Raises
        ------
        WorkerError
            The process cannot be started, or does not know them.
        """
        for again in (True, False):
            process = self._alive()
            with process.asked("devices", None) as inbox:
                try:
                    kind, what = inbox.get(timeout=_DEVICES_SECONDS)
                except queue.Empty:
                    raise WorkerError("The process that runs the models does not say what devices there are.") from None
            if kind != "ended" or not again or self._process is None:  # ended with a run: cancelled, or it crashed
                break
        if kind != "done":
            raise process.failed() if kind == "ended" else _fault(*what)
        return cast("tuple[DeviceInfo, ...]", what)

    def close(self) -> None:
        """End the process; the next run starts a new one."""
        with self._starting:
            process, self._process = self._process, None
        if process is not None:
            process.end()

    def _alive(self) -> _Process:
        with self._starting:
            if self._process is not None and not self._process.alive:
                self._process.end()
                self._process = None
            if self._process is None:
                self._process = _Process(self._preload)
            return self._process

    def _do(self, kind: str, stage: str, volume: Volume, model: str | Model, params: Params, progress: Progress) -> Any:
        while not self._turn.acquire(timeout=_LOOK_SECONDS):
            progress.check()
        try:
            progress.check()
            process = self._alive()
            with process.folders() as folders:
                parcel, arrays = _packed(stage, volume, model, params, progress, folders)
                with process.asked(kind, (parcel, folders)) as inbox:
                    try:
                        answer, what = _heard(inbox, progress)
                    except BaseException:
                        # whatever the caller's own progress raises: nobody waits for this run any more
                        process.stop(inbox)
                        raise
                if answer == "done":
                    return Unpacking(what, mapped=False, given=arrays).unpack()
        finally:
            self._turn.release()
        if answer == "error":
            raise _told(*what)
        raise process.failed() if answer == "ended" else _fault(*what)


def _packed(
    stage: str, volume: Volume, model: str | Model, params: Params, progress: Progress, folders: Sequence[Path]
) -> tuple[Any, list[Any]]:
    job = {"stage": stage, "volume": volume, "model": model, "params": params, "store": progress.store}
    rows = {name: row for name, row in STAGES.items() if name == stage}
    job["tables"] = {"STAGES": rows, "RUNNERS": dict(RUNNERS), "SOURCES": dict(SOURCES)}
    try:
        packing = Packing(folders)
        try:
            return packing.pack(job), packing.arrays
        except UNPICKLABLE:
            # lazy pixels that only this process can read are computed here; so would be the levels of their pyramid
            meta = {key: value for key, value in volume.meta.items() if key != "levels"}
            packing = Packing(folders)
            return packing.pack(job | {"volume": volume.replace(meta=meta)}, as_file=volume.array), packing.arrays
    except OSError as error:
        raise WorkerError(
            f"There is no room for the image in {folders[-1].parent.parent} ({error.strerror}); free some of it."
        ) from error


def _heard(inbox: queue.SimpleQueue[tuple[str, Any]], progress: Progress) -> tuple[str, Any]:
    """Pass on what the process says until it has an answer: ``done``, ``error``, ``fault`` or ``ended``."""
    seen: dict[Path, Any] = {}
    while True:
        try:
            kind, what = inbox.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            progress.check()
            continue
        if kind == "progress":
            progress.update(*what)
        elif kind == "note":
            progress.note(what)
        elif kind == "planned":
            progress.planned(what)
        elif kind == "partial":
            path, where = what
            if path not in seen:
                seen[path] = np.load(path, mmap_mode="r")
            progress.partial(seen[path], where)
        else:
            return kind, what


def _told(kind: type[MedaiError], text: str, attributes: dict[str, Any]) -> MedaiError:
    """The error as the process raised it, whatever its own way of being made is."""
    error = kind.__new__(kind, text)
    Exception.__init__(error, text)
    error.__dict__.update(attributes)
    return error


def _fault(name: str, where: str) -> WorkerError:
    _log.error("A run failed in its process:\n%s", where)
    return WorkerError(
        f"The run failed unexpectedly ({name}); that is a fault of the program. Nothing was changed; the log of "
        "Python has where it happened."
    )


class _Process:
    """The process, and the threads that hear it."""

    def __init__(self, preload: Sequence[str]) -> None:
        for place in {Path(tempfile.gettempdir()), Path(_SHARED_MEMORY)}:
            sweep(place, _PREFIX)  # it may hold pixels of patients
        self._home = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        self._homes = [self._home]
        (self._home / "temporary").mkdir()
        if os.access(_SHARED_MEMORY, os.W_OK):
            self._homes.insert(0, Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_SHARED_MEMORY)))
        self._locks = [lock(home) for home in self._homes]
        temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self._home / "temporary"))
        try:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", _BOOT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=os.environ | temporary,
                start_new_session=os.name == "posix",  # Ctrl-C is for this process
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            self._remove()
            raise WorkerError(f"No process can be started to run models in ({error.strerror}).") from error
        self._number = 0
        self._runs = 0
        self._ended = False
        self._inboxes: dict[int, queue.SimpleQueue[tuple[str, Any]]] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._ending = threading.Lock()
        self._last = b""
        self._threads = [
            threading.Thread(target=target, args=(stream,), name="medai-worker", daemon=True)
            for target, stream in ((self._listen, self.popen.stdout), (self._keep, self.popen.stderr))
        ]
        for thread in self._threads:
            thread.start()
        paths = [path or os.getcwd() for path in sys.path]
        start = {"path": paths, "homes": [str(home) for home in self._homes], "preload": list(preload)}
        self._write(json.dumps(start).encode() + b"\n")

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return not self._ended and self.popen.poll() is None

    @contextlib.contextmanager
    def folders(self) -> Iterator[list[Path]]:
        """Folders for the files of one run, the quickest first; gone at its end."""
        self._runs += 1
        folders = [home / f"run{self._runs}" for home in self._homes]
        try:
            for folder in folders:
                folder.mkdir()
            yield folders
        finally:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def asked(self, kind: str, what: Any) -> Iterator[queue.SimpleQueue[tuple[str, Any]]]:
        """Ask it something; where its answers arrive, ``("ended", None)`` last if it goes."""
        inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        with self._lock:
            self._number += 1
            number = self._number
            self._inboxes[number] = inbox
            if self._ended:
                inbox.put(("ended", None))
        try:
            with self._sending:
                send(self._write, (number, kind, what))
            yield inbox
        finally:
            with self._lock:
                del self._inboxes[number]

    def stop(self, inbox: queue.SimpleQueue[tuple[str, Any]]) -> None:
        """Have it stop at the next tile; ended if that does not come soon."""
        with self._lock:
            number = next((n for n, box in self._inboxes.items() if box is inbox), None)
        with self._sending:
            send(self._write, (number, "cancel", None))
        deadline = time.monotonic() + _CANCEL_SECONDS
        kind = ""
        while kind not in ("done", "error", "fault", "ended"):
            try:
                kind, _ = inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self.end()
                return

    def failed(self) -> WorkerError:
        """What is said of a process that ended by itself."""
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.popen.wait(_END_SECONDS)
        self.end()  # its last words have been heard then
        lines = self._last.decode(errors="replace").splitlines()
        stack = "\n".join(line for line in lines if line.startswith(_STACK))
        how = how_it_ended(code)
        _log.error("The process of a run ended: %s\n%s", how, stack)
        return WorkerError(
            f"The process that ran the model stopped without a result: {how}. Nothing was changed, and earlier results "
            "are still here. Run again: a new process is started; if it was for lack of memory, with a smaller tile "
            "or less memory (Advanced), or after closing other programs."
        )

    def end(self) -> None:
        """End it and all that it started, and remove its files; more than once does no harm."""
        self._ended = True
        with self._ending:
            end_tree(self.popen)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(_END_SECONDS)
            for thread in self._threads:
                thread.join(_END_SECONDS)
            for stream in filter(None, (self.popen.stdin, self.popen.stdout, self.popen.stderr)):
                with contextlib.suppress(OSError):
                    stream.close()
            self._remove()

    def _remove(self) -> None:
        for home in self._homes:
            shutil.rmtree(home, ignore_errors=True)
        while self._locks:
            unlock(self._locks.pop())

    def _write(self, data: bytes) -> None:
        stream = self.popen.stdin
        assert stream is not None
        with contextlib.suppress(OSError, ValueError):  # it has gone: whoever waits is told by the other thread
            stream.write(data)
            stream.flush()

    def _listen(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(EOFError, OSError, ValueError):
            while True:
                number, kind, what = receive(stream)
                with self._lock:
                    inbox = self._inboxes.get(number)
                if inbox is not None:
                    inbox.put((kind, what))
        with self._lock:
            self._ended = True
            for inbox in self._inboxes.values():
                inbox.put(("ended", None))

    def _keep(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while piece := stream.read1(_LAST_BYTES):  # type: ignore[attr-defined]
                self._last = (self._last + piece)[-_LAST_BYTES:]
