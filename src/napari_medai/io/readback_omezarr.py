"""OME-Zarr read back a piece at a time: voxels by zarr, the place by the format's attributes; and as `open` gives them.

What reads by zarr shares nothing with the writer or with `open`. A piece is a few chunks, so that images and labels
larger than memory are compared voxel by voxel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from napari_medai.core.errors import ReadError, UnsupportedFormatError
from napari_medai.core.geometry import Grid, as_affine, index_to_world, scaling
from napari_medai.core.volume import Volume
from napari_medai.io import open as open_volume
from napari_medai.io import record as records
from napari_medai.io.agreement import Agreement, compare_pieces, in_mm
from napari_medai.io.pixelsize import MICROMETRES
from napari_medai.io.readback import Labels, Patch
from napari_medai.io.readback_images import ELSEWHERE, OTHER_VALUES, Row
from napari_medai.io.readback_pieces import turned

# What zarr and its codecs raise on damaged stores
_BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)
_FEW_VOXELS = 2**22
_MM = 1e3  # micrometres
# Of a voxel: JSON holds the numbers as they are
_SAME_PLACE = 1e-3


@dataclass(frozen=True, eq=False)
class Stored:
    """An image of a store as zarr and the attributes give it.

    Attributes
    ----------
    levels : tuple of Zarr arrays
        The finest first.
    axes : str
        Out of t, c, z, y, x, in this order.
    plain : Grid
        By scale and translation, which every program reads: in micrometres, or pixels without a unit of length.
    whole : Grid or None
        By the affine that stands beside them in what this program writes.
    names : mapping of int to str
        Of labels.
    """

    levels: tuple[Any, ...]
    axes: str
    plain: Grid
    whole: Grid | None
    names: Mapping[int, str]

    @property
    def agrees(self) -> bool:
        """Whether scale and translation say of the whole affine what they can."""
        if self.whole is None:
            return True
        factor = _MM if self.whole.units == "mm" else 1.0
        there = ["zyx".index(axis) for axis in self.axes if axis in "zyx"]
        size = np.allclose(np.array(self.whole.spacing)[there] * factor, np.array(self.plain.spacing)[there])
        return bool(size and np.allclose(self.whole.affine[there, 3] * factor, self.plain.affine[there, 3]))

    @property
    def grid(self) -> Grid:
        """Where the voxels of the finest level lie; another program may have changed the place that it knows of."""
        return self.whole if self.whole is not None and self.agrees else self.plain


def read(path: Path) -> Stored:
    """What an OME-Zarr image holds.

    Raises
    ------
    ReadError
        zarr cannot open it, or an attribute is missing.
    UnsupportedFormatError
        The axes are not t, c, z, y, x in this order.
    """
    try:
        group = zarr.open_group(str(path), mode="r")
        attributes = dict(group.attrs)
        ome = attributes.get("ome", attributes)
        scales = ome["multiscales"][0]
        levels = tuple(group[dataset["path"]] for dataset in scales["datasets"])
        named = [{"name": axis} if isinstance(axis, str) else axis for axis in scales["axes"]]  # 0.3 gave names only
        axes = "".join(axis["name"] for axis in named)
        sizes = dict(zip(axes, levels[0].shape, strict=True))
        shape = (sizes.get("z", 1), sizes["y"], sizes["x"])
        plain = _plain(named, scales, shape)
        own = attributes.get(records.KEY, {})
        whole = Grid(shape, as_affine(own["affine"]), own["units"]) if "affine" in own else None
        listed = ome.get("image-label", {}).get("properties", ())
        names = {int(entry["label-value"]): str(entry["name"]) for entry in listed if "name" in entry}
    except _BROKEN as error:
        raise ReadError(f"zarr cannot read what was written: {type(error).__name__}.") from error
    if [axis for axis in "tczyx" if axis in axes] != list(axes):
        raise UnsupportedFormatError(f"its axes {axes!r} are not t, c, z, y, x in this order")
    return Stored(levels, axes, plain, whole, names)


def _plain(named: Sequence[Mapping[str, str]], scales: Mapping[str, Any], shape: tuple[int, int, int]) -> Grid:
    """The grid by scale and translation, those of the level before those of all levels."""
    step, start = np.ones(len(named)), np.zeros(len(named))
    level = scales["datasets"][0].get("coordinateTransformations", ())
    for one in (*level, *scales.get("coordinateTransformations", ())):
        if one["type"] == "scale":
            step, start = step * one["scale"], start * one["scale"]
        elif one["type"] == "translation":
            start = start + one["translation"]
    there = {axis["name"]: n for n, axis in enumerate(named)}
    factors = [MICROMETRES.get(axis.get("unit", "").lower(), 0.0) for axis in named]
    known = all(factors[there[axis]] for axis in "zyx" if axis in there)

    def along(values: NDArray[np.float64], absent: float) -> list[float]:
        taken = values * factors if known else values
        return [float(taken[there[axis]]) if axis in there else absent for axis in "zyx"]

    return Grid(shape, scaling(along(step, 1.0), along(start, 0.0)), "um" if known else "pixel")


def verify_saved(path: Path, expected: Volume, names: Mapping[int, str] | None = None) -> list[Row]:
    """Compare a store with what was saved: every voxel, its place, the coarser copies and the names of labels.

    Raises
    ------
    ReadError
        The store cannot be read.
    """
    stored, opened = read(path), open_volume(path)
    array = _filed(expected, stored)
    voxels = ELSEWHERE if array is None else "" if _same(stored, array) else OTHER_VALUES
    kept = dict(opened.meta.get("label_names") or {}) == dict(stored.names) == dict(names or stored.names)
    faults = {
        "voxels as read by zarr": voxels,
        "coarser copies as read by zarr": "" if _every_second(stored) else OTHER_VALUES,
        "place by scale and translation": "" if stored.agrees else ELSEWHERE,
        "place as read by napari-medai": "" if _filed(opened, stored) is not None else ELSEWHERE,
        "names": "" if kept else "labels have other ones",
    }
    return [(what, not fault, fault) for what, fault in faults.items()]


def verify_alone(path: Path) -> tuple[list[Agreement], list[Row]]:
    """Compare what zarr and `napari_medai.open` make of a store: label by label, or every voxel of an image.

    Raises
    ------
    ReadError
        The store cannot be read.
    """
    opened = open_volume(path)
    stored = read(Path(opened.source))
    array = _filed(opened, stored)
    if array is None:
        return [], [("readers agree on the place", False, ELSEWHERE)]
    if opened.meta.get("is_labels"):
        first, second = _labels(stored, stored.levels[0], "zarr"), _labels(stored, array, "napari-medai")
        return in_mm(compare_pieces(first, second), stored.grid.units), []
    same = _same(stored, array)
    return [], [("readers agree on the image", same, "" if same else OTHER_VALUES)]


def by_zarr(path: Path) -> Labels:
    """The labels of a store by zarr, a piece at a time."""
    stored = read(Path(open_volume(path).source))
    return _labels(stored, stored.levels[0], "zarr")


def by_open(path: Path) -> Labels:
    """The labels of a store as `napari_medai.open` gives them, a piece at a time.

    Raises
    ------
    ReadError
        They lie elsewhere than zarr finds them.
    """
    opened = open_volume(path)
    stored = read(Path(opened.source))
    array = _filed(opened, stored)
    if array is None:
        raise ReadError(f"{path.name}: two readers do not agree on where its voxels lie; it is damaged.")
    return _labels(stored, array, "napari-medai")


def _filed(volume: Volume, stored: Stored) -> Any:
    """The array of a volume in the order of the store; None if its voxels lie elsewhere."""
    found = turned(volume, stored.grid, _SAME_PLACE * min(volume.spacing))
    axes = volume.axes.replace("s", "c")  # samples of colour are channels
    if found is None or sorted(axes) != sorted(stored.axes):
        return None
    array = found.array.transpose([axes.index(axis) for axis in stored.axes])
    return array if tuple(array.shape) == tuple(stored.levels[0].shape) else None


def _pieces(level: Any) -> Iterator[tuple[slice, ...]]:
    """Whole chunks, so many beside and below one another as are few voxels."""
    steps = list(level.chunks)
    for axis in (-1, -2):
        steps[axis] *= max(1, _FEW_VOXELS // prod(steps))
    for start in product(*(range(0, n, step) for n, step in zip(level.shape, steps, strict=True))):
        yield tuple(slice(s, min(s + step, n)) for s, step, n in zip(start, steps, level.shape, strict=True))


def _read(level: Any, where: tuple[slice, ...]) -> NDArray[Any]:
    try:
        return np.asarray(level[where])
    except _BROKEN as error:
        raise ReadError(f"zarr cannot read a chunk: {type(error).__name__}.") from error


def _same(stored: Stored, array: Any) -> bool:
    """Whether the finest level holds an array: whole numbers exactly, others to the rounding of float32."""
    level = stored.levels[0]
    pairs = ((_read(level, where), np.asarray(array[where])) for where in _pieces(level))
    if level.dtype.kind in "iu":
        return all(np.array_equal(there, piece) for there, piece in pairs)
    return all(np.allclose(there, piece, rtol=1e-6, atol=1e-30, equal_nan=True) for there, piece in pairs)


def _every_second(stored: Stored) -> bool:
    """Whether each level holds every second voxel of the rows and columns of the one before."""
    for fine, coarse in pairwise(stored.levels):
        for where in _pieces(coarse):
            finer = (*where[:-2], *(slice(2 * s.start, 2 * s.stop, 2) for s in where[-2:]))
            if not np.array_equal(_read(coarse, where), _read(fine, finer), equal_nan=fine.dtype.kind == "f"):
                return False
    return True


def _labels(stored: Stored, array: Any, by: str) -> Labels:
    """Patches of an array that has the axes and the chunks of a store."""
    grid, lead = stored.grid, sum(axis in "tc" for axis in stored.axes)

    def patches() -> Iterator[Patch]:
        for where in _pieces(stored.levels[0]):
            piece = _read(array, where)
            piece = piece if "z" in stored.axes else np.expand_dims(piece, lead)
            corner = [where[stored.axes.index(axis)].start if axis in stored.axes else 0 for axis in "zyx"]
            affine = grid.affine.copy()
            affine[:3, 3] = index_to_world(grid.affine, corner)
            for at in np.ndindex(piece.shape[:lead]):
                number = tuple(part.start + n for part, n in zip(where, at, strict=False))
                yield Patch(piece[at], affine, int(np.ravel_multi_index(number, array.shape[:lead])) if lead else 0)

    return Labels(by, patches, stored.names)
