"""How the built-in model ``blobs3d`` is made: simulated objects in real backgrounds.

``python -m training.blobs3d train`` writes the weights and chooses the thresholds on simulated validation
volumes; ``python -m training.blobs3d evaluate`` prints the figures on held-out images and writes them
into the model card.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from skimage.feature import blob_log
from torch.nn import functional

from napari_medai.api import detect
from napari_medai.core.volume import Volume
from napari_medai.engine.blobs import HIGH_PERCENTILE, LOW_PERCENTILE, Blobs, Polarity, find_blobs, normalise
from napari_medai.models.manifest import read_manifest, write_manifest
from napari_medai.models.spec import Accepts, Gives, Label, ModelSpec, Prepare, Tiling
from napari_medai.nets.blobs import BlobCentres
from training.blob_backgrounds import Sources, Split, sources
from training.blob_phantoms import Phantom, simulate
from training.fitting import (
    Batch,
    fit,
    load_weights,
    results_table,
    save_weights,
    write_into_card,
)
from training.metrics import Counts, match_points
from training.packages import package_member

FOLDER = Path(__file__).parents[1] / "src/napari_medai/models/builtin/blobs3d"
WEIGHTS = "weights.safetensors"
SEED = 20261122
EDGE = 48
"""Of simulated training volumes; crops of `CROP` are cut from them."""
CROP = 40
BATCH = 4
STEPS = 1500
POOL = 900
RATE = 3e-3
VALIDATION, TEST = 16, 16
SIZE = 64
"""Edge of validation and test volumes: larger than the training crops, with objects up to `TOP` voxels."""
TOP = 32.0
THRESHOLDS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6)
LOG_THRESHOLDS = (0.05, 0.1, 0.2, 0.3)
LOG_SIGMAS = {"min_sigma": 4 / (2 * 3**0.5), "max_sigma": 40 / (2 * 3**0.5), "num_sigma": 8}


def targets(phantom: Phantom, low: Sequence[int], size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the network shall give for a crop.

    Parameters
    ----------
    phantom
        The simulated volume.
    low
        First voxel of the crop along z, y, x.
    size
        Edge of the crop.

    Returns
    -------
    heat : ndarray
        Bright and dark heatmaps: Gaussians of 1/7 of the diameter (0.8 to 2.5 voxels) with 1 at the centre,
        shape (2, size, size, size).
    width : ndarray
        log2 of the diameter of the object that dominates a voxel, (size, size, size).
    """
    heat = np.zeros((2, size, size, size), dtype=np.float32)
    width = np.zeros((size, size, size), dtype=np.float32)
    best = np.zeros((size, size, size), dtype=np.float32)
    for centre, diameter, bright in zip(phantom.centres, phantom.diameters, phantom.bright, strict=True):
        sigma = float(np.clip(diameter / 7, 0.8, 2.5))
        middle = np.round(centre - low).astype(int)
        a = np.maximum(middle - int(3.5 * sigma), 0)
        b = np.minimum(middle + int(3.5 * sigma) + 1, size)
        if (a >= b).any():
            continue
        box = tuple(slice(i, j) for i, j in zip(a, b, strict=True))
        axes = [np.exp(-((np.arange(i, j) - m) ** 2) / (2 * sigma**2)) for i, j, m in zip(a, b, middle, strict=True)]
        bump = np.einsum("i,j,k->ijk", *axes).astype(np.float32)
        channel = heat[(0 if bright else 1, *box)]
        np.maximum(channel, bump, out=channel)
        width[box] = np.where(bump > best[box], np.log2(diameter), width[box])
        best[box] = np.maximum(best[box], bump)
    return heat, width


def batch(pool: Sequence[Phantom], rng: np.random.Generator) -> Batch:
    """Random crops, turned and mirrored, with gain and offset jitter and swapped polarity.

    Returns
    -------
    tuple of Tensor
        Images (batch, 1, z, y, x), heatmaps (batch, 2, z, y, x), log2 diameters (batch, 1, z, y, x).
    """
    groups: tuple[list[NDArray[np.float32]], ...] = ([], [], [])
    for n in rng.integers(len(pool), size=BATCH):
        phantom = pool[n]
        low = rng.integers(0, phantom.image.shape[0] - CROP + 1, 3)
        image = phantom.image[tuple(slice(i, i + CROP) for i in low)].astype(np.float32)
        heat, width = targets(phantom, low, CROP)
        if rng.random() < 0.3:  # the negative: bright objects become dark ones
            image, heat = 1 - image, heat[::-1]
        image = image * rng.uniform(0.5, 1.3) + rng.uniform(-0.15, 0.3)
        order = 1 + rng.permutation(3)
        flips = tuple(1 + int(a) for a in np.flatnonzero(rng.random(3) < 0.5))
        for group, maps in zip(groups, (image[None], heat, width[None]), strict=True):
            group.append(np.flip(maps.transpose(0, *order), flips))
    return tuple(torch.from_numpy(np.stack(group).astype(np.float32)) for group in groups)


def loss(maps: torch.Tensor, truth: Batch) -> torch.Tensor:
    """Penalty-reduced focal loss of CenterNet for the heatmaps, L1 for log2 diameters near centres.

    The focal loss weighs down the background, which is 10,000 times more frequent than centres.
    """
    _, heat, width = truth
    logits = maps[:, :2]
    p = torch.sigmoid(logits)
    positive = (heat > 0.999).float()
    right = -functional.logsigmoid(logits) * (1 - p) ** 2 * positive
    wrong = -functional.logsigmoid(-logits) * p**2 * (1 - heat) ** 4 * (1 - positive)
    count = positive.sum((1, 2, 3, 4)).clamp(min=4)
    focal = ((right + wrong).sum((1, 2, 3, 4)) / count).mean()
    near = (heat.amax(1, keepdim=True) > 0.3).float()
    sizes = ((maps[:, 2:] - width).abs() * near).sum() / near.sum().clamp(min=1)
    return focal + 0.5 * sizes


def make_pool(images: Sources, count: int, seed: int, size: int = EDGE) -> list[Phantom]:
    """Simulate volumes for training; images are normalised as at inference and kept as float16."""
    rng = np.random.default_rng(seed)
    pool = []
    for _ in range(count):
        p = simulate(rng, images, size)
        image = normalise(p.image).astype(np.float16)
        pool.append(Phantom(image, p.labels[:0], p.centres, p.diameters, p.bright))  # type: ignore[arg-type]
    return pool


def train(pool: Sequence[Phantom], path: Path, steps: int = STEPS, seed: int = SEED) -> tuple[BlobCentres, float]:
    """Train on simulated volumes and write the weights, every 500 steps and at the end; gives the seconds too."""
    torch.manual_seed(seed)
    network = BlobCentres().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    seconds = fit(
        network, partial(batch, pool), loss, steps=steps, rate=RATE, seed=seed, checkpoint=path, report_every=50
    )
    save_weights(network, path)
    return network, seconds


def predictor(network: BlobCentres) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Run the network on a whole volume at once, (1, z, y, x) to (3, z, y, x)."""

    def predict(image: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return network(torch.from_numpy(image)[None])[0].numpy()

    return predict


def find(network: BlobCentres, image: NDArray[np.float32], polarity: Polarity, threshold: float) -> Blobs:
    """What the product finds in a volume of cubic voxels."""
    return find_blobs(image, (1.0, 1.0, 1.0), predictor(network), threshold=threshold, polarity=polarity)


def find_as_users(image: NDArray[np.float32], polarity: Polarity, threshold: float) -> Blobs:
    """What the public function finds with the weights that lie in the package, in tiles."""
    found = detect(Volume(image, "zyx", name="volume"), "blobs3d", polarity=polarity, threshold=threshold)
    bright = np.array([label == "bright" for label in found.labels], dtype=bool)
    return Blobs(found.centres, found.sizes[:, 0], found.scores, bright)


def laplacian(image: NDArray[np.float32], polarity: Polarity, threshold: float) -> Blobs:
    """The classical baseline: extrema of the Laplacian of Gaussian over scales (scikit-image's `blob_log`)."""
    scaled = np.clip(normalise(image), 0, 1)
    found, bright = [np.zeros((0, 4))], [np.zeros(0, dtype=bool)]
    for name, values in (("bright", scaled), ("dark", 1 - scaled)):
        if polarity in (name, "both"):
            found.append(blob_log(values, threshold=threshold, **LOG_SIGMAS))
            bright.append(np.full(len(found[-1]), name == "bright"))
    rows = np.concatenate(found)
    return Blobs(rows[:, :3], 2 * 3**0.5 * rows[:, 3], np.ones(len(rows)), np.concatenate(bright))


def simulated(split: Split, count: int, background: str, seed: int) -> list[Phantom]:
    """Held-out volumes with objects of 4 to `TOP` voxels, so that one scale is not enough."""
    rng = np.random.default_rng(seed)
    return [simulate(rng, sources(split), SIZE, background=background, largest=TOP) for _ in range(count)]


def score(phantom: Phantom, blobs: Blobs) -> tuple[Counts, Counts]:
    """Bright and dark objects counted apart: a bright find inside a dark object is wrong."""
    counts = []
    for bright in (True, False):
        wanted = np.concatenate([[False], phantom.bright == bright])
        counts.append(match_points(blobs.centres[blobs.bright == bright], phantom.labels * wanted[phantom.labels]))
    return counts[0], counts[1]


def choose(network: BlobCentres) -> tuple[float, float]:
    """Thresholds of the network and of the baseline with the best F1 on simulated validation volumes.

    Half the volumes have heads behind the objects, half the haze of fluorescence; the F1 is pooled.
    """
    phantoms = [
        *simulated("validation", VALIDATION // 2, "head", SEED + 1),
        *simulated("validation", VALIDATION // 2, "haze", SEED + 2),
    ]
    every = [find(network, p.image, "both", min(THRESHOLDS)) for p in phantoms]

    def pooled(found: Sequence[Blobs]) -> Counts:
        pairs = [score(p, b) for p, b in zip(phantoms, found, strict=True)]
        return sum((count for pair in pairs for count in pair), Counts())

    ours = {t: pooled([b.where(b.scores >= t) for b in every]) for t in THRESHOLDS}
    theirs = {t: pooled([laplacian(p.image, "both", t) for p in phantoms]) for t in LOG_THRESHOLDS}
    for title, table in (("network", ours), ("Laplacian of Gaussian", theirs)):
        for t, c in table.items():
            print(f"validation, {title}, threshold {t}: P {c.precision:.3f} R {c.recall:.3f} F1 {c.f1:.3f}")
    return max(ours, key=lambda t: ours[t].f1), max(theirs, key=lambda t: theirs[t].f1)


def describe(threshold: float, log_threshold: float) -> ModelSpec:
    """The description that goes beside the weights; the baseline's threshold is kept for the evaluation."""
    return ModelSpec(
        id="blobs3d",
        title="Blobs in volumes",
        summary="Centres and diameters of round objects in volumes, bright or dark, from nuclei to lesions.",
        stage="detect",
        accepts=Accepts(ndim=(3,), min_size=8),
        prepare=Prepare(isotropic=True, normalise="percentile", low=LOW_PERCENTILE, high=HIGH_PERCENTILE),
        gives=Gives(
            kind="boxes",
            labels=(
                Label(value=1, name="bright", color=(1.0, 0.8, 0.1), threshold=threshold),
                Label(value=2, name="dark", color=(0.2, 0.7, 1.0), threshold=threshold),
            ),
        ),
        tiling=Tiling(size=(96, 96, 96), overlap=0.25, multiple=8),
        runner="blobs3d",
        network="blob_centres",
        weights=WEIGHTS,
        citation="Zhou, Wang, Kraehenbuehl: Objects as Points, 2019 (the method); simulated objects in MNI152 "
        "(nilearn), inia19 (mricron-data) and CT (pydicom-data).",
        options={"threshold": threshold, "polarity": "both", "log_threshold": log_threshold},
    )


def stardist_stack() -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """The 3-D nuclei image of the stardist package and its instance labels, (z, y, x). Test only."""
    read = [
        tifffile.imread(io.BytesIO(package_member("stardist", f"stardist/data/images/{name}.tif")))
        for name in ("img3d", "mask3d")
    ]
    return read[0].astype(np.float32), read[1]


def evaluate() -> str:
    """Figures on held-out images as a markdown table, through the function that users call."""
    options = read_manifest(FOLDER).options
    ours, theirs = float(options["threshold"]), float(options["log_threshold"])
    rows: list[tuple[str, Counts]] = []
    for title, split, background in (
        ("Colin27 with simulated objects", "test", "head"),
        ("simulated fluorescence, new seed", "validation", "haze"),
    ):
        phantoms = simulated(split, TEST, background, SEED + 3)  # type: ignore[arg-type]
        for name, finder, threshold in (("blobs3d", find_as_users, ours), ("LoG", laplacian, theirs)):
            pairs = [score(p, finder(p.image, "both", threshold)) for p in phantoms]
            rows += [
                (f"{title}, {kind} objects: {name}", sum((pair[n] for pair in pairs), Counts()))
                for n, kind in enumerate(("bright", "dark"))
            ]
    image, truth = stardist_stack()
    for polarity in ("bright", "both"):
        for name, finder, threshold in (("blobs3d", find_as_users, ours), ("LoG", laplacian, theirs)):
            found = finder(image, polarity, threshold)
            dark = int((~found.bright).sum())
            counts = match_points(found.centres[found.bright], truth) + Counts(0, dark, 0)
            rows.append((f"stardist 3-D nuclei, looking for {polarity}: {name}", counts))
    return results_table(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("train", "choose", "evaluate"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--pool", type=int, default=POOL)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    weights = chosen.folder / WEIGHTS
    if chosen.action == "train":
        network, seconds = train(make_pool(sources("training"), chosen.pool, SEED), weights, chosen.steps)
        note = (
            f"`python -m training.blobs3d train`: seed {SEED}, {chosen.steps} steps of {BATCH} crops of {CROP} voxels "
            f"cubed out of {chosen.pool} simulated volumes, {seconds / 60:.0f} minutes on one of 2 CPU cores that "
            "others used too."
        )
        print(note)
        if chosen.folder == FOLDER:
            write_into_card(FOLDER / "card.md", "training", note)
    if chosen.action in ("train", "choose"):
        network = BlobCentres()
        load_weights(network, weights)
        write_manifest(describe(*choose(network)), chosen.folder)
    if chosen.action == "evaluate":
        table = evaluate()
        print(table)
        write_into_card(FOLDER / "card.md", "results", table)


if __name__ == "__main__":
    main()
