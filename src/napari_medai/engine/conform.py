"""A cube around an image, parallel to the patient's axes: where heads at any angle come to lie the same way.

What FreeSurfer's ``mri_convert --conform`` does to the geometry: 256 voxels of 1 mm a side, centred on the image. Where
the image's voxels have the cube's spacing and directions, the cube is moved by less than half a voxel so that they
fall on its own, and nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_medai.core.errors import ModelError
from napari_medai.core.geometry import (
    Affine,
    Grid,
    Reorientation,
    as_affine,
    canonical_reorientation,
    index_to_world,
)
from napari_medai.engine.resample import resample

# Letter -> world axis (z, y, x) and whether it is the direction in which that axis grows
LETTERS = {"S": (0, True), "I": (0, False), "P": (1, True), "A": (1, False), "L": (2, True), "R": (2, False)}
# Voxels that are off the cube's by less than this share of one, over the whole image, are on them
ON_VOXELS = 0.05
# An image with voxels smaller than this share of the cube's is averaged before it is looked up
FINER = 0.75


def parse_orientation(letters: str) -> tuple[tuple[int, bool], ...]:
    """World axis and sense of each letter.

    Raises
    ------
    ModelError
        It is not one letter each of R/L, A/P and S/I.
    """
    found = tuple(LETTERS.get(letter, (-1, True)) for letter in letters)
    if sorted(axis for axis, _ in found) != [0, 1, 2]:
        raise ModelError(f"The orientation {letters!r} is not one letter each of R/L, A/P and S/I, such as 'RAS'.")
    return found


def towards(affine: Affine, letters: str) -> Reorientation:
    """The permutation and flips after which the axes run nearest to the directions of ``letters``, in their order.

    Empty letters stand for ``"SPL"``, the order of axes of this package.
    """
    near = canonical_reorientation(affine)
    wanted = parse_orientation(letters or "SPL")
    k, j, i = (near.order[axis] for axis, _ in wanted)
    a, b, c = (near.flips[axis] == grows for axis, grows in wanted)
    return Reorientation((k, j, i), (a, b, c))


def in_network_order(values: Sequence[float], letters: str) -> tuple[float, ...]:
    """Values for z, y, x in the order of the network's axes."""
    return tuple(values[axis] for axis, _ in parse_orientation(letters or "SPL"))


def through_cube(grid: Grid, edge: int, spacing: Sequence[float], letters: str) -> Affine:
    """Index in the image -> index in its cube, (4, 4).

    Parameters
    ----------
    grid : Grid
        Of the image.
    edge : int
        Of the cube in voxels.
    spacing : sequence of 3 floats
        Of the cube along z, y, x in the image's unit.
    letters : str
        Directions of the cube's axes.
    """
    cube = np.eye(4)
    wanted = parse_orientation(letters or "SPL")
    for column, (axis, grows) in enumerate(wanted):
        cube[:3, column] = 0
        cube[axis, column] = spacing[axis] if grows else -spacing[axis]
    centre = index_to_world(grid.affine, (np.asarray(grid.shape) - 1) / 2)
    cube[:3, 3] = centre - cube[:3, :3] @ np.full(3, (edge - 1) / 2)
    through = np.linalg.solve(cube, grid.affine)
    turn = np.rint(through[:3, :3])
    if is_turn(turn) and np.abs(through[:3, :3] - turn).max() * max(grid.shape) < ON_VOXELS:
        through[:3, :3] = turn
        through[:3, 3] = np.floor(through[:3, 3] + 0.5)
    return np.asarray(through)


def is_turn(matrix: NDArray[np.float64]) -> bool:
    """Whether a (3, 3) matrix only permutes and flips axes."""
    sizes = np.abs(matrix)
    return bool((np.isin(sizes, (0, 1))).all() and (sizes.sum(axis=0) == 1).all() and (sizes.sum(axis=1) == 1).all())


def into_cube(
    pixels: NDArray[np.float32], grid: Grid, through: Affine, edge: int, spacing: Sequence[float]
) -> NDArray[np.float32]:
    """The image in its cube, by cubic splines within its range of values; where there is no image, its smallest value.

    Linear interpolation, which FreeSurfer and brainchop's application use, blurs: brainchop's light model then finds
    5 % more white matter in a head that was scanned at another angle, and by splines 1 % more.

    Parameters
    ----------
    pixels : (\\*spatial) float32 array
        One channel.
    grid, through, edge, spacing
        As given to `through_cube` and found by it.
    """
    size, ground = (edge,) * 3, float(pixels.min())
    if is_turn(through[:3, :3]):
        return np.asarray(_moved(pixels, through, size, ground))
    target = FINER * min(spacing)
    shape = tuple(
        ceil(n * own / min(spacing)) if own < target else n for n, own in zip(grid.shape, grid.spacing, strict=True)
    )
    if shape != grid.shape:
        zoom = np.eye(4)  # index in the averaged image -> index in the image, edge to edge
        for axis, (old, new) in enumerate(zip(grid.shape, shape, strict=True)):
            zoom[axis, axis], zoom[axis, 3] = old / new, 0.5 * old / new - 0.5
        pixels, through = resample(pixels, shape), through @ zoom
    back = np.linalg.inv(through)
    highest = float(pixels.max())
    found = ndimage.affine_transform(
        pixels, back[:3, :3], back[:3, 3], size, output=np.float32, order=3, mode="constant", cval=ground
    )
    return np.asarray(np.clip(found, ground, highest, out=found))


def out_of_cube(values: NDArray[Any], through: Affine, shape: Sequence[int], order: int) -> NDArray[Any]:
    """What stands in the cube (z, y, x) looked up at the image's voxels; 0 beyond the cube; the type is kept.

    ``order`` 0 takes the nearest voxel, 1 interpolates.
    """
    if is_turn(through[:3, :3]) and np.array_equal(through[:3, 3], np.rint(through[:3, 3])):
        return _moved(values, as_affine(np.linalg.inv(through)), tuple(shape), 0)
    return np.asarray(
        ndimage.affine_transform(
            values,
            through[:3, :3],
            through[:3, 3],
            tuple(shape),
            output=values.dtype,
            order=order,
            mode="constant",
            cval=0,
        )
    )


def lies_outside(through: Affine, shape: Sequence[int], edge: int) -> bool:
    """Whether some voxel of the image is not in the cube."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1).T
    at = index_to_world(through, corners)
    return bool((at < -0.5).any() or (at > edge - 0.5).any())


def _moved(array: NDArray[Any], through: Affine, size: tuple[int, ...], ground: float) -> NDArray[Any]:
    """The array's voxels at their whole indices in another array of ``size``."""
    turn, shift = np.rint(through[:3, :3]).astype(int), np.rint(through[:3, 3]).astype(int)
    order = [int(n) for n in np.abs(turn).argmax(axis=1)]
    backwards = [turn[axis, old] < 0 for axis, old in enumerate(order)]
    turned = array.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in backwards)]
    out = np.full(size, ground, dtype=array.dtype)
    source, target = [], []
    for axis, n in enumerate(turned.shape):
        first = int(shift[axis]) - (n - 1 if backwards[axis] else 0)
        low, high = max(0, first), min(size[axis], first + n)
        target.append(slice(low, max(low, high)))
        source.append(slice(low - first, max(low, high) - first))
    out[tuple(target)] = turned[tuple(source)]
    return out
