"""How dark a window must be for a network on fluorescence to find nothing in it: ``python -m training.ground nuclei``.

Windows around annotated objects of images that no network was fitted to, and noise, are dimmed until their brightest
pixel has a given value (0 and 1 are the image's percentiles, as the network sees it). The highest score that the
network gives anywhere in them is written into the model's card; `Tiling.empty` of the model stays well below the first
value at which an object is found.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from napari_medai.engine.objectsize import estimate_diameter, rescale, scale_for
from napari_medai.nets import build
from training import micronuclei, nuclei
from training.fitting import load_weights, write_into_card
from training.fluorescence import normalise
from training.mnfinder import Slide, load_split

WINDOW = 96
"""Edge of a window in pixels of the network: the objects around are seen, too."""
MOST = 12
"""Objects of one image."""
LEVELS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08)
SMOOTHED = (0.0, 1.0, 2.0, 4.0)
"""Deviations of the Gaussian that makes noise coarser, in pixels."""
SEED = 20261123

Windows = list[NDArray[np.float32]]


def around(slide: Slide, masks: NDArray[np.int32], target: float) -> Windows:
    """Windows around some of an image's annotated objects, at the network's scale."""
    scale = scale_for(estimate_diameter(slide.image), target)
    image = np.pad(rescale(normalise(slide.image)[None], scale)[0], WINDOW // 2, mode="reflect")
    centres = np.array(ndimage.center_of_mass(masks > 0, masks, np.arange(1, masks.max() + 1))).reshape(-1, 2)
    chosen = np.random.default_rng(SEED).permutation(len(centres))[:MOST]
    corners = np.clip(np.rint(centres[chosen] * scale).astype(int), 0, np.array(image.shape) - WINDOW)
    return [image[y : y + WINDOW, x : x + WINDOW] for y, x in corners]


def noise(sigma: float, count: int = 4) -> Windows:
    """Windows of normal noise, made coarser by a Gaussian."""
    drawn = np.random.default_rng(SEED).standard_normal((count, 2 * WINDOW, 2 * WINDOW))
    return [ndimage.gaussian_filter(one, sigma).astype(np.float32) for one in drawn]


def dimmed(windows: Windows, level: float, ground: float = 0.0) -> Windows:
    """With a brightest pixel of ``level``, of which so large a share is even ground."""
    low = [np.percentile(w, 1) if ground else 0.0 for w in windows]
    return [
        (level * ground + (w - a) * (level * (1 - ground) / max(float(w.max() - a), 1e-6))).astype(np.float32)
        for w, a in zip(windows, low, strict=True)
    ]


def highest(network: torch.nn.Module, windows: Windows) -> NDArray[np.float32]:
    """The highest score of the network in each window."""
    with torch.inference_mode():
        found = [network(torch.from_numpy(w)[None, None])[0, 0].max() for w in windows]
    return np.array(found, np.float32)


def measure(trainer: ModuleType, labels: Callable[[Slide], NDArray[np.int32]], threshold: float) -> str:
    """A table of the highest scores for windows of each brightness."""
    network = build(trainer.NETWORK)
    load_weights(network, trainer.WEIGHTS)
    slides = [*load_split("validation"), *load_split("test")]
    windows = [window for slide in slides for window in around(slide, labels(slide), trainer.TARGET)]
    drawn = [window for sigma in SMOOTHED for window in noise(sigma)]
    lines = [
        f"| brightest pixel | {len(windows)} objects | found | on ground half as bright | found | noise | found |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for level in LEVELS:
        sides = [dimmed(windows, level), dimmed(windows, level, 0.5), dimmed(drawn, level) + dimmed(drawn, level, 0.5)]
        cells = []
        for side in sides:
            scores = highest(network, side)
            cells += [f"{scores.max():.3f}", f"{np.count_nonzero(scores >= threshold)}"]
        lines.append(f"| {level:g} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("nuclei", "micronuclei"))
    chosen = parser.parse_args().model
    torch.set_num_threads(1)
    if chosen == "nuclei":
        options = nuclei.SPEC.options
        table = measure(nuclei, lambda slide: slide.nuclei, float(options["foreground_threshold"]))
        write_into_card(nuclei.FOLDER / "card.md", "ground", table)
    else:
        table = measure(micronuclei, lambda slide: slide.micronuclei, float(micronuclei.SPEC.options["threshold"]))
        write_into_card(micronuclei.FOLDER / "card.md", "ground", table)


if __name__ == "__main__":
    main()
