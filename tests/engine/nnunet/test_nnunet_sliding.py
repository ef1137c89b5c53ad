"""The sliding window by numbers written by hand."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from napari_medai.core.stage import Cancelled
from napari_medai.engine.nnunet import sliding
from napari_medai.engine.nnunet.sliding import (
    held_bytes,
    importance,
    mirrored,
    padded,
    slide,
    starts,
    tiles,
    windows,
)

CPU = torch.device("cpu")


def over(
    image: torch.Tensor,
    network: Any,
    tile: tuple[int, ...],
    heads: int = 1,
    axes: tuple[int, ...] = (),
    check: Any = lambda: None,
    **options: Any,
) -> torch.Tensor:
    """`slide` on the CPU, silently; its slabs one after the other."""
    networks = network if isinstance(network, list) else [network]
    passes = [partial(mirrored, one, axes=axes, check=check) for one in networks]
    slabs = slide(image, passes, tile, heads, device=CPU, keep_on=CPU, done=lambda: None, check=check, **options)
    return torch.cat([slab.clone() for slab in slabs], 1)


def at_once(image: torch.Tensor, network: Any, tile: tuple[int, ...], heads: int, step: float) -> torch.Tensor:
    """As nnU-Net does it: sums of the whole image."""
    data, inner = padded(image, tile)
    total = torch.zeros((heads, *data.shape[1:]), dtype=torch.half)
    weight = torch.zeros(data.shape[1:], dtype=torch.half)
    for window in windows(data.shape[1:], tile, step):
        out = network(data[(slice(None), *window)][None].contiguous())[0]
        out *= importance(tile)
        total[(slice(None), *window)] += out
        weight[window] += importance(tile)
    return torch.div(total, weight)[(slice(None), *inner[1:])]


@pytest.mark.parametrize(
    ("size", "tile", "expected"),
    [
        (64, 64, [0]),
        (110, 64, [0, 23, 46]),  # at most 32 apart, spread evenly
        (33, 16, [0, 6, 11, 17]),  # 17 / 3
        (24, 16, [0, 8]),
        (25, 16, [0, 4, 9]),  # 4.5 is rounded to even
    ],
)
def test_tiles_are_half_a_tile_apart_at_most(size: int, tile: int, expected: list[int]) -> None:
    assert starts(size, tile, 0.5) == expected


def test_tiles_may_lie_further_apart() -> None:
    assert starts(110, 64, 1.0) == [0, 46]
    assert starts(110, 64, 0.25) == [0, 15, 31, 46]


def test_weights_are_a_bell_of_ten_in_half_precision() -> None:
    bell = importance((16, 32))
    assert bell.dtype == torch.half
    assert bell[8, 16] == 10
    # a deviation from the middle is an eighth of the edge
    assert float(bell[10, 16]) == pytest.approx(10 * math.exp(-0.5), rel=1e-2)
    assert float(bell[8, 20]) == pytest.approx(10 * math.exp(-0.5), rel=1e-2)
    assert bell.min() > 0


def test_small_images_lie_in_the_middle_of_zeros() -> None:
    image, inner = padded(torch.ones(2, 3, 4), (7,))
    assert image.shape == (2, 3, 7)
    assert image[0, 0].tolist() == [0, 1, 1, 1, 1, 0, 0]
    assert torch.equal(image[inner], torch.ones(2, 3, 4))
    same, _ = padded(torch.ones(1, 9, 9), (4, 4))
    assert same.shape == (1, 9, 9)


def test_a_planar_tile_goes_through_every_plane() -> None:
    places = windows((3, 8, 12), (8, 8), 0.5)
    assert len(places) == 3 * 2 == tiles((3, 8, 12), (8, 8), 0.5)
    assert places[:2] == [(0, slice(0, 8), slice(0, 8)), (0, slice(0, 8), slice(4, 12))]
    assert len(windows((9, 8, 12), (8, 8, 8), 0.5)) == 4 == tiles((9, 8, 12), (8, 8, 8), 0.5)


def test_what_a_voxel_wise_network_says_comes_back_as_it_is() -> None:
    image = torch.rand(1, 13, 22, 9)
    found = over(image, lambda x: x * 2, (8, 8, 8), precision=torch.float32)
    torch.testing.assert_close(found, image * 2)
    half = over(image, lambda x: x * 2, (8, 8, 8))
    assert half.dtype == torch.half
    # but for corners, where the bell is next to nothing, half precision is near
    torch.testing.assert_close(half[0, 2:-2, 2:-2, 2:-2].float(), 2 * image[0, 2:-2, 2:-2, 2:-2], atol=0.02, rtol=0)


def test_overlapping_tiles_are_averaged_by_their_weights() -> None:
    said = iter([1.0, 3.0])
    found = over(torch.zeros(1, 1, 12, 8), lambda x: torch.full_like(x, next(said)), (8, 8))[:, 0]
    bell = importance((8, 8)).float()[:, 4]
    # the first tile alone, both, the second alone
    assert found[0, :4, 4].tolist() == [1, 1, 1, 1]
    both = (bell[4:] * 1 + bell[:4] * 3) / (bell[4:] + bell[:4])
    torch.testing.assert_close(found[0, 4:8, 4].float(), both, atol=2e-2, rtol=0)
    assert found[0, 8:, 4].tolist() == pytest.approx([3, 3, 3, 3], abs=4e-3)


def test_mirroring_averages_over_every_combination_of_axes() -> None:
    ramp = torch.arange(4.0)[:, None] + 10 * torch.arange(5.0)
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x + ramp  # says something of places: mirrored, it is undone

    image = torch.rand(1, 1, 4, 5)
    found = mirrored(network, image, (0, 1), lambda: None)
    assert len(seen) == 4
    torch.testing.assert_close(found, image + ramp.mean())
    one = mirrored(network, image, (1,), lambda: None)
    torch.testing.assert_close(one, image + (ramp + ramp.flip(1)) / 2)


def test_a_run_stops_within_a_tile() -> None:
    calls = []

    def check() -> None:
        if len(calls) == 3:
            raise Cancelled

    def network(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x

    with pytest.raises(Cancelled):
        over(torch.zeros(1, 16, 16, 16), network, (8, 8, 8), axes=(0, 1, 2), check=check)
    assert len(calls) == 3


@pytest.mark.parametrize("tile", [(6, 5, 4), (8, 16, 16), (5, 6)])
@pytest.mark.parametrize("step", [0.5, 0.3, 1.0])
def test_slabs_are_what_sums_of_the_whole_image_are_to_the_bit(
    tile: tuple[int, ...], step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliding, "SLAB", 3 * 2 * 14 * 11)  # two planes at a time
    image = torch.rand(2, 17, 14, 11)
    mixing = torch.rand(3, 2, *(3,) * len(tile)) * 30

    def network(x: torch.Tensor) -> torch.Tensor:
        return getattr(torch.nn.functional, f"conv{len(tile)}d")(x, mixing, padding=1)

    expected = at_once(image, network, tile, 3, step)
    found = over(image, network, tile, 3, step=step)
    assert torch.equal(found, expected)
    # from some plane on, with no more tiles than reach it
    passes: list[int] = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        passes[-1] += 1
        return network(x)

    for begin in (1, 9, 16):
        passes.append(0)
        assert torch.equal(over(image, counted, tile, 3, step=step, begin=begin), expected[:, begin:])
    assert passes == [tiles(image.shape[1:], tile, step, begin) for begin in (1, 9, 16)]
    assert passes[-1] < tiles(image.shape[1:], tile, step)
    # the mean of two networks, each of which is divided by its weights first
    other = at_once(image, lambda x: network(x) * 1.7, tile, 3, step)
    both = over(image, [network, lambda x: network(x) * 1.7], tile, 3, step=step)
    assert torch.equal(both, expected.add_(other).div_(2))


def test_sums_are_held_for_the_depth_of_a_tile() -> None:
    assert held_bytes(117, (300, 273, 273), (128, 128, 128)) == 118 * 128 * 273 * 273 * 2
    assert held_bytes(2, (9, 30, 4), (16, 16)) == 3 * 30 * 16 * 2
