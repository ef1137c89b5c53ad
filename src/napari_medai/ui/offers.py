"""What a panel offers: which models, and which layers a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject, Signal

from napari_medai.core.errors import MedaiError
from napari_medai.core.volume import Volume
from napari_medai.models import find_models
from napari_medai.models.gate import gate
from napari_medai.models.spec import Model
from napari_medai.stages import STAGES
from napari_medai.ui.layers import layer_to_volume
from napari_medai.ui.placement import METADATA_KEY

if TYPE_CHECKING:
    from napari.layers import Layer


class _News(QObject):
    changed = Signal()


# Tells every panel that there are other models than before.
NEWS = _News()

# What can be explained: classifiers, and any class of a segmenter.
_EXPLAINED = ("classes", "labels", "instances")


def models_for(stage: str) -> list[Model]:
    """The models that a panel offers; for explain every classifier and segmenter."""
    if stage == "explain":
        return [model for model in find_models() if model.spec.gives.kind in _EXPLAINED]
    return find_models(stage)


def model_for(stage: str, volume: Volume, models: Sequence[Model]) -> Model | None:
    """The model a person most likely wants for an image: what the API would take, else the first that fits."""
    prefer = STAGES[stage].default_model
    if stage == "denoise":
        prefer = "self3d" if volume.ndim_spatial == 3 else "self2d"
    fitting = []
    for model in models:
        if not any(finding.severity == "block" for finding in gate(volume, model.spec, stage, look=False)):
            fitting.append(model)
    return next((model for model in fitting if model.id == prefer), fitting[0] if fitting else None)


def misfit(layer: Layer, model: Model, stage: str, layers: Sequence[Layer]) -> str:
    """Why a model cannot take a layer, in one sentence; empty if it can, be it after a person's override."""
    try:
        findings = gate(layer_to_volume(layer, layers), model.spec, stage, look=False)
    except MedaiError as error:
        return str(error)
    reasons = [finding.text for finding in findings if finding.final]
    return reasons[0].partition(". ")[0].rstrip(".") + "." if reasons else ""


def doubtful(layer: Layer, model: Model, stage: str, layers: Sequence[Layer]) -> bool:
    """Whether a layer that a model could take is of another kind than the model was made for."""
    try:
        findings = gate(layer_to_volume(layer, layers), model.spec, stage, look=False)
    except MedaiError:
        return True
    return any(finding.severity == "block" for finding in findings)


def is_heatmap(layer: Layer) -> bool:
    """Whether a layer shows where a network looked: no image that a stage is likely meant for."""
    record = layer.metadata.get(METADATA_KEY, {})
    return bool(record.get("provenance", {}).get("stage") == "explain")
