"""Classify: scores of an image, of each of its slices, and how much each slice counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from napari_medai.core.errors import InputError
from napari_medai.core.result import Scores
from napari_medai.core.stage import Params, Progress, param
from napari_medai.core.volume import Volume
from napari_medai.models.gate import to_expected_units
from napari_medai.models.spec import Model
from napari_medai.stages.common import channel_of, check_fit, for_network, one_channel, pixels


@dataclass(frozen=True, kw_only=True)
class ClassifyParams(Params):
    """Parameters of `run`."""

    channel: int = param(0, "Channel", "Which channel of a multi-channel image is scored.", low=0, high=63)
    frame: int = param(0, "Time point", "Which image of a series along t is scored.", low=0, high=10**6)


def run(volume: Volume, model: Model, params: ClassifyParams, progress: Progress) -> Scores:
    """Score an image or a volume slice by slice along z.

    Returns
    -------
    Scores
        Probabilities of the image and of its slices, and the attention on the slices.

    Raises
    ------
    ModelFitError, InputError, Cancelled
        The image does not fit, is not finite or constant; the run was stopped.
    """
    from napari_medai.engine.run import start

    notes = check_fit(volume, model, "classify", params)
    volume = to_expected_units(volume, model.spec)
    with start("classify", volume, model, params, progress, notes) as run:
        scan = at_frame(one_channel(volume, params.channel), params.frame)
        seen = at_frame(for_network(volume, model, params.channel), params.frame)
        image = pixels(seen, channel_of(volume, seen, params.channel))
        scored = run.runner(seen.replace(array=image), run, params)
        labels = model.spec.gives.labels
        return Scores(
            classes=tuple(label.name for label in labels),
            probabilities=np.asarray(scored.probabilities, dtype=np.float64),
            slice_index=np.asarray(scored.slice_index, dtype=np.int64),
            slice_probabilities=np.asarray(scored.slice_probabilities, dtype=np.float64),
            attention=np.asarray(scored.attention, dtype=np.float64),
            thresholds=np.array([label.threshold for label in labels], dtype=np.float64),
            grid=scan.grid,
            provenance=run.provenance(),
        )


def at_frame(volume: Volume, frame: int) -> Volume:
    """The image at one time point; the image itself if it has no ``t``.

    Raises
    ------
    InputError
        There is no such time point.
    """
    if "t" not in volume.axes:
        return volume
    if frame >= volume.size("t"):
        raise InputError(f"Time point {frame} was asked for; there are {volume.size('t')}, numbered from 0.")
    return volume.take("t", frame)
