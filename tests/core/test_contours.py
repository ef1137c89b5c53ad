"""Contours: planes, areas and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from napari_medai.core.contours import Contour, Contours, Region, common_normal, fit_plane
from napari_medai.core.errors import GeometryError, InputError

SQUARE = np.array([(5.0, 0, 0), (5, 0, 4), (5, 3, 4), (5, 3, 0)])


def test_area_and_plane_of_a_rectangle_of_3_by_4_mm():
    contour = Contour(SQUARE)
    assert contour.area_mm2() == pytest.approx(12)
    centre, normal, distance = contour.plane()
    np.testing.assert_allclose(centre, (5, 1.5, 2))
    np.testing.assert_allclose(normal, (1, 0, 0), atol=1e-12)
    assert distance == pytest.approx(0, abs=1e-12)


def test_a_point_off_the_plane_is_measured():
    # the fourth corner of a square lifted by 1 mm: the best plane halves the twist, a quarter of a millimetre each
    _, _, distance = fit_plane([(0, 0, 0), (0, 0, 100), (0, 100, 100), (1, 100, 0)])
    assert distance == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("kind", ["open", "open-nonplanar", "point"])
def test_lines_and_points_enclose_nothing(kind):
    assert Contour(SQUARE, kind).area_mm2() == 0


def test_normal_is_shared_whichever_way_contours_run():
    normal = common_normal([Contour(SQUARE), Contour(SQUARE[::-1] + 1)])
    np.testing.assert_allclose(np.abs(normal), (1, 0, 0), atol=1e-12)
    assert common_normal([Contour(SQUARE, "open")]) is None


def test_points_cannot_be_changed_and_are_copied():
    points = SQUARE.copy()
    contour = Contour(points)
    points[0] = 99
    assert contour.points[0, 0] == 5
    with pytest.raises(ValueError, match="read-only"):
        contour.points[0] = 0


@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.zeros((4, 2)), np.full((3, 3), np.nan)])
def test_what_is_no_line_is_refused(points):
    with pytest.raises(GeometryError):
        Contour(points)


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="circle"):
        Contour(SQUARE, "circle")


def test_numbers_are_unique():
    with pytest.raises(InputError, match=r"\[1, 1\]"):
        Contours((Region(1, "heart"), Region(1, "lung")))
    contours = Contours((Region(1, "heart", color=(1.0, 0, 0)), Region(4, "lung")))
    assert contours.names == {1: "heart", 4: "lung"}
    assert contours.colors == {1: (1.0, 0, 0)}
