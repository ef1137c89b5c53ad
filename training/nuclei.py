"""Train and evaluate the built-in model `nuclei`: ``python -m training.nuclei train|evaluate|validate``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import napari_medai.models
from napari_medai.engine.instances import decode_instances
from napari_medai.engine.objectsize import estimate_diameter, rescale, resize, scale_for
from napari_medai.nets import build
from training.fitting import Batch, fit, load_weights, predict, save_weights
from training.fluorescence import Prepared, normalise, prepare, random_exposure, random_patch
from training.metrics import Counts, match_instances
from training.mnfinder import Slide, load_split

FOLDER = Path(napari_medai.models.__file__).parent / "builtin" / "nuclei"
WEIGHTS = FOLDER / "weights.safetensors"
NETWORK = "nuclei_unet"
TARGET = 24.0
"""Typical diameter of a nucleus, in pixels, at the network's scale."""
SEED = 20261122
PATCH, BATCH, STEPS, RATE, ZOOM = 128, 8, 1200, 4e-3, 0.3


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
    return resize(predict(network, small), (image.shape[0], image.shape[1]))


def score(labels: list[NDArray[np.int32]], slides: list[Slide]) -> list[Counts]:
    """Counts at an overlap of one half, per image."""
    return [match_instances(found, slide.nuclei) for found, slide in zip(labels, slides, strict=True)]


def validate() -> None:
    """Print the pooled F1 on the validation images over a few thresholds."""
    network = build(NETWORK)
    load_weights(network, WEIGHTS)
    slides = load_split("validation")
    outputs = [maps(network, slide.image) for slide in slides]
    for foreground in (0.4, 0.5, 0.6):
        for saddle in (0.05, 0.1, 0.15, 0.2):
            for seed in (0.2, 0.4, 0.6):
                found = [
                    decode_instances(o[0], o[1], foreground_threshold=foreground, saddle=saddle, seed_threshold=seed)
                    for o in outputs
                ]
                counts = score(found, slides)
                print(
                    f"foreground {foreground} saddle {saddle} seed {seed}: "
                    f"F1 {sum(counts, Counts()).f1:.4f} each {[round(c.f1, 3) for c in counts]}"
                )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("train", "validate"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.action == "train":
        seconds = train(chosen.weights, load_split("training"), chosen.steps)
        print(f"trained in {seconds / 60:.1f} minutes")
    else:
        validate()


if __name__ == "__main__":
    main()
