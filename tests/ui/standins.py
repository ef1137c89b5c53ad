"""Models and stages that cost nothing, for tests of the panels and of the worker.

The stages run in the worker's process. A test says by files what they do there, and what they were called with.
"""

from __future__ import annotations

import builtins
import ctypes
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from napari_medai.core import errors
from napari_medai.core.plan import Plan
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Boxes, Denoised, Heatmap, Mask, Result, Scores
from napari_medai.core.stage import Params, Progress
from napari_medai.core.volume import Volume
from napari_medai.models.spec import Accepts, Gives, Label, Model, ModelSpec
from napari_medai.stages import STAGES
from napari_medai.stages.measure import measure

DEFECTS = ("noise", "blur", "motion", "ghosting", "bias field", "clipping")


def model(model_id: str, stage: str, kind: str, ndim: tuple[int, ...], **fields: object) -> Model:
    """A model without weights."""
    labels = fields.pop("labels", ())
    modality = fields.pop("modality", ())
    spec = ModelSpec(
        id=model_id,
        title=model_id.capitalize(),
        summary=f"Stands in for {model_id}.",
        stage=stage,
        accepts=Accepts(ndim=ndim, modality=modality),
        gives=Gives(kind=kind, labels=tuple(Label(value=n, name=name) for n, name in enumerate(labels, 1))),
        runner="standin",
        **fields,
    )
    return Model(spec=spec, folder=Path("nowhere"), source="builtin")


MODELS = [
    model("self2d", "denoise", "image", (2, 3)),
    model("self3d", "denoise", "image", (3,)),
    model("brain", "segment", "labels", (3,), labels=("brain",), modality=("MR",)),
    model("nuclei", "segment", "instances", (2,), labels=("nucleus",)),
    model("quality", "classify", "classes", (2, 3), labels=DEFECTS),
    model("micronuclei", "detect", "boxes", (2,), labels=("micronucleus",)),
    model("blobs3d", "detect", "boxes", (3,), labels=("blob",)),
]
# What a run tells of itself before it begins, if it is asked to
PLAN = Plan("cpu", (6, 10, 10), 1, 6, "float32", "host", "float32", 2, 900.0, 0.0, 9000.0, 0.0, 3.0, True)


class Runner:
    """What the stages do in the worker's process, and what they were called with there.

    Parameters
    ----------
    folder : Path
        Where both sides leave word.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.does()

    def does(self, **how: Any) -> None:
        """Say what the next runs do.

        steps, pause: how often they tell their progress, and for how many seconds they sleep between. hold: wait
        half-way for `go`, asking meanwhile whether they are cancelled. error: kind and text of what is raised
        half-way. note: told to the progress and kept in the record. plan: tell `PLAN`. partial: show each plane as
        it is found. ends: "kill", "segfault" or "deaf" (asks nothing for a minute) half-way.
        """
        defaults = {"steps": 4, "pause": 0.0, "hold": False, "error": None, "note": ""}
        (self.folder / "open").unlink(missing_ok=True)
        settings = json.dumps(defaults | {"plan": False, "partial": False, "ends": ""} | how)
        (self.folder / "new").write_text(settings)
        (self.folder / "new").replace(self.folder / "settings.json")

    def go(self) -> None:
        """Let runs that hold go on."""
        (self.folder / "open").touch()

    @property
    def calls(self) -> list[dict[str, Any]]:
        """What the stages were called with, in order."""
        found = sorted(self.folder.glob("call*.json"), key=lambda path: path.stat().st_mtime_ns)
        return [json.loads(path.read_text()) for path in found]

    def find(self, stage: str = "") -> list[Model]:
        """Stands in for `napari_medai.models.find_models`."""
        return [self.knowing(m) for m in MODELS if not stage or m.spec.stage == stage]

    def knowing(self, model: Model) -> Model:
        """A model whose runs find this runner."""
        spec = model.spec.model_copy(update={"details": {"folder": str(self.folder)}})
        return model.model_copy(update={"spec": spec})

    @staticmethod
    def stages() -> dict[str, Any]:
        """The rows of `STAGES` with the functions below."""
        return {name: dataclasses.replace(row, function=f"standins:{name}") for name, row in STAGES.items()}


def denoise(volume: Volume, chosen: Model, params: Params, progress: Progress) -> Result:
    return _run("denoise", volume, chosen, params, progress)


def segment(volume: Volume, chosen: Model, params: Params, progress: Progress) -> Result:
    return _run("segment", volume, chosen, params, progress)


def classify(volume: Volume, chosen: Model, params: Params, progress: Progress) -> Result:
    return _run("classify", volume, chosen, params, progress)


def detect(volume: Volume, chosen: Model, params: Params, progress: Progress) -> Result:
    return _run("detect", volume, chosen, params, progress)


def explain(volume: Volume, chosen: Model, params: Params, progress: Progress) -> Result:
    return _run("explain", volume, chosen, params, progress)


def _run(stage: str, volume: Volume, chosen: Model, params: Params, progress: Progress) -> Result:
    folder = Path(chosen.spec.details["folder"])
    how = json.loads((folder / "settings.json").read_text())
    call = {"stage": stage, "model": chosen.id, "params": params.as_dict(), "name": volume.name, "axes": volume.axes}
    call |= {"units": volume.units, "spacing": volume.spacing, "lazy": volume.is_lazy, "pid": os.getpid()}
    (folder / "unfinished").write_text(json.dumps(call | {"sum": float(volume.numpy().sum(dtype=np.float64))}))
    (folder / "unfinished").rename(folder / f"call{time.time_ns()}.json")
    if how["plan"]:
        progress.planned(PLAN)
    found = np.zeros(volume.spatial_shape, np.uint8)
    for step in range(how["steps"]):
        progress.update(step, how["steps"], f"Tile {step + 1} of {how['steps']}")
        time.sleep(how["pause"])
        if how["partial"]:
            where = slice(step * len(found) // how["steps"], (step + 1) * len(found) // how["steps"])
            found[where] = 1
            progress.partial(found, (where, *[slice(None)] * (found.ndim - 1)))
        if step == how["steps"] // 2:
            _half_way(folder, how, progress)
    return result(stage, volume, chosen, params, (how["note"],) if how["note"] else ())


def _half_way(folder: Path, how: dict[str, Any], progress: Progress) -> None:
    if how["note"]:
        progress.note(how["note"])
    while how["hold"] and not (folder / "open").exists():
        time.sleep(0.005)
        progress.check()
    if how["ends"] == "kill":
        os.kill(os.getpid(), 9)
    elif how["ends"] == "segfault":
        ctypes.string_at(0)
    elif how["ends"] == "deaf":
        time.sleep(60)
    if how["error"]:
        kind, text = how["error"]
        raise (getattr(errors, kind, None) or getattr(builtins, kind))(text)


def result(stage: str, volume: Volume, chosen: Model, params: Params, notes: tuple[str, ...]) -> Result:
    """Something of the right kind: the brightest third of the image, four objects, a ramp of scores."""
    provenance = Provenance(stage, (volume.name,), chosen.id, params=params.as_dict(), notes=notes, tiles=4)
    array = volume.numpy().astype(np.float32)
    if stage == "denoise":
        return Denoised(volume.replace(array=array * 0.5, name=f"{volume.name} denoised"), provenance)
    labels = (array > np.quantile(array, 2 / 3)).astype(np.int32)
    if stage == "segment":
        instances = chosen.spec.gives.kind == "instances"
        if instances:
            labels[: labels.shape[0] // 2] *= 2
        names = {} if instances else {1: "brain"}
        mask = volume.replace(array=labels, name=f"{volume.name} {chosen.id}", modality="SEG")
        return Mask(mask, provenance, names, {}, measure(mask, array, names, instances))
    if stage == "classify":
        n = volume.size("z")
        at = np.linspace(0, 1, n)
        rows = np.stack([np.abs(np.sin(3 * at + k)) for k in range(len(DEFECTS))], axis=1)
        weight = np.exp(-((at - 0.6) ** 2) * 20)
        thresholds = np.full(len(DEFECTS), 0.5)
        thresholds[1] = 0.7
        return Scores(
            DEFECTS, rows.mean(axis=0), np.arange(n), rows, weight / weight.sum(), thresholds, volume.grid, provenance
        )
    if stage == "detect":
        size = np.array([volume.size(axis) for axis in "zyx"], dtype=float)
        centres = np.array([[0.2, 0.2, 0.3], [0.5, 0.5, 0.5], [0.7, 0.3, 0.8], [0.9, 0.9, 0.1]]) * (size - 1)
        sizes = np.full((4, 3), 6.0)
        if volume.ndim_spatial == 2:
            centres[:, 0], sizes[:, 0] = 0, 1
        scores = np.array([0.9, 0.8, 0.7, 0.6])
        label = chosen.spec.gives.labels[0].name
        return Boxes(centres, sizes, (label,) * 4, scores, volume.ndim_spatial, volume.grid, provenance)
    heat = (array - array.min()) / np.ptp(array)
    return Heatmap(volume.replace(array=heat, name=f"{volume.name} heat"), "noise", "gradcam++", provenance)
