"""Drawing contours on a grid, and outlines of labels: there and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_medai.core.contours import Contour, Contours, Region
from napari_medai.core.errors import GeometryError
from napari_medai.core.geometry import Grid, scaling
from napari_medai.core.volume import Volume
from napari_medai.io.contours import fill, outlines, own_grid, rasterise, trace

GRID = Grid((3, 10, 12), scaling((2.0, 1.0, 1.0), (100.0, 0.0, 0.0)))


def box(z: float, low: float, high: float, kind: str = "closed") -> Contour:
    return Contour(np.array([(z, low, low), (z, low, high), (z, high, high), (z, high, low)]), kind)


def test_pixels_on_the_upper_left_edge_count():
    drawn = fill(np.array([(1.0, 2), (1, 5), (3, 5), (3, 2)]), (6, 8))
    expected = np.zeros((6, 8), bool)
    expected[1:3, 2:5] = True
    np.testing.assert_array_equal(drawn, expected)


def test_a_polygon_larger_than_the_image_fills_it():
    assert fill(np.array([(-9.0, -9), (-9, 99), (99, 99), (99, -9)]), (4, 5)).all()
    assert not fill(np.array([(-9.0, -9), (-9, -5), (-5, -5)]), (4, 5)).any()


def test_a_box_on_the_second_slice():
    drawn = rasterise(Region(1, "r", (box(102, 1.5, 4.5),)), GRID)
    assert drawn.findings == ()
    assert drawn.mask.sum() == 9
    assert drawn.mask[1, 2:5, 2:5].all()


@pytest.mark.parametrize("kind", ["closed", "xor"])
def test_a_box_in_a_box_is_a_hole(kind):
    contours = (box(102, 3.5, 5.5, kind), box(102, 1.5, 7.5, kind))
    drawn = rasterise(Region(1, "r", contours), GRID)
    assert drawn.mask.sum() == 36 - 4
    assert bool(drawn.findings) == (kind == "closed")


def test_boxes_that_overlap_are_one_or_exclude_each_other():
    both = lambda kind: (box(102, 1.5, 5.5, kind), box(102, 3.5, 7.5, kind))  # noqa: E731
    assert rasterise(Region(1, "r", both("closed")), GRID).mask.sum() == 16 + 16 - 4
    assert rasterise(Region(1, "r", both("xor")), GRID).mask.sum() == 16 + 16 - 8


def test_what_cannot_be_drawn_is_said():
    tilted = Contour(np.array([(100.0, 1, 1), (104, 1, 8), (104, 8, 8), (100, 8, 1)]))
    contours = (
        box(102, 1.5, 4.5), box(104, 1.5, 4.5), box(101.3, 1.5, 4.5), box(90, 1, 4), tilted,
        box(102, 1, 3, "open"), Contour(np.array([[102.0, 5, 5]]), "point"),
    )  # fmt: skip
    drawn = rasterise(Region(4, "r", contours), GRID)
    assert drawn.findings == (
        "Region 4: 2 contours are points or open lines and enclose nothing.",
        "Region 4: 1 contours are not parallel to the slices and were left out.",
        "Region 4: 1 contours lie outside of the scan.",
        "Region 4: 1 contours lie between slices and were drawn on the nearest.",
    )
    assert drawn.mask.sum() == 18
    assert rasterise(Region(5, "r"), GRID).findings == ("Region 5 has no contour; there is nothing to fill.",)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_outlines_enclose_the_same_pixels(inside):
    drawn = np.zeros(inside.shape, bool)
    for line in outlines(inside):
        drawn ^= fill(line, inside.shape)
    np.testing.assert_array_equal(drawn, inside)


def test_a_ring_is_one_outline_with_a_keyhole():
    inside = np.ones((7, 7), bool)
    inside[2:5, 2:5] = False
    (line,) = outlines(inside)
    # 8 corners outside (each is cut), 8 inside, and the way there and back
    assert len(line) == 8 + 8 + 2


def test_labels_on_an_oblique_grid_come_back(oblique_affine):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, (6, 20, 16)).astype(np.uint8)
    volume = Volume(labels, "zyx", oblique_affine, "mm")
    regions = dict(trace(volume, {1: "a"}))
    assert {n: r.name for n, r in regions.items()} == {1: "a", 2: "label 2"}
    for value, region in regions.items():
        np.testing.assert_array_equal(rasterise(region, volume.grid).mask, labels == value)
        assert all(c.plane()[2] < 1e-9 for c in region.contours)


def test_a_grid_of_contours_alone():
    contours = Contours((Region(1, "r", (box(102, 1.5, 7.5), box(105, 1.5, 7.5), box(111, 1.5, 7.5))),))
    grid = own_grid(contours)
    np.testing.assert_allclose(grid.spacing, (3, 1, 1))
    assert grid.shape[0] == 4
    drawn = rasterise(contours.regions[0], grid)
    assert drawn.findings == ()
    assert [int(m.sum()) for m in drawn.mask] == [36, 36, 0, 36]


def test_contours_a_million_kilometres_apart():
    far = Contours((Region(1, "r", (box(0, 1, 3), box(1e12, 1, 3))),))
    with pytest.raises(GeometryError, match="too far apart"):
        own_grid(far)
    with pytest.raises(GeometryError, match="no closed contour"):
        own_grid(Contours((Region(1, "r"),)))
