from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from napari_medai.core.errors import InputError
from napari_medai.engine.blobs import Blobs, decode, find_blobs, merge, normalise, pyramid, resample


def blobs(rows: list[tuple[float, float, float, float, float, bool]]) -> Blobs:
    """Rows of z, y, x, diameter, score, bright."""
    table = np.array([row[:5] for row in rows], dtype=float).reshape(-1, 5)
    return Blobs(table[:, :3], table[:, 3], table[:, 4], np.array([row[5] for row in rows], dtype=bool))


def test_normalise_maps_the_percentiles_to_0_and_1() -> None:
    image = np.arange(1001, dtype=np.int16).reshape(7, 11, 13)
    scaled = normalise(image)
    assert scaled.dtype == np.float32
    # the percentiles 1 and 99.8 of 0..1000 are 10 and 998
    assert_allclose(scaled.ravel()[[10, 998]], [0, 1], atol=1e-6)


def test_normalise_takes_a_single_bright_voxel_for_what_it_is() -> None:
    image = np.zeros((20, 20, 20))
    image[3, 4, 5] = 7.0
    scaled = normalise(image)
    assert scaled[3, 4, 5] == 1
    assert scaled.sum() == 1


def test_normalise_refuses_a_constant_volume() -> None:
    with pytest.raises(InputError, match="same value"):
        normalise(np.full((4, 4, 4), 3.0))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"spacing": (1, 1, 1)}, (1, 2)),
        ({"spacing": (5, 0.5, 0.5)}, (0.5, 1.0)),
        ({"spacing": (1, 1, 1), "smallest": 2}, (0.5, 1, 2)),
        ({"spacing": (1, 1, 1), "largest": 80}, (1, 2, 4)),
        ({"spacing": (3, 1, 1), "diameter": 25.0}, (2.5,)),
    ],
)
def test_pyramid(arguments: dict[str, object], expected: tuple[float, ...]) -> None:
    assert pyramid(**arguments) == expected  # type: ignore[arg-type]


def test_resample_halves_by_taking_means_and_keeps_places() -> None:
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32), (4, 4, 8)).copy()
    small, steps = resample(ramp, (2.0, 1.0, 1.0), 2.0)
    assert small.shape == (4, 2, 4)
    assert_array_equal(steps, [1, 2, 2])
    # the new voxels 1 and 2 along x lie at old places 2.5 and 4.5, where the ramp has these values
    assert_allclose(small[2, 1, 1:3], [2.5, 4.5], atol=1e-5)


def test_resample_leaves_a_volume_alone_that_fits() -> None:
    volume = np.zeros((3, 4, 5), dtype=np.float32)
    same, steps = resample(volume, (1, 1, 1), 1.0)
    assert same is volume
    assert_array_equal(steps, [1, 1, 1])


def maps_with(peaks: list[tuple[int, tuple[int, int, int], float, float]], size: int = 16) -> np.ndarray:
    maps = np.full((3, size, size, size), -9, dtype=np.float32)
    for channel, place, logit, diameter in peaks:
        maps[(channel, *place)] = logit
        maps[(2, *place)] = np.log2(diameter)
    return maps


def test_decode_reads_places_diameters_scores_and_polarity() -> None:
    maps = maps_with([(0, (3, 4, 5), 0.0, 8), (1, (12, 11, 10), 2.0, 4)])
    found = decode(maps, 0.3)
    assert_array_equal(found.centres, [[3, 4, 5], [12, 11, 10]])
    assert_allclose(found.diameters, [8, 4])
    # 1 / (1 + e^0) and 1 / (1 + e^-2)
    assert_allclose(found.scores, [0.5, 0.880797], atol=1e-6)
    assert_array_equal(found.bright, [True, False])
    assert_array_equal(decode(maps, 0.3, "dark").centres, [[12, 11, 10]])
    assert_array_equal(decode(maps, 0.6, "bright").centres, np.zeros((0, 3)))


def test_decode_leaves_sizes_to_other_scales_that_the_network_does_not_know() -> None:
    maps = maps_with([(0, (3, 3, 3), 1.0, 2.5), (0, (8, 8, 8), 1.0, 30), (0, (13, 13, 13), 1.0, 20)])
    assert_array_equal(decode(maps, 0.3).centres, [[13, 13, 13]])


def test_merge_keeps_the_better_of_two_that_lie_one_within_another() -> None:
    found = merge(
        blobs(
            [
                (10, 10, 10, 20, 0.6, True),
                (10, 10, 15, 4, 0.9, True),  # 5 from the first: within half of 20
                (10, 10, 26, 12, 0.5, False),  # 16 and 11 away: apart from both
            ]
        ),
        (1, 1, 1),
    )
    assert_allclose(found.scores, [0.9, 0.5])


def test_merge_measures_in_space_not_in_voxels() -> None:
    two = [(0, 0, 0, 10, 0.9, True), (2, 0, 0, 10, 0.8, True)]
    assert len(merge(blobs(two), (1, 1, 1))) == 1
    assert len(merge(blobs(two), (3, 1, 1))) == 2


def test_merge_of_nothing_is_nothing() -> None:
    assert len(merge(blobs([]), (1, 1, 1))) == 0


def brightest(image: np.ndarray) -> np.ndarray:
    """A network that marks the brightest voxel and calls it six voxels wide."""
    maps = np.full((3, *image.shape[1:]), -9, dtype=np.float32)
    maps[(0, *np.unravel_index(np.argmax(image[0]), image.shape[1:]))] = 3.0
    maps[2] = np.log2(6.0)
    return maps


def test_find_blobs_gives_places_in_voxels_and_diameters_in_units() -> None:
    image = np.zeros((6, 24, 24), dtype=np.uint16)
    image[1:3, 6:10, 14:18] = 500
    found = find_blobs(image, (4.0, 2.0, 2.0), brightest, threshold=0.5, diameter=20.0)
    # one scale of voxels with edge 2: six voxels are 12 wide
    assert_allclose(found.diameters, [12.0])
    assert found.bright.all()
    assert image[tuple(np.round(found.centres[0]).astype(int))] == 500


def test_find_blobs_refuses_a_threshold_that_is_no_score() -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        find_blobs(np.arange(27.0).reshape(3, 3, 3), (1, 1, 1), brightest, threshold=1.0)
