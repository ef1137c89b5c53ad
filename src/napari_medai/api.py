"""The stages as plain functions; what the panel, the shell and the batch runner call too."""

from __future__ import annotations

import os
from typing import Any, cast

from napari_medai.core.errors import InputError, ParamsError
from napari_medai.core.plan import Plan
from napari_medai.core.result import Boxes, Denoised, Heatmap, Mask, Result, Scores
from napari_medai.core.stage import DryRun, Params, Planned, Progress, fields_of
from napari_medai.core.volume import Volume
from napari_medai.engine import can_be_planned
from napari_medai.models import find_models, load_model
from napari_medai.models.spec import Model
from napari_medai.stages import STAGES


def run_stage(
    stage: str,
    volume: Volume,
    model: str | Model = "",
    params: Params | None = None,
    progress: Progress | None = None,
) -> Result:
    """Run a stage by name.

    Parameters
    ----------
    stage : str
        A key of `napari_medai.stages.STAGES`.
    volume : Volume
        The image.
    model : str or Model
        Empty takes `default_model`.
    params : Params, optional
        Of the stage's own class.
    progress : Progress, optional
        Told how far the run is; may stop it.

    Returns
    -------
    Result
        Of the stage's own kind.

    Raises
    ------
    MedaiError
        As the stage documents.
    """
    if stage not in STAGES:
        raise ParamsError(f"No stage is called {stage!r}; there are: {', '.join(STAGES)}.")
    _check_volume(stage, volume)
    row = STAGES[stage]
    chosen = load_model(model or default_model(stage, volume))
    result: Result = row.load()(volume, chosen, params or row.params(), progress or Progress())
    return result


def plan_stage(
    stage: str,
    volume: Volume,
    model: str | Model = "",
    params: Params | None = None,
    progress: Progress | None = None,
) -> Plan | None:
    """What a run would take: tiles, memory and time, from the image, the network and one tile that is run.

    Parameters
    ----------
    stage, volume, model, params
        As `run_stage`.
    progress : Progress, optional
        Told how far the planning is; raises `Planned` when it hears the plan, as `DryRun` does.

    Returns
    -------
    Plan or None
        None of a model that does not go over the image in tiles; nothing is run for it.

    Raises
    ------
    MedaiError
        As the stage documents.
    """
    _check_volume(stage, volume)
    chosen = load_model(model or default_model(stage, volume))
    if not can_be_planned(stage, chosen):
        return None
    try:
        run_stage(stage, volume, chosen, params, progress or DryRun())
    except Planned as planned:
        return planned.plan
    return None


def default_model(stage: str, volume: Volume) -> str:
    """Id of the model a stage takes for an image when none is named: the first that fits its dimensions.

    The stage's own default comes first; ``segment`` of a volume takes ``brain``, of a slide ``nuclei``.

    Raises
    ------
    ParamsError
        No stage has the name.
    """
    if stage not in STAGES:
        raise ParamsError(f"No stage is called {stage!r}; there are: {', '.join(STAGES)}.")
    first = STAGES[stage].default_model
    candidates = find_models("" if stage == "explain" else stage)
    fitting = [m.id for m in candidates if volume.ndim_spatial in m.spec.accepts.ndim]
    if stage == "denoise" and volume.ndim_spatial == 3 and "self3d" in fitting:
        return "self3d"
    return first if first in fitting or not fitting else fitting[0]


def _check_volume(stage: str, given: object) -> None:
    if isinstance(given, Volume):
        return
    if isinstance(given, str | os.PathLike):
        how = "a path; open it first: medai.open(path)"
    elif hasattr(given, "shape"):
        how = 'an array; make a volume of it first: medai.from_array(array, "yx"), with the names of its axes'
    else:
        how = "no image; open one with medai.open(path), or take the image of a result"
    raise InputError(f"{stage} takes a Volume and was given {how} ({type(given).__name__} found).")


def _call(stage: str, volume: Volume, model: str | Model, progress: Progress | None, values: dict[str, Any]) -> Result:
    params = STAGES[stage].params
    unknown = set(values) - {f.name for f in fields_of(params)}
    if unknown:
        known = ", ".join(f.name for f in fields_of(params))
        raise ParamsError(f"{stage} has no parameter {', '.join(sorted(unknown))}; it has: {known}.")
    return run_stage(stage, volume, model, params(**values), progress)


def denoise(volume: Volume, model: str | Model = "", *, progress: Progress | None = None, **params: Any) -> Denoised:
    """Denoise an image; parameters as `napari_medai.stages.denoise.DenoiseParams`."""
    return cast(Denoised, _call("denoise", volume, model, progress, params))


def segment(volume: Volume, model: str | Model = "", *, progress: Progress | None = None, **params: Any) -> Mask:
    """Segment an image; parameters as `napari_medai.stages.segment.SegmentParams`."""
    return cast(Mask, _call("segment", volume, model, progress, params))


def classify(volume: Volume, model: str | Model = "", *, progress: Progress | None = None, **params: Any) -> Scores:
    """Classify an image; parameters as `napari_medai.stages.classify.ClassifyParams`."""
    return cast(Scores, _call("classify", volume, model, progress, params))


def detect(volume: Volume, model: str | Model = "", *, progress: Progress | None = None, **params: Any) -> Boxes:
    """Detect objects; parameters as `napari_medai.stages.detect.DetectParams`."""
    return cast(Boxes, _call("detect", volume, model, progress, params))


def explain(volume: Volume, model: str | Model = "", *, progress: Progress | None = None, **params: Any) -> Heatmap:
    """Explain a network's answer; parameters as `napari_medai.stages.explain.ExplainParams`."""
    return cast(Heatmap, _call("explain", volume, model, progress, params))
