"""Weights of a bundle: tensors only, from the bundle only, for exactly the network that it describes."""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from napari_medai.core.errors import ModelError
from napari_medai.engine.weights import read_checked
from napari_medai.models.monai.describe import published_hash
from napari_medai.models.spec import ModelSpec

# Names under which training programs keep a network's tensors in a checkpoint
_INSIDE = ("model", "state_dict", "network", "net")

# What torch's restricted unpickler raises on what it refuses, and on pickles that are none
_BROKEN: tuple[type[Exception], ...] = (
    pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip


def load_into(network: nn.Module, spec: ModelSpec, folder: Path) -> list[str]:
    """Put a bundle's weights into its network; notes on what was noticed.

    Raises
    ------
    ModelError
        The weights are missing, changed since they were described, hold more than tensors, or do not fit.
    """
    if not spec.weights:
        raise ModelError(f"The bundle {spec.title!r} has no weights; fetch them and put them where it names them.")
    path = folder / spec.weights
    content = read_checked(path, spec.sha256)
    kind, published = published_hash(folder, spec.weights)
    notes = []
    if kind and hashlib.new(kind, content, usedforsecurity=False).hexdigest() != published:
        notes.append(f"the weights are others than those that the bundle's list of large files names ({kind} differs)")
    state = _tensors(content, path.name, safe=path.suffix == ".safetensors")
    expected = network.state_dict()
    missing, more = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = sorted(name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape)
    wrong = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for names, what in ((missing, "missing"), (more, "unexpected"), (shapes, "of another shape"))
        if names
    ]
    if wrong:
        raise ModelError(
            f"The weights {path.name} do not fit the network of {spec.title!r}: {'; '.join(wrong)}. "
            "They belong to another version of the bundle; fetch both again."
        )
    network.load_state_dict(state)
    return notes


def _tensors(content: bytes, name: str, safe: bool) -> dict[str, torch.Tensor]:
    try:
        if safe:
            return dict(safetensors.torch.load(content))
        with warnings.catch_warnings():
            # torch says which pickle protocols it reads less surely; what it cannot read is an error of its own
            warnings.simplefilter("ignore", UserWarning)
            loaded: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ModelError(f"The weights {name} are no safetensors file: {error}.") from error
    except _BROKEN as error:
        raise ModelError(
            f"The weights {name} were not opened: they hold more than tensors, or are damaged "
            f"({str(error).splitlines()[0][:200] if str(error) else type(error).__name__}). "
            "Ask who made them for a state dict or a safetensors file."
        ) from error
    for key in _INSIDE:
        inner = loaded.get(key) if isinstance(loaded, Mapping) else None
        if isinstance(inner, Mapping):
            loaded = inner
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ModelError(f"The weights {name} hold no network's tensors by name; a state dict was expected.")
    return {str(key): value for key, value in loaded.items()}
