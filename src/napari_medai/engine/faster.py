"""A network for inference alone: the same output from the same parameters, in less time and memory.

On a CPU what the network does is recorded once for each size of image (`napari_medai.engine.recorded`) and run by
kernels that suit it (`napari_medai.engine.program`). Only networks that were looked at are treated so, those of this
package, of MONAI and of torch; whatever is not understood, a program (TorchScript), a network with hooks, one that
looks at values, is run as it is. On CUDA the weights of convolutions are laid out channels last. Reduced precision is
no help on CPUs without instructions for it: twenty times slower.
"""

from __future__ import annotations

import importlib.util
import platform
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from napari_medai.engine import kernels
from napari_medai.engine.memory import is_out_of_memory
from napari_medai.engine.program import Program
from napari_medai.engine.recorded import NotRecordable, record
from napari_medai.engine.weights import beside

# Whose networks are known not to do in their forward pass what a record would miss
LOOKED_AT = ("napari_medai", "monai", "torch")
# Sizes of image of which the record is kept
MOST_SIZES = 2
# Numbers of an image from which several at once are no faster than one after the other, and only need more memory
ALONE = 2**16
# torch.compile of a large 3-D U-Net, and what it saves of each pass, with caution
COMPILE_SECONDS, COMPILE_SAVES = 90.0, 0.15


def faster(network: nn.Module, device: torch.device, note: Callable[[str], None]) -> nn.Module:
    """A network that gives what this one gives, as fast as the device allows; or this one.

    Parameters
    ----------
    network : module
        In evaluation mode, on the device. Its numbers stay as they are; on CUDA its convolutions' weights change their
        order in memory.
    device : torch.device
        Where it will run.
    note : callable
        Told when what is run in its place fails, and it is run itself.

    Returns
    -------
    module
        Called with one image (B, C, \\*space). What it keeps from one image to the next is kept as long as the network.
    """
    if device.type == "cuda":
        return _channels_last(network)
    if isinstance(network, Faster) or device.type != "cpu" or not _suits(network):
        return network
    return Faster(network, beside(network, Programs), note)


@dataclass
class _Kept:
    """A program; none where there can be none, and why, if a kernel failed."""

    program: Program | None
    failed: str = ""


class Programs:
    """Programs of a network for images of the sizes that came last; of its parameters as they are."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Any, ...], _Kept] = OrderedDict()
        self._parameters: tuple[Any, ...] = ()
        self._lock = threading.RLock()

    @property
    def bytes(self) -> int:
        """Memory that is kept besides the network's parameters."""
        return sum(kept.program.bytes for kept in self._kept.values() if kept.program is not None)

    def of(self, network: nn.Module, image: torch.Tensor) -> _Kept:
        """What there is for images like this one; looks at shape and strides alone."""
        key = tuple(image.shape), image.stride()
        with self._lock:
            if self._parameters != (now := _parameters(network)):
                self._kept.clear()
                self._parameters = now
            if key not in self._kept:
                try:
                    self._kept[key] = _Kept(Program(record(network, image)))
                except NotRecordable:
                    self._kept[key] = _Kept(None)
            self._kept.move_to_end(key)
            while len(self._kept) > MOST_SIZES:
                self._kept.popitem(last=False)
            return self._kept[key]


class Faster(nn.Module):
    """A network in whose place programs are run; made by `faster`.

    Parameters
    ----------
    network : module
        What is to be computed.
    programs : Programs
        Of the network.
    note : callable
        See `faster`.
    """

    network: nn.Module

    def __init__(self, network: nn.Module, programs: Programs, note: Callable[[str], None]) -> None:
        super().__init__()
        self.network, self._programs, self._note = network, programs, note
        self.eval()

    def forward(self, *images: torch.Tensor, **others: Any) -> Any:
        """What the network gives."""
        if others or len(images) != 1 or not self._can_take(images[0]):
            return self.network(*images, **others)
        image = images[0]
        with torch.no_grad():
            if len(image) > 1 and image[0].numel() >= ALONE:
                program = self._programs.of(self.network, image[:1]).program
                made = program.single if program is not None else None
                if made is not None:
                    out = torch.empty((len(image), *made.shape[1:]), dtype=made.dtype)
                    for n in range(len(image)):
                        self._run(image[n : n + 1], out[n : n + 1])
                    return out
            return self._run(image)

    def _run(self, image: torch.Tensor, into: torch.Tensor | None = None) -> Any:
        kept = self._programs.of(self.network, image)
        if kept.program is not None:
            try:
                return kept.program(image, into)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                kept.program, kept.failed = None, str(error).partition("\n")[0][:200]
        if kept.failed:
            self._note(f"a faster way to run the network failed, it runs as it is: {kept.failed}")
        out = self.network(image)
        return out if into is None else into.copy_(out)

    def recorded(self, image: torch.Tensor) -> bool:
        """Whether images like this one are not run by the network itself."""
        return self._can_take(image) and self._programs.of(self.network, image).program is not None

    def _can_take(self, image: Any) -> bool:
        return (
            isinstance(image, torch.Tensor)
            and image.device.type == "cpu"
            and image.dtype == torch.float32
            and image.ndim in (4, 5)
            and not (torch.is_grad_enabled() and _wants_gradients(self.network, image))
            and not torch.is_autocast_enabled("cpu")
            and not self.network.training
            and not _hooked(self.network)
        )


def compiled(
    network: nn.Module, device: torch.device, passes: int, seconds: float, note: Callable[[str], None]
) -> nn.Module:
    """A network compiled by torch on CUDA if that pays back within one run; else this network.

    Parameters
    ----------
    network : module
        On the device, in evaluation mode.
    device : torch.device
        Where it will run.
    passes : int
        How many passes over images of one size are still to come.
    seconds : float
        How long one of them takes.
    note : callable
        Told when it was compiled, and when that failed.
    """
    pays = passes * seconds * COMPILE_SAVES > COMPILE_SECONDS
    if device.type != "cuda" or not pays or importlib.util.find_spec("triton") is None:
        return network
    return Compiled(network, note)


class Compiled(nn.Module):
    """A network that is compiled at its first pass, and run as it is if that fails; made by `compiled`."""

    network: nn.Module

    def __init__(self, network: nn.Module, note: Callable[[str], None]) -> None:
        super().__init__()
        self.network, self._note = network, note
        # not a part of this module: its parameters are the network's
        self._fast: list[Callable[..., Any]] = [torch.compile(network, dynamic=False)]
        self._told = False

    def forward(self, image: torch.Tensor) -> Any:
        """What the network gives."""
        if not self._fast:
            return self.network(image)
        try:
            out = self._fast[0](image)
        except RuntimeError as error:  # torch's compilers raise kinds of it
            if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
                raise
            self._fast.clear()
            self._note(f"the network could not be compiled and runs as it is: {str(error).partition(chr(10))[0][:200]}")
            return self.network(image)
        if not self._told:
            self._told = True
            self._note("the network was compiled by torch")
        return out


def _channels_last(network: nn.Module) -> nn.Module:
    """The network with its convolutions' weights as tensor cores want them; cuDNN then computes channels last."""
    modules = list(network.modules())
    if any(isinstance(m, torch.jit.ScriptModule) for m in modules):
        return network
    for module in modules:  # each by itself: others may have parameters of as many axes
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        elif isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return network


def _suits(network: nn.Module) -> bool:
    """Whether a network is one that the kernels are for, on a machine that they are for."""
    onednn = torch.backends.mkldnn
    if platform.machine().lower() not in ("x86_64", "amd64") or not onednn.is_available():  # type: ignore[no-untyped-call]
        return False
    # a network that finds labels itself, slab by slab, looks after its own memory
    if not onednn.enabled or network.training or hasattr(network, "labels"):
        return False
    modules = list(network.modules())
    if any(type(m).__module__.partition(".")[0] not in LOOKED_AT for m in modules):
        return False
    if any(isinstance(m, torch.jit.ScriptModule | torch.fx.GraphModule) for m in modules):
        return False
    if not any(isinstance(m, nn.modules.conv._ConvNd) for m in modules):
        return False
    return all(p.device.type == "cpu" and p.dtype == torch.float32 for p in network.parameters()) and kernels.work()


def _parameters(network: nn.Module) -> tuple[Any, ...]:
    """What tells whether a parameter was written into, moved, or replaced since."""
    tensors = (*network.parameters(), *network.buffers())
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


def _wants_gradients(network: nn.Module, image: torch.Tensor) -> bool:
    return image.requires_grad or any(p.requires_grad for p in network.parameters())


def _hooked(network: nn.Module) -> bool:
    """Whether someone looks at what the layers do."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in network.modules())
