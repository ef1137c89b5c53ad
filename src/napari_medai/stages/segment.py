"""Segment: labels on the grid of the scan, with names, colours and a table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from napari_medai.core.result import Mask
from napari_medai.core.stage import Params, Part, Progress, param
from napari_medai.core.volume import Volume
from napari_medai.models.gate import to_expected_units
from napari_medai.models.spec import Model
from napari_medai.stages.common import channel_of, check_fit, for_network, for_runner, frames, one_channel, stack
from napari_medai.stages.measure import measure


@dataclass(frozen=True, kw_only=True)
class SegmentParams(Params):
    """Parameters of `run`."""

    channel: int = param(0, "Channel", "Which channel of a multi-channel image is segmented.", low=0, high=63)
    diameter: float = param(
        0.0, "Object diameter", "Typical diameter in pixels; 0 estimates it from the image.", low=0, high=2000
    )
    threshold: float = param(
        0.0, "Threshold", "Probability of foreground; 0 takes the model's own.", low=0, high=0.99, step=0.05
    )
    min_size: int = param(
        0,
        "Smallest object",
        "Objects with fewer voxels are removed; 0 lets the model decide.",
        low=0,
        high=10**9,
    )
    mirror: bool = param(
        True,
        "Mirrored images",
        "Average over mirrored images where the model was trained for it (nnU-Net): 2 to 8 times as long.",
        advanced=True,
    )


def run(volume: Volume, model: Model, params: SegmentParams, progress: Progress) -> Mask:
    """Segment an image or volume, or each of a series along ``t``.

    Returns
    -------
    Mask
        Integer labels on the volume's grid; instances are numbered from 1 in each frame.

    Raises
    ------
    ModelFitError, InputError, Cancelled
        The image does not fit, is not finite or constant; the run was stopped.
    """
    from napari_medai.engine.run import start

    notes = check_fit(volume, model, "segment", params)
    volume = to_expected_units(volume, model.spec)
    with start("segment", volume, model, params, progress, notes) as run:
        scan = one_channel(volume, params.channel)
        of = channel_of(volume, scan, params.channel)
        taken = frames(for_network(volume, model, params.channel))
        run.frames = len(taken)
        labelled, images = [], []
        for n, (frame, seen) in enumerate(zip(frames(scan), taken, strict=True)):
            run.progress = Part(progress, n / len(taken), (n + 1) / len(taken))
            images.append(for_runner(frame, model, of))
            array = images[-1] if seen.axes == frame.axes else for_runner(seen, model)
            labelled.append(run.runner(seen.replace(array=array), run, params))
        labels = scan.replace(
            array=stack(labelled, scan),
            name=f"{volume.name} {model.id}",
            modality="SEG",
            meta=dict(volume.meta),
        )
        gives = model.spec.gives
        names = {label.value: label.name for label in gives.labels} if gives.kind == "labels" else {}
        colors = {label.value: label.color for label in gives.labels if label.color and gives.kind == "labels"}
        table = measure(labels, np.stack(images) if "t" in scan.axes else images[0], names, gives.kind == "instances")
        return Mask(labels, run.provenance(), names, colors, table)
