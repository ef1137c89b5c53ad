"""A bundle's own words about itself, as a ModelSpec: ``metadata.json`` and what its transforms say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from napari_medai.models.inside import file_sha256
from napari_medai.models.monai import files
from napari_medai.models.monai.expressions import RefusedError
from napari_medai.models.monai.plan import Plan, TensorFunction
from napari_medai.models.monai.resolve import Resolver, resolve
from napari_medai.models.monai.tensors import choices_of
from napari_medai.models.spec import Accepts, Gives, Label, ModelSpec, Need, Prepare, Tiling

RUNNER = "monai"

_MODALITIES = {
    "ct": ("CT",),
    "mr": ("MR",),
    "mri": ("MR",),
    "mammogram": ("MG",),
    "pt": ("PT",),
    "pet": ("PT",),
    "us": ("US",),
    "ultrasound": ("US",),
    "xray": ("CR", "DX"),
    "x-ray": ("CR", "DX"),
}
_LICENCES = (
    ("Apache License", "Apache-2.0"),
    ("MIT License", "MIT"),
    ("BSD 3-Clause", "BSD-3-Clause"),
    ("Creative Commons Attribution-NonCommercial-ShareAlike 4.0", "CC-BY-NC-SA-4.0"),
    ("Creative Commons Attribution 4.0", "CC-BY-4.0"),
    ("NVIDIA", "LicenseRef-NVIDIA"),
)
_CLASSIFIERS = (
    "DenseNet",
    "Densenet",
    "densenet",
    "SEResN",
    "SENet",
    "EfficientNet",
    "resnet",
    "ResNet",
    "ViT",
    "Classifier",
)
_WEIGHTS = (".safetensors", ".pt", ".pth")
_LONGEST = 1000


def describe(folder: Path) -> ModelSpec:
    """The description of a bundle.

    Raises
    ------
    ModelError
        Its files are missing, not well formed, or out of all proportion; the message says which.
    """
    metadata = files.read_mapping(folder / "configs" / "metadata.json")
    plan, needs, resolver = resolve(folder)
    weights = _weights(folder, resolver)
    if not weights:
        needs = (
            *needs,
            Need(where=_published(folder), why="The weights are not in the bundle; fetch them and put them there."),
        )
    inputs, outputs = _formats(metadata, "inputs"), _formats(metadata, "outputs")
    needs = (*needs, *_unknown_results(outputs))
    image = inputs.get("image") or next(iter(inputs.values()), {})
    stage, gives = _gives(plan, outputs)
    return ModelSpec(
        id=folder.name,
        title=_text(metadata.get("name")) or folder.name,
        summary=_text(metadata.get("description")) or _text(metadata.get("task")) or "A MONAI bundle.",
        stage=stage,
        version=_text(metadata.get("version")) or "1",
        accepts=_accepts(plan, image),
        prepare=Prepare(spacing_mm=_spacing(plan), normalise="none"),
        gives=gives,
        tiling=_tiling(plan),
        runner=RUNNER,
        weights=weights,
        sha256=file_sha256(folder / weights) if weights else "",
        licence=_licence(folder, metadata),
        citation="; ".join(_text(item) for item in _list(metadata.get("references"))[:5]),
        intended_use=_text(metadata.get("intended_use")) or "Research only; not a medical device.",
        training_data=_text(metadata.get("data_source")),
        metrics=", ".join(f"{key} {value}" for key, value in _mapping(metadata.get("eval_metrics")).items())[:_LONGEST],
        details={"config": f"configs/{resolver.file.name}"},
        safety="code" if any(need.capability for need in needs) else "config",
        needs=needs,
    )


def _unknown_results(outputs: Mapping[str, Mapping[str, Any]]) -> Iterator[Need]:
    for name, output in outputs.items():
        if output.get("format") == "points":
            where = f"configs/metadata.json#network_data_format::outputs::{name}::format"
            yield Need(where=where, why="What it gives are points, for which there is no stage.")


def _accepts(plan: Plan | None, image: Mapping[str, Any]) -> Accepts:
    names = tuple(_text(name) for name in _mapping(image.get("channel_def")).values())
    channels = image.get("num_channels")
    if not (isinstance(channels, int) and 0 < channels < 64):
        channels = int(plan.network.arguments.get("in_channels", 1)) if plan else 1
    low, high = (
        (plan.arguments_of("ScaleIntensityRange").get(key) for key in ("a_min", "a_max")) if plan else (None, None)
    )
    modality = _MODALITIES.get(_text(image.get("modality")).lower(), ())
    axcodes = _text(plan.arguments_of("Orientation").get("axcodes")) if plan else ""
    whole = isinstance(low, int | float) and isinstance(high, int | float) and low < high
    return Accepts(
        ndim=_ndim(plan, image),
        modality=modality,
        rgb=channels == 3 and (image.get("format") == "RGB" or _ndim(plan, image) == (2,)),
        channels=channels,
        channel_names=names if len(names) == channels and channels > 1 else (),
        orientation=axcodes if re.fullmatch("[LRAPSI]{3}", axcodes) else "",
        intensity_units="HU" if modality == ("CT",) else "",
        intensity=(float(low or 0), float(high or 0)) if whole else None,
    )


def _ndim(plan: Plan | None, image: Mapping[str, Any]) -> tuple[Literal[2, 3], ...]:
    ndim = plan.network.arguments.get("spatial_dims") if plan else None
    shape = image.get("spatial_shape")
    if ndim not in (2, 3):
        ndim = len(shape) if isinstance(shape, list) and len(shape) in (2, 3) else 3
    if plan and plan.inferer.name == "SliceInferer":
        return (2, 3)
    return (2,) if ndim == 2 else (3,)


def _spacing(plan: Plan | None) -> tuple[float, float, float] | None:
    """(z, y, x) that Spacingd resamples to, if it names all three."""
    pixdim = plan.arguments_of("Spacing").get("pixdim") if plan else None
    if isinstance(pixdim, int | float):
        pixdim = [pixdim] * 3
    if (
        isinstance(pixdim, list | tuple)
        and len(pixdim) == 3
        and all(isinstance(p, int | float) and p > 0 for p in pixdim)
    ):
        return (float(pixdim[2]), float(pixdim[1]), float(pixdim[0]))
    return None


def _tiling(plan: Plan | None) -> Tiling:
    given = plan.inferer.arguments if plan else {}
    roi, overlap = given.get("roi_size"), given.get("overlap", 0.25)
    blend: Literal["gaussian", "constant"] = "gaussian" if given.get("mode") == "gaussian" else "constant"
    if isinstance(roi, list | tuple) and all(isinstance(n, int) and n > 0 for n in roi):
        share = overlap if isinstance(overlap, float) and 0 <= overlap < 1 else 0.25
        return Tiling(size=tuple(roi[::-1]), overlap=share, multiple=1, places="stepped", blend=blend)
    return Tiling(multiple=1, places="stepped", blend=blend)


def _gives(plan: Plan | None, outputs: Mapping[str, Mapping[str, Any]]) -> tuple[str, Gives]:
    pred = outputs.get("pred") or next(iter(outputs.values()), {})
    given = _mapping(pred.get("channel_def") or pred.get("label_def"))
    names = {int(key): _text(name) for key, name in given.items() if str(key).isdigit()}
    count = pred.get("num_channels")
    if not names and isinstance(count, int) and 1 < count < 1000:
        names = {n: f"class {n}" if n else "background" for n in range(count)}
    format, kind = _text(pred.get("format")), _text(pred.get("type"))
    network = plan.network.name if plan else ""
    written = written_keys(plan) if plan else ("pred",)
    if "detector" in (plan.inferer.arguments if plan else {}) or kind == "object":
        kinds = count if isinstance(count, int) and 0 < count < 1000 else 1
        made = [names.get(n, "object" if kinds == 1 else f"object {n + 1}") for n in range(kinds)]
        return "detect", Gives(kind="boxes", labels=tuple(Label(value=n, name=name) for n, name in enumerate(made)))
    shape = _list(pred.get("spatial_shape"))
    if network.startswith(_CLASSIFIERS) or (not plan and (format == "classes" or shape[:1] == [1])):
        return "classify", Gives(kind="classes", labels=tuple(Label(value=v, name=n) for v, n in sorted(names.items())))
    if "instance_map" in written:
        return "segment", Gives(kind="instances")
    if format in ("magnitude", "image") and kind == "image":
        return "denoise", Gives(kind="image")
    return "segment", Gives(kind="labels", labels=tuple(_labels(plan, names)))


def _labels(plan: Plan | None, names: Mapping[int, str]) -> Iterator[Label]:
    """Values of the label map with their names: channels from 1 on, or what a function of the bundle makes of them."""
    functions = [part.arguments.get("func") for part in plan.postprocessing] if plan else []
    for function in functions:
        choices = choices_of(function.source) if isinstance(function, TensorFunction) else []
        if choices:
            for value, channel in sorted(choices):
                yield Label(value=value, name=names.get(channel, f"channel {channel}"))
            return
    with_background = bool(names) and names[min(names)].lower() in ("background", "bg", "other")
    for channel, name in sorted(names.items()):
        value = channel if with_background or 0 not in names else channel + 1
        if value > 0:
            yield Label(value=value, name=name)


def written_keys(plan: Plan) -> tuple[str, ...]:
    """Keys of what the bundle would write to files, in their order; ``pred`` if it writes nothing."""
    from napari_medai.models.monai.reviewed import WRITERS

    keys: list[str] = []
    for part in plan.postprocessing:
        if part.name in WRITERS:
            given = part.arguments.get("keys", "pred")
            keys += [given] if isinstance(given, str) else [key for key in given if isinstance(key, str)]
    return tuple(dict.fromkeys(keys)) or ("pred",)


def _weights(folder: Path, resolver: Resolver) -> str:
    """The file of weights that the configuration names, else the only one in ``models``; empty if there is none."""
    for part in _loaders(resolver.config):
        path = part.get("load_path")
        found = _inside(folder, _path_of(path, resolver)) if isinstance(path, str) else ""
        if found:
            beside = Path(found).with_suffix(".safetensors")
            return beside.as_posix() if (folder / beside).is_file() else found
    for name in ("models/model.safetensors", "models/model.pt"):
        if _inside(folder, name):
            return name
    models = sorted(path for path in (folder / "models").glob("*") if path.suffix in _WEIGHTS and path.is_file())
    return _inside(folder, f"models/{models[0].name}") if len(models) == 1 else ""


def _path_of(text: str, resolver: Resolver) -> str:
    """A path of a configuration, relative to the bundle: its references are followed, nothing is opened."""
    resolver.config = {**resolver.config, "bundle_root": "."}
    try:
        value = resolver.text(text, "load_path")
    except RefusedError:
        return ""
    return value.removeprefix("./") if isinstance(value, str) else ""


def _loaders(config: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Every CheckpointLoader of a configuration. None is run: only the name of its file matters."""
    if isinstance(config, Mapping):
        if str(config.get("_target_", "")).endswith("CheckpointLoader"):
            yield config
        elif depth < 4:
            for value in config.values():
                yield from _loaders(value, depth + 1)
    elif isinstance(config, list) and depth < 4:
        for value in config:
            yield from _loaders(value, depth + 1)


def _inside(folder: Path, name: str) -> str:
    """A path of a file of weights relative to the bundle; empty if it is not there or lies elsewhere."""
    if not name or Path(name).suffix not in _WEIGHTS:
        return ""
    path = (folder / name).resolve()
    root = folder.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) and path.is_file() else ""


def _large_files(folder: Path) -> Iterator[Mapping[str, Any]]:
    """What the bundle says of files that are published elsewhere."""
    for name in ("large_files.yml", "large_files.yaml", "large_files.json"):
        if (folder / name).is_file():
            yield from map(_mapping, _list(files.read_mapping(folder / name).get("large_files")))


def _published(folder: Path) -> str:
    """Path of the weights in the bundle, as ``large_files`` says or as is usual."""
    paths = (_text(entry.get("path")) for entry in _large_files(folder))
    return next((path for path in paths if Path(path).suffix in _WEIGHTS), "models/model.pt")


def published_hash(folder: Path, weights: str) -> tuple[str, str]:
    """Kind and value of the hash that ``large_files`` gives for a file of weights; empty if it gives none.

    Raises
    ------
    ModelError
        ``large_files`` is not well formed.
    """
    for entry in _large_files(folder):
        if _text(entry.get("path")) == weights and _text(entry.get("hash_type")) in ("md5", "sha256"):
            return _text(entry["hash_type"]), _text(entry.get("hash_val")).lower()
    return "", ""


def _licence(folder: Path, metadata: Mapping[str, Any]) -> str:
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md", "license.txt", "docs/license.txt"):
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(2000).decode("utf-8", "replace")
            return next((licence for words, licence in _LICENCES if words in head), f"see {name}")
    return _text(metadata.get("license")) or "not given"


def _formats(metadata: Mapping[str, Any], which: str) -> dict[str, Mapping[str, Any]]:
    given = _mapping(_mapping(metadata.get("network_data_format")).get(which))
    return {str(key): value for key, value in given.items() if isinstance(value, Mapping)}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    """A value as one short line; empty if it is neither text nor number."""
    return " ".join(str(value).split())[:_LONGEST] if isinstance(value, str | int | float) else ""
