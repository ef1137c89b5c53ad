"""Denoise an image with a network that is trained on that image alone, without any clean picture.

The method follows Zero-Shot Noise2Noise (Mansour and Heckel, CVPR 2023) and Neighbor2Neighbor (Huang et
al., CVPR 2021): two small pictures made of different pixels of the noisy image show the same thing with
independent noise, so a network that predicts one from the other learns to remove noise (Noise2Noise,
Lehtinen et al., ICML 2018). Changes against the papers: a random pixel of each block is compared with the
mean of its neighbours along all axes, which has less noise than one neighbour; a U-Net instead of three
layers; random crops, turns and mirrors; an average over the weights of the last steps and over mirrored
inputs; and what the network removed beyond the noise that was measured in the image is put back.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from napari_medai.core.errors import InputError
from napari_medai.engine.noise import channel_scales, put_back_detail
from napari_medai.nets.selfdenoise import NoiseUNet

Array = NDArray[np.float32]
Report = Callable[[int, int, str], None]

AVERAGING = 0.95
"""Share of the old weights in the running average of the network's weights."""
LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class Recipe:
    """How an image of a dimension is cleaned.

    Attributes
    ----------
    features
        Channels of the U-Net.
    crop
        Edge in pixels of the training crops.
    batch
        Crops per step.
    steps
        Training steps unless the caller says otherwise.
    tile
        Edge in pixels of the pieces that are cleaned at once.
    margin
        Pixels around a piece that the network sees too.
    views
        Most mirrored views to average; large images get fewer, see `view_count`.
    """

    features: tuple[int, ...]
    crop: int
    batch: int
    steps: int
    tile: int
    margin: int
    views: int


RECIPES = {
    2: Recipe(features=(16, 32, 64), crop=64, batch=8, steps=800, tile=512, margin=24, views=8),
    3: Recipe(features=(16, 32, 64), crop=32, batch=4, steps=300, tile=96, margin=16, views=8),
}
MOST_PIXELS = {2: 2**23, 3: 2**21}
"""Pixels that all views together may have before views are spared; there is always one."""


def view_count(shape: Sequence[int], ndim: int) -> int:
    """How many mirrored views of an image of this spatial shape are averaged, at least 1."""
    return int(np.clip(MOST_PIXELS[ndim] // math.prod(shape), 1, RECIPES[ndim].views))


def axis_weights(image: Array, ndim: int) -> tuple[float, ...]:
    """How much each of the last `ndim` axes of an image has to say: the inverse of its neighbours' difference.

    In a stack with thick planes, neighbours along z differ in anatomy and count less. The weights sum to 1.
    """
    errors = [float(np.mean(np.diff(image, axis=axis) ** 2)) for axis in range(-ndim, 0)]
    inverse = [1 / max(error, 1e-12) for error in errors]
    return tuple(value / sum(inverse) for value in inverse)


def neighbour_pair(
    crops: torch.Tensor, weights: Sequence[float], rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """One random pixel of each block of two pixels per axis, and the mean of its neighbours in the block.

    Parameters
    ----------
    crops
        Shape (batch, channels, *space), even sizes.
    weights
        Of the neighbour along each spatial axis, see `axis_weights`.
    rng
        Says which pixel of each block is taken: so the same crop gives ever new pictures.

    Returns
    -------
    given, wanted : Tensor
        Shape (batch, channels, *space / 2). No pixel of a block is in both, so their noise is independent.
    """
    ndim = len(weights)
    picks: list[tuple[slice, ...]] = [
        tuple(slice(i, None, 2) for i in offset) for offset in itertools.product((0, 1), repeat=ndim)
    ]
    corners = torch.stack([crops[(slice(None), slice(None), *pick)] for pick in picks])
    batch, channels, *space = corners.shape[1:]
    first = rng.integers(len(picks), size=(1, batch, 1, *space))

    def corner(number: NDArray[np.int64]) -> torch.Tensor:
        index = torch.from_numpy(number).to(crops.device).expand(1, batch, channels, *space)
        return corners.gather(0, index)[0]

    # a neighbour along an axis is the corner whose number has that axis' bit turned
    wanted = [weight * corner(first ^ (1 << ndim - 1 - axis)) for axis, weight in enumerate(weights)]
    return corner(first), torch.stack(wanted).sum(0)


def _crops(
    image: torch.Tensor, weights: Sequence[float], sizes: Sequence[int], batch: int, rng: np.random.Generator
) -> tuple[torch.Tensor, Sequence[float]]:
    """Random pieces of an image (channels, [planes,] *space), mirrored and turned; the weights turn with them."""
    ndim, pieces = len(weights), []
    turn = sizes[-1] == sizes[-2] and rng.random() < 0.5
    for _ in range(batch):
        view = image
        if image.ndim - 1 > ndim:
            view = view[:, rng.integers(image.shape[1])]
        for axis, size in enumerate(sizes, start=1):
            view = view.narrow(axis, int(rng.integers(view.shape[axis] - size + 1)), size)
        view = view.flip([axis for axis in range(1, ndim + 1) if rng.random() < 0.5])
        pieces.append(view.transpose(-1, -2) if turn else view)
    return torch.stack(pieces), (*weights[:-2], weights[-1], weights[-2]) if turn else weights


def _train(
    image: torch.Tensor,
    weights: Sequence[float],
    recipe: Recipe,
    steps: int,
    seed: int,
    device: torch.device,
    report: Report,
) -> NoiseUNet:
    """A network that was trained on one normalised image (channels, [planes,] *space)."""
    rng, ndim = np.random.default_rng(seed), len(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NoiseUNet(ndim, image.shape[0], recipe.features)
    layout = torch.channels_last if ndim == 2 else torch.channels_last_3d
    network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    average = copy.deepcopy(network)
    optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps + 1, pct_start=0.1)
    block = 2 * network.multiple
    sizes = [min(recipe.crop, n // block * block) for n in image.shape[-ndim:]]
    for step in range(steps):
        report(step, steps, "learning the noise")
        crops, axes = _crops(image, weights, sizes, recipe.batch, rng)
        given, wanted = neighbour_pair(crops.to(device), axes, rng)
        loss = torch.nn.functional.mse_loss(network(given.contiguous(memory_format=layout)), wanted)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        keep = min(AVERAGING, (step + 1) / (step + 10))
        with torch.no_grad():
            for old, new in zip(average.parameters(), network.parameters(), strict=True):
                old.lerp_(new, 1 - keep)
    average.eval()
    return average


def _view(image: torch.Tensor, number: int, ndim: int) -> torch.Tensor:
    """One of eight views of (..., *space): mirrored along each axis; in 2-D the last four are transposed."""
    if ndim == 2 and number >= 4:
        image = image.transpose(-1, -2)
    return image.flip([-1 - axis for axis in range(ndim) if number >> axis & 1])


def _undo_view(image: torch.Tensor, number: int, ndim: int) -> torch.Tensor:
    """Inverse of `_view`."""
    image = image.flip([-1 - axis for axis in range(ndim) if number >> axis & 1])
    return image.transpose(-1, -2) if ndim == 2 and number >= 4 else image


def _clean_piece(network: NoiseUNet, piece: torch.Tensor, ndim: int, views: int) -> torch.Tensor:
    """Average over views of one piece (channels, *space), padded to what the network takes."""
    padding = [n for size in reversed(piece.shape[1:]) for n in (0, -size % network.multiple)]
    padded = torch.nn.functional.pad(piece[None], padding, mode="replicate") if any(padding) else piece[None]
    total = torch.zeros_like(padded)
    for number in range(views):
        total += _undo_view(network(_view(padded, number, ndim)), number, ndim)
    result = total[0] / views
    for axis, size in enumerate(piece.shape[1:], start=1):
        result = result.narrow(axis, 0, size)
    return result


def _apply(network: NoiseUNet, image: torch.Tensor, ndim: int, device: torch.device, report: Report) -> torch.Tensor:
    """Clean a normalised image (channels, *space) piece by piece; each piece sees a margin around it."""
    recipe = RECIPES[ndim]
    space = image.shape[1:]
    views = view_count(space, ndim)
    out = torch.empty_like(image)
    starts = [range(0, n, recipe.tile) for n in space]
    corners = list(itertools.product(*starts))
    for done, corner in enumerate(corners):
        report(done, len(corners), "removing the noise")
        ends = [min(c + recipe.tile, n) for c, n in zip(corner, space, strict=True)]
        low = [max(0, c - recipe.margin) for c in corner]
        high = [min(n, e + recipe.margin) for e, n in zip(ends, space, strict=True)]
        piece = image[(slice(None), *map(slice, low, high))].to(device)
        with torch.inference_mode():
            made = _clean_piece(network, piece, ndim, views).cpu()
        inner = [slice(c - a, e - a) for c, a, e in zip(corner, low, ends, strict=True)]
        out[(slice(None), *map(slice, corner, ends))] = made[(slice(None), *inner)]
    return out


def denoise(
    image: NDArray[np.generic],
    *,
    ndim: int,
    steps: int = 0,
    seed: int = 0,
    device: torch.device,
    progress: Report,
) -> Array:
    """Remove noise that is independent from pixel to pixel, whatever its distribution.

    Parameters
    ----------
    image
        Channels first: (channels, y, x) or (channels, z, y, x), real and finite. Channels are cleaned together.
    ndim
        3 uses neighbours along z too; 2 on a stack (channels, z, y, x) trains one network on all planes and
        cleans each plane for itself.
    steps
        Training steps; 0 (default) takes the recipe's number.
    seed
        The same seed on the same machine gives the same result.
    device
        Where the network runs. The image stays in main memory; only crops and pieces go there.
    progress
        Called as ``progress(done, total, message)``; what it raises, stops the run.

    Returns
    -------
    ndarray
        float32, shape and intensity scale of `image`. Constant channels come back unchanged.

    Raises
    ------
    InputError
        The dimensions do not fit or values are not finite.
    """
    if ndim not in RECIPES or image.ndim - 1 not in {ndim, 3} or ndim > image.ndim - 1:
        raise InputError(
            f"An image of {image.ndim - 1} dimensions cannot be cleaned with a network of {ndim}; "
            "use 2 for images and stacks, 3 for volumes."
        )
    original = np.asarray(image, dtype=np.float32)
    if not np.isfinite(original).all():
        raise InputError("The image holds NaN or infinite values; replace them before denoising.")
    axes = tuple(range(1, original.ndim))
    if not original.std(axis=axes).any():
        return original.copy()
    mean, spread = original.mean(axes, keepdims=True), channel_scales(original).reshape(-1, *[1] * len(axes))
    recipe = RECIPES[ndim]
    steps = steps or recipe.steps
    least = 4 * 2 ** (len(recipe.features) - 1)
    short = [(0, max(0, least - n)) for n in original.shape[-ndim:]]
    padding = [(0, 0)] * (original.ndim - ndim) + short
    normalised = torch.from_numpy(np.pad((original - mean) / spread, padding, mode="symmetric"))
    planes = normalised.unbind(1) if original.ndim - 1 > ndim else (normalised,)
    total = steps + max(1, steps // 5)

    def training(done: int, _: int, message: str) -> None:
        progress(done, total, message)

    with torch.enable_grad():
        network = _train(normalised, axis_weights(normalised.numpy(), ndim), recipe, steps, seed, device, training)
    cleaned = []
    for n, plane in enumerate(planes):

        def applying(done: int, pieces: int, message: str, n: int = n) -> None:
            progress(steps + int((total - steps) * (n + done / pieces) / len(planes)), total, message)

        cleaned.append(_apply(network, plane, ndim, device, applying))
    whole = torch.stack(cleaned, dim=1) if original.ndim - 1 > ndim else cleaned[0]
    result = whole.numpy()[tuple(slice(0, n) for n in original.shape)] * spread + mean
    for channel in range(len(original)):
        progress(total, total, "putting detail back")
        result[channel] = put_back_detail(original[channel], result[channel].astype(np.float32), ndim)
    return np.asarray(result, dtype=np.float32)
