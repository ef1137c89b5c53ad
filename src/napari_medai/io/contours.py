"""Contours -> labels on a grid, and labels -> contours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.contours import Contour, Contours, Region, common_normal
from napari_medai.core.errors import GeometryError
from napari_medai.core.geometry import Grid, as_affine, index_to_world, world_to_index
from napari_medai.core.result import Color
from napari_medai.core.volume import Volume

# A contour counts as drawn on a slice within this share of the slices' distance; beyond it that is a finding.
ON_SLICE = 0.1
# Planes of contours are one if they lie nearer than this.
SAME_PLANE_MM = 0.01
# No slices of a scan are further apart than this.
MOST_APART_MM = 50.0
# In-plane spacing of a grid that is made of contours alone, and how many voxels it may have at most.
OWN_SPACING_MM, MOST_VOXELS = 1.0, 1 << 27


@dataclass(frozen=True, eq=False)
class Drawn:
    """One region on a grid.

    Attributes
    ----------
    mask : (z, y, x) bool array
        Voxels whose centres are inside.
    findings : tuple of str
        What could not be drawn as it stands.
    """

    mask: NDArray[np.bool_]
    findings: tuple[str, ...]


def rasterise(region: Region, grid: Grid) -> Drawn:
    """Draw a region on a grid: the voxels whose centres its contours enclose (even-odd rule).

    A contour that lies whole inside what was drawn on its plane is a hole, and so is what a keyhole encloses twice;
    contours of the exclusive-or kind are combined by it.

    Parameters
    ----------
    region : Region
        Contours parallel to one pair of the grid's axes.
    grid : Grid
        In mm.
    """
    mask = np.zeros(grid.shape, dtype=bool)
    if not any(c.encloses for c in region.contours):
        what = "no contour" if not region.contours else "only points and open lines"
        return Drawn(mask, (f"Region {region.number} has {what}; there is nothing to fill.",))
    placed = [(c, world_to_index(grid.affine, c.points)) for c in region.contours if c.encloses]
    step = np.asarray(grid.spacing)
    spread = np.array([np.ptp(index, axis=0) * step for _, index in placed])
    axis = int(np.argmin(np.median(spread, axis=0)))
    planes: dict[tuple[int, int], list[tuple[Contour, NDArray[np.float64]]]] = {}
    between = oblique = outside = 0
    for (contour, index), extent in zip(placed, spread, strict=True):
        level = float(index[:, axis].mean())
        k = round(level)
        if extent[axis] > step[axis] / 2:
            oblique += 1
            continue
        if not 0 <= k < grid.shape[axis]:
            outside += 1
            continue
        between += abs(level - k) > ON_SLICE
        flat = np.delete(index, axis, axis=1)
        planes.setdefault((k, round(level * step[axis] / SAME_PLANE_MM)), []).append((contour, flat))
    holes = 0
    view = np.moveaxis(mask, axis, 0)
    for (k, _), group in planes.items():
        drawn, found = _plane(group, view.shape[1:])
        view[k] |= drawn
        holes += found
    rest = len(region.contours) - len(placed)
    notes = (
        (rest, "contours are points or open lines and enclose nothing"),
        (oblique, "contours are not parallel to the slices and were left out"),
        (outside, "contours lie outside of the scan"),
        (between, "contours lie between slices and were drawn on the nearest"),
        (holes, "contours inside others were taken for holes"),
    )
    return Drawn(mask, tuple(f"Region {region.number}: {count} {what}." for count, what in notes if count))


def _plane(group: list[tuple[Contour, NDArray[np.float64]]], shape: tuple[int, ...]) -> tuple[NDArray[np.bool_], int]:
    """All contours of one plane, and how many were taken for holes."""
    drawn = np.zeros(shape, dtype=bool)
    holes = 0
    # the larger ones first, that holes come after what they are in
    for contour, flat in sorted(group, key=lambda item: -item[0].area_mm2()):
        inside = fill(flat, (shape[0], shape[1]))
        if contour.kind == "xor":
            drawn ^= inside
        elif inside.any() and drawn[inside].all():
            drawn &= ~inside
            holes += 1
        else:
            drawn |= inside
    return drawn, holes


def fill(polygon: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose centres lie inside a closed polygon, by the even-odd rule.

    A centre on the left or upper edge counts as inside and one on the right or lower edge not, so that neighbouring
    polygons share no pixel.

    Parameters
    ----------
    polygon : (n, 2) array
        Corners (j, i) in index coordinates.
    shape : tuple of 2 ints
        (rows, columns).
    """
    rows, columns = shape
    first, second = polygon, np.roll(polygon, -1, axis=0)
    low = np.ceil(np.minimum(first[:, 0], second[:, 0])).clip(0, rows).astype(int)
    high = np.ceil(np.maximum(first[:, 0], second[:, 0])).clip(0, rows).astype(int)
    count = high - low
    edge = np.repeat(np.arange(len(polygon)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + low[edge]
    a, b = first[edge], second[edge]
    share = (row - a[:, 0]) / (b[:, 0] - a[:, 0])
    column = np.ceil(a[:, 1] + share * (b[:, 1] - a[:, 1])).clip(0, columns).astype(int)
    crossings = np.zeros((rows, columns + 1), dtype=np.int64)
    np.add.at(crossings, (row, column), 1)
    return np.asarray(np.cumsum(crossings, axis=1)[:, :columns] % 2, dtype=bool)


def own_grid(contours: Contours) -> Grid:
    """A grid that holds all closed contours, where there is no scan: their planes, and 1 mm along the others.

    Raises
    ------
    GeometryError
        There is no closed contour, or they lie so far apart that no image holds them.
    """
    closed = [c for region in contours.regions for c in region.contours if c.encloses]
    normal = common_normal(closed)
    if normal is None:
        raise GeometryError(
            "The structure set has no closed contour, and the scan that it was drawn on is not beside it."
        )
    main = int(np.argmax(np.abs(normal)))
    normal = normal * np.sign(normal[main])
    across = np.eye(3)[2 if main != 2 else 1]
    across = across - (across @ normal) * normal
    across /= np.linalg.norm(across)
    down = np.cross(normal, across)
    basis = np.stack([normal, down, across], axis=1)
    points = np.concatenate([c.points for c in closed]) @ basis
    levels = np.unique(np.round([float((c.points @ normal).mean()) for c in closed], 2))
    apart = float(np.diff(levels).min()) if len(levels) > 1 else OWN_SPACING_MM
    step = np.array([min(max(apart, SAME_PLANE_MM), MOST_APART_MM), OWN_SPACING_MM, OWN_SPACING_MM])
    low, high = points.min(axis=0), points.max(axis=0)
    low[0], high[0] = levels[0], levels[-1]
    low[1:] -= OWN_SPACING_MM
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.round((high - low) / step).astype(np.int64) + np.array((1, 2, 2))
    if (size < 1).any() or float(np.prod(size.astype(float))) > MOST_VOXELS:
        raise GeometryError("The contours lie too far apart for an image; put the scan they were drawn on beside them.")
    affine = np.eye(4)
    affine[:3, :3] = basis * step
    affine[:3, 3] = basis @ low
    return Grid((int(size[0]), int(size[1]), int(size[2])), as_affine(affine))


def trace(
    labels: Volume, names: Mapping[int, str] | None = None, colors: Mapping[int, Color] | None = None
) -> Iterator[tuple[int, Region]]:
    """The outlines of labels on each slice (k), half way between pixels (marching squares, scikit-image).

    Every pixel centre of a label is inside its contours and no other is, so that drawing them on the same grid gives
    the same labels. Pixels that touch at a corner alone are apart. A hole is joined to its outline by a line that
    runs there and back (a keyhole), which every reader of RTSTRUCT fills as meant.

    Parameters
    ----------
    labels : Volume
        Axes ``zyx`` or ``yx``, or ``tzyx`` with a segment at each t.
    names, colors : mapping, optional
        By label value.

    Yields
    ------
    int
        The label value.
    Region
        One at a time; its contours' ``frame`` holds k + 1, the slice they lie on.
    """
    from scipy import ndimage

    array = labels.numpy() if "z" in labels.axes else np.expand_dims(labels.numpy(), labels.axes.index("y"))
    blocks = array if array.ndim == 4 else array[np.newaxis]
    values = [int(v) for v in np.unique(array) if v != 0]
    found: dict[int, list[Contour]] = {value: [] for value in values}
    for block in blocks:
        order = np.zeros(block.shape, np.int32)
        order[block != 0] = np.searchsorted(values, block[block != 0]) + 1
        for value, box in zip(values, ndimage.find_objects(order, len(values)), strict=True):
            if box is None:
                continue
            for k in range(box[0].start, box[0].stop):
                inside = block[k][box[1:]] == value
                for line in outlines(inside):
                    flat = line + np.array([box[1].start, box[2].start])
                    index = np.column_stack([np.full(len(flat), float(k)), flat])
                    found[value].append(Contour(index_to_world(labels.affine, index), frame=k + 1))
    for number, value in enumerate(values, 1):
        unique = value if min(values) > 0 else number
        color = colors.get(value) if colors else None
        yield value, Region(unique, (names or {}).get(value) or f"label {value}", tuple(found[value]), color)


def outlines(inside: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Closed polygons (n, 2) around the pixels of a plane, holes joined to what surrounds them."""
    from skimage.measure import find_contours, points_in_poly

    if not inside.any():
        return []
    lines = find_contours(np.pad(inside, 1).astype(np.float64), 0.5, fully_connected="low")
    lines = [_straightened(line[:-1] - 1) for line in lines]
    # scikit-image runs round low values to the left: outlines and holes turn opposite ways
    areas = [_signed_area(line) for line in lines]
    turn = np.sign(areas[int(np.argmax(np.abs(areas)))])
    outer = sorted((n for n in range(len(lines)) if areas[n] * turn > 0), key=lambda n: abs(areas[n]))
    joined = {n: lines[n] for n in outer}
    for n in range(len(lines)):
        if n not in joined:
            around = next((m for m in outer if points_in_poly(lines[n][:1], lines[m])[0]), None)
            if around is not None:
                joined[around] = _keyhole(joined[around], lines[n])
    return list(joined.values())


def _straightened(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without the points at which the direction does not change."""
    ahead, behind = np.roll(line, -1, axis=0) - line, line - np.roll(line, 1, axis=0)
    return line[np.abs(ahead[:, 0] * behind[:, 1] - ahead[:, 1] * behind[:, 0]) > 1e-9]


def _signed_area(line: NDArray[np.float64]) -> float:
    following = np.roll(line, -1, axis=0)
    return float((line[:, 0] * following[:, 1] - line[:, 1] * following[:, 0]).sum() / 2)


def _keyhole(outline: NDArray[np.float64], hole: NDArray[np.float64]) -> NDArray[np.float64]:
    apart = ((outline[:, None] - hole[None]) ** 2).sum(axis=2)
    a, h = np.unravel_index(int(np.argmin(apart)), apart.shape)
    round_hole = np.roll(hole, -int(h), axis=0)
    return np.concatenate([outline[: a + 1], round_hole, round_hole[:1], outline[a:]])
