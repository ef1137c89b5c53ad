"""A watch over this process: what it opens to write, connects to or starts that it should not is refused and kept.

Python's audit events see what Python does; what libraries do beside Python (TorchScript, ONNX Runtime) is seen by the
markers that attacks leave.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.fork",
           "os.forkpty", "pty.spawn", "os.startfile/2"}  # fmt: skip
_CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.truncate", "shutil.rmtree",
            "shutil.move", "shutil.copyfile", "os.link", "os.symlink", "tempfile.mkstemp"}  # fmt: skip
# the last argument is the folder that the name is in
_WITHIN = {"os.remove", "os.rmdir", "os.mkdir"}
_NET = {"urllib.Request", "webbrowser.open", "ftplib.connect", "smtplib.connect", "http.client.connect"}
# Functions that no file of weights has a reason to name
_NAMES = {"os", "posix", "nt", "subprocess", "sys", "shutil", "importlib", "pty", "socket", "webbrowser", "runpy"}
_BUILTINS = {"eval", "exec", "compile", "__import__", "open", "getattr", "breakpoint", "input"}


class Guard:
    """Watches while it is armed; there is no way to take it off again."""

    def __init__(self, allowed: list[Path]) -> None:
        self.allowed = tuple(os.path.realpath(path) for path in allowed)
        self.armed = False
        self.seen: list[str] = []
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple) -> None:
        if not self.armed:
            return
        why = self._why(event, arguments)
        if why:
            self.seen.append(why)
            raise PermissionError(f"guarded: {why}")

    def _why(self, event: str, arguments: tuple) -> str:
        if event.startswith("socket."):
            return "" if event == "socket.gethostname" else f"{event}"
        if event in _STARTS or event in _NET:
            return f"{event} {str(arguments[:2])[:200]}"
        if event == "open":
            path, mode, flags = arguments
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & _WRITES)
            return f"writes {path}" if writes and self._outside(path) else ""
        if event in _CHANGES:
            path = next((a for a in arguments if isinstance(a, str | bytes | os.PathLike)), None)
            within = arguments[-1] if event in _WITHIN and isinstance(arguments[-1], int) else -1
            if path is not None and within >= 0:  # relative to an open folder, as shutil.rmtree removes
                path = Path(os.readlink(f"/proc/self/fd/{within}"), os.fsdecode(path))
            return f"{event} {path}" if path is not None and self._outside(path) else ""
        if event == "pickle.find_class":
            module, name = arguments
            evil = module.split(".")[0] in _NAMES or (module == "builtins" and name in _BUILTINS)
            return f"unpickles {module}.{name}" if evil or "os.system" in name else ""
        return ""

    def _outside(self, path: object) -> bool:
        # a run sets its own mark of peak memory back, see engine.peak
        if isinstance(path, int) or os.fspath(path) in ("/dev/null", os.devnull, "/proc/self/clear_refs"):
            return False
        real = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
        return not any(real == root or real.startswith(root + os.sep) for root in self.allowed)
