"""Tiny networks as ONNX files, and packages of bioimage.io around them: what each computes can be said by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper


def save(path: Path, nodes, inputs, outputs, initial=(), **model) -> Path:
    """An ONNX file; inputs and outputs are (name, shape) of float32 or (name, shape, type)."""

    def value(name, shape, kind=TensorProto.FLOAT):
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        list(nodes),
        "graph",
        [value(*item) for item in inputs],
        [value(*item) for item in outputs],
        [numpy_helper.from_array(array, name) for name, array in initial],
    )
    model = {"opset_imports": [helper.make_opsetid("", 17)], "ir_version": 9} | model
    onnx.save(helper.make_model(graph, **model), path)
    return path


def box(path: Path, ndim: int = 2, kernel: int = 5, size=None, pad: bool = True, gain: float = 1.0) -> Path:
    """The mean over a box; zeros beyond the ends, or an output that is smaller by ``kernel - 1``."""
    weight = np.full((1, 1, *(kernel,) * ndim), gain / kernel**ndim, np.float32)
    letters = [f"n{n}" for n in range(ndim)]
    shape = [1, 1, *(size or letters)]
    out = shape if pad else [1, 1, *(f"m{n}" for n in range(ndim))]
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[kernel // 2 if pad else 0] * (2 * ndim))
    return save(path, [node], [("x", shape)], [("y", out)], [("w", weight)])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def space(id: str, size: Any, **more) -> dict[str, Any]:
    return {"type": "space", "id": id, "size": size, **more}


def tensor(id: str, channels, sizes: dict[str, Any], halo: int = 0, **more) -> dict[str, Any]:
    """A tensor of the format 0.5 with the axes batch, channel and those of space."""
    axes: list[dict[str, Any]] = [{"type": "batch"}, {"type": "channel", "channel_names": list(channels)}]
    axes += [space(name, size, **({"halo": halo} if halo else {})) for name, size in sizes.items()]
    return {"id": id, "axes": axes, **more}


def like(id: str, letters: str = "yx", offset: int = 0) -> dict[str, Any]:
    """Sizes of an output that are those of an input."""
    return {a: {"tensor_id": id, "axis_id": a} | ({"offset": offset} if offset else {}) for a in letters}


def package(folder: Path, inputs, outputs, weights=None, name="rdf.yaml", **more) -> Path:
    """A package of the format 0.5 around ``model.onnx`` in its folder. Its texts hold addresses, as real ones do."""
    weights = weights or {
        "onnx": {"source": "model.onnx", "sha256": sha256(folder / "model.onnx"), "opset_version": 17}
    }
    content = {
        "format_version": "0.5.4",
        "type": "model",
        "name": "A fabricated model",
        "description": "For tests.",
        "documentation": "https://bioimage.invalid/README.md",
        "git_repo": "https://bioimage.invalid/repo",
        "covers": ["https://bioimage.invalid/cover.png"],
        "license": "CC-BY-4.0",
        "authors": [{"name": "Nobody"}],
        "cite": [{"text": "Nobody 2020", "doi": "10.1000/182"}],
        "tags": ["segmentation"],
        "inputs": inputs,
        "outputs": outputs,
        "weights": weights,
    } | more
    (folder / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def package_04(folder: Path, axes: str, shape, out_axes: str, out_shape, halo=None, weights=None, **more) -> Path:
    """A package of the format 0.4 with one input, ``raw``, and one output, ``out``."""
    before, after = more.pop("preprocessing", []), more.pop("postprocessing", [])
    source = {"name": "raw", "axes": axes, "data_type": "float32", "shape": shape, "preprocessing": before}
    result = {"name": "out", "axes": out_axes, "data_type": "float32", "shape": out_shape, "postprocessing": after}
    source["data_range"] = result["data_range"] = [-np.inf, np.inf]
    return package(
        folder,
        [source],
        [result | ({"halo": halo} if halo else {})],
        weights,
        "model.yaml",
        format_version="0.4.9",
        timestamp="2020-01-01T00:00:00",
        test_inputs=["in.npy"],
        test_outputs=["out.npy"],
        **more,
    )


def programs(folder: Path) -> dict[str, Path]:
    """The mean over a box of 5 x 5 pixels as programs of torch, and its weights alone as torch.save writes them."""
    import warnings

    import torch

    network = torch.nn.Conv2d(1, 1, 5, padding=2, bias=False).eval()
    torch.nn.init.constant_(network.weight, 1 / 25)
    names = {"torchscript": "script.pt", "pt2": "exported.pt2", "state": "state.pth", "old": "old.pth"}
    files = {kind: folder / name for kind, name in names.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have other formats, and other ways to name sizes
        torch.jit.save(torch.jit.script(network), str(files["torchscript"]))
        sizes = {2: torch.export.Dim("h", min=8, max=4096), 3: torch.export.Dim("w", min=8, max=4096)}
        exported = torch.export.export(network, (torch.zeros(1, 1, 16, 24),), dynamic_shapes=(sizes,))
        torch.export.save(exported, str(files["pt2"]))
    torch.save(network.state_dict(), files["state"])
    torch.save(network.state_dict(), files["old"], _use_new_zipfile_serialization=False)
    return files
