"""Train and evaluate the built-in model `micronuclei`: ``python -m training.micronuclei train|evaluate|validate``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

import napari_medai.models
from napari_medai.api import detect
from napari_medai.engine.objectsize import estimate_diameter, rescale, rescaled_to_original, scale_for
from napari_medai.engine.peaks import PeakRows, detections, find_peaks
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
from training.metrics import Counts, match_points
from training.mnfinder import Slide, load_split, names_with_twin

FOLDER = Path(napari_medai.models.__file__).parent / "builtin" / "micronuclei"
WEIGHTS = FOLDER / "weights.safetensors"
NETWORK = "micronuclei_centres"
TARGET = 36.0
"""Typical diameter of a nucleus, in pixels, at the network's scale; a micronucleus then measures about 8."""
SEED = 20261122
PATCH, BATCH, STEPS, RATE, ZOOM = 128, 8, 700, 3e-3, 0.25


SPEC = ModelSpec(
    id="micronuclei",
    title="Micronuclei in fluorescence images",
    summary="Finds micronuclei beside nuclei in 2-D fluorescence images: centre, box and score of each.",
    stage="detect",
    accepts=Accepts(ndim=(2,), modality=("fluorescence",), min_size=32),
    prepare=Prepare(object_diameter=TARGET, normalise="percentile", low=LOW, high=HIGH, clip=False),
    gives=Gives(kind="boxes", labels=(Label(value=1, name="micronucleus"),)),
    tiling=Tiling(size=(512, 512), overlap=0.25, multiple=16, empty=0.02),
    runner="micronuclei",
    network=NETWORK,
    weights=WEIGHTS.name,
    licence="BSD-3-Clause",
    citation="Training data: mnfinder 1.2.3 (MIT licence).",
    options={"threshold": 0.3, "min_distance": 2.0},
)


def heatmap(centres: NDArray[np.float64], sizes: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    """What the network should say: 1 at each centre's pixel, a Gaussian around it.

    The Gaussian's deviation is a sixth of the object's diameter, between 1 and 3 pixels.

    Returns
    -------
    ndarray
        Shape (3, size, size): heat, and the logarithms of height and width of the object whose heat is
        highest at the pixel.
    """
    out = np.zeros((3, size, size), dtype=np.float32)
    rows, columns = np.mgrid[:size, :size]
    for (y, x), extent in zip(np.rint(centres), sizes, strict=True):
        sigma = float(np.clip(extent.mean() / 6, 1.0, 3.0))
        heat = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2))
        nearest = heat > out[0]
        out[0][nearest] = heat[nearest]
        out[1][nearest], out[2][nearest] = np.log(np.maximum(extent, 1.0))
    return out


def sampler(slides: list[Prepared], size: int, count: int, rng: np.random.Generator) -> Batch:
    """A batch of patches: three in four around a micronucleus, the others around a nucleus.

    Micronuclei cover less than a hundredth of an image; drawn blindly, most patches would hold none.

    Returns
    -------
    tuple of Tensor
        Images (count, 1, size, size); heat and log sizes (count, 3, size, size); micronucleus and nucleus
        masks (count, 2, size, size).
    """
    planes, heats = [], []
    for index in rng.integers(len(slides), size=count):
        slide = slides[index]
        if rng.random() < 0.75 and len(slide.centres):
            middle = slide.centres[rng.integers(len(slide.centres))]
        else:
            inside = torch.nonzero(slide.planes[1] > 0.5)
            middle = inside[rng.integers(len(inside))].numpy().astype(np.float64)
        patch, centres, sizes = random_patch(slide, size, middle + rng.uniform(-size / 3, size / 3, 2), rng, ZOOM)
        planes.append(patch)
        heats.append(torch.from_numpy(heatmap(centres, sizes, size)))
    stacked = torch.stack(planes)
    return random_exposure(stacked[:, :1], rng), torch.stack(heats), stacked[:, [4, 1]]


def loss(output: torch.Tensor, batch: Batch) -> torch.Tensor:
    """CenterNet's focal loss of the centres, L1 of the log sizes near them, and two helping masks.

    The focal loss (alpha 2, beta 4) is divided by the number of centres, so that the vast background does
    not drown them; the masks of micronuclei (weighted tenfold, with Dice) and of nuclei teach the network
    what the centres are centres of.
    """
    heat, sizes, masks = batch[1][:, :1], batch[1][:, 1:], batch[2]
    log_p = torch.nn.functional.logsigmoid(output[:, :1])
    log_q = torch.nn.functional.logsigmoid(-output[:, :1])
    p = output[:, :1].sigmoid()
    centre = heat > 0.999
    focal = -torch.where(centre, (1 - p) ** 2 * log_p, (1 - heat) ** 4 * p**2 * log_q).sum()
    near = (heat > 0.5).float()
    count = centre.sum().clamp(min=1)
    extent = ((output[:, 1:3] - sizes).abs() * near).sum() / near.sum().clamp(min=1)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    small = entropy(output[:, 3], masks[:, 0], weight=1 + 9 * masks[:, 0])
    share = output[:, 3].sigmoid()
    dice = 1 - (2 * (share * masks[:, 0]).sum() + 1) / (share.sum() + masks[:, 0].sum() + 1)
    large = entropy(output[:, 4], masks[:, 1])
    return focal / count + 0.2 * extent + small + 0.5 * dice + 0.5 * large


def train(weights: Path, slides: list[Slide], steps: int = STEPS) -> float:
    """Fit the network and write its weights; returns the seconds the fit took."""
    torch.manual_seed(SEED)
    prepared = [prepare(slide, TARGET) for slide in slides]
    network = build(NETWORK)
    with torch.no_grad():  # begin with few centres, as CenterNet and RetinaNet do
        final = network.unet.final_conv  # type: ignore[union-attr]
        final.bias.copy_(torch.tensor([-4.0, 2.0, 2.0, -4.0, -1.0]))  # type: ignore[union-attr, operator]
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
    """Heat and sizes at the network's scale, shape (3, y', x')."""
    small = rescale(normalise(image)[None], scale_for(estimate_diameter(image), TARGET))[0]
    return predict(network, small)


def centres_of(
    output: NDArray[np.float32], shape: tuple[int, int], threshold: float, min_distance: float
) -> NDArray[np.float64]:
    """Centres of micronuclei on the image's own grid, of `shape`, out of `maps`."""
    rescaled = (output.shape[1], output.shape[2])
    rows = PeakRows(threshold, rescaled)
    rows.take(0, output[:3])
    return rescaled_to_original(detections(*rows.result(), min_distance=min_distance).centres, rescaled, shape)


def validate(weights: Path) -> None:
    """Print the pooled F1 on the validation images over a few thresholds."""
    network = build(NETWORK)
    load_weights(network, weights)
    slides = load_split("validation")
    outputs = [maps(network, slide.image) for slide in slides]
    for distance in (2.0, 3.0, 4.0):
        for threshold in np.arange(0.15, 0.6, 0.05):
            counts = [
                match_points(centres_of(o, s.image.shape, threshold, distance), s.micronuclei)
                for o, s in zip(outputs, slides, strict=True)
            ]
            pooled = sum(counts, Counts())
            print(
                f"distance {distance} threshold {threshold:.2f}: F1 {pooled.f1:.4f} precision "
                f"{pooled.precision:.3f} recall {pooled.recall:.3f} each {[round(c.f1, 3) for c in counts]}"
            )


SPOT_SIGMA, SPOT_THRESHOLD = 0.05, 0.1


def spots(
    image: NDArray[np.generic], sigma: float = SPOT_SIGMA, threshold: float = SPOT_THRESHOLD
) -> NDArray[np.float64]:
    """The classical baseline: peaks of the Laplacian of a Gaussian that lie outside nuclei.

    The Laplacian is taken of the square root of the normalised image, with a deviation of `sigma` typical
    nuclei; nuclei are the pieces above Otsu's threshold after an opening as wide as half a nucleus. Both
    numbers were chosen on the validation images (``baseline`` prints the grid).

    Returns
    -------
    ndarray
        Centres, shape (n, 2), the strongest first.
    """
    diameter = estimate_diameter(image) or 25.0
    root = np.sqrt(np.clip(normalise(image), 0, 1))
    response = -ndimage.gaussian_laplace(root, sigma * diameter) * (sigma * diameter) ** 2
    smooth = ndimage.gaussian_filter(root, 1.0)
    reach = round(diameter / 4)
    depth = ndimage.distance_transform_edt(smooth > threshold_otsu(smooth))
    nuclei = ndimage.distance_transform_edt(depth <= reach) < reach
    peaks, _ = find_peaks(np.where(nuclei, 0, response), threshold, 3.0)
    return peaks.astype(np.float64)


def baseline() -> None:
    """Print the pooled F1 of `spots` on the validation images over a grid."""
    slides = load_split("validation")
    for sigma in (0.03, 0.04, 0.05, 0.06, 0.08):
        for threshold in (0.06, 0.08, 0.1, 0.12, 0.15):
            counts = [match_points(spots(s.image, sigma, threshold), s.micronuclei) for s in slides]
            print(f"sigma {sigma} threshold {threshold}: F1 {sum(counts, Counts()).f1:.4f}")


def evaluate() -> str:
    """Figures on the test images, through the function that users call; written into the card."""
    slides = load_split("test")
    ours = [
        match_points(detect(as_volume(f"test {n}", slide.image), "micronuclei").centres[:, 1:], slide.micronuclei)
        for n, slide in enumerate(slides)
    ]
    classical = [match_points(spots(slide.image), slide.micronuclei) for slide in slides]
    known = names_with_twin()
    unseen = [c for c, slide in zip(ours, slides, strict=True) if slide.name not in known]
    table = results_table(
        [
            ("`micronuclei`, all 16 images pooled", sum(ours, Counts())),
            ("peaks of the Laplacian outside nuclei, all 16 images pooled", sum(classical, Counts())),
            ("`micronuclei`, without the image that has a twin in the training folder", sum(unseen, Counts())),
            *[(f"`micronuclei`, image {s.name}", c) for s, c in zip(slides, ours, strict=True)],
        ]
    )
    write_into_card(FOLDER / "card.md", "results", table)
    return table


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("train", "validate", "evaluate", "describe", "baseline"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.action == "train":
        seconds = train(chosen.weights, load_split("training"), chosen.steps)
        note = (
            f"`python -m training.micronuclei train`: seed {SEED}, {chosen.steps} steps of {BATCH} patches of "
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
    if chosen.action == "baseline":
        baseline()
    if chosen.action == "evaluate":
        print(evaluate())


if __name__ == "__main__":
    main()
