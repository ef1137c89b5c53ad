"""Whether a file of whole numbers holds labels or grey values, where its header does not say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.io.nifti_pixels import StoredPixels

_WORDS = frozenset(
    (
        "seg",
        "segmentation",
        "segmented",
        "mask",
        "masks",
        "label",
        "labels",
        "labelmap",
        "atlas",
        "aseg",
        "aparc",
        "rois",
    )
)
# Decoding this much takes about a third of a second; what is decoded is kept, so a viewer waits no longer.
LOOK_BYTES = 128 << 20
# Share of neighbouring object voxels with the same value. Measured on Debian's mricron-data: nine atlases
# 0.82 to 0.96, three scans 0.09 to 0.21; on 18 clinical MR series below 0.01.
SAME_NEIGHBOUR = 0.5


def holds_labels(path: Path, pixels: StoredPixels) -> bool:
    """Decide by the words in the file's name, then by three planes in the middle.

    A compressed file of more than `LOOK_BYTES` is taken for an image unless its name says otherwise,
    because the whole of it would have to be decoded.

    Parameters
    ----------
    path : Path
        As the user gave it.
    pixels : StoredPixels
        Whole numbers without scaling, (…, z, y, x).
    """
    if _WORDS & set(re.split(r"[^a-z]+", path.name.lower())):
        return True
    if pixels.compressed and pixels.nbytes_stored > LOOK_BYTES:
        return False
    raw = pixels.raw()
    stack = raw.reshape(-1, *raw.shape[-3:])[raw.size // np.prod(raw.shape[-3:]) // 2] if raw.ndim > 2 else raw[None]
    depth = stack.shape[0]
    planes = sorted({depth // 4, depth // 2, (3 * depth) // 4})
    return piecewise_constant(np.asarray(stack[planes]))


def piecewise_constant(planes: NDArray[Any]) -> bool:
    """Whether non-negative planes (n, y, x) consist of patches of equal values, as labels do and scans do not.

    The most frequent value other than 0 is left out of the count, because it can be the background of a
    scan; planes that hold nothing besides it and 0 are a mask.
    """
    values, counts = np.unique(planes, return_counts=True)
    if values[0] < 0 or values[-1] == 0:
        return False
    others = values > 0
    if others.sum() == 1:
        return bool(values[0] == 0)
    common = values[others][np.argmax(counts[others])]
    left, right = planes[..., :-1], planes[..., 1:]
    both = (left > 0) & (right > 0) & ((left != common) | (right != common))
    total = int(both.sum())
    return total > 0 and int((left == right)[both].sum()) / total >= SAME_NEIGHBOUR
