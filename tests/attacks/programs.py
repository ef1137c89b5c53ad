"""Files that are programs: TorchScript, torch.export, pickles, under their own names and under innocent ones."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.attacks.corpus import attack
from tests.attacks.weights import PICKLES, exported, program

_STATE = {"weight": torch.zeros(2, 2)}
_SUFFIXES = (".pt", ".pth", ".ts", ".torchscript", ".pt2", ".ckpt", ".bin", ".safetensors", ".onnx", ".zip", ".npy", "")


def file(place: Path, name: str, content: bytes) -> Path:
    path = place / name
    path.write_bytes(content)
    return path


for _suffix in _SUFFIXES:
    attack(f"program/TorchScript{_suffix}", refused=True, proof="jit_load" if _suffix == ".pt" else "")(
        lambda place, marker, suffix=_suffix: file(place, f"model{suffix}", program(marker))
    )
for _suffix in (".pt2", ".pt", ".onnx", ".safetensors", ".zip"):
    attack(f"program/torch.export{_suffix}", refused=True)(
        lambda place, marker, suffix=_suffix: file(place, f"model{suffix}", exported(marker))
    )
for _name, _make in PICKLES.items():
    attack(f"program/pickle/{_name}", refused=True)(
        lambda place, marker, make=_make: file(place, "model.pth", make(_STATE, marker))
    )
for _suffix in (".pkl", ".safetensors", ".onnx", ".yaml", ".npy", ".pt2"):
    attack(f"program/pickle{_suffix}", refused=True)(
        lambda place, marker, suffix=_suffix: file(place, f"model{suffix}", PICKLES["plain pickle"](_STATE, marker))
    )


@attack("program/with a description beside it", refused=True)
def described(place: Path, marker: Path) -> Path:
    """A manifest that says of a program that it is weights."""
    import yaml

    from tests.attacks.manifests import SPEC

    folder = place / "package"
    folder.mkdir()
    (folder / "model.pt").write_bytes(program(marker))
    (folder / "medai-model.yaml").write_text(
        yaml.safe_dump(SPEC | {"weights": "model.pt", "runner": "onnx", "network": "", "arguments": {}})
    )
    return folder


@attack("program/a .py file", refused=True)
def python(place: Path, marker: Path) -> Path:
    return file(place, "model.py", f"open({str(marker)!r}, 'w')\n".encode())


@attack("program/a shared library", refused=True)
def library(place: Path, marker: Path) -> Path:
    return file(place, "model.so", b"\x7fELF\x02\x01\x01" + bytes(57))
