"""What tells an image from others, so that a run is gone on with for the same pixels only."""

from __future__ import annotations

import hashlib

import numpy as np

from napari_medai.core.volume import Volume

# Bytes of an image up to which all of it is hashed; of a larger or a lazy one, so many blocks at most of so many voxels
_HASH_WHOLE = 1 << 30
_SAMPLES, _SAMPLE_EDGE = 9, 512


def fingerprint(volume: Volume) -> str:
    """What tells an image from others, for going on with a run: where its voxels lie, and their values.

    An array in memory is hashed as a whole, up to 1 GiB; of a larger or a lazy one, nine blocks of each edge up to
    512 voxels, corner to corner, with one of them in the middle. Neither names nor header fields take part.

    Parameters
    ----------
    volume : Volume
        The image.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    array = volume.array
    digest = hashlib.sha256()
    digest.update(repr((volume.shape, volume.dtype.str, volume.axes, volume.units)).encode())
    digest.update(np.ascontiguousarray(np.round(volume.affine, 6)).tobytes())
    if isinstance(array, np.ndarray) and array.nbytes <= _HASH_WHOLE:
        for plane in array if array.ndim > 2 else (array,):
            digest.update(np.ascontiguousarray(plane).tobytes())
        return digest.hexdigest()
    first = len(volume.axes.rstrip("s")) - 2  # of y
    for n in range(_SAMPLES):
        share = n / (_SAMPLES - 1)
        key = []
        for axis, size in enumerate(volume.shape):
            edge = min(size, _SAMPLE_EDGE) if axis >= first else 1
            # rows and columns go through the square on their own, so that not its diagonal alone is seen
            part = (n % 3) / 2 if axis == first + 1 else share
            start = round(part * (size - edge))
            key.append(slice(start, start + edge))
        digest.update(np.ascontiguousarray(array[tuple(key)]).tobytes())
    return digest.hexdigest()
