"""Runners of the models for whole volumes and of those without weights: blobs and self-denoising."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.volume import Volume
from napari_medai.engine.blobs import Polarity, find_blobs
from napari_medai.engine.results import Found
from napari_medai.engine.selfdenoise import denoise

if TYPE_CHECKING:
    from napari_medai.engine.run import Run


def detect_blobs(volume: Volume, run: Run, params: Any) -> Found:
    """Blob-like objects of a volume (z, y, x), with the diameter in voxels along each axis."""
    options = run.spec.options
    polarity = params.polarity if params.polarity != "model" else options["polarity"]
    finest = min(volume.spacing)
    blobs = find_blobs(
        volume.numpy(),
        volume.spacing,
        run.predict,
        threshold=params.threshold or float(options["threshold"]),
        polarity=cast(Polarity, polarity),
        diameter=params.diameter * finest,
    )
    names = {label.value: label.name for label in run.spec.gives.labels}
    return Found(
        blobs.centres,
        blobs.diameters[:, None] / np.asarray(volume.spacing),
        [names[1] if bright else names[2] for bright in blobs.bright],
        blobs.scores,
    )


def denoise_itself(volume: Volume, run: Run, params: Any) -> NDArray[np.float32]:
    """Denoise an image (…, y, x), its colours and channels together; 2-D models take stacks plane by plane."""
    image, axes = volume.numpy(), volume.axes
    channel = next((axes.index(a) for a in "cs" if a in axes), None)
    planes = image[np.newaxis] if channel is None else np.moveaxis(image, channel, 0)
    ndim = int(run.spec.options["ndim"]) if "z" in axes else 2
    clean = denoise(
        np.ascontiguousarray(planes),
        ndim=cast(Literal[2, 3], ndim),
        steps=params.steps,
        seed=params.seed,
        device=run.device,
        progress=run.progress.update,
    )
    run.tiles += 1
    return clean[0] if channel is None else np.moveaxis(clean, 0, channel)
