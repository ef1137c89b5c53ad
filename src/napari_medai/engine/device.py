"""Where a model runs: which devices there are, how much memory they have, which one is taken.

torch is imported inside the functions, so that a panel can import this module at no cost.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from napari_medai.core.errors import DeviceError

if TYPE_CHECKING:
    import torch

_MIB = 2**20


@dataclass(frozen=True)
class DeviceInfo:
    """A device as a person chooses it.

    Attributes
    ----------
    name : str
        ``"cpu"``, ``"cuda:0"``, ``"mps"``.
    title : str
        What the maker calls it, e.g. ``"NVIDIA H100"``.
    free_mb, total_mb : float
        Memory in MiB; for ``"mps"`` and ``"cpu"`` that of the machine.
    """

    name: str
    title: str
    free_mb: float
    total_mb: float

    @property
    def kind(self) -> str:
        """``"cpu"``, ``"cuda"`` or ``"mps"``: what the parameter ``device`` of a stage takes."""
        return self.name.partition(":")[0]

    def __str__(self) -> str:
        return f"{self.title} ({self.name}), {self.free_mb / 1024:.1f} of {self.total_mb / 1024:.1f} GiB free"


def available_devices() -> tuple[DeviceInfo, ...]:
    """Every device that a model can run on now, accelerators with the most free memory first, the CPU last."""
    import torch

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        found.append(DeviceInfo(f"cuda:{index}", name, free / _MIB, total / _MIB))
    found.sort(key=lambda device: -device.free_mb)
    memory = psutil.virtual_memory()
    if torch.backends.mps.is_available():
        found.append(DeviceInfo("mps", "Apple GPU", memory.available / _MIB, memory.total / _MIB))
    title = f"CPU, {torch.get_num_threads()} threads"
    return (*found, DeviceInfo("cpu", title, memory.available / _MIB, memory.total / _MIB))


def choose_device(wish: str = "auto") -> torch.device:
    """The device to run on.

    Parameters
    ----------
    wish : {"auto", "cpu", "cuda", "mps"}
        ``"auto"`` takes an accelerator if there is one; ``"cuda"`` the one with the most free memory. A name such
        as ``"cuda:1"`` is taken as it is. Default ``"auto"``.

    Raises
    ------
    DeviceError
        The device is absent; the message lists those that are present.
    """
    import torch

    devices = available_devices()
    for device in devices:
        if wish in ("auto", device.kind, device.name):
            return torch.device(device.name)
    present = "; ".join(map(str, devices))
    why = ""
    if wish.startswith("cuda") and torch.version.cuda is None:
        why = f" This build of torch ({torch.__version__}) is without CUDA: install one with it."
    raise DeviceError(f"The device {wish!r} was asked for and is not here; there are: {present}.{why}")


def free_memory_mb(device: torch.device) -> float:
    """Free memory of a device in MiB; of the machine for the CPU and for Apple's GPUs, which share it."""
    import torch

    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] / _MIB)
    return float(psutil.virtual_memory().available / _MIB)


def release_memory(device: torch.device) -> None:
    """Give memory that is held in reserve back to the device and to the machine."""
    import torch

    release_host_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def release_host_memory() -> None:
    """Give back to the machine what was freed and the C library keeps: with glibc hundreds of megabytes after a run."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
