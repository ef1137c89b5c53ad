"""Files of weights that are programs, or lie about what they hold: pickles of every age, safetensors, TorchScript."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

State = dict[str, torch.Tensor]


class Runs:
    """Runs a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def touch(marker: Path) -> Runs:
    return Runs(os.system, f"touch '{marker}'")


def _saved(value: Any, **more: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **more)
    return buffer.getvalue()


def _with_pickle(state: State, content: bytes) -> bytes:
    """torch's ZIP format with another pickle in it."""
    source, buffer = zipfile.ZipFile(io.BytesIO(_saved(state))), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for info in source.infolist():
            out.writestr(info.filename, content if info.filename.endswith("/data.pkl") else source.read(info))
    return buffer.getvalue()


def _opcodes(module: str, name: str, *arguments: str) -> bytes:
    """A pickle that calls a function by its name, without having it here."""
    out = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"("
    for argument in arguments:
        encoded = argument.encode()
        out += b"X" + struct.pack("<I", len(encoded)) + encoded
    return out + b"tR."


def reduce(state: State, marker: Path) -> bytes:
    return _saved(OrderedDict(state, extra=touch(marker)))


def checkpoint(state: State, marker: Path) -> bytes:
    return _saved({"state_dict": state, "network_weights": state, "optimizer": {"state": [touch(marker)]}})


def legacy(state: State, marker: Path) -> bytes:
    return _saved(OrderedDict(state, extra=touch(marker)), _use_new_zipfile_serialization=False)


def plain(state: State, marker: Path) -> bytes:
    return pickle.dumps({"x": touch(marker)})


def stacked(state: State, marker: Path) -> bytes:
    """Runs before the bytes that any scan for a well-formed file would stumble over."""
    return _with_pickle(state, _opcodes("os", "system", f"touch '{marker}'")[:-1] + b"\xff\xff")


def tarred(state: State, marker: Path) -> bytes:
    """The format of torch before 0.1.10: a tar archive of pickles."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(touch(marker), protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def builtins_eval(state: State, marker: Path) -> bytes:
    return _with_pickle(state, _opcodes("builtins", "eval", f"open({str(marker)!r}, 'w')"))


def chain(state: State, marker: Path) -> bytes:
    """Dotted names, which protocol 4 allows."""
    inner = _opcodes("torch", "serialization.os.system", f"touch '{marker}'")
    return _with_pickle(state, b"\x80\x04" + inner[2:])


def torch_load(state: State, marker: Path) -> bytes:
    """A function of torch that reads another file, which is a pickle."""
    other = marker.with_name(marker.name + ".pickle")
    other.write_bytes(pickle.dumps(touch(marker)))
    return _with_pickle(state, _opcodes("torch.serialization", "load", str(other)))


def hub(state: State, marker: Path) -> bytes:
    return _with_pickle(state, _opcodes("torch.hub", "load", "nobody/nothing", "model"))


def from_file(state: State, marker: Path) -> bytes:
    """torch.from_file(shared=True) makes the file that it names."""
    name = str(marker).encode()
    return _with_pickle(
        state,
        b"\x80\x02ctorch\nfrom_file\n(X" + struct.pack("<I", len(name)) + name + b"\x88K\x08tR.",
    )


def numpy_scalar(state: State, marker: Path) -> bytes:
    """nnU-Net's checkpoints need numpy's scalars: one of objects is a pickle in a pickle."""
    inner = pickle.dumps(touch(marker))
    packed = b"C" + bytes([len(inner)]) + inner
    dtype = b"cnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87R"
    return _with_pickle(state, b"\x80\x04cnumpy._core.multiarray\nscalar\n" + dtype + packed + b"\x86R.")


def numpy_array(state: State, marker: Path) -> bytes:
    import numpy as np

    return _saved({"state_dict": state, "array": np.array([touch(marker)], dtype=object)})


def module(state: State, marker: Path) -> bytes:
    """A whole network, whose class has code of its own when it is unpickled."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1))
    network.register_forward_hook(print)
    network.extra = touch(marker)
    return _saved(network)


def build(state: State, marker: Path) -> bytes:
    """BUILD on an allowed class, with a state that sets attributes."""
    name = f"touch '{marker}'".encode()
    setstate = b"ccollections\nOrderedDict\n)R}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb"
    return _with_pickle(state, b"\x80\x02" + setstate + b"X" + struct.pack("<I", len(name)) + name + b"b.")


def rebuild_hooks(state: State, marker: Path) -> bytes:
    """A parameter with hooks that run on it."""
    call = _opcodes("torch._utils", "_rebuild_parameter_with_state")[2:-3]
    return _with_pickle(state, b"\x80\x02" + call + b"cos\nsystem\n\x89}}tR.")


def setitem(state: State, marker: Path) -> bytes:
    """CVE-2026-24747: below 2.10 the restricted unpickler wrote items into what is no mapping."""
    return _with_pickle(state, b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nX\x01\x00\x00\x00aK\x01s.")


def storage_size(state: State, marker: Path) -> bytes:
    """CVE-2026-24747: the pickle says that a storage has more elements than its record has."""
    content = zipfile.ZipFile(io.BytesIO(_saved({"a": torch.zeros(300)}))).read("archive/data.pkl")
    assert b"M\x2c\x01" in content
    return _with_pickle({"a": torch.zeros(300)}, content.replace(b"M\x2c\x01", b"J\xff\xff\xff\x7f"))


def scripted(state: State, marker: Path) -> bytes:
    """CVE-2025-32434: torch.load(weights_only=True) below 2.6 ran TorchScript that it found instead of weights."""
    return program(marker)


def program(marker: Path) -> bytes:
    """A TorchScript program that writes a file when it is called, and when it is loaded."""

    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.zeros(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.save(x, "MARKER")
            return x

        @torch.jit.export
        def __getstate__(self):  # type: ignore[no-untyped-def]
            return (self.w, self.training)

        @torch.jit.export
        def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
            self.w = state[0]
            self.training = state[1]
            torch.save(self.w, "MARKER")

    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(Writes())
        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer)
    source, out = zipfile.ZipFile(io.BytesIO(buffer.getvalue())), io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for info in source.infolist():
            archive.writestr(info.filename, source.read(info).replace(b'"MARKER"', json.dumps(str(marker)).encode()))
    return out.getvalue()


def exported(marker: Path) -> bytes:
    """A file of torch.export whose weights are a pickle."""
    saved = torch.export.export(nn.Conv2d(1, 1, 1), (torch.zeros(1, 1, 4, 4),))
    buffer = io.BytesIO()
    torch.export.save(saved, buffer)
    source, out = zipfile.ZipFile(io.BytesIO(buffer.getvalue())), io.BytesIO()
    evil = _saved(touch(marker))
    members = {info.filename: source.read(info) for info in source.infolist()}
    members = {name: evil if name.endswith(".pt") else content for name, content in members.items()}
    members |= {f"archive/data/{place}/model.pt": evil for place in ("weights", "constants", "sample_inputs")}
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


PICKLES: dict[str, Callable[[State, Path], bytes]] = {
    "reduce": reduce,
    "in an optimiser's state": checkpoint,
    "legacy format": legacy,
    "plain pickle": plain,
    "before broken bytes": stacked,
    "tar format": tarred,
    "builtins.eval": builtins_eval,
    "dotted name": chain,
    "torch.load of another file": torch_load,
    "torch.hub.load": hub,
    "torch.from_file": from_file,
    "numpy scalar of objects": numpy_scalar,
    "numpy array of objects": numpy_array,
    "a whole module": module,
    "build": build,
    "hooks of a parameter": rebuild_hooks,
    "CVE-2026-24747 setitem": setitem,
    "CVE-2026-24747 storage": storage_size,
    "CVE-2025-32434 TorchScript": scripted,
}


def _safetensors(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def _entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


LIES: dict[str, bytes] = {
    "a header longer than the file": _safetensors(b"{}", length=2**40),
    "a header of 2**64 - 1 bytes": _safetensors(b"{}", length=2**64 - 1),
    "a negative length": _safetensors(b"{}", length=2**63),
    "a shape of 2**60": _safetensors(json.dumps({"a": _entry([2**60], 0, 4)}).encode(), b"\0" * 4),
    "a shape that overflows": _safetensors(json.dumps({"a": _entry([2**32, 2**32], 0, 0)}).encode()),
    "offsets outside of the file": _safetensors(json.dumps({"a": _entry([100], 0, 400)}).encode(), b"\0" * 4),
    "offsets that overlap": _safetensors(
        json.dumps({"a": _entry([2], 0, 8), "b": _entry([2], 4, 12)}).encode(), b"\0" * 12
    ),
    "offsets that run backwards": _safetensors(json.dumps({"a": _entry([2], 8, 0)}).encode(), b"\0" * 8),
    "an unknown type": _safetensors(json.dumps({"a": _entry([1], 0, 8, "OBJECT")}).encode(), b"\0" * 8),
    "a deep header": _safetensors(b'{"__metadata__":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "no JSON": _safetensors(b"{" + b"\xff" * 100),
    "a name twice": _safetensors(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},' * 2 + b'"b":0}', b"\0"),
    "nothing": b"",
}

assert pickletools  # for whoever wants to look at one
