"""Packages in our own format: descriptions that name what they should not, and weights that are something else."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save

from tests.attacks.corpus import YAML_LINES, attack, filled, table
from tests.attacks.weights import LIES, PICKLES, program

UNET = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
SPEC: dict[str, Any] = {
    "id": "lab-model", "title": "A model", "summary": "For tests.", "stage": "segment",
    "accepts": {"ndim": [3]}, "gives": {"kind": "labels", "labels": [{"value": 1, "name": "liver"}]},
    "runner": "network", "network": "UNet", "arguments": UNET, "weights": "weights.safetensors",
}  # fmt: skip
_WEIGHTS: list[bytes] = []


def good() -> bytes:
    from napari_medai.nets import build

    if not _WEIGHTS:
        _WEIGHTS.append(save(build("UNet", **UNET).state_dict()))
    return _WEIGHTS[0]


def package(place: Path, fields: dict[str, Any] | None = None, weights: bytes | None = None, text: str = "") -> Path:
    folder = place / "package"
    folder.mkdir()
    content = good() if weights is None else weights
    (folder / "weights.safetensors").write_bytes(content)
    spec = SPEC | {"sha256": hashlib.sha256(content).hexdigest()} | (fields or {})
    # JSON is YAML, and is written faster
    (folder / "medai-model.yaml").write_text(text or json.dumps(spec))
    return folder


@attack("manifest/control", control=True)
def control(place: Path, marker: Path) -> Path:
    return package(place)


def changed(place: Path, marker: Path, fields: dict[str, Any]) -> Path:
    return package(place, filled(fields, marker))


table(
    "manifest/field",
    changed,
    {
        "network os.system": {"network": "os.system", "arguments": {"command": "touch MARKER"}},
        "network run_cmd": {"network": "monai.utils:run_cmd", "arguments": {"cmd_list": ["touch", "MARKER"]}},
        "network by module": {"network": "torch.hub:load", "arguments": {"repo_or_dir": "a/b", "model": "c"}},
        "network of the package": {"network": "package.net:Net"},
        "network dunder": {"network": "__class__"},
        "argument pretrained": {"network": "DenseNet121", "arguments": {"spatial_dims": 2, "in_channels": 1,
                                                                       "out_channels": 2, "pretrained": True}},
        "argument with a path": {"arguments": UNET | {"act": "../../evil"}},
        "argument that is code": {"arguments": UNET | {"act": "$__import__('os').system('touch MARKER')"}},
        "unknown argument": {"arguments": UNET | {"__class__": "os.system"}},
        "giant": {"arguments": UNET | {"channels": [10**9, 10**9]}},
        "a million levels": {"arguments": UNET | {"channels": [4] * 10**5, "strides": [1] * 10**5}},
        "runner isolated": {"runner": "isolated"},
        "runner by module": {"runner": "os:system"},
        "runner of another source": {"runner": "monai", "details": {"config": "../../evil.json"}},
        "says it is trusted": {"needs": [], "safety": "data", "source": "builtin"},
        "grants itself": {"grant": {"sha256": "0" * 64, "capabilities": ["python"]}},
        "another folder": {"path": "/"},
        "id with a path": {"id": "../../evil"},
        "id with an escape": {"id": "\x1b]0;evil\x07"},
        "tile of a giant": {"tiling": {"size": [10**9, 10**9, 10**9]}},
        "tiles without end": {"tiling": {"size": [16, 16, 16], "overlap": 0.9999999}},
        "multiple 0": {"tiling": {"multiple": 0}},
        "spacing of nothing": {"prepare": {"spacing_mm": [1e-9, 1e-9, 1e-9]}},
        "spacing that is none": {"prepare": {"spacing_mm": [".nan", -1, 0]}},
        "labels beyond numbers": {"gives": {"kind": "labels", "labels": [{"value": 2**80, "name": "x"}]}},
    },
)  # fmt: skip
table(
    "manifest/weights",
    changed,
    {
        "above": {"weights": "../evil.safetensors"},
        "absolute": {"weights": "/etc/hostname"},
        "address": {"weights": "http://127.0.0.1:9/x"},
        "a folder": {"weights": "."},
        "a device": {"weights": "/dev/zero"},
        "with backslashes": {"weights": "..\\evil.safetensors"},
        "another sha256": {"sha256": "0" * 64},
        "no sha256": {"sha256": ""},
    },
    refused=True,
)


@attack("manifest/weights/link", refused=True)
def link(place: Path, marker: Path) -> Path:
    folder = package(place)
    (folder / "weights.safetensors").rename(place / "secret")
    (folder / "weights.safetensors").symlink_to(place / "secret")
    return folder


@attack("manifest/weights/pipe", refused=True)
def pipe(place: Path, marker: Path) -> Path:
    folder = package(place)
    (folder / "weights.safetensors").unlink()
    os.mkfifo(folder / "weights.safetensors")
    return folder


table("manifest/safetensors", lambda place, marker, content: package(place, weights=content), LIES, refused=True)
for _name in ("reduce", "legacy format", "plain pickle", "CVE-2025-32434 TorchScript"):
    attack(f"manifest/weights/{_name}", refused=True)(
        lambda place, marker, make=PICKLES[_name]: package(place, weights=make({"a": torch.zeros(1)}, marker))
    )
attack("manifest/weights/a program as safetensors", refused=True)(
    lambda place, marker: package(place, weights=program(marker))
)

_LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)
)
table(
    "manifest/yaml",
    lambda place, marker, text: package(place, text=filled(text, marker)),
    {
        "CVE-2020-14343 tags": "id: !!python/object/new:tuple [!!python/object/apply:os.system ['touch MARKER']]",
        "apply": "id: !!python/object/apply:os.system ['touch MARKER']",
        "module": "id: !!python/module:this",
        "laughs": _LAUGHS + "\nid: *a11",
        "deep": "id: " + "[" * 20_000,
        "keys twice": yaml.safe_dump(SPEC) + "\nid: other\n",
        "merge": "<<: [{id: a}]\n" * 3,
        "two documents": yaml.safe_dump(SPEC) + "\n---\nid: b\n",
        "a giant number": "id: " + "9" * 100_000,
        "sexagesimal": "version: 190:20:30.15\nid: 1e999\n",
        "large": "x: " + "y" * 3_000_000,
        **{name: f"{yaml.safe_dump(SPEC)}{line}\n" for name, line in YAML_LINES.items()},
    },
)


def _swap(path: Path, marker: Path) -> None:
    (path / "weights.safetensors").write_bytes(PICKLES["reduce"]({"a": torch.zeros(1)}, marker))


attack("manifest/later/weights", later=_swap)(control)
