"""A source of packages that carry Python, and runners that behave in every way; they run in a process of their own.

A package is a folder with ``carried.json``: what it needs, and which of the runners below runs it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from napari_medai.core.errors import InputError
from napari_medai.models.spec import Accepts, Gives, Label, ModelSpec, Need

STAGES = {"segment": "labels", "classify": "classes", "detect": "boxes", "denoise": "image"}


def recognise(path: Path) -> bool:
    return (path / "carried.json").is_file()


def probe(path: Path) -> ModelSpec:
    record = json.loads((path / "carried.json").read_text())
    stage = record.get("stage", "segment")
    return ModelSpec(
        id="carried",
        title="Carried",
        summary="",
        stage=stage,
        accepts=Accepts(ndim=(2, 3)),
        gives=Gives(kind=STAGES[stage], labels=(Label(value=1, name="a"), Label(value=2, name="b"))),
        runner=record["runner"],
        details={"says": record.get("says", "")},
        safety="code",
        needs=tuple(Need(capability=name, where="carried.json", why="a program") for name in record["needs"]),
    )


def labels(volume, run, params) -> Any:
    """A threshold, told tile by tile."""
    run.note("the middle of the range is the threshold")
    array = volume.numpy()
    for n in range(4):
        run.tile_done(1)
        run.progress.update(n + 1, 4, "thresholding")
    print("this is no message")
    return (array > array.mean()).astype(np.uint8)


def looks(volume, run, params) -> Any:
    """What the process sees of the world and what it can do, told as notes; the labels are all 0."""
    where = json.loads(run.spec.details["says"])
    sees = {
        "environment": sorted(os.environ),
        "secrets": [value for value in os.environ.values() if "hush" in value],
        "files": [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if _is_open(int(n))],
        "volume": [volume.name, volume.source, dict(volume.meta)],
        "package": os.fspath(run.spec.path),
        "group": os.getpgid(0) == os.getpid(),
    }
    for key, value in sees.items():
        run.note(f"sees {key}: {json.dumps(value)}")
    for name, attempt in {
        "socket": lambda: socket.socket(),
        "unix": lambda: socket.socket(socket.AF_UNIX),
        "write": lambda: Path(where["outside"], "marker").write_text("x"),
        "read": lambda: Path(where["outside"], "secret").read_text(),
        "shell": lambda: subprocess.run(["/bin/sh", "-c", f"echo x > {where['outside']}/marker"], check=True),
        "parent": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        "signal": lambda: os.kill(os.getppid(), 0),
        "session": lambda: os.setsid(),
        "own": lambda: Path("mine").write_text("x"),
    }.items():
        try:
            attempt()
        except (OSError, subprocess.CalledProcessError):
            run.note(f"{name}: refused")
        else:
            run.note(f"{name}: done")
    return np.zeros(volume.spatial_shape, np.uint8)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def fails(volume, run, params) -> Any:
    raise ValueError("what the program\nsays\x1b[31m")


def refuses(volume, run, params) -> Any:
    raise InputError("Four slices are needed.")
