"""Networks that were exported to one file: what the file does not say, and who says it instead.

An ONNX file, a TorchScript archive or a torch.export archive holds a network and nothing on what its axes are, how its
input is prepared or what its output means. That is asked once: in a ``medai-model.yaml`` beside it, or as answers to
``medai models add``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from napari_medai.core.errors import ModelError
from napari_medai.models.onnx_file import Port
from napari_medai.models.sizes import LARGEST
from napari_medai.models.spec import Accepts, Gives, Label, ModelSpec, Prepare, Tiling

STAGES = ("segment", "classify", "denoise")
ACTIVATIONS = ("none", "sigmoid", "softmax")
# What may be answered, and what for
ANSWERS: Mapping[str, str] = {
    "axes": "axes of the input out of b, c, z, y, x; of several inputs with commas between",
    "stage": "segment, classify or denoise",
    "labels": "names of labels or classes, with commas between; without the background",
    "kind": "labels or instances",
    "activation": "what the output still lacks: none, sigmoid or softmax",
    "output": "name of the output that counts",
    "output_axes": "axes of the output, where they are not the input's",
    "channels": "number of channels of the input, where the file does not say it",
    "modality": "CT, MR, fluorescence …",
    "normalise": "none, zscore, percentile, range or minmax",
    "low": "percentile, or value for range, that becomes 0",
    "high": "percentile, or value for range, that becomes 1",
    "clip": "true to clip to 0..1",
    "spacing": "spacing in mm along z, y, x to resample to",
    "size": "the one size that the network takes along its axes of space, where the file does not say it",
    "multiple": "of which sizes have to be multiples",
    "tile": "edges of a tile along the axes of space",
    "halo": "reach of the network in voxels",
    "threshold": "probability at which a voxel counts",
    "title": "what it is called",
    "summary": "what it is for",
    "licence": "SPDX id",
    "citation": "how to cite",
}
_AXES = re.compile(r"(?=[^,]*y)(?=[^,]*x)[bczyx]+")
_OUTPUT_AXES = re.compile(r"[bczyx]+")


def exported_spec(
    file: Path, runner: str, answers: Mapping[str, Any], inputs: Sequence[Port] = (), outputs: Sequence[Port] = ()
) -> ModelSpec:
    """The description of an exported network out of what a person answered.

    Parameters
    ----------
    file : Path
        The network.
    runner : str
        Of `napari_medai.engine.RUNNERS`.
    answers : mapping
        Out of `ANSWERS`; numbers may be text.
    inputs, outputs : sequence of Port, optional
        What the file says of them.

    Raises
    ------
    ModelError
        An answer is not known, missing, or does not fit the file; the message says what to pass.
    """
    unknown = sorted(set(answers) - set(ANSWERS))
    if unknown:
        raise ModelError(f"Nothing is asked by the name {', '.join(unknown)}; there are: {', '.join(ANSWERS)}.")
    axes = _text(answers, "axes")
    if not axes:
        raise ModelError(f"The axes of {file.name} are not known; {advice(file, inputs, outputs)}")
    stage = _text(answers, "stage") or "segment"
    options: dict[str, Any] = {"axes": axes}
    for name in ("output", "output_axes", "activation", "size"):
        if _text(answers, name):
            options[name] = _text(answers, name)
    if "threshold" in answers:
        options["threshold"] = _number(answers, "threshold", 0.5)
    names = answers.get("labels") or ()
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else [str(name) for name in names]
    kind = {"classify": "classes", "denoise": "image"}.get(stage) or _text(answers, "kind") or "labels"
    first = 0 if stage == "classify" else 1
    channels = _channels(axes, answers, inputs)
    normalise = _text(answers, "normalise") or "none"
    try:
        spec = ModelSpec(
            id=re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._")[:64] or "model",
            title=_text(answers, "title") or file.stem,
            summary=_text(answers, "summary") or f"An exported network, {file.name}.",
            stage=stage,
            accepts=Accepts(
                ndim=(3,) if "z" in axes else (2,),
                modality=tuple(m for m in re.split(r"[\s,]+", _text(answers, "modality")) if m),
                rgb=channels == 3 and "," not in axes,
                min_size=1,
                channels=channels,
            ),
            prepare=Prepare(
                normalise=normalise,  # type: ignore[arg-type]
                low=_number(answers, "low", 1.0 if normalise == "percentile" else 0.0),
                high=_number(answers, "high", 99.8 if normalise == "percentile" else 1.0),
                clip=_text(answers, "clip").lower() in ("true", "yes", "1"),
                spacing_mm=_numbers(answers, "spacing") or None,  # type: ignore[arg-type]
            ),
            gives=Gives(
                kind=kind,  # type: ignore[arg-type]
                labels=tuple(Label(value=first + n, name=name) for n, name in enumerate(names) if name),
            ),
            tiling=Tiling(
                size=tuple(int(n) for n in _numbers(answers, "tile")),
                multiple=int(_number(answers, "multiple", 16)),
                halo=int(_number(answers, "halo", 0)),
            ),
            runner=runner,
            weights=file.name,
            licence=_text(answers, "licence") or "not given",
            citation=_text(answers, "citation"),
            options=options,
        )
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ModelError(f"The answers for {file.name} do not make a description: {wrong}.") from error
    check_options(spec, file, inputs, outputs)
    return spec


def check_options(spec: ModelSpec, file: Path, inputs: Sequence[Port] = (), outputs: Sequence[Port] = ()) -> None:
    """Whether what a description says of an exported network's tensors fits the file.

    Raises
    ------
    ModelError
        It does not; the message says what to change.
    """
    options = spec.options
    axes = str(options.get("axes", "")).split(",")
    if spec.stage not in STAGES:
        raise ModelError(f"The stage {spec.stage!r} does not run exported networks; choose {', '.join(STAGES)}.")
    if any(not _AXES.fullmatch(letters) or len(set(letters)) < len(letters) for letters in axes):
        raise ModelError(
            f"The axes {','.join(axes)!r} of {file.name} are none: each input has y and x, and at most one each of "
            f"b, c, z; {advice(file, inputs, outputs)}"
        )
    if len({"z" in letters for letters in axes}) > 1:
        raise ModelError(f"The axes {','.join(axes)!r} of {file.name}: every input or none has z.")
    if inputs and len(inputs) != len(axes):
        there = "; ".join(map(str, inputs))
        raise ModelError(f"{file.name} has {len(inputs)} inputs ({there}); axes were given for {len(axes)}.")
    for port, letters in zip(inputs, axes, strict=False):
        if len(port.shape) != len(letters):
            raise ModelError(
                f"The input {port} of {file.name} has {len(port.shape)} axes; {letters!r} has {len(letters)}."
            )
        sizes = dict(zip(letters, port.shape, strict=True))
        if sizes.get("b", 0) > 1:
            raise ModelError(f"The input {port} of {file.name} takes {sizes['b']} images at once; export it for 1.")
    after = str(options.get("output_axes", ""))
    if after and (not _OUTPUT_AXES.fullmatch(after) or len(set(after)) < len(after)):
        raise ModelError(f"The output_axes {after!r} of {file.name} are none: at most one each of b, c, z, y, x.")
    if str(options.get("activation", "none")) not in ACTIVATIONS:
        raise ModelError(f"The activation {options['activation']!r} is none of {', '.join(ACTIVATIONS)}.")
    chosen = str(options.get("output", ""))
    if chosen and outputs and chosen not in {port.name for port in outputs}:
        raise ModelError(f"{file.name} has no output {chosen!r}; there are: {'; '.join(map(str, outputs))}.")
    sizes_given = str(options.get("size", ""))
    if sizes_given:
        numbers = sizes_given.replace("x", ",").split(",")
        spatial = 3 if "z" in axes[0] else 2
        if len(numbers) != spatial or not all(n.strip().isdigit() and 0 < int(n) <= LARGEST for n in numbers):
            raise ModelError(f"The size {sizes_given!r} of {file.name} is none: {spatial} numbers with commas between.")
    ndim = 3 if "z" in axes[0] else 2
    if spec.tiling.size and len(spec.tiling.size) != ndim:
        raise ModelError(f"The tile of {file.name} has {len(spec.tiling.size)} edges; its axes of space are {ndim}.")


def guess_axes(port: Port) -> str:
    """The axes that a tensor of such a size usually has; empty where none is usual."""
    shape = port.shape
    last = len(shape) > 3 and shape[-1] in (1, 2, 3, 4) and shape[1] not in (1, 2, 3, 4)
    return {2: "yx", 3: "cyx" if shape and shape[0] in (1, 2, 3, 4) else "zyx"}.get(len(shape), "") or (
        {4: "byxc" if last else "bcyx", 5: "bzyxc" if last else "bczyx"}.get(len(shape), "")
    )


def advice(file: Path, inputs: Sequence[Port] = (), outputs: Sequence[Port] = ()) -> str:
    """What to type for a file that does not say what its axes are."""
    seen = ""
    if inputs:
        seen = f"its inputs are: {'; '.join(map(str, inputs))}; its outputs: {'; '.join(map(str, outputs))}. "
    guess = ",".join(guess_axes(port) for port in inputs) if all(guess_axes(port) for port in inputs) else ""
    flat = bool(outputs) and 0 < len(outputs[0].shape) <= 2
    stage = "classify" if flat else "segment"
    how = "that is a guess by the sizes" if guess else "or whatever they are"
    command = f"medai models add {file.name} --axes {guess or 'bczyx'} --stage {stage} --labels NAMES"
    return f"{seen}{'Say' if seen else 'say'} it once: {command} ({how}), or put a medai-model.yaml beside it."


def _channels(axes: str, answers: Mapping[str, Any], inputs: Sequence[Port]) -> int:
    total = 0
    letters = axes.split(",")
    said = int(_number(answers, "channels", 0))
    for n, own in enumerate(letters):
        shape = inputs[n].shape if n < len(inputs) else ()
        fixed = shape[own.index("c")] if "c" in own and len(shape) == len(own) else 0
        total += (fixed or (said if len(letters) == 1 else 0) or 1) if "c" in own else 1
    return max(1, min(total, 4096))


def _text(answers: Mapping[str, Any], name: str) -> str:
    value = answers.get(name, "")
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return " ".join(str(value).split())


def _number(answers: Mapping[str, Any], name: str, default: float) -> float:
    text = _text(answers, name)
    try:
        value = float(text) if text else default
    except ValueError as error:
        raise ModelError(f"{name}={text!r} is no number.") from error
    if not -1e12 < value < 1e12:
        raise ModelError(f"{name}={text!r} is out of range.")
    return value


def _numbers(answers: Mapping[str, Any], name: str) -> tuple[float, ...]:
    text = _text(answers, name)
    try:
        return tuple(float(n) for n in re.split(r"[,x\s]+", text)) if text else ()
    except ValueError as error:
        raise ModelError(f"{name}={text!r} are no numbers with commas between.") from error
