"""Labels that are too large for memory, read back from NIfTI piece by piece: nibabel's header, and then the bytes."""

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

# Labels that are not in memory, and larger than this, are read back in pieces
PIECES_BYTES = 256 << 20


def in_pieces(path: Path, volume: Volume) -> bool:
    """Whether labels are too large to be read back as a whole, and the format can be read in pieces."""
    large = volume.is_lazy and volume.array.nbytes > PIECES_BYTES
    return large and volume.dtype.kind in "iu" and path.name.lower().endswith((".nii", ".nii.gz"))


def verify_pieces(path: Path, volume: Volume, names: Mapping[int, str] | None = None) -> list[Row]:
    """What was asked about a file of such labels: their voxels and place, and the names as our own reader finds them.

    Raises
    ------
    ReadError
        The file cannot be read.
    """
    from napari_medai.io.nifti import open_volume

    wrong = faults(path, volume)
    kept = open_volume(path).meta.get("label_names") or {}
    rows = [("labels as read piece by piece", not wrong, ", ".join(wrong))]
    return [*rows, ("names", dict(names) == kept, "")] if names else rows


def faults(path: Path, volume: Volume) -> tuple[str, ...]:
    """What is not the same in a NIfTI file as in the labels that were saved; a piece of both is in memory at a time.

    Parameters
    ----------
    path : Path
        The file, ``.nii`` or ``.nii.gz``.
    volume : Volume
        What was saved: axes ``(t)(z)yx``.

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
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            file.seek(int(proxy.offset))
            for piece in slabs(expected.array, np.dtype(volume.dtype)):
                there = np.frombuffer(file.read(piece.size * proxy.dtype.itemsize), proxy.dtype)
                if there.size != piece.size or not np.array_equal(there, piece.ravel()):
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
