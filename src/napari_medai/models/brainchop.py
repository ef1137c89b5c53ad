"""Brainchop's MeshNet models: a table of layers, weights (safetensors, whatever the suffix), names and colours.

Masoud, Hu, Plis: Brainchop: In-browser MRI volumetric segmentation and rendering, JOSS 8(83), 2023. A folder holds
``model.json`` (the layers), ``model.pth`` (safetensors bytes) and ``colormap.json``. None says how the image is
prepared; that is the web application's: a head conformed to 256 voxels of 1 mm, intensities between the darkest and
the 99.9th percentile of what is not empty, or between two percentiles for one of the models.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from napari_medai.core.errors import ModelError
from napari_medai.models.inside import file_sha256
from napari_medai.models.manifest import is_safetensors
from napari_medai.models.spec import Accepts, Gives, Label, ModelSpec, Prepare, Tiling

EDGE = 256
MOST_BYTES = 2**20
MOST_HEADER = 2**22
MOST_LAYERS = 64
# Voxels around the head that the network is shown, as the application does
MARGIN = 18
CITATION = (
    "Masoud M, Hu F, Plis S. Brainchop: In-browser MRI volumetric segmentation and rendering. Journal of Open Source "
    "Software 8(83), 5098, 2023."
)

CONFORMED = Prepare(
    conform=EDGE,
    spacing_mm=(1.0, 1.0, 1.0),
    normalise="percentile",
    low=0.0,
    high=99.9,
    nonzero=True,
    clip=True,
    back="labels",
)
QUANTILES = CONFORMED.model_copy(update={"low": 5.0, "high": 95.0, "nonzero": False, "clip": False})


@dataclass(frozen=True)
class Known:
    """What the files of a published model do not say."""

    id: str
    title: str
    summary: str
    prepare: Prepare = CONFORMED
    labels: tuple[Label, ...] = ()


# By the sha256 of the weights
KNOWN = {
    "8b83b35b971305b9baeef9f927a5f0d4432c7beea60743f54e8d960031298ba3": Known(
        "brainchop-gwm",
        "Grey and white matter (brainchop, light)",
        "Grey and white matter in a T1-weighted MR image of an adult head, by 5 features a layer.",
        labels=(
            Label(value=1, name="White Matter", color=(1.0, 1.0, 1.0)),
            Label(value=2, name="Grey Matter", color=(205 / 255, 62 / 255, 78 / 255)),
        ),
    ),
    "0798b61d58626010708284cab719f2674c817c789acb84e8eec5265a46e8fbbc": Known(
        "brainchop-18",
        "Subcortical structures, grey and white matter (brainchop)",
        "17 structures in a T1-weighted MR image of an adult head.",
    ),
    "aa5235ab3a034135277c47f8e7c32849895c6e31ee6c4e942d63a6aec5ff4ee4": Known(
        "brainchop-18-wide",
        "Subcortical structures, grey and white matter (brainchop, 30 features)",
        "17 structures in a T1-weighted MR image of an adult head.",
    ),
    "4e411f33ad72148bda65e75ba5780bf95039dd29a8227165078e8f84fc407085": Known(
        "brainchop-50",
        "Cortical and subcortical regions, both sides together (brainchop)",
        "49 regions in a T1-weighted MR image of an adult head; left and right have one label.",
        prepare=QUANTILES,
    ),
    "09e80b88aac5069cf536114c9082a30e574c2ef12fbd396cd7c02e8ccb025622": Known(
        "brainchop-104",
        "Cortical and subcortical regions (brainchop)",
        "103 regions of aparc+aseg in a T1-weighted MR image of an adult head.",
    ),
}


def recognise(path: Path) -> bool:
    """Whether it is a MeshNet's folder, its ``model.json``, or a folder of such folders."""
    folder = path.parent if path.name == "model.json" else path
    return _is_model(folder) or bool(_models_in(folder))


def probe(path: Path) -> ModelSpec:
    """The description of a MeshNet: its layers by the table, their widths and normalisation by the weights.

    Raises
    ------
    ModelError
        There are several models, the weights are not safetensors, or the files do not fit each other.
    """
    folder = path.parent if path.name == "model.json" else path
    if not _is_model(folder):
        names = ", ".join(sorted(p.name for p in _models_in(folder)))
        raise ModelError(f"{folder.name!r} holds several models: {names}. Pass the folder of one.")
    table = _table(folder / "model.json")
    weights = _weights(folder)
    shapes = _shapes(weights)
    layers, tensors, normalise = _network(table, shapes)
    digest = file_sha256(weights)
    known = KNOWN.get(digest)
    classes = int(layers[-1]["out_channels"])
    reach = sum(int(layer["dilation"]) * (int(layer["kernel_size"]) - 1) // 2 for layer in layers)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-.") or "model"
    header = str(table.get("header", "")).strip()[:200]
    return ModelSpec(
        id=known.id if known else f"brainchop-{slug}"[:64],
        title=known.title if known else f"MeshNet {slug}",
        summary=known.summary if known else header or f"A MeshNet of {classes} classes for T1-weighted heads.",
        stage="segment",
        accepts=Accepts(
            ndim=(3,),
            modality=("MR",),
            min_size=32,
            orientation="LIA",
            spacing_mm=((0.4, 2.0), (0.4, 2.0), (0.4, 2.0)),
            body_part=("HEAD", "BRAIN"),
        ),
        prepare=known.prepare if known else CONFORMED,
        gives=Gives(kind="labels", labels=known.labels if known and known.labels else _labels(folder, classes)),
        tiling=Tiling(size=(EDGE,) * 3, overlap=0.0, multiple=1, halo=min(reach, 1024)),
        runner="network",
        network="meshnet",
        arguments={"layers": layers, "activation": _activation(table), "normalise": normalise},
        weights=weights.name,
        sha256=digest,
        licence="MIT" if known else "",
        citation=CITATION,
        intended_use="Research only; not a medical device. Adult heads, T1-weighted MR.",
        options={"crop": MARGIN, "largest": "foreground", **({"whole": True} if normalise == "instance" else {})},
        details={"tensors": tensors},
        training_data="T1-weighted heads labelled by FreeSurfer, as far as the authors say." if known else "",
        source="brainchop",
        path=folder,
    )


def _is_model(folder: Path) -> bool:
    file = folder / "model.json"
    try:
        if not file.is_file() or file.stat().st_size > MOST_BYTES:
            return False
        table = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    layers = table.get("layers") if isinstance(table, dict) else None
    return isinstance(layers, list) and bool(layers) and all(isinstance(x, dict) and "dilation" in x for x in layers)


def _models_in(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.is_dir() and _is_model(p)] if folder.is_dir() else []


def _table(file: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(file.read_bytes())
    layers = table["layers"]
    if not 2 <= len(layers) <= MOST_LAYERS:
        raise ModelError(f"model.json has {len(layers)} layers; 2 to {MOST_LAYERS} are read.")
    for number, layer in enumerate(layers):
        for field in ("kernel_size", "dilation"):
            value = layer.get(field)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 256:
                raise ModelError(
                    f"model.json#layers::{number}::{field} is {value!r}; a whole number up to 256 is needed."
                )
    return table


def _weights(folder: Path) -> Path:
    """The one file beside ``model.json`` whose bytes are safetensors."""
    files = [p for p in sorted(folder.iterdir()) if p.suffix != ".json" and p.is_file() and is_safetensors(p)]
    named = [p for p in files if p.stem == "model"]
    found = named or files
    if len(found) != 1 or not found[0].resolve().is_relative_to(folder.resolve()):
        there = ", ".join(p.name for p in sorted(folder.iterdir()) if p.is_file())
        raise ModelError(
            f"{folder.name!r} has {len(found)} files of safetensors, one is needed; there are: {there}. Weights for "
            "tensorflow.js (.bin) and pickles of torch are not read."
        )
    return found[0]


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor, out of the file's header."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > MOST_HEADER:
            raise ModelError(f"The header of {file.name} has {length} bytes; a MeshNet's has a few thousand.")
        try:
            header = json.loads(opened.read(length))
            return {
                name: tuple(int(n) for n in entry["shape"]) for name, entry in header.items() if name != "__metadata__"
            }
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ModelError(f"The header of {file.name} is not that of safetensors.") from error


def _network(
    table: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> tuple[list[dict[str, Any]], dict[str, str], str]:
    """Layers with their widths, what each tensor is called in our network, and the kind of normalisation."""
    groups: dict[tuple[int, ...], dict[str, str]] = {}
    for name in shapes:
        prefix, _, kind = name.rpartition(".")
        groups.setdefault(tuple(int(n) for n in re.findall(r"\d+", prefix)), {})[kind] = name
    ordered = [groups[key] for key in sorted(groups)]
    convolutions = [g for g in ordered if "weight" in g and len(shapes[g["weight"]]) == 5]
    norms = [g for g in ordered if "running_mean" in g]
    others = len(ordered) - len(convolutions) - len(norms)
    if len(convolutions) != len(table["layers"]) or others or (norms and len(norms) != len(convolutions) - 1):
        raise ModelError(
            f"model.json tells {len(table['layers'])} layers; the weights hold {len(convolutions)} convolutions, "
            f"{len(norms)} normalisations and {others} other things."
        )
    layers, tensors = [], {}
    for number, (layer, group) in enumerate(zip(table["layers"], convolutions, strict=True)):
        out_channels, in_channels, *kernel = shapes[group["weight"]]
        if set(kernel) != {layer["kernel_size"]}:
            raise ModelError(f"model.json#layers::{number}::kernel_size does not fit the weights, {kernel}.")
        layers.append(
            {
                "in_channels": in_channels,
                "out_channels": out_channels,
                "kernel_size": layer["kernel_size"],
                "dilation": layer["dilation"],
                "bias": "bias" in group,
            }
        )
        tensors.update({name: f"convolutions.{number}.{kind}" for kind, name in group.items()})
    if any(a["out_channels"] != b["in_channels"] for a, b in pairwise(layers)):
        raise ModelError("The weights are no chain of convolutions: a layer does not take what the one before gives.")
    for number, group in enumerate(norms):
        tensors.update({name: f"norms.{number}.{kind}" for kind, name in group.items()})
    return layers, tensors, "batch" if norms else "instance" if table.get("bnorm") is True else ""


def _activation(table: dict[str, Any]) -> str:
    return "elu" if table.get("elu") is True else "gelu" if table.get("gelu") is True else "relu"


def _labels(folder: Path, classes: int) -> tuple[Label, ...]:
    """Names and colours of the classes but the background, by ``colormap.json`` where it has so many."""
    for name in (f"colormap{classes}.json", "colormap.json"):
        file = folder / name
        if not file.is_file() or file.stat().st_size > MOST_BYTES:
            continue
        try:
            table = json.loads(file.read_bytes())
            names = [str(text).strip().rstrip("*")[:64] for text in table["labels"]]
            colors = [tuple(min(255, max(0, int(table[c][n]))) / 255 for c in "RGB") for n in range(len(names))]
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            raise ModelError(f"{name} is no table of colours: R, G, B and labels, as many of each.") from error
        if len(names) == classes:
            return tuple(
                Label(value=n, name=names[n], color=(colors[n][0], colors[n][1], colors[n][2]))
                for n in range(1, classes)
            )
    return tuple(Label(value=n, name=f"class {n}") for n in range(1, classes))
