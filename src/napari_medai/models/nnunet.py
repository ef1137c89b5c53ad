"""The source of nnU-Net v2 models (TotalSegmentator's too): folders of trained models, described from their JSON alone.

What is known to this package becomes plain values in ``ModelSpec.details``; whatever else the plans name becomes a
`Need`. nnU-Net itself is not needed, and no checkpoint is opened before the model runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_medai.core.errors import ModelError
from napari_medai.models.nnunet_labels import label_names, one_line, read_labels
from napari_medai.models.nnunet_plans import PlansReader
from napari_medai.models.nnunet_stage import StagePlan
from napari_medai.models.spec import Accepts, Gives, ModelSpec, Need, Prepare, Tiling

CITATION = (
    "Isensee F, Jaeger PF, Kohl SAA, Petersen J, Maier-Hein KH. nnU-Net: a self-configuring method for deep "
    "learning-based biomedical image segmentation. Nature Methods 18, 203-211, 2021."
)
# In this order one of several trained configurations is taken; others come after them, by name
PREFERRED = ("3d_fullres", "3d_cascade_fullres", "3d_lowres", "2d")
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
# Trainers of nnU-Net and TotalSegmentator of which we know that nothing but what the checkpoint says (mirroring)
# differs at inference. BN replaces the normalisation by batch normalisation.
BATCH_NORM_TRAINERS = ("nnUNetTrainerBN",)
KNOWN_TRAINERS = re.compile(
    r"nnUNetTrainer((_?(NoMirroring|onlyMirror01|noDummy2DDA|DASegOrd0|warmup|\d+ep(ochs?)?))|DA5(ord0|Segord0)?|NoDA"
    r"|DiceLoss|DiceCELoss_noSmooth|CELoss|DiceTopK10Loss|Topk10Loss(LS01)?|NoDeepSupervision|CosAnneal"
    r"|(Vanilla)?Adam(1en3|3en4)?|Adan(1en[13]|3en4|CosAnneal)?|SkeletonRecall|_MOSAIC_1k_QuarterLR_NoMirroring"
    r"|_probabilisticOversampling(_\d+)?|_DA5|Benchmark_5epochs|BN)*"
)
# These put a transformer of their own in the place of the plans' network
OTHER_NETWORK_TRAINERS = re.compile(r"_?(nnUNet_)?Primus.*")
# Channel name in lower case -> DICOM modality
_MR = (
    "mr", "mri", "t1", "t1w", "t1c", "t1ce", "t1gd", "t1n", "t2", "t2w", "t2f", "flair", "t2-flair", "t2flair", "dwi",
    "adc", "swi", "pd", "pdw", "tof", "cine-mri", "dce",
)  # fmt: skip
_MODALITIES = dict.fromkeys(_MR, "MR") | {
    "ct": "CT", "cbct": "CT", "pet": "PT", "pt": "PT", "suv": "PT", "us": "US", "ultrasound": "US",
}  # fmt: skip
_FOLD = re.compile(r"fold_(\d+|all)")
_REORIENTING = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")
_MOST_JSON_BYTES = 2**26
_MOST_FOLDERS = 1000


@dataclass(frozen=True)
class Trained:
    """One folder ``Trainer__Plans__configuration`` of trained folds."""

    path: Path
    trainer: str
    plans: str
    configuration: str
    checkpoints: Mapping[str, str]

    @property
    def key(self) -> tuple[str, str]:
        """What the stages of a cascade have in common."""
        return self.trainer, self.plans


def recognise(path: Path) -> bool:
    """Whether a folder is a trained model of nnU-Net v2, or holds some of one data set."""
    return bool(_trained_in(path))


def probe(path: Path) -> ModelSpec:
    """Describe a trained model. Parses JSON and looks at names of files; opens no checkpoint.

    Parameters
    ----------
    path : Path
        ``Trainer__Plans__configuration`` itself, or ``DatasetXXX_Name`` above it, of whose configurations the first
        of `PREFERRED` is taken (or the one that nnU-Net found best), or a folder with nothing but that in it.

    Raises
    ------
    ModelError
        There is no checkpoint, or the JSON is damaged; the message names the path in it.
    """
    return _probe(path, "")


def describe(path: Path, **answers: Any) -> ModelSpec:
    """As `probe`, with wishes of a person.

    Parameters
    ----------
    path : Path
        As for `probe`.
    **answers
        ``configuration``: which of several is taken. ``folds`` ("0,2"), ``mirroring`` (bool), ``step`` (0..1) and
        ``orientation`` ("RAS"): options of the runner, see `napari_medai.engine.nnunet.run.segment`.

    Raises
    ------
    ModelError
        As `probe`; or there is no such answer or configuration.
    """
    configuration = str(answers.pop("configuration", ""))
    spec = _probe(path, configuration)
    unknown = sorted(answers.keys() - spec.options.keys())
    if unknown:
        known = ", ".join(["configuration", *spec.options])
        raise ModelError(f"{', '.join(unknown)}: a model of nnU-Net says that itself; it takes {known}.")
    return spec.model_copy(update={"options": {**spec.options, **answers}})


def _probe(path: Path, configuration: str) -> ModelSpec:
    found = _trained_in(path)
    if not found:
        raise ModelError(f"{path.name!r} holds no folder with plans.json, dataset.json and fold_…/{CHECKPOINTS[0]}.")
    datasets = sorted({trained.path.parent.name for trained in found} if path not in _paths(found) else {path.name})
    if len(datasets) > 1:
        raise ModelError(f"{path.name!r} holds {len(datasets)} data sets: {', '.join(datasets)}; open one of them.")
    named = [trained for trained in found if trained.configuration == configuration]
    if configuration and not named:
        known = ", ".join(sorted(trained.configuration or trained.path.name for trained in found))
        raise ModelError(f"{path.name!r} has no trained configuration {configuration!r}; there are: {known}.")
    chosen = _choose(named or found)
    root = path
    plans, dataset = _read(chosen.path / "plans.json"), _read(chosen.path / "dataset.json")
    where = f"{_relative(chosen.path, path)}plans.json"
    reader = PlansReader(plans, where)
    if not chosen.configuration:
        chosen = _named(chosen, reader)
    order = [chosen]
    if previous := reader.previous(chosen.configuration):
        earlier = _earlier(chosen, previous)
        path_of = f"{where}#configurations::{chosen.configuration}::previous_stage"
        if reader.previous(previous):
            why = f"{previous[:80]!r} needs a stage before it too; cascades of two stages are known."
            reader.needs.append(Need(where=path_of, why=why))
        elif earlier is None:
            why = f"{previous[:80]!r} must run first and is not there with checkpoints beside {chosen.path.name!r}."
            reader.needs.append(Need(where=path_of, why=why))
        else:
            order.insert(0, earlier)
            root = chosen.path.parent if path == chosen.path else path
    names = _channel_names(dataset, f"{_relative(chosen.path, path)}dataset.json")
    labels = read_labels(dataset, f"{_relative(chosen.path, path)}dataset.json")
    stages = [stage for trained in order if (stage := _stage(trained, root, len(names), reader)) is not None]
    others = [other for other in found if other.configuration and other.path not in {t.path for t in order}]
    return _spec(plans, dataset, names, labels, stages, reader.needs, root, chosen, others)


def _spec(
    plans: dict[str, Any],
    dataset: dict[str, Any],
    names: tuple[str, ...],
    labels: Any,
    stages: list[StagePlan],
    needs: list[Need],
    root: Path,
    chosen: Trained,
    others: list[Trained],
) -> ModelSpec:
    data_set = one_line(plans.get("dataset_name")) or one_line(chosen.path.parent.name)
    title = re.sub(r"^Dataset\d+_", "", data_set).replace("_", " ") or data_set
    last = stages[-1] if stages else None
    readers = {stage.reader for stage in stages}
    natural = "NaturalImage2DIO" in readers
    ndim: tuple[Any, ...] = (2,) if natural else (3,) if last is None or len(last.patch) == 3 else (2, 3)
    turned = bool(readers & set(_REORIENTING)) or "totalsegmentator" in f"{data_set} {root}".lower()
    what = label_names(dataset, labels)
    summary = f"nnU-Net ({chosen.configuration}): {', '.join(label.name for label in what[:8])}"
    spacing = None
    if last is not None and len(last.spacing) == 3:
        spacing = tuple(last.spacing[last.backward[n]] for n in range(3))
    intensity = {"CT": "HU", "PT": "SUV"}.get(_MODALITIES.get(names[0].lower(), ""), "") if len(names) == 1 else ""
    licence = dataset.get("licence") or dataset.get("license")
    return ModelSpec(
        id=re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{data_set}-{chosen.configuration}").lstrip(".-"),
        title=f"{title} ({chosen.configuration})",
        summary=summary + (f" and {len(what) - 8} more." if len(what) > 8 else "."),
        stage="segment",
        version=one_line(dataset.get("release")) or "1",
        accepts=Accepts(
            ndim=ndim,
            modality=tuple(dict.fromkeys(m for n in names if (m := _MODALITIES.get(n.lower())))) if not natural else (),
            rgb=natural and len(names) == 3,
            min_size=2,
            channels=len(names),
            channel_names=names,
            orientation="RAS" if turned else "",
            intensity_units="" if intensity == "SUV" else intensity,
        ),
        prepare=Prepare(spacing_mm=spacing, normalise="none"),  # type: ignore[arg-type]
        gives=Gives(kind="labels", labels=what),
        tiling=Tiling(size=last.patch if last else (), overlap=0.5, multiple=1),
        runner="nnunet",
        licence=f"not stated; of the data: {one_line(licence)}" if licence else "not stated",
        citation=CITATION + (f" Data: {one_line(dataset['reference'])}." if dataset.get("reference") else ""),
        options={"folds": "all", "mirroring": True, "step": 0.5, "orientation": "RAS" if turned else ""},
        details={
            "stages": [stage.model_dump(mode="json") for stage in stages],
            "labels": labels.model_dump(mode="json"),
            "configurations": sorted({chosen.configuration, *(other.configuration for other in others)}),
            "remarks": _remarks(chosen, others),
        },
        training_data=one_line(dataset.get("description")),
        source="nnunet",
        path=root,
        safety="config",
        needs=tuple(needs),
    )


def _stage(trained: Trained, root: Path, channels: int, reader: PlansReader) -> StagePlan | None:
    """One configuration to run, with its own folder's plans where these are others."""
    where = f"{_relative(trained.path, root)}plans.json"
    own = PlansReader(_read(trained.path / "plans.json"), where)
    folder = _relative(trained.path, root).rstrip("/")
    stage = own.stage(
        trained.configuration, channels, folder=folder, trainer=trained.trainer, checkpoints=dict(trained.checkpoints)
    )
    reader.needs += own.needs
    if OTHER_NETWORK_TRAINERS.fullmatch(trained.trainer):
        why = f"The trainer {trained.trainer!r} builds a network of its own, which is not known here."
        reader.needs.append(Need(where=trained.path.name, why=why))
    return stage


def _trained_in(path: Path) -> list[Trained]:
    """Trained folders: the path itself, or one or two levels below it."""
    if not path.is_dir():
        return []
    level = [path]
    for _ in range(3):
        found = [trained for folder in level if (trained := _trained(folder)) is not None]
        if found:
            return found
        level = [below for folder in level[:_MOST_FOLDERS] for below in _below(folder)]
    return []


def _below(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir())[:_MOST_FOLDERS]
    except OSError:
        return []


def _trained(folder: Path) -> Trained | None:
    if not ((folder / "plans.json").is_file() and (folder / "dataset.json").is_file()):
        return None
    folds = [entry for entry in _below(folder) if _FOLD.fullmatch(entry.name)]
    checkpoints: dict[str, str] = {}
    for name in CHECKPOINTS:
        checkpoints = {fold.name[5:]: f"{fold.name}/{name}" for fold in folds if (fold / name).is_file()}
        if checkpoints:
            break
    if not checkpoints:
        return None
    parts = folder.name.split("__")
    trainer, plans, configuration = parts if len(parts) == 3 else ("", "", "")
    return Trained(folder, trainer, plans, configuration, checkpoints)


def _paths(found: list[Trained]) -> list[Path]:
    return [trained.path for trained in found]


def _choose(found: list[Trained]) -> Trained:
    """One of several configurations: what nnU-Net found best if it says so, else by `PREFERRED`."""
    best = ""
    information = found[0].path.parent / "inference_information.json"
    if len(found) > 1 and information.is_file():
        told = _read(information).get("best_model_or_ensemble")
        models = told.get("selected_model_or_models") if isinstance(told, dict) else None
        if isinstance(models, list) and len(models) == 1 and isinstance(models[0], dict):
            best = str(models[0].get("configuration", ""))

    def rank(trained: Trained) -> tuple[bool, bool, int, bool, str]:
        name = trained.configuration
        lacking = name == "3d_cascade_fullres" and _earlier(trained, "3d_lowres") is None
        place = PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)
        return lacking, name != best, place, trained.trainer != "nnUNetTrainer", trained.path.name

    return min(found, key=rank)


def _earlier(trained: Trained, configuration: str) -> Trained | None:
    """The first stage of a cascade, in a folder beside it."""
    beside = [other for folder in _below(trained.path.parent) if (other := _trained(folder)) is not None]
    same = [other for other in beside if other.key == trained.key and other.configuration == configuration]
    return same[0] if same else None


def _named(trained: Trained, reader: PlansReader) -> Trained:
    """A folder whose name does not tell its configuration, with the likeliest; its checkpoint is asked when it runs."""
    known = reader.plans.get("configurations")
    names = [str(name) for name in known] if isinstance(known, dict) else []
    if not names:
        raise ModelError(f"{reader.where}#configurations: nothing was found, an object is needed.")
    first = min(names, key=lambda name: PREFERRED.index(name) if name in PREFERRED else len(PREFERRED))
    return Trained(trained.path, trained.trainer, trained.plans, first, trained.checkpoints)


def _remarks(chosen: Trained, others: list[Trained]) -> list[str]:
    """What was decided in the user's place; noted when the model runs."""
    remarks = []
    if others:
        names = ", ".join(sorted(other.path.name for other in others))
        remarks.append(f"took {chosen.path.name}; the folder also has {names}: open one of these to run it instead")
    if CHECKPOINTS[1] in next(iter(chosen.checkpoints.values())):
        remarks.append("took checkpoint_best: there is no checkpoint_final")
    if chosen.trainer and not KNOWN_TRAINERS.fullmatch(chosen.trainer):
        remarks.append(f"the trainer {chosen.trainer!r} is not known here: its plans are taken at their word")
    return remarks


def _channel_names(dataset: dict[str, Any], where: str) -> tuple[str, ...]:
    names = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(names, dict) or not names or len(names) > 64:
        raise ModelError(f"{where}#channel_names: an object with the name of each channel is needed.")
    try:
        return tuple(one_line(names[key]) for key in sorted(names, key=int))
    except ValueError as error:
        raise ModelError(f"{where}#channel_names: its keys are the channels' numbers from 0.") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise ModelError(f"{path.name} of {path.parent.name!r} is larger than 64 MiB; that is no nnU-Net plan.")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path.name} of {path.parent.name!r} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} of {path.parent.name!r} is not JSON: {str(error)[:200]}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} of {path.parent.name!r} holds a {type(content).__name__}; an object is needed.")
    return content


def _relative(folder: Path, root: Path) -> str:
    """``"Trainer__Plans__3d_fullres/"`` below the package; empty for the package itself."""
    inside = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else f"../{folder.name}"
    return "" if inside == "." else f"{inside}/"
