"""TorchScript and torch.export archives: networks that are programs. Known by their bytes; never opened here.

TorchScript can read and write files; opening an archive of torch.export falls back to pickle. Both run only if the
owner of the machine allows that very file, and then in a process of its own. What their axes are is asked once, as for
ONNX.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any, Literal

from napari_medai.core.errors import ModelError
from napari_medai.models.exported import advice, check_options, exported_spec
from napari_medai.models.inside import file_inside
from napari_medai.models.manifest import NAME, read_manifest
from napari_medai.models.onnx_file import Port
from napari_medai.models.spec import Accepts, Gives, ModelSpec, Need

RUNNER = "program"
Kind = Literal["torchscript", "pt2", "compiled", "pickle", ""]

# Names in an archive that are looked at, and bytes of its description that are read
MOST_NAMES = 100_000
MOST_JSON = 2**26
_DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    12: "bool",
}
_WHY = {
    "torchscript": "a TorchScript archive is a program; it can read and write files",
    "pt2": "an archive of torch.export is a program, and opening it may run pickled objects",
}


def kind_of(path: Path) -> Kind:
    """What a file of torch is, by its bytes: its name says nothing.

    Returns
    -------
    str
        ``"torchscript"``; ``"pt2"``; ``"compiled"``: machine code made by torch; ``"pickle"``: tensors saved by
        ``torch.save``; empty if it is none of these.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
        if head.startswith(b"\x80") and head[2:].startswith(b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."):
            return "pickle"  # torch.save before 1.6
        if not head.startswith(b"PK\x03\x04"):
            return ""
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()[:MOST_NAMES]
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        return ""
    inner = {name.partition("/")[2] for name in names}
    if any(name.startswith("data/aotinductor/") or name.endswith((".so", ".pyd", ".dll")) for name in inner):
        return "compiled"
    if "archive_format" in inner or "serialized_exported_program.json" in {*inner, *names}:
        return "pt2"
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "torchscript"
    return "pickle" if "data.pkl" in inner else ""


def recognise(path: Path) -> bool:
    """Whether it is such a file, or a folder with just one and nothing that describes it otherwise."""
    file = _file(path)
    return file is not None and kind_of(file) != ""


def probe(path: Path) -> ModelSpec:
    """What can be said of a program without running it, with what the ``medai-model.yaml`` beside it says.

    Raises
    ------
    ModelError
        It is no program but tensors without a network; or the description beside it does not fit it.
    """
    file = _required(path)
    beside = file.parent / NAME
    if beside.is_file():
        spec = read_manifest(beside)
        if spec.weights == file.name:
            return from_manifest(spec, file.parent)
    spec = ModelSpec(
        id=file.stem[:64],
        title=file.stem,
        summary=f"An exported network; {advice(file, _ports(file))}",
        stage="segment",
        accepts=Accepts(ndim=(2, 3), min_size=1),
        gives=Gives(kind="labels"),
        runner=RUNNER,
        weights=file.name,
        licence="not given",
    )
    return _with_file(spec, file)


def describe(path: Path, **answers: Any) -> ModelSpec:
    """A program with what a person answered; see `napari_medai.models.exported.ANSWERS`.

    Raises
    ------
    ModelError
        An answer is missing, not known, or does not fit; or it is no program.
    """
    file = _required(path)
    return _with_file(exported_spec(file, RUNNER, answers, _ports(file)), file)


def from_manifest(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The description of a ``medai-model.yaml`` whose runner is ``program``, with what its file is.

    Raises
    ------
    ModelError
        The file is not there or no program, or the description does not fit it.
    """
    file = _required(file_inside(folder, spec.weights))
    check_options(spec, file, _ports(file))
    return _with_file(spec, file).model_copy(update={"path": folder})


def _with_file(spec: ModelSpec, file: Path) -> ModelSpec:
    kind = kind_of(file)
    assert kind in ("torchscript", "pt2")
    why = _WHY[kind]
    if not spec.options.get("axes"):
        why += f"; and it does not say what its axes are: {advice(file, _ports(file)).rstrip('.')}"
    return spec.model_copy(
        update={
            "details": {"kind": kind, "shapes": [list(port.shape) for port in _ports(file)]},
            # hashed with the permission, over every byte
            "sha256": "",
            "needs": (Need(capability=kind, where=file.name, why=why),),
            "safety": "code",
            "source": "program",
            "path": file,
        }
    )


def _ports(file: Path) -> tuple[Port, ...]:
    """Inputs of an archive of torch.export, as its JSON says; nothing where that is not to be read."""
    try:
        with zipfile.ZipFile(file) as archive:
            name = next(n for n in archive.namelist()[:MOST_NAMES] if n.endswith("/models/model.json"))
            if archive.getinfo(name).file_size > MOST_JSON:
                return ()
            content = json.loads(archive.read(name))
        module = content["graph_module"]
        values = module["graph"]["tensor_values"]
        names = [item["user_input"]["arg"]["as_tensor"]["name"] for item in module["signature"]["input_specs"]
                 if "user_input" in item]  # fmt: skip
        return tuple(
            Port(
                str(name)[:80],
                tuple(int(size.get("as_int", 0)) for size in values[name]["sizes"]),
                ("",) * len(values[name]["sizes"]),
                _DTYPES.get(values[name]["dtype"], "other"),
            )
            for name in names
        )
    except (OSError, StopIteration, KeyError, TypeError, ValueError, AttributeError, RecursionError, RuntimeError,
            NotImplementedError, zipfile.BadZipFile):  # fmt: skip
        return ()


def _file(path: Path) -> Path | None:
    if path.is_file():
        return path
    found = [file for file in path.iterdir() if file.suffix in (".pt", ".pth", ".ts", ".pt2")] if path.is_dir() else []
    return found[0] if len(found) == 1 and found[0].is_file() else None


def _required(path: Path) -> Path:
    """The program.

    Raises
    ------
    ModelError
        There is none; the message says what there is and what to do.
    """
    file = _file(path)
    if file is None or file.is_symlink():
        raise ModelError(f"{path.name!r} is no file of a network and no folder with just one; links are not followed.")
    kind = kind_of(file)
    if kind in ("torchscript", "pt2"):
        return file
    if kind == "pickle":
        raise ModelError(
            f"{file.name} holds tensors saved by torch.save and no network to put them into. Save them by safetensors, "
            f"and put a {NAME} beside them that names the network; or export the network as ONNX."
        )
    if kind == "compiled":
        raise ModelError(f"{file.name} holds machine code that torch compiled; export the network as ONNX or .pt2.")
    raise ModelError(f"{file.name} is no TorchScript archive and none of torch.export.")
