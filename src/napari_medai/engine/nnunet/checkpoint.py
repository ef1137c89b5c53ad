"""nnU-Net's checkpoints, read as arrays and numbers only.

They hold the whole state of a training: beside the weights the optimiser's, the plans, and a log in which numpy's
scalars stand. ``torch.load(weights_only=True)`` knows no numpy; for the time of loading the names of numpy's scalars
are given meanings of this file, which make plain numbers and nothing else. numpy's own functions are not called.
"""

from __future__ import annotations

import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from napari_medai.core.errors import ModelError
from napari_medai.engine.weights import warm
from napari_medai.models.inside import file_sha256
from napari_medai.models.nnunet import BATCH_NORM_TRAINERS
from napari_medai.models.nnunet_stage import StagePlan
from napari_medai.nets import build

_ZIP = b"PK\x03\x04"
# numpy's codes of types -> struct's
_CODES = {"f2": "e", "f4": "f", "f8": "d", "b1": "?"} | {
    f"{kind}{size}": letter if kind == "i" else letter.upper()
    for kind in "iu"
    for size, letter in ((1, "b"), (2, "h"), (4, "i"), (8, "q"))
}


class _Kind:
    """Stands for numpy.dtype: remembers a code and an order of bytes."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"


class _Left:
    """Stands for an array of numpy, which nothing here needs."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _scalar(kind: object, content: object = b"") -> float | int | bool | None:
    """Stands for numpy's scalar: the number itself; None for a type that is no number."""
    letter = _CODES.get(kind.code) if isinstance(kind, _Kind) else None
    if letter is None or not isinstance(kind, _Kind) or not isinstance(content, bytes):
        return None
    try:
        value: float | int | bool = struct.unpack(kind.order + letter, content)[0]
    except struct.error:
        return None
    return value


def _array(*_: object) -> _Left:
    """Stands for numpy's rebuilding of an array."""
    return _Left()


_MEANINGS: list[Any] = [
    (_Kind, "numpy.dtype"),
    (_Left, "numpy.ndarray"),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]


@dataclass(frozen=True)
class Checkpoint:
    """What inference needs of a checkpoint.

    Attributes
    ----------
    weights : mapping of str to tensor
        By the names of nnU-Net's networks.
    trainer, configuration : str
        Names; empty if it does not tell.
    mirroring : tuple of int
        Axes of the network's input (0 is its first spatial one) along which it was trained to see mirrored images.
    """

    weights: Mapping[str, torch.Tensor]
    trainer: str
    configuration: str
    mirroring: tuple[int, ...]


def read_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint. Nothing that it names is imported or called.

    Raises
    ------
    ModelError
        It is no checkpoint of nnU-Net, or holds more than arrays, numbers and text.
    """
    content = _load(path)
    weights = content.get("network_weights") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(v, torch.Tensor) for v in weights.values()) or not weights:
        raise ModelError(f"{_name(path)} holds no network_weights; it is no checkpoint of nnU-Net v2.")
    arguments = content.get("init_args")
    configuration = arguments.get("configuration") if isinstance(arguments, dict) else ""
    axes = content.get("inference_allowed_mirroring_axes")
    if axes is not None and (
        not isinstance(axes, tuple | list) or any(type(n) is not int or not 0 <= n <= 2 for n in axes)
    ):
        raise ModelError(f"{_name(path)} wants mirroring along {str(axes)[:80]}; axes from 0 to 2 are known.")
    return Checkpoint(
        {_without_wrappers(name): tensor for name, tensor in weights.items()},
        str(content.get("trainer_name") or ""),
        str(configuration or ""),
        tuple(sorted(set(axes or ()))),
    )


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            begins = file.read(len(_ZIP))
        members = zipfile.ZipFile(path).namelist() if begins == _ZIP else []
    except OSError as error:
        raise ModelError(f"{_name(path)} cannot be read: {error.strerror}.") from error
    except zipfile.BadZipFile as error:
        raise ModelError(f"{_name(path)} is damaged: {error}. Copy or download it again.") from error
    if not any(name.endswith("/data.pkl") for name in members) or any("constants.pkl" in n for n in members):
        raise ModelError(f"{_name(path)} is not in the form in which nnU-Net v2 saves checkpoints.")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_MEANINGS):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" (it names {named.group(1)[:100]})" if named else ""
        raise ModelError(
            f"{_name(path)} holds more than arrays, numbers and text{what}; it was not opened, and nothing of it ran."
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{_name(path)} is damaged: {str(error).partition(chr(10))[0][:200]}.") from error


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _without_wrappers(name: str) -> str:
    """A parameter's name without what torch.compile and data-parallel training put before it."""
    while name.startswith(("module.", "_orig_mod.")):
        name = name.partition(".")[2]
    return name


class Fold(nn.Module):
    """One fold's network with what its checkpoint says of mirroring."""

    def __init__(self, network: nn.Module, mirroring: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.mirroring = network, mirroring

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, \\*spatial) -> (B, heads, \\*spatial) logits."""
        logits: torch.Tensor = self.network(image)
        return logits


def load_fold(path: Path, plan: StagePlan, heads: int, inputs: int, device: torch.device) -> Fold:
    """The network of one fold: on the device, in evaluation mode, kept warm.

    Raises
    ------
    ModelError
        As `read_checkpoint`; or it was trained for another configuration, or its weights do not fit the plans.
    """

    def make() -> nn.Module:
        checkpoint = read_checkpoint(path)
        if checkpoint.configuration and checkpoint.configuration != plan.configuration:
            raise ModelError(
                f"{_name(path)} was trained for {checkpoint.configuration!r}, and its folder was taken for "
                f"{plan.configuration!r}; name the folder Trainer__Plans__{checkpoint.configuration}, as nnU-Net does."
            )
        arguments = {**plan.arguments, "input_channels": inputs, "num_classes": heads}
        if checkpoint.trainer in BATCH_NORM_TRAINERS:
            arguments |= {"norm": f"BatchNorm{len(plan.patch)}d", "norm_kwargs": {"eps": 1e-5, "affine": True}}
        try:
            with torch.device("meta"):  # without memory, until the checkpoint is seen to hold these shapes
                network = build(plan.network, **arguments)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"The network of {plan.configuration!r} cannot be built: {str(error)[:200]}.") from error
        expected = network.state_dict()
        found = checkpoint.weights
        wrong = sorted(expected.keys() ^ found.keys())
        wrong += sorted(name for name in expected.keys() & found.keys() if expected[name].shape != found[name].shape)
        if wrong:
            some = ", ".join(wrong[:4]) + (" …" if len(wrong) > 4 else "")
            raise ModelError(
                f"The weights of {_name(path)} (trainer {checkpoint.trainer[:80] or 'unknown'}) do not fit the network "
                f"of the plans: {len(wrong)} differ, such as {some}. Trainers that build another network are not "
                "known here."
            )
        if any(axis >= len(plan.patch) for axis in checkpoint.mirroring):
            raise ModelError(f"{_name(path)} wants mirroring along axes {checkpoint.mirroring} of {plan.patch}.")
        network.to_empty(device="cpu").load_state_dict(found)
        return Fold(network, checkpoint.mirroring)

    key = f"nnunet {sha256(path)} {plan.network} {sorted(plan.arguments.items())} {inputs} {heads} {plan.configuration}"
    fold = warm((key, str(device)), make, device)
    if not isinstance(fold, Fold):
        raise TypeError(f"a {type(fold).__name__} was kept under the key of a fold")
    return fold


def sha256(path: Path) -> str:
    """Of a file; computed again only if its size or time changed."""
    try:
        status = path.stat()
        return _sha256(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ModelError(f"{_name(path)} cannot be read: {error.strerror}.") from error


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, changed: int) -> str:
    return file_sha256(path)
