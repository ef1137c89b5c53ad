"""What an ONNX file holds, by its protobuf alone: inputs and outputs, the operators that it asks for, files beside it.

Nothing is run and no file beside it is read. An operator is data as long as onnxruntime brings it itself: libraries
of other operators are never loaded.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from napari_medai.core.errors import DependencyError, ModelError
from napari_medai.models.inside import file_sha256
from napari_medai.models.sizes import LARGEST

INSTALL = 'pip install "napari-medai[onnx]"'
# A protobuf message cannot be larger
MOST_BYTES = 2**31 - 1
# Nodes, initialisers and graphs in a file; the largest networks have a few ten thousand
MOST_PARTS = 2_000_000
# Larger files beside the model are hashed when they are read
MOST_HASHED = 2**28

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
# Operators that onnxruntime brings and that only compute. Others of its domain read files (EPContext) or call Python.
MICROSOFT = frozenset(
    """
    Attention BiasAdd BiasGelu BiasSoftmax BiasSplitGelu ConvTransposeWithDynamicPads CropAndResize DequantizeLinear
    DynamicQuantizeLSTM DynamicQuantizeMatMul EmbedLayerNormalization FastGelu FusedConv FusedGemm FusedMatMul Gelu
    GridSample GroupNorm GroupQueryAttention Inverse Irfft MatMulInteger16 MatMulIntegerToFloat MatMulNBits
    MaxpoolWithMask MultiHeadAttention NhwcConv NhwcFusedConv NhwcMaxPool Pad QAttention QGemm QLinearAdd
    QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean
    QLinearSigmoid QLinearSoftmax QLinearWhere QuantizeLinear QuickGelu Rfft RotaryEmbedding SkipGroupNorm
    SkipLayerNormalization SkipSimplifiedLayerNormalization TransposeMatMul Trilu Unique
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Port:
    """An input or output: its name, its size along each axis (0: any, with ``names``), and the type of its values."""

    name: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    dtype: str

    def __str__(self) -> str:
        sizes = (str(n) if n else name or "?" for n, name in zip(self.shape, self.names, strict=True))
        return f"{self.name} ({' x '.join(sizes)}, {self.dtype})"


@dataclass(frozen=True)
class OnnxFile:
    """A parsed file.

    Attributes
    ----------
    inputs, outputs : tuple of Port
        Without initialisers.
    opset : int
        Of the standard operators.
    sha256 : str
        Over the file.
    external : dict of str to str
        Files of weights beside it, by their path in its folder: sha256, or "" where the file is too large to be hashed
        when it is looked at.
    refused : tuple of (str, str)
        Place and reason of whatever keeps it from being run.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    opset: int
    sha256: str
    external: dict[str, str]
    refused: tuple[tuple[str, str], ...]


def is_onnx(path: Path) -> bool:
    """Whether a file's bytes begin like an ONNX file; its name says nothing."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return False
    # field 1 (ir_version, a small number), then producer_name (2), … , graph (7) or opset_import (8)
    if len(head) < 4 or head[0] != 0x08 or not 1 <= head[1] <= 32:
        return False
    return head[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)


def read_onnx(path: Path, content: bytes | None = None) -> OnnxFile:
    """Parse a file.

    Parameters
    ----------
    path : Path
        The file; external data is looked for in its folder.
    content : bytes, optional
        Its bytes, if they are at hand.

    Raises
    ------
    DependencyError
        The package onnx is not installed.
    ModelError
        It cannot be read or is no ONNX file.
    """
    if content is None:
        content = _bytes(path)
    model = parse(content, path.name)
    refused = list(_refused_operators(model))
    external: dict[str, str] = {}
    for where, tensor in _tensors(model):
        if tensor.data_location != 1 and not tensor.external_data:
            continue
        location, problem = _external(tensor, path.parent)
        if problem:
            refused.append((where, problem))
        elif location not in external:
            file = path.parent / location
            external[location] = file_sha256(file) if file.stat().st_size <= MOST_HASHED else ""
    initial = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_port(value) for value in model.graph.input if value.name not in initial)
    outputs = tuple(_port(value) for value in model.graph.output)
    refused += [
        (f"graph.{port.name}", f"a size of {size} along an axis, which no image has")
        for port in (*inputs, *outputs)
        for size in port.shape
        if not 0 <= size <= LARGEST
    ]
    return OnnxFile(
        inputs,
        outputs,
        max((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), default=0),
        hashlib.sha256(content).hexdigest(),
        external,
        tuple(refused[:20]),
    )


def parse(content: bytes, name: str) -> Any:
    """The ``onnx.ModelProto`` of a file's bytes.

    Raises
    ------
    DependencyError
        The package onnx is not installed.
    ModelError
        They are no ONNX file, or one that onnxruntime would take for a file of another format.
    """
    try:
        onnx = importlib.import_module("onnx")
        decode_error = importlib.import_module("google.protobuf.message").DecodeError
    except ModuleNotFoundError as error:
        raise DependencyError(f"Looking into ONNX files needs the package onnx; install it with: {INSTALL}") from error
    if content[4:8] == b"ORTM":
        # onnxruntime looks for these letters first: what would run is not what was checked
        raise ModelError(f"{name} is in onnxruntime's own format, which is not checked here; export it as ONNX.")
    try:
        model = onnx.ModelProto.FromString(content)
    except (decode_error, RecursionError, MemoryError) as error:
        raise ModelError(f"{name} is no ONNX file, or it is damaged.") from error
    if not model.graph.node or not model.graph.output:
        raise ModelError(f"{name} is no ONNX file with a network: it has no nodes or no outputs.")
    return model


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ModelError(f"{path.name} is larger than 2 GiB; keep its weights in a file beside it (external data).")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}.") from error


def _graphs(model: Any) -> Iterator[tuple[str, Any]]:
    """Everything that holds nodes: the graph, graphs in its nodes however deep, functions, training."""
    stack: list[tuple[str, Any]] = [("graph", model.graph)]
    stack += [(f"functions.{function.name}", function) for function in model.functions]
    for info in model.training_info:
        stack += [("training_info", info.initialization), ("training_info", info.algorithm)]
    parts = 0
    while stack:
        where, graph = stack.pop()
        yield where, graph
        parts += 1 + len(graph.node)
        if parts > MOST_PARTS:
            raise ModelError(f"The ONNX file has more than {MOST_PARTS} nodes; that is no network.")
        for node in graph.node:
            for attribute in node.attribute:
                place = f"{where}.{node.name or node.op_type}.{attribute.name}"
                if attribute.HasField("g"):
                    stack.append((place, attribute.g))
                stack += [(place, inner) for inner in attribute.graphs]


def _refused_operators(model: Any) -> Iterator[tuple[str, str]]:
    own = {(function.domain, function.name) for function in model.functions}
    seen: set[tuple[str, str]] = set()
    for where, graph in _graphs(model):
        for node in graph.node:
            kind = (node.domain, node.op_type)
            if kind in seen or node.domain in DOMAINS or kind in own:
                continue
            seen.add(kind)
            place = f"{where}.{node.name or node.op_type}"
            if node.domain != "com.microsoft":
                yield place, f"the operator {node.op_type!r} of {node.domain!r} needs a library, and none is loaded"
            elif node.op_type not in MICROSOFT:
                yield place, f"onnxruntime's operator {node.op_type!r} is not known to be only arithmetic"


def _tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """Every tensor in the file, wherever it stands."""
    for where, graph in _graphs(model):
        # a function has neither
        yield from ((f"{where}.{tensor.name}", tensor) for tensor in getattr(graph, "initializer", ()))
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from ((f"{where}.{sparse.values.name}", tensor) for tensor in (sparse.values, sparse.indices))
        attributes = [(node.name or node.op_type, attribute) for node in graph.node for attribute in node.attribute]
        attributes += [("defaults", attribute) for attribute in getattr(graph, "attribute_proto", ())]
        for name, attribute in attributes:
            found = [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
            sparse = [*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])]
            for item in [*sparse, *attribute.sparse_tensors]:
                found += [item.values, item.indices]
            yield from ((f"{where}.{name}.{attribute.name}", tensor) for tensor in found)


def _external(tensor: Any, folder: Path) -> tuple[str, str]:
    """Path of a tensor's file in the folder, or why it is refused."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    place = PurePosixPath(location)
    # onnxruntime takes */_ORT_MEM_ADDR_/* for an address in memory
    odd = any(letter in '*?<>|:"\\' or ord(letter) < 32 for letter in location)
    if not location or odd or place.is_absolute() or ".." in place.parts or len(location) > 1024:
        return "", f"external data at {location[:80]!r}, which is no path inside the folder"
    file = folder
    for part in place.parts:
        file = file / part
        if file.is_symlink():
            return "", f"external data at {location!r}, which is a link"
    if not file.is_file():
        return "", f"external data at {location!r}, which is not there"
    if file.stat().st_nlink > 1:  # onnx itself refuses it too: the other name may be anywhere
        return "", f"external data at {location!r}, which has a second name (a hard link); copy it instead"
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or 0)
    except ValueError:
        return "", f"external data at {location!r} with an offset or a length that is no number"
    size = file.stat().st_size
    wanted = length or _size(tensor)
    if offset < 0 or length < 0 or offset + wanted > size:
        return "", f"external data at {location!r} from byte {offset} on, {wanted} bytes, of a file of {size} bytes"
    if length and _size(tensor) not in (0, length):
        return "", f"external data at {location!r}: {length} bytes for a tensor of {_size(tensor)}"
    return place.as_posix(), ""


def _size(tensor: Any) -> int:
    """Bytes that a tensor needs; 0 for types of which it is not known here."""
    widths = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 8, 15: 16, 16: 2}
    return int(prod(max(0, n) for n in tensor.dims) * widths.get(tensor.data_type, 0))


def _port(value: Any) -> Port:
    tensor = value.type.tensor_type
    dtypes = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool"}
    dtypes |= {10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16"}
    dims = tensor.shape.dim
    return Port(
        value.name,
        # some exporters write -1 for any size
        tuple(0 if dim.dim_value == -1 else int(dim.dim_value) for dim in dims),
        tuple(dim.dim_param for dim in dims),
        dtypes.get(tensor.elem_type, "other"),
    )
