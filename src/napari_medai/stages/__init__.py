"""The stages of image diagnosis. `STAGES` is the table: panel, shell and batch runner all read it."""

from __future__ import annotations

from collections.abc import Mapping

from napari_medai.core.stage import Stage
from napari_medai.stages.classify import ClassifyParams
from napari_medai.stages.denoise import DenoiseParams
from napari_medai.stages.detect import DetectParams
from napari_medai.stages.explain import ExplainParams
from napari_medai.stages.segment import SegmentParams

__all__ = ["STAGES"]

_ROWS = (
    Stage(
        "denoise",
        "Denoise",
        "Remove noise by a network that learns on the image itself.",
        DenoiseParams,
        "self2d",
        "napari_medai.stages.denoise:run",
        "napari/layers/filter",
    ),
    Stage(
        "segment",
        "Segment",
        "Label organs, tissue or single nuclei.",
        SegmentParams,
        "brain",
        "napari_medai.stages.segment:run",
        "napari/layers/segment",
    ),
    Stage(
        "classify",
        "Classify",
        "Score an image and each of its slices.",
        ClassifyParams,
        "quality",
        "napari_medai.stages.classify:run",
        "napari/layers/classify",
    ),
    Stage(
        "detect",
        "Detect",
        "Find objects: centres, sizes and scores.",
        DetectParams,
        "micronuclei",
        "napari_medai.stages.detect:run",
        "napari/layers/segment",
    ),
    Stage(
        "explain",
        "Explain",
        "Show where a network looked, as a heatmap on the scan.",
        ExplainParams,
        "quality",
        "napari_medai.stages.explain:run",
        "napari/layers/visualize",
    ),
)

STAGES: Mapping[str, Stage] = {stage.name: stage for stage in _ROWS}
