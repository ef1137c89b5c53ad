"""The engine beside its peers: one table, in one run, on one device.

::

    python -m benchmarks.engine --markdown                 # all rows, on the CPU
    python -m benchmarks.engine unet overhead --device cuda
    python -m benchmarks.engine --quick                    # small sizes, to try the program itself; no figures

Every cell is measured in processes of its own, ours and the peer's in turns; time is the median of the repeats, memory
the largest of them, by the kernel's mark of the resident size (`benchmarks.memory`). nnU-Net's rows need an interpreter
that has nnunetv2: ``MEDAI_NNUNET=.venv-nnunet/bin/python`` (``make test-nnunet`` makes it).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks import nnunet_peer, start
from benchmarks import slide as slides
from benchmarks.memory import fresh
from benchmarks.windows import MANY, SCAN, grid

# Of the peer's process where it is known to need more than there is
LIMIT_MB = 20_000


@dataclass(frozen=True)
class Line:
    """A line of the table; ``reached`` is none where nothing is to be reached or nothing was measured."""

    work: str
    peer: str
    ours: str = "not measured here"
    theirs: str = ""
    ratio: str = ""
    goal: str = ""
    reached: bool | None = None

    def cells(self) -> tuple[str, ...]:
        """What stands in the table."""
        reached = {None: "", True: "yes", False: "**no**"}[self.reached]
        return (self.work, self.peer, self.ours, self.theirs, self.ratio, self.goal, reached)


@dataclass(frozen=True)
class Wish:
    """What was asked for."""

    device: str
    quick: bool
    repeats: int
    folder: Path


def unet(wish: Wish) -> Iterator[Line]:
    """A 3-D U-Net of two classes, against MONAI's sliding window."""
    edge = 128 if wish.quick else 256
    folder = _fitted(wish)
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "monai": []}
    for _ in range(wish.repeats):
        for side, found in runs.items():
            out = str(wish.folder / f"{side}.npy")
            given = {"folder": folder, "edge": edge, "device": wish.device, "batch": 4, "out": out}
            found.append(_good(fresh(f"benchmarks.windows:{side}", **given)))
    work, peer = f"3-D U-Net, 2 classes, {edge}³, overlap 0.5", "MONAI SlidingWindowInferer"
    mine, other = (statistics.median(run["seconds"] for run in found) for found in runs.values())
    yield _ratio(f"{work}: time", peer, mine, other, "s", 0.9)
    if wish.device == "cuda":
        yield _memory(f"{work}: memory of the GPU", peer, runs, "device_mb", 0.5)
    yield _memory(f"{work}: memory above network and image", peer, runs, "increase_mb", 0.5)
    yield _memory(f"{work}: memory of the process", peer, runs, "peak_mb")
    same = float(np.mean(np.load(wish.folder / "ours.npy") == np.load(wish.folder / "monai.npy")))
    blobs = runs["ours"][-1]["foreground"]
    yield Line(f"{work}: labels", peer, f"{same:.4%} equal", f"{blobs:.1%} foreground", "", "the same", same > 0.9999)


def classes(wish: Wish) -> Iterator[Line]:
    """117 classes over a large scan: memory, and the way from scores to labels."""
    planes = 24 if wish.quick else SCAN[0]
    folder = str(wish.folder / "many")
    _good(fresh("benchmarks.windows:make_many", folder=folder))
    given = {"folder": folder, "planes": planes, "device": wish.device}
    mine = _good(fresh("benchmarks.windows:ours_many", **given))
    work = f"117 classes, 512x512x{planes}, model spacing 1.5 mm"
    theirs = fresh("benchmarks.windows:monai_many", limit_mb=LIMIT_MB, **given)
    needed = 4 * MANY["out_channels"] * (prod(grid(planes)) + planes * prod(SCAN[1:])) / 2**20
    ended = theirs.get("failed") or theirs.get("died")
    told = f"out of memory at {LIMIT_MB / 1000:.0f} GB ({ended})" if ended else _gib(theirs["peak_mb"])
    yield Line(
        f"{work}: peak memory of the process", "MONAI the same", _gib(mine["peak_mb"]),
        f"{told}; its scores alone are {_gib(needed)}", f"{mine['peak_mb'] / needed:.2f}x of those", "< 3 GB",
        mine["peak_mb"] * 2**20 < 3e9,
    )  # fmt: skip
    took = f"{theirs['seconds']:.0f} s" + (" until then" if ended else "") if "seconds" in theirs else ""
    yield Line(f"{work}: time of it all", "MONAI the same", f"{mine['seconds']:.0f} s, {mine['tiles']} tiles", took)
    work = "117 classes, scores to labels on the scan's voxels (24 planes)"
    peer = "nnU-Net's resampling and argmax"
    if not os.environ.get("MEDAI_NNUNET"):
        yield Line(work, peer, "not measured here: MEDAI_NNUNET is not set")
        return
    size: dict[str, Any] = {"shape": (6, 68, 68), "out_shape": (6, 128, 128)} if wish.quick else {}
    for kind, what in (("organs", "organs"), ("smooth", "borders everywhere")):
        runs = [nnunet_peer.stage(kind=kind, **size) for _ in range(wish.repeats)]
        yield _beside(f"{work}, {what}", peer, runs, 0.15)


def nnunet(wish: Wish) -> Iterator[Line]:
    """The whole of nnU-Net's prediction."""
    peer = "nnunetv2's predictor"
    if not os.environ.get("MEDAI_NNUNET"):
        yield Line("nnU-Net 3d_fullres", peer, "not measured here: MEDAI_NNUNET is not set")
        return
    shape = (48, 96, 96) if wish.quick else (160, 256, 256)
    patch: dict[str, Any] = {"patch": (32, 32, 32), "features": (8, 16, 32)} if wish.quick else {}
    runs = [nnunet_peer.predictor(shape=shape, device=wish.device, **patch) for _ in range(wish.repeats)]
    work = f"nnU-Net 3d_fullres, CT-like phantom of {'x'.join(map(str, shape))}, no mirroring"
    yield _beside(f"{work}: time", peer, runs, 0.4 if wish.device == "cuda" else 0.7)
    sides = {side: [run[side] for run in runs] for side in ("ours", "theirs")}
    yield _memory(f"{work}: memory of the process", peer, sides, "peak_mb")
    differ = max(run["differ"] for run in runs)
    yield Line(f"{work}: labels", peer, f"{1 - differ:.4%} equal", "", "", ">= 99.99 %", differ <= 1e-4)


def overhead(wish: Wish) -> Iterator[Line]:
    """A run against what its passes alone take."""
    edge = 128 if wish.quick else 192
    found = _good(
        fresh("benchmarks.windows:overhead", folder=_fitted(wish), edge=edge, device=wish.device, repeats=wish.repeats)
    )
    work = f"overhead, {found['tiles']} tiles of 96³ in {found['in']} passes"
    most = 1.15 if wish.device == "cuda" else 1.05
    yield _ratio(f"{work}: the engine", "passes x time of one", found["run"], found["passes"], "s", most)
    yield _ratio(f"{work}: image to labels", "passes x time of one", found["stage"], found["passes"], "s")


def slide(wish: Wish) -> Iterator[Line]:
    """Nuclei of a whole slide against a crop that is held in memory, scaled."""
    found = slides.compare(**({"edge": 6000, "tissue": 1.0} if wish.quick else {}))
    whole, crop = _good(found["slide"]), _good(found["crop"])
    work = f"nuclei of a slide of {found['edge']:,} x {found['edge']:,} pixels, {whole['tissue']:.0%} tissue"
    peer = f"a crop of {crop['pixels'] / 1e6:.0f} megapixels, scaled"
    each = [side["seconds_per_tissue_megapixel"] for side in (whole, crop)]
    yield Line(
        f"{work}: time", peer, f"{whole['seconds']:.0f} s ({each[0]:.2f} s a megapixel of tissue)",
        f"{crop['seconds']:.0f} s ({each[1]:.2f} s)", f"{found['linear']:.2f}x", "linear", found["linear"] < 1.15,
    )  # fmt: skip
    peak = whole["peak_rss_mb"]
    yield Line(
        f"{work}: peak memory of the process", peer, _gib(peak), _gib(crop["peak_rss_mb"]), "", "< 3 GB",
        peak * 2**20 < 3e9,
    )  # fmt: skip
    yield Line(f"{work}: nuclei", peer, f"{whole['objects']:,}", f"{crop['objects']:,}")


def starting(wish: Wish) -> Iterator[Line]:
    """What importing and napari's start take."""
    yield from (Line(**fields) for fields in start.lines(wish.quick))


ROWS: dict[str, Callable[[Wish], Iterator[Line]]] = {
    "unet": unet,
    "classes": classes,
    "nnunet": nnunet,
    "overhead": overhead,
    "slide": slide,
    "start": starting,
}


def machine(device: str) -> str:
    """What it was measured on, and with which versions."""
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    memory = psutil.virtual_memory().total / 2**30
    versions = [f"torch {torch.__version__}", *(f"{package} {_version(package)}" for package in ("monai", "numpy"))]
    if python := os.environ.get("MEDAI_NNUNET"):
        code = "from importlib.metadata import version; print(version('nnunetv2'))"
        said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        versions.append(f"nnunetv2 {said.stdout.strip()}")
    return f"On {device}: {name}, {psutil.cpu_count()} cores, {memory:.0f} GiB. {', '.join(versions)}."


def _fitted(wish: Wish) -> str:
    folder = wish.folder / "two"
    if not folder.exists():
        _good(fresh("benchmarks.windows:fit", folder=str(folder), steps=10 if wish.quick else 80))
    return str(folder)


def _good(found: dict[str, Any]) -> dict[str, Any]:
    if "died" in found:
        raise SystemExit(f"A process ended with {found['died']}: {found['says']}")
    return found


def _ratio(work: str, peer: str, mine: float, other: float, unit: str, goal: float = 0.0) -> Line:
    share = mine / other
    wanted = f"<= {goal:g}x" if goal else ""
    cells = (f"{mine:.2f} {unit}", f"{other:.2f} {unit}", f"{share:.2f}x", wanted)
    return Line(work, peer, *cells, share <= goal if goal else None)


def _memory(work: str, peer: str, runs: dict[str, list[dict[str, Any]]], what: str, goal: float = 0.0) -> Line:
    mine, other = (max(run[what] for run in found) for found in runs.values())
    return _ratio(work, peer, mine / 1024, other / 1024, "GiB", goal)


def _beside(work: str, peer: str, runs: list[dict[str, Any]], goal: float) -> Line:
    mine, other = (statistics.median(run[side]["seconds"] for run in runs) for side in ("ours", "theirs"))
    return _ratio(work, peer, mine, other, "s", goal)


def _gib(mib: float) -> str:
    return f"{mib / 1024:.2f} GiB"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Measure the rows that are named, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="row", help=f"out of {', '.join(ROWS)}; default all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the program; not the table's figures")
    parser.add_argument("--repeats", type=int, default=0, help="default 3, with --quick 1")
    given = parser.parse_args()
    if unknown := [name for name in given.rows if name not in ROWS]:
        parser.error(f"no row is called {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here")
    print(machine(given.device))
    if given.quick:
        print("QUICK: small sizes and few repeats; these are not the figures of the table.")
    titles = ("work", "against", "ours", "theirs", "ratio", "to reach", "reached")
    print(f"\n| {' | '.join(titles)} |\n|{'---|' * len(titles)}" if given.markdown else "", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        wish = Wish(given.device, given.quick, given.repeats or (1 if given.quick else 3), Path(folder))
        for name in given.rows or ROWS:
            for line in ROWS[name](wish):
                cells = line.cells()
                print(f"| {' | '.join(cells)} |" if given.markdown else "  ".join(filter(None, cells)), flush=True)


if __name__ == "__main__":
    main()
