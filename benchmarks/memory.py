"""Peak memory and time of a region of code, and of functions in processes of their own.

::

    with watched() as region:
        work()
    region.peak_mb, region.increase_mb, region.seconds

    fresh("benchmarks.windows:ours", folder="…", edge=256)  # in a new interpreter; keyword arguments are JSON

On Linux the kernel's own high-water mark of the resident size is taken, set back as the region begins
(``/proc/self/clear_refs``, proc(5)). A thread reads it every few milliseconds, because what is measured may set it
back, too; elsewhere the thread looks at the resident size, and misses what is shorter. Nothing of the package is used:
peers are measured in processes that have it not, and so is the package's own count of memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

MIB = 2**20
SAMPLE_SECONDS = 0.01
_MARK = "result of a fresh process: "
_ROOT = Path(__file__).parents[1]


@dataclass
class Region:
    """What a region of code took; filled when it ends, however it ends.

    Attributes
    ----------
    before_mb, peak_mb : float
        Resident size of the process as the region began, and the largest while it ran, MiB.
    device_mb : float
        Peak memory that torch held on the CUDA device, MiB; 0 without one.
    seconds, cpu_seconds : float
        By the clock, and of the process's threads together.
    """

    before_mb: float = 0.0
    peak_mb: float = 0.0
    device_mb: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def increase_mb(self) -> float:
        """What the region added to what was there, MiB."""
        return self.peak_mb - self.before_mb

    def as_dict(self) -> dict[str, float]:
        """Plain values, ready for JSON."""
        return {**vars(self), "increase_mb": self.increase_mb}


def resident_mb() -> float:
    """Resident size of this process, MiB."""
    return float(psutil.Process().memory_info().rss / MIB)


@contextmanager
def watched() -> Iterator[Region]:
    """Measure what happens in a ``with`` block; regions do not nest."""
    region = Region()
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    ended, seen = threading.Event(), [0.0]

    def look() -> None:
        seen[0] = max(seen[0], _high_water_mb() if marked else 0.0, resident_mb())

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            look()

    region.before_mb = resident_mb()
    marked = _reset()
    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    cpu, begun = time.process_time(), time.perf_counter()
    try:
        yield region
    finally:
        if cuda:
            torch.cuda.synchronize()
            region.device_mb = torch.cuda.max_memory_allocated() / MIB
        region.seconds, region.cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
        ended.set()
        thread.join()
        look()
        region.peak_mb = max(seen[0], region.before_mb)


def fresh(
    target: str, *, limit_mb: int = 0, python: str = "", environment: Mapping[str, str] | None = None, **given: Any
) -> dict[str, Any]:
    """Call a function in a new process.

    Parameters
    ----------
    target : str
        ``"module:function"``; takes keyword arguments of JSON values and returns a dict of them.
    limit_mb : int
        Most memory of its own that the process may ask for, MiB (``RLIMIT_DATA``); 0 for no limit.
    python : str
        Interpreter; default this one.
    environment : mapping
        Added to this process's variables.

    Returns
    -------
    dict
        What the function returned; or ``died``, how the process ended, and ``says``, the last line that it printed.
    """
    command = [python or sys.executable, "-m", "benchmarks.memory", target, json.dumps(given), str(limit_mb)]
    variables = {**os.environ, **(environment or {})}
    ended = subprocess.run(command, cwd=_ROOT, env=variables, capture_output=True, text=True, check=False)
    for line in reversed(ended.stdout.splitlines()):
        if line.startswith(_MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            return found
    died = f"signal {-ended.returncode}" if ended.returncode < 0 else f"exit code {ended.returncode}"
    return {"died": died, "says": ([*ended.stderr.splitlines(), *ended.stdout.splitlines()] or [""])[-1][:500]}


def _reset() -> bool:
    """Set the kernel's high-water mark back to what is resident now; false where that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return _high_water_mb() > 0


def _high_water_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _main(target: str, given: str, limit_mb: str) -> None:
    """What runs in the new process."""
    if int(limit_mb):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (int(limit_mb) * MIB,) * 2)
    module, _, function = target.partition(":")
    found = getattr(import_module(module), function)(**json.loads(given))
    print(_MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
