"""A Python process of its own: started with nothing of this one's, heard line by line, ended with all that it started.

Good for any long work; what it does is up to the module that it calls (see `isolated_child`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psutil

from napari_medai.core.errors import ModelError
from napari_medai.engine.isolated_values import plain_text

# Kept of this process's environment: what devices, threads and libraries need; nothing that could be a secret.
_KEPT = (
    "PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ",
    "SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME", "CUDA_PATH", "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF", "PYTORCH_ENABLE_MPS_FALLBACK", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "KMP_AFFINITY", "KMP_DUPLICATE_LIB_OK",
)  # fmt: skip
# Before anything of this package or another is imported, the process finds this package and gives up its powers.
_BOOT = """\
import json, sys
with open(sys.argv[1] + "/start.json", encoding="utf-8") as file:
    start = json.load(file)
sys.path += [entry for entry in start["path"] if entry not in sys.path]
from napari_medai.engine.isolated_limits import enter
given_up = enter([*start["readable"], *sys.path], start["writable"])
from importlib import import_module
module, _, function = start["call"].partition(":")
getattr(import_module(module), function)(sys.argv[1], given_up)
"""
LONGEST_LINE = 1 << 20
_MOST_WAITING = 1000
_LOOK_SECONDS = 0.1
_END_SECONDS = 5.0
_LAST_BYTES = 4096


class Process:
    """A process that runs one function of this package; made by `started`."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._lines: queue.Queue[bytes | None] = queue.Queue(_MOST_WAITING)
        self._last: deque[bytes] = deque(maxlen=64)
        self._ended = threading.Event()
        for target, stream in ((self._listen, popen.stdout), (self._keep, popen.stderr)):
            threading.Thread(target=target, args=(stream,), name="medai-isolated", daemon=True).start()

    def message(self) -> dict[str, Any] | None:
        """What it says next; an empty one after a tenth of a second of silence; None when it has ended.

        Raises
        ------
        ModelError
            It said something that is no message.
        """
        try:
            line = self._lines.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            # whatever it started may hold the pipe open after it has gone
            return None if self._popen.poll() is not None and self._lines.empty() else {}
        if line is None:
            return None
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ModelError("The process that ran the model said something that is no message.") from error
        if not isinstance(message, dict) or len(line) >= LONGEST_LINE:
            raise ModelError("The process that ran the model said something that is no message.")
        return message

    def end(self) -> str:
        """End it and all that it started; says how it ended, and its last words if it did so by itself."""
        code = self._popen.poll()
        end_tree(self._popen)
        self._ended.set()
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._popen.wait(_END_SECONDS) if code is None else code
        for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        words = b"".join(self._last)[-_LAST_BYTES:].decode(errors="replace").strip().splitlines()
        said = plain_text(words[-1]) if words else ""
        return f"{how_it_ended(code)}{f'; its last words: {said}' if said else ''}"

    def _listen(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while line := stream.readline(LONGEST_LINE):
                self._say(line)
        self._say(None)

    def _say(self, line: bytes | None) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(queue.Full):
                self._lines.put(line, timeout=_LOOK_SECONDS)
                return

    def _keep(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while piece := stream.read1(_LAST_BYTES):  # type: ignore[attr-defined]
                self._last.append(piece)


@contextlib.contextmanager
def started(call: str, work: Path, readable: tuple[Path, ...], modules: tuple[str, ...] = ()) -> Iterator[Process]:
    """A process for the time of a ``with`` block.

    It has a group of its own, an environment without secrets, ``work/own`` as its home and folder for temporary
    files, and no open files but three pipes. When this process goes, it goes.

    Parameters
    ----------
    call : str
        ``"module:function"`` of ``function(work, given_up)``: the folder, and what the process can no longer do.
    work : Path
        A private folder. It may write to ``work/own`` only.
    readable : tuple of Path
        What else it may read, where the system can be told.
    modules : tuple of str
        Modules that it has to be able to import, beside this package's.

    Raises
    ------
    ModelError
        It cannot be started.
    """
    own = work / "own"
    for folder in (own, own / "tmp", own / "home"):
        folder.mkdir(mode=0o700, exist_ok=True)
    libraries = [entry for name in ("LD_LIBRARY_PATH", "CUDA_HOME") for entry in os.environ.get(name, "").split(":")]
    record = {
        "call": call,
        "path": _search_path(modules),
        "readable": [*map(str, readable), str(work), sys.prefix, sys.base_prefix, sys.exec_prefix]
        + [entry for entry in libraries if Path(entry).is_absolute() and not Path.home().is_relative_to(entry)],
        "writable": [str(own)],
    }
    (work / "start.json").write_text(json.dumps(record), encoding="utf-8")
    if not sys.executable:
        raise ModelError("Python does not know where it is itself, so that no process can be started for the model.")
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP
    try:
        popen = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", _BOOT, str(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=own,
            env=_environment(own),
            start_new_session=os.name == "posix",
            creationflags=flags,
        )
    except OSError as error:
        raise ModelError(f"No process can be started for the model ({error.strerror}).") from error
    process = Process(popen)
    try:
        yield process
    finally:
        process.end()


def _environment(own: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    home, temporary = str(own / "home"), str(own / "tmp")
    homes = dict.fromkeys(("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA"), home)
    return kept | homes | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), temporary) | {"PYTHONIOENCODING": "utf-8"}


def _search_path(modules: tuple[str, ...]) -> list[str]:
    """Where this package and the modules are imported from, and installed packages; not the folder of a script."""
    found = []
    for name in ("napari_medai", *modules):
        spec = importlib.util.find_spec(name.partition(".")[0])
        if spec is not None and spec.submodule_search_locations:
            found.append(str(Path(next(iter(spec.submodule_search_locations))).absolute().parent))
        elif spec is not None and spec.origin:
            found.append(str(Path(spec.origin).absolute().parent))
    found += [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    return list(dict.fromkeys(found))


def end_tree(popen: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session of its own, and all that it started."""
    started: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        started = psutil.Process(popen.pid).children(recursive=True)
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(popen.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        popen.kill()
    for other in started:
        with contextlib.suppress(psutil.Error):
            other.kill()


def how_it_ended(code: int | None) -> str:
    """In words, from what `subprocess.Popen.poll` gives."""
    if code is None:
        return "it does not end"
    if code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            why = " (perhaps for lack of memory)" if name == "SIGKILL" else ""
            return f"it was ended by {name}{why}"
    return f"it ended with the code {code}"
