"""Explain: where a network looked, as heat on the scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from napari_medai.core.result import Heatmap
from napari_medai.core.stage import Params, Progress, param
from napari_medai.core.volume import Volume
from napari_medai.models.gate import to_expected_units
from napari_medai.models.spec import Model
from napari_medai.stages.classify import at_frame
from napari_medai.stages.common import channel_of, check_fit, one_channel, pixels


@dataclass(frozen=True, kw_only=True)
class ExplainParams(Params):
    """Parameters of `run`."""

    method: Literal["gradcam++", "occlusion", "attention"] = param(
        "gradcam++", "Method", "Grad-CAM++, occlusion of patches, or the network's own attention over slices."
    )
    target: str = param("", "Class", "Which class is explained; empty takes the most probable one.")
    channel: int = param(0, "Channel", "Which channel of a multi-channel image is looked at.", low=0, high=63)
    frame: int = param(0, "Time point", "Which image of a series along t is looked at.", low=0, high=10**6)
    patch: int = param(
        0,
        "Patch",
        "Edge of the occluding patch in the network's pixels; 0 decides by size.",
        low=0,
        high=512,
        advanced=True,
    )


def run(volume: Volume, model: Model, params: ExplainParams, progress: Progress) -> Heatmap:
    """Explain one class of a classifier or of a segmenter.

    Returns
    -------
    Heatmap
        0..1 on the volume's grid (without ``t`` and ``c``).

    Raises
    ------
    ModelFitError
        The image does not fit, or the model gives neither classes nor labels, or has no attention.
    InputError, Cancelled
        The class is not one of the model's; the run was stopped.
    """
    from napari_medai.engine.explain import explain
    from napari_medai.engine.run import start

    notes = check_fit(volume, model, "explain", params)
    volume = to_expected_units(volume, model.spec)
    with start("explain", volume, model, params, progress, notes) as run:
        scan = at_frame(one_channel(volume, params.channel), params.frame)
        seen = pixels(scan, channel_of(volume, scan, params.channel))
        heat, target = explain(scan.replace(array=seen), run, params)
        image = scan.replace(array=heat, name=f"{volume.name} {model.id}")
        return Heatmap(image, target, params.method, run.provenance())
