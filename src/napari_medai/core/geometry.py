"""Affines, orientations and grids; pure functions on numpy arrays.

World coordinates are (z, y, x) in the patient: +z superior, +y posterior, +x left, which is DICOM's
LPS (PS3.3 C.7.6.2.1.1) read backwards. Index coordinates are (k, j, i), the order of a numpy
array's axes. An affine is a 4x4 matrix from homogeneous index to homogeneous world coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_medai.core.errors import GeometryError

Affine = NDArray[np.float64]

# Two grids are one when no corner lies further apart: a tenth of a typical in-plane pixel, and the
# rounding that a 16-character DICOM decimal string can bring over 500 slices.
SAME_PLACE_MM = 0.05
# Three directions whose unit vectors span less than this lie in one plane.
FLAT_TOLERANCE = 1e-6
# A direction counts as parallel to a world axis below this deviation (cosine distance 1e-6 is 0.08 degrees).
PARALLEL_TOLERANCE = 1e-3

# (z, y, x) zyx-LPS <-> (x, y, z) RAS, the two flips and the reversal of NIfTI
_RAS_TO_WORLD = np.array([[0, 0, 1, 0], [0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)
_REVERSE = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)


def as_affine(matrix: ArrayLike) -> Affine:
    """Check and copy a 4x4 affine.

    Raises
    ------
    GeometryError
        The shape is not (4, 4), a value is not finite, or the matrix has no inverse.
    """
    affine = np.array(matrix, dtype=np.float64)
    if affine.shape != (4, 4):
        raise GeometryError(f"An affine of shape {affine.shape} was given; (4, 4) is needed.")
    if not np.isfinite(affine).all():
        raise GeometryError("The affine holds values that are not finite; check the file's header.")
    with np.errstate(all="ignore"):
        # of the axes' directions: voxels of nanometres are small numbers in millimetres
        volume = np.linalg.det(affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
    if not abs(volume) > FLAT_TOLERANCE:
        raise GeometryError("The affine has no inverse: two axes point the same way or a spacing is zero.")
    if not np.allclose(affine[3], [0, 0, 0, 1]):
        raise GeometryError("The last row of an affine must be 0, 0, 0, 1.")
    return affine


def scaling(spacing: Sequence[float], origin: Sequence[float] = (0.0, 0.0, 0.0)) -> Affine:
    """Affine of a grid parallel to the world axes.

    Parameters
    ----------
    spacing : sequence of 3 floats
        Distance of neighbouring voxels along z, y, x.
    origin : sequence of 3 floats
        World position (z, y, x) of the centre of voxel (0, 0, 0).
    """
    affine = np.diag([*map(float, spacing), 1.0])
    affine[:3, 3] = origin
    return as_affine(affine)


def from_ras(affine_ras: ArrayLike) -> Affine:
    """Affine of an array whose axes were reversed, from the NIfTI affine of the array as stored.

    Parameters
    ----------
    affine_ras : (4, 4) array
        (i, j, k) -> (x, y, z) in RAS+, as ``nibabel`` gives it.

    Returns
    -------
    (4, 4) array
        (k, j, i) -> (z, y, x) of the transposed array.
    """
    return np.asarray(_RAS_TO_WORLD @ np.asarray(affine_ras, dtype=float) @ _REVERSE)


def to_ras(affine: ArrayLike) -> Affine:
    """The inverse of :func:`from_ras`."""
    return np.asarray(np.linalg.inv(_RAS_TO_WORLD) @ np.asarray(affine, dtype=float) @ _REVERSE)


def spacing(affine: ArrayLike) -> tuple[float, float, float]:
    """Distance of neighbouring voxels along the three array axes, in the affine's unit."""
    columns = np.asarray(affine, dtype=float)[:3, :3]
    k, j, i = np.sqrt((columns**2).sum(axis=0))
    return float(k), float(j), float(i)


def directions(affine: ArrayLike) -> NDArray[np.float64]:
    """Unit vectors (columns, world z, y, x) along the three array axes."""
    matrix = np.asarray(affine, dtype=float)[:3, :3]
    return np.asarray(matrix / np.asarray(spacing(affine)))


def index_to_world(affine: ArrayLike, index: ArrayLike) -> NDArray[np.float64]:
    """World coordinates (..., 3) of index coordinates (..., 3)."""
    matrix = np.asarray(affine, dtype=float)
    return np.asarray(np.asarray(index, dtype=float) @ matrix[:3, :3].T + matrix[:3, 3])


def world_to_index(affine: ArrayLike, world: ArrayLike) -> NDArray[np.float64]:
    """Index coordinates (..., 3) of world coordinates (..., 3)."""
    matrix = np.asarray(affine, dtype=float)
    return np.asarray((np.asarray(world, dtype=float) - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T)


@dataclass(frozen=True)
class Reorientation:
    """A permutation of the three spatial axes followed by flips: always a view on the array.

    Attributes
    ----------
    order : tuple of 3 ints
        New axis n is old axis ``order[n]``.
    flips : tuple of 3 bools
        Whether new axis n runs backwards.
    """

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return self.order == (0, 1, 2) and not any(self.flips)

    def inverse(self) -> Reorientation:
        """The reorientation that undoes this one."""
        order = tuple(self.order.index(n) for n in range(3))
        flips = tuple(self.flips[self.order.index(n)] for n in range(3))
        return Reorientation((order[0], order[1], order[2]), (flips[0], flips[1], flips[2]))

    def matrix(self, shape: Sequence[int]) -> Affine:
        """New index -> old index, for an old array of ``shape`` (k, j, i)."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for new, (old, flip) in enumerate(zip(self.order, self.flips, strict=True)):
            matrix[old, new] = -1 if flip else 1
            matrix[old, 3] = shape[old] - 1 if flip else 0
        return matrix


def canonical_reorientation(affine: ArrayLike) -> Reorientation:
    """The permutation and flips that bring the array axes nearest to +z, +y, +x.

    Every array axis is given the world axis it runs along most, the assignment with the largest
    sum of cosines being taken, so that oblique and equally tilted axes have one answer too.
    """
    cosines = directions(affine)
    order = max(permutations(range(3)), key=lambda p: sum(abs(cosines[w, p[w]]) for w in range(3)))
    flips = [bool(cosines[w, order[w]] < 0) for w in range(3)]
    return Reorientation((order[0], order[1], order[2]), (flips[0], flips[1], flips[2]))


def orientation_code(affine: ArrayLike) -> str:
    """Anatomical letters towards which the array axes run, first axis first, e.g. ``"SPL"``."""
    letters = (("I", "S"), ("A", "P"), ("R", "L"))
    cosines = directions(affine)
    reorientation = canonical_reorientation(affine).inverse()
    return "".join(letters[world][int(cosines[world, axis] > 0)] for axis, world in enumerate(reorientation.order))


def is_axis_aligned(affine: ArrayLike, tolerance: float = PARALLEL_TOLERANCE) -> bool:
    """Whether every array axis is parallel to a world axis, to ``tolerance`` in its direction cosines."""
    cosines = np.abs(directions(affine))
    return bool(np.all(np.minimum(cosines, np.abs(cosines - 1)) <= tolerance))


def without_rotation(affine: ArrayLike, shape: Sequence[int]) -> Affine:
    """The axis-parallel grid with the same spacing and the same centre.

    This is where a viewer that cannot slice rotated images shows an oblique scan: the scan's own
    axes become the axes of the view and its centre stays in place.

    Parameters
    ----------
    affine : (4, 4) array
        Of an array already brought to the canonical order of axes.
    shape : sequence of 3 ints
        Size along z, y, x.
    """
    centre = (np.asarray(shape, dtype=float) - 1) / 2
    straight = scaling(spacing(affine))
    straight[:3, 3] = index_to_world(affine, centre) - straight[:3, :3] @ centre
    return straight


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie: a size along z, y, x and an affine.

    Attributes
    ----------
    shape : tuple of 3 ints
        (z, y, x); a 2-D image has one plane.
    affine : (4, 4) float64 array
        (k, j, i) -> world (z, y, x).
    units : str
        Unit of the world: ``"mm"``, ``"um"`` or ``"pixel"``.
    """

    shape: tuple[int, int, int]
    affine: Affine
    units: str = "mm"

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along z, y, x."""
        return spacing(self.affine)

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in cubic units of the world."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def corners(self) -> NDArray[np.float64]:
        """World positions (8, 3) of the centres of the corner voxels."""
        ends = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(3, -1).T
        return index_to_world(self.affine, ends)

    def same_place(self, other: Grid, tolerance: float = SAME_PLACE_MM) -> bool:
        """Whether both grids have the same voxels at the same places, to ``tolerance`` in world units."""
        if self.shape != other.shape or self.units != other.units:
            return False
        return bool(np.abs(self.corners() - other.corners()).max() <= tolerance)

    def place_in(self, outer: Grid) -> tuple[tuple[int, int, int], tuple[slice, slice, slice]] | None:
        """Where this grid's voxels are among another's.

        Parameters
        ----------
        outer : Grid
            The other; larger or as large.

        Returns
        -------
        order : tuple of 3 ints
        slices : tuple of 3 slices
            ``array.transpose(order)[slices]`` is the part of an array on ``outer`` that has this grid's shape and
            places. None if some voxel lies outside, or a quarter of a voxel or more from the centre of the nearest.
        """
        through = np.linalg.solve(outer.affine, self.affine)
        size = np.array(self.shape)
        turn = np.rint(through[:3, :3])
        for single in np.flatnonzero(size == 1):  # how thick a single plane is does not matter
            column = through[:3, single]
            turn[:, single] = np.where(np.abs(column) == np.abs(column).max(), np.sign(column), 0)
        if (np.abs(turn).sum(axis=0) != 1).any() or (np.abs(turn).sum(axis=1) != 1).any():
            return None
        ends = np.array(np.meshgrid(*[(0, n - 1) for n in size], indexing="ij")).reshape(3, -1).T
        start = np.rint(through[:3, 3])
        whole = ends @ turn.T + start
        off = np.abs(ends @ through[:3, :3].T + through[:3, 3] - whole).max()
        if self.units != outer.units or off >= 0.25 or (whole < 0).any() or (whole >= outer.shape).any():
            return None
        order = [int(n) for n in np.abs(turn).argmax(axis=0)]
        parts = []
        for axis, along in enumerate(order):
            first, count = int(start[along]), int(size[axis])
            last = first - count
            parts.append(
                slice(first, first + count) if turn[along, axis] > 0 else slice(first, None if last < 0 else last, -1)
            )
        return (order[0], order[1], order[2]), (parts[0], parts[1], parts[2])

    def reoriented(self, reorientation: Reorientation) -> Grid:
        """The grid of the same voxels in another order of axes."""
        k, j, i = (self.shape[n] for n in reorientation.order)
        return Grid((k, j, i), self.affine @ reorientation.matrix(self.shape), self.units)

    def resampled(self, new_spacing: Sequence[float]) -> Grid:
        """The grid with another spacing that covers the same box, edge to edge.

        The number of voxels is rounded to the nearest; the spacing is the one asked for, and the
        outer faces stay centred on the old box.
        """
        old, new = np.asarray(self.spacing), np.asarray(new_spacing, dtype=float)
        size = np.maximum(1, np.round(np.asarray(self.shape) * old / new)).astype(int)
        zoom = np.diag([*(new / old), 1.0])
        zoom[:3, 3] = (np.asarray(self.shape) - 1) / 2 - (size - 1) / 2 * (new / old)
        return Grid((int(size[0]), int(size[1]), int(size[2])), self.affine @ zoom, self.units)
