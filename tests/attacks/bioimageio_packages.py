"""Packages of bioimage.io: architectures, operators, sources and addresses."""

from __future__ import annotations

import copy
import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tests.attacks.corpus import YAML_LINES, attack, filled, table
from tests.attacks.weights import PICKLES, program, touch
from tests.models import fabricated as made

STEP = {"min": 16, "step": 8}


def folder(place: Path, **more: Any) -> Path:
    path = place / "package"
    path.mkdir()
    made.box(path / "model.onnx")
    return made.package(
        path,
        [made.tensor("raw", ["gray"], {"y": STEP, "x": STEP}, **more.pop("tensor", {}))],
        [made.tensor("probability", ["object"], made.like("raw"), halo=2, **more.pop("output", {}))],
        **more,
    )


@attack("bioimageio/control", control=True)
def control(place: Path, marker: Path) -> Path:
    return folder(place)


_NET = """
import torch
open(MARKER_TEXT, "w").write("imported")
class Net(torch.nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        open(MARKER_TEXT, "w").write("made")
    def forward(self, x):
        return x
"""


def _write(path: Path, name: str, content: bytes | str) -> dict[str, str]:
    content = content.encode() if isinstance(content, str) else content
    (path / name).write_bytes(content)
    return {"source": name, "sha256": hashlib.sha256(content).hexdigest()}


@attack("bioimageio/architecture/file", refused=True, proof="bioimageio_core")
def architecture(place: Path, marker: Path) -> Path:
    path = folder(place)
    net = _write(path, "net.py", _NET.replace("MARKER_TEXT", repr(str(marker))))
    buffer = io.BytesIO()
    torch.save({}, buffer)
    weights = _write(path, "weights.pt", buffer.getvalue())
    return rewritten(
        path,
        lambda c: c.update(
            weights={
                "pytorch_state_dict": weights | {"architecture": net | {"callable": "Net"}, "pytorch_version": "2.0"}
            }
        ),
    )


@attack("bioimageio/architecture/library", refused=True)
def from_library(place: Path, marker: Path) -> Path:
    path = folder(place)
    weights = _write(path, "weights.pt", b"x")
    callee = {"callable": "system", "import_from": "os", "kwargs": {"command": f"touch {marker}"}}
    return rewritten(
        path,
        lambda c: c.update(
            weights={"pytorch_state_dict": weights | {"architecture": callee, "pytorch_version": "2.0"}}
        ),
    )


@attack("bioimageio/architecture/beside ONNX")
def beside(place: Path, marker: Path) -> Path:
    """The data is run, the program beside it is not."""
    path = folder(place)
    net = _write(path, "net.py", _NET.replace("MARKER_TEXT", repr(str(marker))))
    evil = _write(path, "weights.pt", PICKLES["reduce"]({"a": torch.zeros(1)}, marker))
    script = _write(path, "weights-torchscript.pt", program(marker))
    return rewritten(
        path,
        lambda c: c["weights"].update(
            pytorch_state_dict=evil | {"architecture": net | {"callable": "Net"}, "pytorch_version": "2.0"},
            torchscript=script | {"pytorch_version": "2.0"},
        ),
    )


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    file = path / "rdf.yaml"
    content = yaml.safe_load(file.read_text())
    change(content)
    file.write_text(yaml.safe_dump(content))
    return path


@attack("bioimageio/weights/TorchScript", refused=True)
def scripted(place: Path, marker: Path) -> Path:
    path = folder(place)
    script = _write(path, "weights.pt", program(marker))
    return rewritten(path, lambda c: c.update(weights={"torchscript": script | {"pytorch_version": "2.0"}}))


@attack("bioimageio/weights/a program as ONNX", refused=True)
def disguised(place: Path, marker: Path) -> Path:
    path = folder(place)
    script = _write(path, "model.onnx", program(marker))
    return rewritten(path, lambda c: c["weights"]["onnx"].update(script))


@attack("bioimageio/weights/keras", refused=True)
def keras(place: Path, marker: Path) -> Path:
    path = folder(place)
    return rewritten(
        path,
        lambda c: c.update(
            weights={"keras_hdf5": _write(path, "w.h5", b"\x89HDF\r\n\x1a\n") | {"tensorflow_version": "2.0"}}
        ),
    )


def custom(place: Path, marker: Path, row: Any) -> Path:
    path = folder(place)
    _write(path, "evil.py", _NET.replace("MARKER_TEXT", repr(str(marker))))
    where, step = copy.deepcopy(row)
    return rewritten(
        path,
        lambda c: c[where][0].update({f"{'pre' if where == 'inputs' else 'post'}processing": [filled(step, marker)]}),
    )


_CUSTOM = {"id": "custom", "kwargs": {}, "source": "evil.py", "callable": "Net"}
table(
    "bioimageio/operator",
    custom,
    {
        "custom": ("inputs", _CUSTOM),
        "custom after": ("outputs", _CUSTOM),
        "custom of a library": ("outputs", {"id": "custom", "import_from": "os", "callable": "system",
                                            "kwargs": {"command": "touch MARKER"}}),
        "custom by 0.4's name": ("inputs", {"name": "custom", "kwargs": {"callable": "os.system"}}),
        "unknown": ("inputs", {"id": "os.system", "kwargs": {"command": "touch MARKER"}}),
        "dunder": ("inputs", {"id": "__class__"}),
        "arguments of others": ("inputs", {"id": "scale_linear", "kwargs": {"gain": "__import__('os')"}}),
        "arguments of giants": ("inputs", {"id": "scale_linear", "kwargs": {"gain": 1e308, "offset": -1e308}}),
        "reference to nothing": ("outputs", {"id": "scale_range", "kwargs": {"reference_tensor": "nothing"}}),
        "cellpose": ("outputs", {"id": "cellpose_flow_dynamics", "kwargs": {"model": "MARKER"}}),
    },
    refused=True,
)  # fmt: skip


def sourced(place: Path, marker: Path, source: Any) -> Path:
    path = folder(place)
    made.box(place / "secret.onnx")
    sha256 = made.sha256(place / "secret.onnx")
    text = filled(source, place / "secret.onnx")
    return rewritten(path, lambda c: c["weights"]["onnx"].update(source=text, sha256=sha256))


table(
    "bioimageio/source",
    sourced,
    {
        "above": "../secret.onnx",
        "absolute": "MARKER",
        "file address": "file://MARKER",
        "address": "http://127.0.0.1:9/secret.onnx",
        "https address": "https://zenodo.invalid/secret.onnx",
        "backslashes": "..\\secret.onnx",
        "in an archive": "package.zip/../secret.onnx",
        "with a query": "model.onnx?x=../../secret.onnx",
        "a list": ["../secret.onnx"],
        "home": "~/secret.onnx",
        "an id": "affable-shark",
    },
    refused=True,
)


@attack("bioimageio/source/link", refused=True)
def link(place: Path, marker: Path) -> Path:
    path = folder(place)
    (path / "model.onnx").rename(place / "secret.onnx")
    (path / "model.onnx").symlink_to(place / "secret.onnx")
    return path


def changed(place: Path, marker: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    path = folder(place)
    np.save(path / "evil.npy", np.array([touch(marker)], dtype=object), allow_pickle=True)
    (path / "evil.pkl").write_bytes(pickle.dumps(touch(marker)))
    (path / "README.md").write_text("#")

    def replace(content: dict[str, Any]) -> None:
        change(content)
        new = filled(dict(content), marker)
        content.clear()
        content.update(new)

    return rewritten(path, replace)


table(
    "bioimageio/field",
    changed,
    {
        "test tensor that is a pickle": lambda c: (
            c["inputs"][0].update(test_tensor={"source": "evil.npy"}),
            c["outputs"][0].update(test_tensor={"source": "evil.pkl"}),
        ),
        "addresses everywhere": lambda c: c.update(
            documentation="http://127.0.0.1:9/a.md", covers=["http://127.0.0.1:9/a.png"], git_repo="http://127.0.0.1:9",
            parent={"id": "http://127.0.0.1:9"}, icon="http://127.0.0.1:9/x", config={"x": "http://127.0.0.1:9"},
            links=["http://127.0.0.1:9"], download_url="http://127.0.0.1:9/x", rdf_source="http://127.0.0.1:9/x",
        ),
        "files above": lambda c: c.update(documentation="../../etc/hostname", covers=["/etc/hostname"]),
        "attachments": lambda c: c.update(attachments=[{"source": "evil.pkl"}, {"source": "../../evil.py"}]),
        "run mode": lambda c: c.update(run_mode={"name": "os.system", "kwargs": {"command": "touch MARKER"}}),
        "dependencies": lambda c: c["weights"]["onnx"].update(dependencies={"source": "http://127.0.0.1:9/env.yaml"}),
        "a future format": lambda c: c.update(format_version="9.9.9"),
        "a format of no kind": lambda c: c.update(format_version=["0.5.4"]),
        "another type": lambda c: c.update(type="application"),
        "axes of giants": lambda c: c["inputs"][0]["axes"].append({"type": "space", "id": "z", "size": 10**12}),
        "sizes of giants": lambda c: c["inputs"][0]["axes"][2].update(size={"min": 10**12, "step": 10**12}),
        "sizes of 0": lambda c: c["inputs"][0]["axes"][2].update(size={"min": 0, "step": 0}),
        "sizes below 0": lambda c: c["inputs"][0]["axes"][2].update(size={"min": -16, "step": -8}),
        "halo of giants": lambda c: c["outputs"][0]["axes"][2].update(halo=10**9),
        "sizes in a circle": lambda c: c["inputs"][0]["axes"][2].update(size={"tensor_id": "raw", "axis_id": "y"}),
        "scale of nothing": lambda c: c["outputs"][0]["axes"][2].update(scale=1e-12),
        "hundreds of inputs": lambda c: c.update(inputs=c["inputs"] * 300),
        "inputs of wrong kinds": lambda c: c.update(inputs="os.system", outputs={"a": 1}),
        "escapes in texts": lambda c: c.update(name="\x1b]0;evil\x07", description="$(touch MARKER)"),
        "licence": lambda c: c.update(license="$(touch MARKER)"),
    },
)  # fmt: skip


def texted(place: Path, marker: Path, text: str) -> Path:
    path = folder(place)
    file = path / "rdf.yaml"
    file.write_text(file.read_text() + filled(text, marker))
    return path


table(
    "bioimageio/yaml",
    texted,
    {
        "apply": "\nevil: !!python/object/apply:os.system ['touch MARKER']\n",
        "name": "\nevil: !!python/name:os.system\n",
        "new": "\nevil: !!python/object/new:subprocess.Popen [['touch', 'MARKER']]\n",
        "own tag": "\nevil: !evil {a: 1}\n",
        "laughs": "\na0: &a0 [x,x,x,x,x,x,x,x,x]\n"
        + "\n".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)),
        "itself": "\nevil: &e [*e]\n",
        "deep": "\nevil: " + "[" * 5000 + "]" * 5000 + "\n",
        "keys twice": "\nweights: {onnx: {source: ../../evil.onnx}}\n",
        "two documents": "\n---\nname: x\n",
        **{name: f"\n{line}\n" for name, line in YAML_LINES.items()},
    },
)


def _swap(path: Path, marker: Path) -> None:
    net = _write(path, "net.py", _NET.replace("MARKER_TEXT", repr(str(marker))))
    weights = _write(path, "weights.pt", PICKLES["reduce"]({"a": torch.zeros(1)}, marker))
    callee = {"architecture": net | {"callable": "Net"}, "pytorch_version": "2.0"}
    rewritten(path, lambda c: c.update(weights={"pytorch_state_dict": weights | callee}))


def _swap_weights(path: Path, marker: Path) -> None:
    (path / "model.onnx").write_bytes(program(marker))


attack("bioimageio/later/description", later=_swap)(control)
attack("bioimageio/later/weights", later=_swap_weights, refused=True)(control)
