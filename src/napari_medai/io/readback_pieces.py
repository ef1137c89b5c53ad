"""What is too large for memory, read back from NIfTI piece by piece: nibabel's header, and then the bytes."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

from napari_medai.core.errors import ReadError
from napari_medai.core.geometry import SAME_PLACE_MM, Grid, Reorientation
from napari_medai.core.volume import Volume
from napari_medai.io.nifti_write import slabs
from napari_medai.io.readback_images import ELSEWHERE, OTHER_VALUES, Row

# What is not in memory, and larger than this, is read back in pieces
PIECES_BYTES = 256 << 20


def in_pieces(path: Path, volume: Volume) -> bool:
    """Whether a volume is too large to be read back as a whole, and the format can be read in pieces."""
    large = volume.is_lazy and volume.array.nbytes > PIECES_BYTES
    return (
        large and volume.dtype.kind in "iuf" and not volume.is_rgb and path.name.lower().endswith((".nii", ".nii.gz"))
    )


def verify_pieces(path: Path, volume: Volume, names: Mapping[int, str] | None = None) -> list[Row]:
    """What was asked about such a file: voxels and place, and the names of labels as our own reader finds them.

    Raises
    ------
    ReadError
        The file cannot be read.
    """
    from napari_medai.io.nifti import open_volume

    wrong = faults(path, volume)
    kept = open_volume(path).meta.get("label_names") or {}
    rows = [("voxels as read piece by piece", not wrong, ", ".join(wrong))]
    return [*rows, ("names", dict(names) == kept, "")] if names else rows


def faults(path: Path, volume: Volume) -> tuple[str, ...]:
    """What is not the same in a NIfTI file as in what was saved; a piece of both is in memory at a time.

    Parameters
    ----------
    path : Path
        The file, ``.nii`` or ``.nii.gz``.
    volume : Volume
        What was saved: axes ``(c)(t)(z)yx`` in any order of c and t.

    Raises
    ------
    ReadError
        The file cannot be read.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        image = nibabel.load(path)
        proxy = image.dataobj
        found = np.asarray(image.affine, dtype=float)
    except (OSError, ValueError, EOFError, zlib.error, ImageFileError) as error:
        raise ReadError(f"nibabel cannot read what was written: {type(error).__name__}.") from error
    # RAS (x, y, z) -> (z, -y, -x); the file's axes backwards, so that its slowest comes first
    affine = (np.diag([-1.0, -1.0, 1.0, 1.0]) @ found)[[2, 1, 0, 3]][:, [2, 1, 0, 3]]
    x, y, z = (*map(int, proxy.shape), 1)[:3]
    expected = turned(volume, Grid((z, y, x), affine, volume.units))
    if expected is None or expected.array.size != prod(proxy.shape):
        return (ELSEWHERE,)
    if (proxy.slope, proxy.inter) != (1.0, 0.0):
        return (OTHER_VALUES,)
    array = expected.array.transpose([expected.axes.index(axis) for axis in "ctzyx" if axis in expected.axes])
    # real numbers were rounded to the type of the file
    real = volume.dtype.kind == "f"
    dtype = proxy.dtype if real else volume.dtype
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            file.seek(int(proxy.offset))
            for piece in slabs(array, np.dtype(dtype)):
                there = np.frombuffer(file.read(piece.size * proxy.dtype.itemsize), proxy.dtype)
                if there.size != piece.size or not np.array_equal(there, piece.ravel(), equal_nan=real):
                    return (OTHER_VALUES,)
    except (OSError, EOFError, zlib.error) as error:
        raise ReadError(f"What was written cannot be read: {type(error).__name__}.") from error
    return ()


def turned(volume: Volume, grid: Grid, tolerance: float = SAME_PLACE_MM) -> Volume | None:
    """The volume with its spatial axes in the order of a file's; None if its voxels do not lie where the file's do."""
    place = grid.place_in(volume.grid)
    if place is None:
        return None
    if "z" in volume.axes:
        z, y, x = (part.step == -1 for part in place[1])
        volume = volume.reoriented(Reorientation(place[0], (z, y, x)))
    return volume if volume.grid.same_place(grid, tolerance) else None
