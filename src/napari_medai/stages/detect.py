"""Detect: centres, sizes and scores of objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from napari_medai.core.result import Boxes
from napari_medai.core.stage import Params, Progress, param
from napari_medai.core.volume import Volume
from napari_medai.models.gate import to_expected_units
from napari_medai.models.spec import Model
from napari_medai.stages.classify import at_frame
from napari_medai.stages.common import channel_of, check_fit, for_network, for_runner, one_channel


@dataclass(frozen=True, kw_only=True)
class DetectParams(Params):
    """Parameters of `run`."""

    channel: int = param(0, "Channel", "Which channel of a multi-channel image is searched.", low=0, high=63)
    frame: int = param(0, "Time point", "Which image of a series along t is searched.", low=0, high=10**6)
    threshold: float = param(
        0.0,
        "Score",
        "Objects below this score are left out; 0 takes the model's own.",
        low=0,
        high=1,
        step=0.05,
    )
    diameter: float = param(
        0.0,
        "Typical diameter",
        "In pixels: of the nuclei around (2-D) or the objects (3-D); 0 estimates it or tries several.",
        low=0,
        high=2000,
    )
    polarity: Literal["model", "bright", "dark", "both"] = param(
        "model", "Polarity", "Bright or dark objects, for models that find both.", advanced=True
    )


def run(volume: Volume, model: Model, params: DetectParams, progress: Progress) -> Boxes:
    """Find objects in an image or a volume.

    Returns
    -------
    Boxes
        On the volume's grid, best score first.

    Raises
    ------
    ModelFitError, InputError, Cancelled
        The image does not fit, is not finite or constant; the run was stopped.
    """
    from napari_medai.engine.run import start

    notes = check_fit(volume, model, "detect", params)
    volume = to_expected_units(volume, model.spec)
    with start("detect", volume, model, params, progress, notes) as run:
        scan = at_frame(one_channel(volume, params.channel), params.frame)
        seen = at_frame(for_network(volume, model, params.channel), params.frame)
        found = run.runner(
            seen.replace(array=for_runner(seen, model, channel_of(volume, seen, params.channel))), run, params
        )
        order = np.argsort(-np.asarray(found.scores), kind="stable")
        pad = 3 - scan.ndim_spatial
        centres = np.asarray(found.centres, dtype=float).reshape(len(order), scan.ndim_spatial)[order]
        sizes = np.asarray(found.sizes, dtype=float).reshape(len(order), scan.ndim_spatial)[order]
        return Boxes(
            centres=np.pad(centres, ((0, 0), (pad, 0))),
            sizes=np.pad(sizes, ((0, 0), (pad, 0)), constant_values=1.0),
            labels=tuple(found.labels[n] for n in order),
            scores=np.asarray(found.scores, dtype=float)[order],
            ndim=scan.ndim_spatial,
            grid=scan.grid,
            provenance=run.provenance(),
        )
