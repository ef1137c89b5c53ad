"""Train and evaluate the built-in model `nuclei`: ``python -m training.nuclei train|evaluate|validate``."""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

import napari_medai.models
from napari_medai.api import segment
from napari_medai.engine.instances import decode_instances
from napari_medai.engine.objectsize import estimate_diameter, rescale, scale_for
from napari_medai.engine.peaks import find_peaks
from napari_medai.engine.resample import resample
from napari_medai.models.manifest import write_manifest
from napari_medai.models.spec import Accepts, Gives, Label, ModelSpec, Prepare, Tiling
from napari_medai.nets import build
from training.fitting import (
    Batch,
    as_volume,
    fit,
    load_weights,
    predict,
    results_table,
    save_weights,
    write_into_card,
)
from training.fluorescence import HIGH, LOW, Prepared, normalise, prepare, random_exposure, random_patch
from training.metrics import Counts, match_instances
from training.mnfinder import Slide, load_split, names_with_twin

FOLDER = Path(napari_medai.models.__file__).parent / "builtin" / "nuclei"
WEIGHTS = FOLDER / "weights.safetensors"
NETWORK = "nuclei_unet"
TARGET = 24.0
"""Typical diameter of a nucleus, in pixels, at the network's scale."""
SEED = 20261122
PATCH, BATCH, STEPS, RATE, ZOOM = 128, 8, 800, 4e-3, 0.3


SPEC = ModelSpec(
    id="nuclei",
    title="Nuclei in fluorescence images",
    summary="Outlines each nucleus of a 2-D fluorescence image, whatever its magnification.",
    stage="segment",
    accepts=Accepts(ndim=(2,), modality=("fluorescence",), min_size=32),
    prepare=Prepare(object_diameter=TARGET, normalise="percentile", low=LOW, high=HIGH, clip=False),
    gives=Gives(kind="instances", labels=(Label(value=1, name="nucleus"),)),
    tiling=Tiling(size=(512, 512), overlap=0.25, multiple=16, empty=0.03),
    runner="nuclei",
    network=NETWORK,
    weights=WEIGHTS.name,
    licence="BSD-3-Clause",
    citation="Training data: mnfinder 1.2.3 (MIT licence).",
    options={"foreground_threshold": 0.5, "seed_threshold": 0.4, "saddle": 0.4, "min_area": 40},
)


def sampler(slides: list[Prepared], size: int, count: int, rng: np.random.Generator) -> Batch:
    """A batch of patches, the slides drawn alike, each around a random nucleus pixel.

    Returns
    -------
    tuple of Tensor
        Images (count, 1, size, size); targets nucleus, depth and gap (count, 3, size, size).
    """
    patches = []
    for index in rng.integers(len(slides), size=count):
        slide = slides[index]
        inside = torch.nonzero(slide.planes[1] > 0.5)
        middle = inside[rng.integers(len(inside))].numpy() + rng.uniform(-size / 3, size / 3, 2)
        patches.append(random_patch(slide, size, middle, rng, ZOOM)[0])
    planes = torch.stack(patches)
    return random_exposure(planes[:, :1], rng), planes[:, 1:4]


def loss(output: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Weighted cross-entropy and Dice of the foreground, weighted square error of the depth.

    Background between two nuclei counts five times, because it is rare and keeps them apart.
    """
    nucleus, depth, gap = batch[1][:, 0], batch[1][:, 1], batch[1][:, 2]
    weight = 1 + 4 * gap
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(output[:, 0], nucleus, reduction="none")
    share = output[:, 0].sigmoid()
    dice = 1 - (2 * (share * nucleus).sum() + 1) / (share.sum() + nucleus.sum() + 1)
    error = (output[:, 1].sigmoid() - depth) ** 2 * (1 + 4 * nucleus)
    return (entropy * weight).mean() + 0.5 * dice + 4 * (error * weight).mean()


def train(weights: Path, slides: list[Slide], steps: int = STEPS) -> float:
    """Fit the network and write its weights; returns the seconds the fit took."""
    torch.manual_seed(SEED)
    prepared = [prepare(slide, TARGET) for slide in slides]
    network = build(NETWORK)
    seconds = fit(
        network,
        lambda rng: sampler(prepared, PATCH, BATCH, rng),
        loss,
        steps=steps,
        rate=RATE,
        seed=SEED,
        checkpoint=weights.with_suffix(".checkpoint"),
    )
    save_weights(network, weights)
    weights.with_suffix(".checkpoint").unlink(missing_ok=True)
    return seconds


def maps(network: torch.nn.Module, image: NDArray[np.generic]) -> NDArray[np.float32]:
    """Foreground and depth on the image's own grid, shape (2, y, x)."""
    scale = scale_for(estimate_diameter(image), TARGET)
    small = rescale(normalise(image)[None], scale)[0]
    return resample(predict(network, small), image.shape)


def score(labels: list[NDArray[np.int32]], slides: list[Slide]) -> list[Counts]:
    """Counts at an overlap of one half, per image."""
    return [match_instances(found, slide.nuclei) for found, slide in zip(labels, slides, strict=True)]


def otsu_watershed(image: NDArray[np.generic]) -> NDArray[np.int32]:
    """The classical baseline: Otsu's threshold, then a watershed of the distance transform.

    Seeds are maxima of the distance transform at least 7 pixels apart; pieces under 30 pixels are dropped.
    """
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 1.0)
    mask = ndimage.binary_fill_holes(smooth > threshold_otsu(smooth))
    distance = ndimage.distance_transform_edt(mask)
    peaks, _ = find_peaks(ndimage.gaussian_filter(distance, 1.0), 1.0, 7.0)
    seeds = np.zeros(mask.shape, dtype=np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-distance, seeds, mask=mask)
    large = np.bincount(labels.ravel()) >= 30
    large[0] = False
    return np.asarray(np.where(large, np.cumsum(large), 0)[labels], dtype=np.int32)


def validate(weights: Path) -> None:
    """Print the pooled F1 on the validation images over a few thresholds."""
    network = build(NETWORK)
    load_weights(network, weights)
    slides = load_split("validation")
    outputs = [maps(network, slide.image) for slide in slides]
    for saddle, seed, area in product((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0.4, 0.6), (40,)):
        found = [decode_instances(o[0], o[1], saddle=saddle, seed_threshold=seed, min_area=area) for o in outputs]
        counts = score(found, slides)
        print(
            f"saddle {saddle} seed {seed} area {area}: "
            f"F1 {sum(counts, Counts()).f1:.4f} each {[round(c.f1, 3) for c in counts]}"
        )


def evaluate() -> str:
    """Figures on the test images, through the function that users call; written into the card."""
    slides = load_split("test")
    found = [
        np.asarray(segment(as_volume(f"test {n}", slide.image), "nuclei").labels.array).astype(np.int32)
        for n, slide in enumerate(slides)
    ]
    ours = score(found, slides)
    classical = score([otsu_watershed(slide.image) for slide in slides], slides)
    known = names_with_twin()
    unseen = [c for c, slide in zip(ours, slides, strict=True) if slide.name not in known]
    strict = [match_instances(f, s.nuclei, 0.75) for f, s in zip(found, slides, strict=True)]
    table = results_table(
        [
            ("`nuclei`, IoU 0.5, all 16 images pooled", sum(ours, Counts())),
            ("Otsu and watershed, IoU 0.5, all 16 images pooled", sum(classical, Counts())),
            ("`nuclei`, IoU 0.5, without the image that has a twin in the training folder", sum(unseen, Counts())),
            ("`nuclei`, IoU 0.75, all 16 images pooled", sum(strict, Counts())),
            *[(f"`nuclei`, image {s.name}", c) for s, c in zip(slides, ours, strict=True)],
        ]
    )
    write_into_card(FOLDER / "card.md", "results", table)
    return table


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("train", "validate", "evaluate", "describe"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.action == "train":
        seconds = train(chosen.weights, load_split("training"), chosen.steps)
        note = (
            f"`python -m training.nuclei train`: seed {SEED}, {chosen.steps} steps of {BATCH} patches of "
            f"{PATCH} x {PATCH} pixels, {seconds / 60:.0f} minutes on one of 2 CPU cores that others used too."
        )
        print(note)
        if chosen.weights == WEIGHTS:
            write_manifest(SPEC, FOLDER)
            write_into_card(FOLDER / "card.md", "training", note)
    if chosen.action == "validate":
        validate(chosen.weights)
    if chosen.action == "describe":
        write_manifest(SPEC, FOLDER)
    if chosen.action == "evaluate":
        print(evaluate())


if __name__ == "__main__":
    main()
