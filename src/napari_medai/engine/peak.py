"""Peak memory of the process and of an accelerator over a stretch of work."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import ClassVar, Self
from weakref import WeakSet

import psutil
import torch

_MIB = 2**20
_LOOK_SECONDS = 0.005
_CLEAR = Path("/proc/self/clear_refs")


class Peak:
    """Largest resident size since it was made, MiB; watched until `close`, or to the end of a ``with`` block.

    Linux keeps the mark itself and lets it be lowered to what is resident now (``5`` into ``/proc/self/clear_refs``,
    see proc(5)); elsewhere a thread looks every 5 ms.
    """

    _open: ClassVar[WeakSet[Peak]] = WeakSet()

    def __init__(self) -> None:
        for other in list(self._open):
            other.mb()  # its mark is lowered now
        self._open.add(self)
        self._seen = resident_mb()
        self.before = self._seen
        self._watching = threading.Event()
        self._kept = _lower_mark()
        if not self._kept:
            threading.Thread(target=self._watch, name="medai-memory", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def mb(self) -> float:
        """The peak so far."""
        self._seen = max(self._seen, _mark_mb() if self._kept else resident_mb())
        return self._seen

    def close(self) -> float:
        """The peak; nothing is watched from here on."""
        self._watching.set()
        self._open.discard(self)
        return self.mb()

    def _watch(self) -> None:
        while not self._watching.wait(_LOOK_SECONDS):
            self._seen = max(self._seen, resident_mb())


class RunMemory:
    """Peak memory of a run: the accelerator's own count, or the process's resident size."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seen = device, 0.0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._host = Peak()
        self.look()

    def look(self) -> None:
        """Take a sample of what keeps no mark of its own."""
        if self.device.type == "mps":
            self.seen = max(self.seen, torch.mps.driver_allocated_memory() / _MIB)

    def host_mb(self) -> float:
        """Largest resident size of the process since the run began, MiB."""
        return self._host.mb()

    def peak_mb(self) -> float:
        """MiB since the run began: of the accelerator if there is one, else of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / _MIB
        self.look()
        return max(self.seen, 0.0 if self.device.type == "mps" else self.host_mb())

    def close(self) -> None:
        """Watch no longer."""
        self._host.close()


def resident_mb() -> float:
    """Resident size of the process now, MiB."""
    return float(psutil.Process().memory_info().rss / _MIB)


def _lower_mark() -> bool:
    if sys.platform != "linux":
        return False
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return _mark_mb() > 0


def _mark_mb() -> float:
    """Linux's mark of the largest resident size, MiB; 0 if it does not tell."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
