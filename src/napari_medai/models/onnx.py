"""ONNX files: a network as data. Its axes come from a ``medai-model.yaml`` beside it, or are asked once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari_medai.core.errors import ModelError
from napari_medai.models.exported import advice, check_options, exported_spec, guess_axes
from napari_medai.models.inside import file_inside
from napari_medai.models.manifest import NAME, read_manifest
from napari_medai.models.onnx_file import OnnxFile, Port, is_onnx, read_onnx
from napari_medai.models.spec import Accepts, Gives, ModelSpec, Need

RUNNER = "onnx"


def recognise(path: Path) -> bool:
    """Whether it is an ONNX file, by its bytes, or a folder with just one and no other description."""
    file = _file(path)
    return file is not None and is_onnx(file)


def probe(path: Path) -> ModelSpec:
    """What an ONNX file says, with what the ``medai-model.yaml`` beside it says.

    Without that its axes are not known: the description has a need that names its inputs and outputs, a guess, and
    what to type.

    Raises
    ------
    ModelError
        It is no ONNX file, or the description beside it does not fit it.
    DependencyError
        The package onnx is not installed.
    """
    file = _required(path)
    beside = file.parent / NAME
    if beside.is_file():
        spec = read_manifest(beside)
        if spec.weights == file.name:
            return from_manifest(spec, file.parent)
    found = read_onnx(file)
    spec = ModelSpec(
        id=file.stem[:64],
        title=file.stem,
        summary=f"An ONNX network; inputs: {_list(found.inputs)}; outputs: {_list(found.outputs)}.",
        stage="segment",
        accepts=Accepts(ndim=(3,) if "z" in _guess(found) else (2,), min_size=1),
        gives=Gives(kind="labels"),
        runner=RUNNER,
        weights=file.name,
        licence="not given",
    )
    unasked = Need(
        where=f"{file.name}#axes", why=f"what its axes are is not known; {advice(file, found.inputs, found.outputs)}"
    )
    return _with_file(spec, file, found, (unasked,))


def describe(path: Path, **answers: Any) -> ModelSpec:
    """An ONNX file with what a person answered; see `napari_medai.models.exported.ANSWERS`.

    Raises
    ------
    ModelError
        An answer is missing, not known, or does not fit the file.
    """
    file = _required(path)
    found = read_onnx(file)
    return _with_file(exported_spec(file, RUNNER, answers, found.inputs, found.outputs), file, found)


def from_manifest(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The description of a ``medai-model.yaml`` whose runner is ``onnx``, with what its file says.

    Raises
    ------
    ModelError
        The file is not there, is not the one that is meant, or the description does not fit it.
    """
    file = file_inside(folder, spec.weights)
    found = read_onnx(file)
    if spec.sha256 and spec.sha256 != found.sha256:
        raise ModelError(
            f"{file.name} has the sha256 {found.sha256[:16]}…; {NAME} says {spec.sha256[:16]}…. The file is damaged or "
            "of another version."
        )
    check_options(spec, file, found.inputs, found.outputs)
    return _with_file(spec, file, found).model_copy(update={"path": folder})


def _with_file(spec: ModelSpec, file: Path, found: OnnxFile, needs: tuple[Need, ...] = ()) -> ModelSpec:
    refused = tuple(Need(where=f"{file.name}#{where}", why=why) for where, why in found.refused)
    details = {
        "inputs": [_as_dict(port) for port in found.inputs],
        "outputs": [_as_dict(port) for port in found.outputs],
        "opset": found.opset,
        "external": found.external,
    }
    return spec.model_copy(
        update={
            "details": details,
            "sha256": found.sha256,
            "needs": (*refused, *needs),
            "safety": "data",
            "source": "onnx",
            # files of weights beside it belong to it
            "path": file.parent if found.external else file,
        }
    )


def _as_dict(port: Port) -> dict[str, Any]:
    return {"name": port.name, "shape": list(port.shape), "names": list(port.names), "dtype": port.dtype}


def _guess(found: OnnxFile) -> str:
    return ",".join(guess_axes(port) for port in found.inputs)


def _list(ports: tuple[Port, ...]) -> str:
    return "; ".join(map(str, ports)) or "none"


def _file(path: Path) -> Path | None:
    """The file itself, or the only one in a folder that is called an ONNX file."""
    if path.is_file():
        return path
    found = [file for file in path.glob("*.onnx") if file.is_file()] if path.is_dir() else []
    return found[0] if len(found) == 1 else None


def _required(path: Path) -> Path:
    file = _file(path)
    if file is None or file.is_symlink():
        raise ModelError(f"{path.name!r} is no ONNX file and no folder with just one; links are not followed.")
    return file
