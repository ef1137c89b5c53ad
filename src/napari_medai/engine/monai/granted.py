"""A bundle whose owner allowed its Python: MONAI's own ConfigParser, in the process that was started for it.

Imports, expressions and the bundle's own scripts run as MONAI runs them. Only the image is handed over instead of being
read, and results come back instead of being written.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, EnsureChannelFirstd, MapTransform, Transform
from torch import nn

from napari_medai.core.errors import InputError, ModelError, UntrustedError
from napari_medai.core.volume import Volume
from napari_medai.engine.isolated_limits import inside
from napari_medai.engine.monai.answers import answer
from napari_medai.engine.monai.build import without_truth
from napari_medai.engine.monai.images import Handed, hand_over
from napari_medai.engine.monai.weights import load_into
from napari_medai.models.monai import files
from napari_medai.models.monai.reviewed import READERS, WRITERS

if TYPE_CHECKING:
    from napari_medai.engine.run import Run

_HERE = __name__


class HandedOverd(MapTransform):
    """Stands where a bundle reads images by key: they are there already."""

    def __init__(self, keys: Any, dtype: Any = None, ensure_channel_first: bool = False, **_: Any) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.dtype, self.ensure_channel_first = dtype, ensure_channel_first

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """The same."""
        return dict(data)


class HandedOver(Transform):
    """Stands where a bundle reads one image, or writes one."""

    def __init__(self, dtype: Any = None, ensure_channel_first: bool = False, **_: Any) -> None:
        self.dtype, self.ensure_channel_first = dtype, ensure_channel_first

    def __call__(self, data: Any) -> Any:
        """The same."""
        return data


class NotWrittend(MapTransform):
    """Stands where a bundle writes files: nothing is written."""

    def __init__(self, keys: Any = (), **_: Any) -> None:
        super().__init__(keys, allow_missing_keys=True)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """The same."""
        return dict(data)


def run_granted(volume: Volume, run: Run, params: Any, folder: Path) -> Any:
    """Run a bundle by MONAI's own parser; as `napari_medai.engine.monai.run.run_bundle`.

    Raises
    ------
    UntrustedError
        Python was not allowed, or this is not the process that was started for it.
    ModelError, InputError
        The bundle does not run, or not on this image.
    """
    grant = run.model.grant
    if grant is None or "python" not in grant.capabilities or not inside():
        raise UntrustedError(f"{run.spec.title!r} carries Python code, which was not allowed; nothing of it was run.")
    config = files.configuration(folder)
    if config is None:
        raise ModelError(f"The bundle {run.spec.title!r} has no configuration for inference.")
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        parser = _parser(folder, config, run)
        network = run.load(partial(_network, parser, run, folder))
        before, after = _section(parser, "preprocessing"), _section(parser, "postprocessing")
        without_truth(after)
        handed = hand_over(volume, type(_section(parser, "inferer")).__name__ == "SliceInferer")
        data = _given(before, handed)
        data = before(data) if isinstance(data, dict) else {"image": before(data)}
        image = data["image"] if "image" in data else next(iter(data.values()))
        network.register_forward_pre_hook(_telling(run))
        pred = _section(parser, "inferer")(image.to(run.device)[None], network)
        data["pred"] = {key: value[0] for key, value in pred.items()} if isinstance(pred, dict) else pred[0]
        return answer(after(data) if after is not None else data, None, handed, image, run, params)


def _parser(folder: Path, config: Path, run: Run) -> ConfigParser:
    parser = ConfigParser()
    parser.read_meta(str(folder / "configs" / "metadata.json"))
    parser.read_config(str(config))
    parser.set(_replaced(parser.get()))
    parser["bundle_root"] = str(folder)
    if "device" in parser:
        parser["device"] = f"$torch.device({str(run.device)!r})"
    return parser


def _replaced(config: Any) -> Any:
    """A configuration without readers and writers of files."""
    if isinstance(config, list):
        return [_replaced(item) for item in config]
    if not isinstance(config, dict):
        return config
    name = str(config.get("_target_", "")).rpartition(".")[2]
    if name in READERS or name in WRITERS:
        by_key = name not in ("LoadImage", "SaveImage")
        stand_in = "NotWrittend" if name in WRITERS else "HandedOverd"
        kept = {key: config[key] for key in ("keys", "dtype", "ensure_channel_first", "_disabled_") if key in config}
        return kept | {"_target_": f"{_HERE}.{stand_in if by_key else 'HandedOver'}"}
    return {key: _replaced(value) for key, value in config.items()}


def _network(parser: ConfigParser, run: Run, folder: Path, device: torch.device) -> nn.Module:
    network = _section(parser, "network_def")
    if not isinstance(network, nn.Module):
        raise ModelError(f"The network_def of {run.spec.title!r} is no network.")
    for note in load_into(network, run.spec, folder):
        run.note(note)
    return network.to(device).eval()


def _section(parser: ConfigParser, id: str) -> Any:
    if id not in parser:
        if id == "postprocessing":
            return Compose([])
        raise ModelError(f"The bundle has no {id}.")
    try:
        return parser.get_parsed_content(id)
    except (RuntimeError, ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        cause = error.__cause__ or error
        raise ModelError(f"MONAI cannot build {id} of the bundle: {str(cause).splitlines()[0][:300]}.") from error


def _given(before: Any, handed: Handed) -> Any:
    """What the bundle's readers would have given: by key, or one image."""
    steps = getattr(before, "transforms", (before,))
    reader = next((step for step in steps if isinstance(step, HandedOverd | HandedOver)), None)
    if isinstance(reader, HandedOver):
        return handed.tensor(slice(None), None, "image")
    keys = list(reader.keys) if reader is not None else ["image"]
    channels = len(handed.array)
    keys = keys[:-1] if len(keys) > channels and "label" in keys[-1:] else keys
    if len(keys) > channels:
        raise InputError(f"The bundle reads {', '.join(keys)}; the image has {channels} channel(s) for them.")
    first = channels - len(keys) + 1
    shares = [slice(0, first), *(slice(n, n + 1) for n in range(first, channels))]
    data = {}
    for key, share in zip(keys, shares, strict=True):
        place = next((s for s in steps if isinstance(s, EnsureChannelFirstd) and key in s.keys), None)
        dim = getattr(getattr(place, "adjuster", None), "input_channel_dim", None)
        tensor = handed.tensor(share, None if reader is not None and reader.ensure_channel_first else dim, str(key))
        bare = tensor.ndim == len(handed.shape)
        data[key] = tensor[None] if reader is not None and reader.ensure_channel_first and bare else tensor
    return data


def _telling(run: Run) -> Any:
    """Counts calls of the network, and stops between them."""
    calls = 0

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal calls
        calls += 1
        run.progress.update(calls, calls + 1, f"looking, window {calls}")
        run.tile_done(len(inputs[0]) if inputs and hasattr(inputs[0], "__len__") else 1)

    return before
