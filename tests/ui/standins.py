"""Models and stages that cost nothing, for tests of the panels."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np

from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Boxes, Denoised, Heatmap, Mask, Result, Scores
from napari_medai.core.stage import Params, Progress
from napari_medai.core.volume import Volume
from napari_medai.models.spec import Accepts, Gives, Label, Model, ModelSpec
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


def find(stage: str = "") -> list[Model]:
    """Stands in for `napari_medai.models.find_models`."""
    return [m for m in MODELS if not stage or m.spec.stage == stage]


class Runner:
    """Stands in for the function of every stage; remembers what it was called with.

    Attributes
    ----------
    steps, pause : int, float
        How often it tells its progress, and for how many seconds it sleeps between.
    gate : threading.Event or None
        Waits for it half-way, asking meanwhile whether it is cancelled.
    error : Exception or None
        Raised half-way.
    note : str
        Told to the progress and kept in the provenance.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, Volume, Model, Params]] = []
        self.threads: list[str] = []
        self.steps, self.pause = 4, 0.0
        self.gate: threading.Event | None = None
        self.error: Exception | None = None
        self.note = ""

    def load(self, stage: str) -> object:
        """Stands in for `Stage.load`."""

        def run(volume: Volume, chosen: Model, params: Params, progress: Progress) -> Result:
            self.calls.append((stage, volume, chosen, params))
            self.threads.append(threading.current_thread().name)
            for step in range(self.steps):
                progress.update(step, self.steps, f"Tile {step + 1} of {self.steps}")
                time.sleep(self.pause)
                if step == self.steps // 2:
                    if self.note:
                        progress.note(self.note)
                    while self.gate is not None and not self.gate.wait(0.005):
                        progress.check()
                    if self.error is not None:
                        raise self.error
            return result(stage, volume, chosen, params, (self.note,) if self.note else ())

        return run


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
