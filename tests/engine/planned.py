"""A run with its plan beside what it took, for a process of its own: see `test_plan_memory`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import napari_medai as medai
from benchmarks.memory import watched
from napari_medai.core.errors import DeviceError
from napari_medai.core.stage import Progress
from napari_medai.core.volume import Volume
from napari_medai.models.spec import Accepts, Gives, Label, Model, Prepare, Tiling
from napari_medai.nets import build
from tests.engine.test_network import package


class Heard(Progress):
    """Keeps the plan and the notes."""

    def __init__(self) -> None:
        self.plan: Any = None
        self.notes: list[str] = []

    def planned(self, plan: Any) -> None:
        self.plan = plan

    def note(self, message: str) -> None:
        self.notes.append(message)


def planned(
    folder: str,
    shape: list[int],
    classes: int,
    tile: int,
    spacing: float = 1.0,
    model_mm: float = 0.0,
    options: dict[str, Any] | None = None,
    share: float = 0.0,
) -> dict[str, Any]:
    """Predicted and measured peak of segmenting noise, MiB; with ``share`` of that once more, as a limit."""
    ndim = len(shape)
    arguments = {
        "input_channels": 1, "num_classes": classes, "features_per_stage": [8, 16], "kernel_sizes": [[3] * ndim] * 2,
        "strides": [[1] * ndim, [2] * ndim], "n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1],
    }  # fmt: skip
    torch.manual_seed(0)
    state = {name: tensor.clone() for name, tensor in build("plain_conv_unet", **arguments).state_dict().items()}
    model = package(
        Path(folder) / "package", state, network="plain_conv_unet", arguments=arguments, options=options or {},
        accepts=Accepts(ndim=(ndim,)), tiling=Tiling(size=(tile,) * ndim, multiple=2, overlap=0.5),
        gives=Gives(kind="labels", labels=tuple(Label(value=n, name=str(n)) for n in range(1, classes))),
        prepare=Prepare(normalise="zscore", spacing_mm=(model_mm,) * 3 if model_mm else None),
    )  # fmt: skip
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    affine = np.diag([spacing] * 3 + [1.0]) if ndim == 3 else np.eye(4)
    volume = Volume(image, "zyx"[-ndim:], affine, units="mm")
    found = _run(volume, model, 0)
    if share:
        found["limited"] = _run(volume, model, int(share * found["predicted"]))
    return found


def _run(volume: Volume, model: Model, memory: int) -> dict[str, Any]:
    heard, refused = Heard(), ""
    with watched() as region:
        try:
            medai.segment(volume, model, device="cpu", progress=heard, memory=memory)
        except DeviceError as error:
            refused = str(error)
    return {"predicted": heard.plan.host_mb, "tiles": heard.plan.tiles, "limit": memory, "refused": refused,
            "notes": heard.notes, **region.as_dict()}  # fmt: skip


def each(folder: str, cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same of several runs, one after the other: all but the first in a process that has run others."""
    found = {}
    for number, (name, case) in enumerate(cases.items()):
        place = Path(folder) / str(number)
        place.mkdir()
        found[name] = planned(str(place), **case)
    return found
