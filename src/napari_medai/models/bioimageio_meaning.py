"""What a bioimage.io package is for: stage, modality, and how its outputs become labels, instances, an image or scores.

The format describes tensors, not tasks. What it does not say is concluded from tags, names of channels and operators.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from napari_medai.models.bioimageio_tensors import Tensor
from napari_medai.models.spec import Gives, Label

_RESTORES = ("denois", "restoration", "deconvolution", "super-resolution", "super resolution", "superresolution")
_TRANSLATES = ("in-silico", "in silico", "virtual-staining", "image-to-image", "image translation", "label-free")
_BORDER = re.compile(r"\b(boundar(y|ies)|borders?|contours?|outlines?|edges?)\b")
_OBJECT = re.compile(
    r"\b(foreground|fg|interior|inside|object|mask|nucle(us|i)|cells?|cytoplasm|body|bodies|segmentation|prob(ability)?)\b"
)
_GROUND = re.compile(r"\b(background|bg|outside)\b")
_DEPTH = re.compile(r"\b(distances?|dist|distance transform|edt)\b")
_AFFINITY = re.compile(r"\b(affinit(y|ies)|flows?|embeddings?|offsets?|radial|rays?|dist 0)\b")
_NAMELESS = re.compile(r"(prob(ability|abilities)?|output|out|prediction|pred|mask|segmentation|channel|class)[ 0-9]*")
_INSTANCES = re.compile(r"\b(instances?|objects?|label image|labels)\b")

# Tag -> modality. A package of several modalities, or of none that is known, is for any.
_MODALITIES = {
    "fluorescence": "fluorescence",
    "brightfield": "brightfield",
    "bright-field": "brightfield",
    "histology": "brightfield",
    "histopathology": "brightfield",
    "h&e": "brightfield",
    "mri": "MR",
    "ct": "CT",
    "xray": "CR",
}
_OTHERS = ("electron", "phase", "dic", "qpi", "x-ray", "em", "cryo")


@dataclass(frozen=True)
class Meaning:
    """What the outputs are.

    Attributes
    ----------
    stage : str
        ``"segment"``, ``"denoise"`` or ``"classify"``.
    gives : Gives
        What comes out.
    decode : dict
        How: ``kind`` (``"threshold"``, ``"boundary"``, ``"depth"``, ``"argmax"``, ``"labels"``, ``"instances"``,
        ``"image"``, ``"scores"``) and the numbers of the channels that count, over all outputs that are on the grid.
    outputs : tuple of str
        Outputs whose channels count, in their order.
    refused : str
        Why the outputs cannot be made use of; empty if they can.
    """

    stage: str
    gives: Gives
    decode: dict[str, Any]
    outputs: tuple[str, ...]
    refused: str = ""


def modality(tags: Sequence[str]) -> tuple[str, ...]:
    """The one modality that the tags name; nothing if they name several or none that images here have."""
    words = [tag.lower() for tag in tags]
    found = {known for word in words for key, known in _MODALITIES.items() if _tagged(word, key)}
    other = any(_tagged(word, key) for word in words for key in _OTHERS)
    return tuple(found) if len(found) == 1 and not other else ()


def meaning(tags: Sequence[str], outputs: Sequence[Tensor]) -> Meaning:
    """Conclude from tags and outputs what a package gives."""
    words = " ".join(tags).lower()
    flat = [tensor for tensor in outputs if not tensor.spatial]
    maps = [tensor for tensor in outputs if tensor.spatial]
    if not maps:
        first = flat[0]
        names = first.values or first.channel_names
        return Meaning("classify", Gives(kind="classes", labels=_labels(names, 0)), {"kind": "scores"}, (first.id,))
    operations = {operation for tensor in maps for operation in tensor.operations}
    if operations & {"stardist_postprocessing", "cellpose_flow_dynamics"}:
        return Meaning("segment", Gives(kind="instances"), {"kind": "instances"}, (maps[0].id,))
    if "stardist" in words or "cellpose" in words:
        why = "the rays of StarDist and the flows of Cellpose become objects only by an operator that the package names"
        return Meaning("segment", Gives(kind="instances"), {}, tuple(tensor.id for tensor in maps), why)
    if any(word in words for word in (*_RESTORES, *_TRANSLATES)) and "segmentation" not in words:
        return Meaning("denoise", Gives(kind="image"), {"kind": "image", "channel": 0}, (maps[0].id,))
    whole = next((tensor for tensor in maps if _is_labels(tensor)), None)
    if whole is not None:
        instances = bool(_INSTANCES.search(_plain(f"{whole.id} {words}"))) and not whole.values
        named = [Label(value=n, name=value) for n, value in enumerate(whole.values) if n]
        gives = Gives(kind="instances" if instances else "labels", labels=tuple(named))
        return Meaning("segment", gives, {"kind": "instances" if instances else "labels"}, (whole.id,))
    return _segments(maps)


def _segments(maps: Sequence[Tensor]) -> Meaning:
    """Probability maps: one, foreground with boundary or distance, or classes."""
    names: list[str] = [name for tensor in maps for name in tensor.channel_names]
    ids = tuple(tensor.id for tensor in maps)
    plain = [_plain(name) for name in names]
    border = next((n for n, name in enumerate(plain) if _BORDER.search(name)), None)
    depth = next((n for n, name in enumerate(plain) if _DEPTH.search(name)), None)
    ground = next((n for n, name in enumerate(plain) if _GROUND.search(name)), None)
    rest = [n for n in range(len(names)) if n not in (border, depth, ground)]
    if any(_AFFINITY.search(name) for name in plain) and len(names) > 1:
        none = Gives(kind="instances")
        return Meaning("segment", none, {}, ids, "affinities, flows and embeddings are not turned into objects here")
    objects = [n for n in rest if _OBJECT.search(plain[n])] or rest
    if border is not None and len(objects) == 1 and len(names) <= 3:
        decode = {"kind": "boundary", "foreground": objects[0], "boundary": border}
        return Meaning("segment", Gives(kind="instances"), decode, ids)
    if depth is not None and len(objects) == 1 and len(names) <= 3:
        return Meaning(
            "segment", Gives(kind="instances"), {"kind": "depth", "foreground": objects[0], "depth": depth}, ids
        )
    # Outputs that are no classes of one another are separate answers: the first one counts
    if len(maps) > 1:
        names, ids = list(maps[0].channel_names), ids[:1]
        ground = next((n for n, name in enumerate(names) if _GROUND.search(_plain(name))), None)
    if len(names) == 1:
        decode = {"kind": "threshold", "channel": 0, "scale": _scale(maps[0])}
        names = ["foreground" if _NAMELESS.fullmatch(_plain(names[0]).strip()) else names[0]]
        return Meaning("segment", Gives(kind="labels", labels=_labels(names, 1)), decode, ids)
    exclusive = "softmax" in maps[0].operations
    decode = {"kind": "argmax", "background": ground, "exclusive": exclusive, "scale": _scale(maps[0])}
    if ground is None and (exclusive or _scale(maps[0]) != "probability"):
        # of classes that exclude each other without a word on it the first one is, by custom, the background
        decode["background"] = ground = 0
        decode["assumed"] = True
    classes = [name for n, name in enumerate(names) if n != ground]
    return Meaning("segment", Gives(kind="labels", labels=_labels(classes, 1)), decode, ids)


def _is_labels(tensor: Tensor) -> bool:
    """Whether the values are labels, not probabilities."""
    whole = tensor.dtype.startswith(("int", "uint"))
    scaled = bool({"sigmoid", "softmax"} & set(tensor.operations))
    return tensor.channels == 1 and not scaled and (bool(tensor.values) or whole)


def _scale(tensor: Tensor) -> str:
    """Whether values are probabilities, or logits, or whether that shows only when they are there."""
    if {"sigmoid", "softmax", "binarize"} & set(tensor.operations) or (tensor.low == 0 and tensor.high == 1):
        return "probability"
    return "unknown"


def _labels(names: Sequence[str], first: int) -> tuple[Label, ...]:
    return tuple(Label(value=first + n, name=name) for n, name in enumerate(names))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", name.lower())


def _tagged(tag: str, key: str) -> bool:
    return re.search(rf"(?<![a-z]){re.escape(key)}(?![a-z])", tag) is not None
