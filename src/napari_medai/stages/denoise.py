"""Denoise: a network learns on the image itself what is signal and what is noise."""

from __future__ import annotations

from dataclasses import dataclass

from napari_medai.core.result import Denoised
from napari_medai.core.stage import Params, Part, Progress, param
from napari_medai.core.volume import Volume
from napari_medai.models.gate import to_expected_units
from napari_medai.models.spec import Model
from napari_medai.stages.common import check_fit, frames, pixels, stack


@dataclass(frozen=True, kw_only=True)
class DenoiseParams(Params):
    """Parameters of `run`."""

    steps: int = param(0, "Steps", "Training steps on the image; 0 lets the model decide.", low=0, high=20000)
    strength: float = param(
        1.0,
        "Strength",
        "1 gives the clean image, 0 the original; between, a blend.",
        low=0.0,
        high=1.0,
        step=0.1,
    )
    seed: int = param(0, "Seed", "The same seed gives the same result.", low=0, high=2**31 - 1, advanced=True)


def run(volume: Volume, model: Model, params: DenoiseParams, progress: Progress) -> Denoised:
    """Denoise an image of any dimension; see the model's card for the method and its source.

    Parameters
    ----------
    volume : Volume
        2-D image, z-stack, volume, or a series of these along ``t``; colour and channels are cleaned together.
    model : Model
        ``self2d`` (each plane for itself) or ``self3d``.

    Returns
    -------
    Denoised
        float32 on the volume's grid, in its value scale.

    Raises
    ------
    ModelFitError, InputError, Cancelled
        The image does not fit, is not finite or constant; the run was stopped.
    """
    from napari_medai.engine.run import start

    notes = check_fit(volume, model, "denoise", params)
    volume = to_expected_units(volume, model.spec)
    with start("denoise", volume, model, params, progress, notes) as run:
        parts = frames(volume)
        run.frames = len(parts)
        cleaned = []
        for n, frame in enumerate(parts):
            run.progress = Part(progress, n / len(parts), (n + 1) / len(parts))
            image = pixels(frame)
            clean = run.runner(frame.replace(array=image), run, params)
            cleaned.append(image + params.strength * (clean - image))
        result = volume.replace(array=stack(cleaned, volume), name=f"{volume.name} denoised")
        return Denoised(result, run.provenance())
