"""What tells an image from others, so that a run is gone on with for the same pixels only."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.volume import Volume


def fingerprint(volume: Volume) -> str:
    """What tells an image from others, for going on with a run: where its voxels lie, and every one of their values.

    A lazy image is read once for it, chunk by chunk; the network takes a hundred times as long. Dates and sizes of
    files would be quicker, and say nothing of what was done with the pixels after they were read. Neither names nor
    header fields take part.

    Parameters
    ----------
    volume : Volume
        The image.

    Returns
    -------
    str
        64 hexadecimal digits; others for the same pixels in memory, lazy, or in other chunks.
    """
    array = volume.array
    digest = hashlib.sha256()
    digest.update(repr((volume.shape, volume.dtype.str, volume.axes, volume.units)).encode())
    digest.update(np.ascontiguousarray(np.round(volume.affine, 6)).tobytes())
    if isinstance(array, np.ndarray):
        for plane in array if array.ndim > 2 else (array,):
            digest.update(np.ascontiguousarray(plane).data)
        return digest.hexdigest()
    digest.update(repr(array.chunks).encode())
    parts = array.map_blocks(
        _of_chunk,
        dtype=np.uint64,
        chunks=[(1,) * count for count in array.numblocks],
        meta=np.empty((0,) * array.ndim, np.uint64),
    )
    digest.update(np.ascontiguousarray(parts.compute()).tobytes())
    return digest.hexdigest()


def _of_chunk(pixels: NDArray[Any]) -> NDArray[np.uint64]:
    found = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=8).digest()
    return np.frombuffer(found, np.uint64).reshape((1,) * pixels.ndim)
