"""The same labels as nnU-Net's own predictor, on fabricated models and through files.

Needs ``MEDAI_NNUNET``: the python of an environment with nnunetv2 (``make test-nnunet`` makes one). `python -m
tests.engine.nnunet.test_nnunet_parity` prints the table of docs/sources/nnunet.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Picture

import napari_medai as medai
from napari_medai.core.geometry import to_ras
from napari_medai.models import load, nnunet
from tests.engine.nnunet.fabricate import REGIONS, Made, folder_of, make, phantom

PYTHON = os.environ.get("MEDAI_NNUNET", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="MEDAI_NNUNET names no python with nnunetv2: make test-nnunet"),
]
AGREE = 0.9999
THREE = ("3d_fullres",)
FLAT = {"kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)), "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2))}
PLANAR: dict[str, Any] = {
    "configurations": ("2d",), "patch": (32, 40), "kernels": ((3, 3),) * 3, "strides": ((1, 1), (2, 2), (2, 2)),
}  # fmt: skip


def oblique(spacing: Sequence[float], turned: Sequence[int] = (0, 1, 2)) -> NDArray[np.float64]:
    """RAS affine (x, y, z) of a scan that is tilted and stored in another order or direction of axes."""
    angle = np.deg2rad(12)
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = (tilt @ np.diag([-1, 1, 1]))[:, list(turned)] @ np.diag(spacing[::-1])
    affine[:3, 3] = (20, -30, 15)
    return affine


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A model and the scan it is run on; the shape and spacing along z, y, x."""

    made: Made
    shape: tuple[int, int, int] = (34, 38, 42)
    spacing: tuple[float, float, float] = (1.4, 1.6, 1.5)
    affine: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    folds: str = "all"
    mirroring: bool = True


def trials() -> dict[str, Trial]:
    """Every kind of model that nnU-Net makes."""
    two = ("T1", "FLAIR")
    thick = {"spacing": (4.5, 1.2, 1.2), "patch": (8, 24, 24), **FLAT}
    return {
        "isotropic 3d_fullres": Trial(made=Made(), affine=oblique((1.4, 1.6, 1.5))),
        "plans of nnU-Net 2.0": Trial(made=Made(old=True, dataset="Dataset002_Old")),
        "anisotropic, separate z": Trial(made=Made(**thick), shape=(14, 46, 50), spacing=(5.0, 1.0, 1.0)),
        "anisotropic, forced": Trial(
            made=Made(separate_z=True, **thick), shape=(16, 46, 50), spacing=(3.0, 1.0, 1.1)
        ),
        "anisotropic, transposed": Trial(
            made=Made(forward=(2, 0, 1), **thick), shape=(46, 50, 14), spacing=(1.0, 1.0, 5.0)
        ),
        "resampled by torch": Trial(
            made=Made(resampler="resample_torch_fornnunet", **thick), shape=(14, 46, 50), spacing=(5.0, 1.0, 1.0)
        ),
        "2d": Trial(made=Made(**PLANAR, spacing=(1.2, 1.2)), shape=(7, 48, 52), spacing=(5.0, 1.0, 1.1)),
        "2d, mirrored": Trial(
            made=Made(**PLANAR, spacing=(1.2, 1.2), mirroring=(0, 1)), shape=(5, 48, 52), spacing=(5.0, 1.0, 1.1)
        ),
        "2d, RGB pictures": Trial(
            made=Made(
                **PLANAR, spacing=(1.0, 1.0), channel_names=("R", "G", "B"), schemes=("RGBTo01Normalization",) * 3,
                masked=(False,) * 3, reader="NaturalImage2DIO",
            ),
            shape=(1, 57, 70),
        ),
        "mirrored along three axes": Trial(made=Made(mirroring=(0, 1, 2))),
        "mirrored along two, off": Trial(made=Made(mirroring=(0, 1)), mirroring=False),
        "regions": Trial(made=Made(labels=REGIONS, order=(1, 2, 3))),
        "regions, 2 channels, masked": Trial(
            made=Made(
                labels={**REGIONS, "ignore": 4}, order=(1, 2, 3), channel_names=two,
                schemes=("ZScoreNormalization",) * 2, masked=(True, True),
            )
        ),
        "ensemble of two folds": Trial(made=Made(folds=("0", "1"))),
        "one of two folds": Trial(made=Made(folds=("0", "3")), folds="3"),
        "residual encoder": Trial(made=Made(residual=True)),
        "residual encoder, mirrored": Trial(made=Made(residual=True, mirroring=(0,), features=(8, 8, 12))),
        "CT, rescaled, no norm": Trial(
            made=Made(
                channel_names=("CT", "rescale_to_0_1", "noNorm"), masked=(False,) * 3,
                schemes=("CTNormalization", "RescaleTo01Normalization", "NoNormalization"),
            )
        ),
        "cascade": Trial(made=Made(configurations=("3d_lowres", "3d_cascade_fullres"))),
        "cascade, thick slices": Trial(
            made=Made(configurations=("3d_lowres", "3d_cascade_fullres"), **thick),
            shape=(14, 46, 50), spacing=(5.0, 1.0, 1.0),
        ),
        "turned to RAS (nibabel)": Trial(
            made=Made(reader="NibabelIOWithReorient"), affine=oblique((1.4, 1.6, 1.5), (1, 2, 0))
        ),
        "as stored (nibabel)": Trial(made=Made(reader="NibabelIO"), affine=oblique((1.4, 1.6, 1.5), (1, 2, 0))),
        "turned to RAS (SimpleITK)": Trial(
            made=Made(reader="SimpleITKIOWithReorient"), affine=oblique((1.4, 1.6, 1.5), (2, 0, 1))
        ),
        "smaller than a tile": Trial(made=Made(), shape=(9, 15, 44), spacing=(1.5, 1.5, 1.5)),
    }  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What both gave: labels on the scan's voxels, and seconds of ours."""

    ours: NDArray[Any]
    theirs: NDArray[Any]
    seconds: float


def write_images(root: Path, trial: Trial) -> list[str]:
    """The phantom as files in which nnU-Net reads it, one for each channel."""
    pixels, _ = phantom(trial.shape, trial.spacing, len(trial.made.channel_names), seed=3)
    if trial.made.reader == "NaturalImage2DIO":
        colours = np.moveaxis(np.clip(pixels[:, 0] / 1.5, 0, 255), 0, -1).astype(np.uint8)
        Picture.fromarray(colours).save(root / "case_0000.png")
        return [str(root / "case_0000.png")]
    affine = trial.affine
    if np.array_equal(affine, np.eye(4)):
        affine = np.diag([*trial.spacing[::-1], 1.0])
    files = []
    for n, channel in enumerate(pixels):
        files.append(str(root / f"case_{n:04}.nii.gz"))
        nibabel.save(nibabel.Nifti1Image(channel.T, affine), files[-1])
    return files


def job(root: Path, made: Made, trial: Trial, images: list[str], name: str, previous: str = "") -> dict[str, Any]:
    """What the reference is asked for."""
    out = root / (f"{name}.npy" if made.reader == "NaturalImage2DIO" else f"{name}.nii.gz")
    folds = [fold for fold in made.folds if trial.folds in ("all", fold)]
    return {
        "model": str(folder_of(root, made, name)), "folds": folds, "images": images, "previous": previous,
        "out": str(out), "mirroring": trial.mirroring,
    }  # fmt: skip


def our_labels(data: Path, images: list[str], trial: Trial) -> NDArray[Any]:
    """Ours, through this package's reader, on the voxels as the file stores them: (z, y, x)."""
    if images[0].endswith(".png"):
        volume = medai.open(images[0])
    else:
        scans = [medai.open(file) for file in images]
        stack = np.stack([scan.numpy() for scan in scans])
        volume = scans[0] if len(scans) == 1 else scans[0].replace(array=stack, axes="czyx")
    spec = nnunet.describe(data, folds=trial.folds, mirroring=trial.mirroring)
    found = medai.segment(volume, load(spec)).labels
    if not images[0].endswith(".png"):
        stored = nibabel.load(images[0])
        # ours lies in the order of this package's axes: back to the file's, by the affines alone
        through = np.linalg.inv(to_ras(found.affine)) @ stored.affine  # file's (i, j, k) -> ours
        at = np.indices(stored.shape).reshape(3, -1)
        i, j, k = np.rint(through[:3, :3] @ at + through[:3, 3:]).astype(int)
        return np.asarray(found.numpy())[k, j, i].reshape(stored.shape).T
    return np.asarray(found.numpy())


def run(chosen: dict[str, Trial], root: Path) -> dict[str, Outcome]:
    """Both implementations on some trials; nnU-Net's in one process."""
    jobs, places = [], {}
    for n, (title, trial) in enumerate(chosen.items()):
        place = root / str(n)
        place.mkdir()
        data, images, previous = make(place, trial.made), write_images(place, trial), ""
        for name in trial.made.configurations:
            jobs.append(job(place, trial.made, trial, images, name, previous))
            previous = jobs[-1]["out"]
        places[title] = (data, images, jobs[-1]["out"])
    listed = root / "jobs.json"
    listed.write_text(json.dumps(jobs))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = Path(__file__).parent / "reference.py"
    subprocess.run([PYTHON, str(script), str(listed)], check=True, env=environment, stdout=subprocess.DEVNULL)
    outcomes = {}
    for title, (data, images, out) in places.items():
        begun = time.perf_counter()
        ours = our_labels(data, images, chosen[title])
        seconds = time.perf_counter() - begun
        theirs = np.load(out) if out.endswith(".npy") else np.asanyarray(nibabel.load(out).dataobj).T
        outcomes[title] = Outcome(ours, theirs.reshape(ours.shape), seconds)
    return outcomes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    """Every trial, once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run(trials(), tmp_path_factory.mktemp("parity"))
    torch.set_num_threads(threads)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("title", list(trials()))
def test_labels_are_those_of_nnunet(outcomes: dict[str, Outcome], title: str) -> None:
    outcome = outcomes[title]
    # labels that mean something: every one of them is there, and nothing fills the image
    shares = np.bincount(outcome.theirs.ravel(), minlength=4) / outcome.theirs.size
    assert (shares[:4] > 0.002).all(), shares
    assert shares.max() < 0.95
    assert np.mean(outcome.ours == outcome.theirs) >= AGREE


def main() -> None:
    """Print the table for the documentation."""
    torch.set_num_threads(1)
    chosen = {title: trial for title, trial in trials().items() if not sys.argv[1:] or title in sys.argv[1:]}
    print("| model | voxels | that differ | agreement, % |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as place:
        for title, outcome in run(chosen, Path(place)).items():
            differ = int((outcome.ours != outcome.theirs).sum())
            share = 100 * (1 - differ / outcome.ours.size)
            print(f"| {title} | {outcome.ours.size} | {differ} | {share:.4f} |")
            shares = np.bincount(outcome.theirs.ravel(), minlength=4) / outcome.theirs.size
            print(f"{title}: {outcome.seconds:.1f} s, labels {np.round(shares, 4)}", file=sys.stderr)


if __name__ == "__main__":
    main()
