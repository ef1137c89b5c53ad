"""ONNX files: data that lies elsewhere, operators of others, sizes that lie, graphs within graphs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from tests.attacks.corpus import attack, table

SPEC: dict[str, Any] = {
    "id": "lab-onnx", "title": "A model", "summary": "For tests.", "stage": "segment",
    "accepts": {"ndim": [2]}, "gives": {"kind": "labels", "labels": [{"value": 1, "name": "liver"}]},
    "runner": "onnx", "weights": "model.onnx",
    "options": {"axes": "bcyx", "output_axes": "bcyx"},
}  # fmt: skip


def _tensor(**external: str) -> onnx.TensorProto:
    weight = numpy_helper.from_array(np.zeros((2, 1, 1, 1), np.float32), "w")
    if external:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in external.items():
            weight.external_data.add(key=key, value=value)
    return weight


def model(nodes: Any = None, initial: Any = None, shape: Any = (1, 1, "h", "w"), **more: Any) -> onnx.ModelProto:
    nodes = nodes or [helper.make_node("Conv", ["x", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, "h", "w"])],
        [_tensor()] if initial is None else initial,
    )
    return helper.make_model(graph, **({"opset_imports": [helper.make_opsetid("", 17)], "ir_version": 9} | more))


def package(place: Path, content: onnx.ModelProto | bytes) -> Path:
    """The file, with its axes beside it."""
    folder = place / "package"
    folder.mkdir()
    file = folder / "model.onnx"
    file.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "medai-model.yaml").write_text(yaml.safe_dump(SPEC | {"sha256": sha256}))
    return folder


@attack("onnx/control", control=True)
def control(place: Path, marker: Path) -> Path:
    return package(place, model())


def secret(place: Path) -> Path:
    path = place / "secret.bin"
    path.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (place.parent / "secret.bin").write_bytes(path.read_bytes())
    return path


def elsewhere(place: Path, marker: Path, location: str) -> Path:
    path = secret(place)
    return package(place, model(initial=[_tensor(location=location.replace("SECRET", str(path)))]))


table(
    "onnx/external data",
    elsewhere,
    {
        "CVE-2022-25882 CVE-2024-27318 above": "../secret.bin",
        "far above": "../../secret.bin",
        "down and up": "sub/../../secret.bin",
        "absolute": "SECRET",
        "address": "file://SECRET",
        "backslashes": "..\\secret.bin",
        "a device": "/dev/zero",
        "of this process": "/proc/self/environ",
        "a folder": ".",
        "nothing": "",
        "NUL": "weights.bin\0../../secret.bin",
        "missing": "weights.bin",
    },
    refused=True,
)


# what lies in the package may be read, whatever nonsense it makes
table("onnx/external data", elsewhere, {"itself": "model.onnx", "the description": "medai-model.yaml"})


@attack("onnx/external data/control", control=True)
def data_inside(place: Path, marker: Path) -> Path:
    folder = package(place, model(initial=[_tensor(location="weights.bin", length="8")]))
    (folder / "weights.bin").write_bytes(bytes(8))
    return folder


@attack("onnx/external data/CVE-2026-27489 link", refused=True)
def link(place: Path, marker: Path) -> Path:
    folder = package(place, model(initial=[_tensor(location="weights.bin")]))
    (folder / "weights.bin").symlink_to(secret(place))
    return folder


@attack("onnx/external data/CVE-2026-34446 hard link", refused=True)
def hard_link(place: Path, marker: Path) -> Path:
    folder = package(place, model(initial=[_tensor(location="weights.bin")]))
    os.link(secret(place), folder / "weights.bin")
    return folder


@attack("onnx/external data/linked folder", refused=True)
def linked_folder(place: Path, marker: Path) -> Path:
    folder = package(place, model(initial=[_tensor(location="sub/secret.bin")]))
    secret(place)
    (folder / "sub").symlink_to(place)
    return folder


@attack("onnx/external data/pipe", refused=True)
def pipe(place: Path, marker: Path) -> Path:
    folder = package(place, model(initial=[_tensor(location="weights.bin")]))
    os.mkfifo(folder / "weights.bin")
    return folder


def keyed(place: Path, marker: Path, keys: dict[str, str]) -> Path:
    folder = package(place, model(initial=[_tensor(**keys)]))
    (folder / "weights.bin").write_bytes(bytes(8))
    return folder


table(
    "onnx/external data/CVE-2026-34445 key",
    keyed,
    {
        "dunder": {"location": "weights.bin", "__class__": "x"},
        "another base": {"location": "secret.bin", "basepath": ".."},
        "length of a giant": {"location": "weights.bin", "length": str(2**50)},
        "negative offset": {"location": "weights.bin", "offset": "-8", "length": "8"},
        "offset outside": {"location": "weights.bin", "offset": "4096", "length": "8"},
        "no number": {"location": "weights.bin", "length": "os.system"},
        "checksum": {"location": "weights.bin", "length": "8", "checksum": "../../x"},
    },
)


@attack("onnx/external data/location twice", refused=True)
def twice(place: Path, marker: Path) -> Path:
    weight = _tensor(location="weights.bin", length="8")
    weight.external_data.add(key="location", value="../secret.bin")
    secret(place)
    folder = package(place, model(initial=[weight]))
    (folder / "weights.bin").write_bytes(bytes(8))
    return folder


def _branch(inner: list[Any], initial: Any = ()) -> onnx.GraphProto:
    return helper.make_graph(
        inner, "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, "h", "w"])], list(initial)
    )


def _if(graph: onnx.GraphProto) -> list[Any]:
    condition = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
    return [condition, helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)]


@attack("onnx/subgraph/external data", refused=True)
def in_branch(place: Path, marker: Path) -> Path:
    secret(place)
    inner = [helper.make_node("Conv", ["x", "w"], ["y"])]
    return package(place, model(_if(_branch(inner, [_tensor(location="../secret.bin")])), []))


@attack("onnx/subgraph/external data of a constant", refused=True)
def in_constant(place: Path, marker: Path) -> Path:
    secret(place)
    constant = helper.make_node("Constant", [], ["w"], value=_tensor(location="../secret.bin"))
    return package(place, model([constant, helper.make_node("Conv", ["x", "w"], ["y"])], []))


@attack("onnx/subgraph/operator of others", refused=True)
def operator_in_branch(place: Path, marker: Path) -> Path:
    inner = [helper.make_node("Evil", ["x"], ["y"], domain="evil.ops")]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("evil.ops", 1)]
    return package(place, model(_if(_branch(inner)), [], opset_imports=imports))


@attack("onnx/subgraph/in a function", refused=True)
def in_function(place: Path, marker: Path) -> Path:
    inner = [helper.make_node("Evil", ["a"], ["b"], domain="evil.ops")]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1), helper.make_opsetid("evil.ops", 1)]
    function = helper.make_function("mine", "F", ["a"], ["b"], inner, imports)
    node = helper.make_node("F", ["x"], ["y"], domain="mine")
    return package(place, model([node], [], opset_imports=imports, functions=[function]))


@attack("onnx/subgraph/function that calls itself", refused=True)
def recursive(place: Path, marker: Path) -> Path:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    inner = [helper.make_node("F", ["a"], ["b"], domain="mine")]
    function = helper.make_function("mine", "F", ["a"], ["b"], inner, imports)
    node = helper.make_node("F", ["x"], ["y"], domain="mine")
    return package(place, model([node], [], opset_imports=imports, functions=[function]))


def operator(place: Path, marker: Path, row: tuple[str, str, dict[str, Any]]) -> Path:
    domain, name, attributes = row
    node = helper.make_node(name, ["x"], ["y"], domain=domain, **attributes)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(domain or "ai.onnx.ml", 1)]
    return package(place, model([node], [], opset_imports=imports))


table(
    "onnx/operator",
    operator,
    {
        "of a library of its own": ("evil.ops", "Evil", {"library": "evil.so"}),
        "that calls Python": ("com.microsoft", "PythonOp", {"name": "os.system"}),
        "of onnxruntime-extensions": ("ai.onnx.contrib", "PyCustomOp", {"code": "import os"}),
        "tokenizer with a file": ("com.microsoft", "WordConvEmbedding", {"path": "../secret.bin"}),
        "of ATen": ("org.pytorch.aten", "ATen", {"operator": "save"}),
        "compiled context": ("com.microsoft", "EPContext", {"ep_cache_context": "../../evil.so", "embed_mode": 0}),
        "unknown standard one": ("", "Evil", {}),
    },
    refused=True,
)


def bytes_of(place: Path, marker: Path, content: bytes) -> Path:
    return package(place, content)


def _field(tag: int, body: bytes) -> bytes:
    """A field of a message, by hand."""
    length = len(body)
    number = bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14])
    return bytes([tag]) + number + body


_DEEP = b""
for _ in range(3000):  # a graph in an attribute in a node in a graph …
    _DEEP = _field(0x0A, _field(0x2A, _field(0x32, _DEEP)))
table(
    "onnx/bytes",
    bytes_of,
    {
        "cut": model().SerializeToString()[:-40],
        "a giant's length": b"\x08\x09\x12\xff\xff\xff\xff\x0f",
        "an ORT file": b"\x08\x00\x00\x00ORTM" + bytes(64),
        "a pickle": b"\x08\x09\x12cos\nsystem\n",
        "graphs without end": b"\x08\x09" + _field(0x3A, _DEEP),
    },
    refused=True,
)


def sized(place: Path, marker: Path, row: dict[str, Any]) -> Path:
    return package(place, model(**row))


def _giant(dims: list[int]) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims)
    tensor.raw_data = bytes(8)
    return tensor


def _grow(factor: int) -> list[Any]:
    shape = helper.make_tensor("s", TensorProto.INT64, [4], [1, 2, factor, factor])
    return [
        helper.make_node("Constant", [], ["s"], value=shape),
        helper.make_node("Expand", ["x", "s"], ["y"]),
    ]


table(
    "onnx/size",
    sized,
    {
        "weights of a giant": {"initial": [_giant([10**9, 10**9, 1, 1])]},
        "weights below 0": {"initial": [_giant([-2, 1, 1, 1])]},
        "sizes that overflow": {"initial": [_giant([2**62, 4, 1, 1])]},
        "input of a giant": {"shape": (1, 1, 2**40, 2**40)},
        "input below 0": {"shape": (1, 1, -16, -16)},
        "output of a giant": {"nodes": _grow(10**7), "initial": []},
        "fill with a giant": {
            "nodes": [
                helper.make_node(
                    "Constant", [], ["s"], value=helper.make_tensor("s", TensorProto.INT64, [2], [2**30, 2**30])
                ),
                helper.make_node("ConstantOfShape", ["s"], ["y"]),
            ],
            "initial": [],
        },
        "future format": {"ir_version": 99},
        "future operators": {"opset_imports": [helper.make_opsetid("", 9999)]},
    },
)


def _swap(path: Path, marker: Path) -> None:
    secret(path.parent)
    (path / "model.onnx").write_bytes(model(initial=[_tensor(location="../secret.bin")]).SerializeToString())


def _swap_data(path: Path, marker: Path) -> None:
    (path / "weights.bin").unlink()
    (path / "weights.bin").symlink_to(secret(path.parent))


attack("onnx/later/file", later=_swap, refused=True)(control)
attack("onnx/later/external data", later=_swap_data, refused=True)(data_inside)
