"""Weights from files to networks: checked by sha256, float32, kept warm in a bounded cache."""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from napari_medai.core.errors import ModelError
from napari_medai.engine.device import free_memory_mb
from napari_medai.models.spec import ModelSpec
from napari_medai.nets import build, problems

T = TypeVar("T")

# Networks kept between runs, and what they may hold of a device's memory, as a share of it and what is free
MOST_NETWORKS = 6
SHARE = 1 / 8

_warm: OrderedDict[tuple[str, str], nn.Module] = OrderedDict()
# What is run in the place of a network, for as long as that lives
_beside: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_lock = threading.RLock()


def read_checked(path: Path, sha256: str) -> bytes:
    """The bytes of a file of weights, known to be the expected ones.

    The bytes that are hashed are those that are used: a file replaced in between makes no difference.

    Raises
    ------
    ModelError
        The file cannot be read, no sha256 is given, or it differs.
    """
    if not sha256:
        raise ModelError(f"The weights {path.name} have no sha256 in the model's description; add it.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"The weights {path.name} cannot be read ({error.strerror}); install the package of the model again."
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ModelError(
            f"The weights {path.name} have the sha256 {found[:16]}…; {sha256[:16]}… was expected. "
            "The file is damaged or of another version; install the package of the model again."
        )
    return content


def load_state(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file after its sha256 was checked; half precision becomes float32.

    Raises
    ------
    ModelError
        As `read_checked`, or the file is not safetensors.
    """
    content = read_checked(path, sha256)
    try:
        state = safetensors.torch.load(content)
    except SafetensorError as error:
        raise ModelError(f"The weights {path.name} are not a safetensors file: {error}.") from error
    half = (torch.float16, torch.bfloat16)
    return {name: tensor.float() if tensor.dtype in half else tensor for name, tensor in state.items()}


def load_network(spec: ModelSpec, weights: Path | None, device: torch.device) -> nn.Module:
    """The network of a model with its weights: on the device, in evaluation mode, its parameters without gradients.

    It is kept for the next run; whoever gets it must not change it.

    Raises
    ------
    ModelError
        The network is not known, cannot be built with the description's arguments, or the weights do not fit it.
    """
    wrong = problems(spec.network, spec.arguments)
    if wrong:
        raise ModelError(f"Model {spec.id!r} has a network that cannot be built: {'; '.join(wrong)}.")
    if weights is None:
        raise ModelError(f"Model {spec.id!r} has a network and no weights; its description needs both.")

    def make() -> nn.Module:
        try:
            network = build(spec.network, **spec.arguments)
        except TypeError as error:
            raise ModelError(f"The network {spec.network!r} cannot be built: {error}.") from error
        names = spec.details.get("tensors", {})
        state = {names.get(name, name): tensor for name, tensor in load_state(weights, spec.sha256).items()}
        expected = network.state_dict()
        wrong = sorted(expected.keys() ^ state.keys())
        wrong += sorted(name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape)
        if wrong:
            some = ", ".join(wrong[:5]) + (" …" if len(wrong) > 5 else "")
            raise ModelError(f"The weights of {spec.id!r} do not fit the network {spec.network!r}: {some}.")
        network.load_state_dict(state)
        return network

    told = f"{sorted(spec.arguments.items())} {spec.details.get('tensors')}"
    return warm((f"{spec.network} {spec.sha256} {told}", str(device)), make, device)


def load_archive(path: Path, sha256: str, network: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    """A network of ours with the parameters of a TorchScript archive that we know by its sha256.

    TorchScript archives are programs, so that none is opened whose sha256 does not stand in this package's code;
    and none is run: only its parameters are taken, by name.

    Raises
    ------
    ModelError
        As `read_checked`, this torch cannot open the file, or its parameters do not fit the network.
    """

    def make() -> nn.Module:
        content = read_checked(path, sha256)
        with warnings.catch_warnings():
            # torch 2.13 says that torch.export is to be used; the package's authors ship TorchScript
            warnings.filterwarnings("ignore", message=r".*torch\.jit.*", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=r".*torch\.jit.*", category=FutureWarning)
            made = network()
            try:
                archive = torch.jit.load(io.BytesIO(content), map_location="cpu")  # type: ignore[no-untyped-call]
                made.load_state_dict(cast(nn.Module, archive).state_dict())
            except RuntimeError as error:
                raise ModelError(f"torch {torch.__version__} cannot open {path.name}: {error}.") from error
            return made

    return warm((sha256, str(device)), make, device)


def warm(key: tuple[str, str], make: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    """The network kept under a key, or a new one: on the device, in evaluation mode, without gradients."""
    with _lock:
        if key in _warm:
            _warm.move_to_end(key)
            return _warm[key]
        with torch.inference_mode(False):  # it outlives the run, and an explanation wants gradients of its outputs
            network = make().to(device).eval()
        for parameter in network.parameters():  # TorchScript has no requires_grad_() for all at once
            parameter.requires_grad = False
        _warm[key] = network
        while len(_warm) > 1 and (len(_warm) > MOST_NETWORKS or _too_much(device)):
            _warm.popitem(last=False)
        return network


def beside(network: nn.Module, make: Callable[[], T]) -> T:
    """What is run in the place of a network: kept as long as the network lives, which it must not refer to.

    Its ``bytes`` count as the network's.
    """
    with _lock:
        if network not in _beside:
            _beside[network] = make()
        return cast(T, _beside[network])


def forget() -> None:
    """Keep no network warm any longer: one was moved, or their memory is needed."""
    with _lock:
        _warm.clear()


def warm_bytes(device: torch.device) -> int:
    """Memory that the networks kept on a device hold."""
    with _lock:
        return sum(_bytes(kept) for key, kept in _warm.items() if key[1] == str(device))


def _too_much(device: torch.device) -> bool:
    held = warm_bytes(device)
    return held > SHARE * (held + free_memory_mb(device) * 2**20)


def _bytes(network: nn.Module) -> int:
    more = int(getattr(_beside.get(network), "bytes", 0))
    return sum(p.numel() * p.element_size() for p in network.parameters()) + more
