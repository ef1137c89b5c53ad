"""The JPEG family on several threads at once, by imagecodecs.

pydicom's decoders keep Python's lock while they work, so that one slice is decoded at a time; imagecodecs lets it go.
Of pydicom's only GDCM uses several cores, for the blocks of one JPEG 2000 slice; a slice of 12 bits and 512 x 512
pixels takes 20 ms with ours on two cores, 29 ms with GDCM, 38 ms with pylibjpeg-openjpeg (all three are OpenJPEG).
imagecodecs also knows JPEG of 12 bits, which Pillow does not, and lossless JPEG and JPEG-LS, over which GDCM can end
the process. It decodes what is plain, grey values of the size that the header states; everything else is pydicom's.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.io.dicom.pixels import PixelFile

# imagecodecs' function by transfer syntax: JPEG baseline, extended, lossless twice, JPEG-LS twice, JPEG 2000 twice
DECODERS = {
    "1.2.840.10008.1.2.4.50": "jpeg8_decode",
    "1.2.840.10008.1.2.4.51": "jpeg8_decode",
    "1.2.840.10008.1.2.4.57": "jpeg8_decode",
    "1.2.840.10008.1.2.4.70": "jpeg8_decode",
    "1.2.840.10008.1.2.4.80": "jpegls_decode",
    "1.2.840.10008.1.2.4.81": "jpegls_decode",
    "1.2.840.10008.1.2.4.90": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.91": "jpeg2k_decode",
}


def decode_grey(data: bytes, file: PixelFile) -> NDArray[Any] | None:
    """The stored values of a frame.

    Parameters
    ----------
    data : bytes
        The codestream.
    file : PixelFile
        What the header says of it.

    Returns
    -------
    (rows, columns) array or None
        None where the frame is not plain or imagecodecs is not installed.

    Raises
    ------
    ValueError
        The stream is damaged.
    """
    codecs = _codecs()
    if codecs is None or file.syntax not in DECODERS or file.samples != 1:
        return None
    try:
        found = np.asarray(getattr(codecs, DECODERS[file.syntax])(data))
    except RuntimeError as error:  # what all errors of imagecodecs are
        raise ValueError(" ".join(str(error).split())) from error
    if found.shape != (file.rows, file.columns) or found.dtype.itemsize != file.dtype.itemsize:
        return None
    # whether values are signed is for the header to say: streams are wrong about it now and then
    return found.view(file.dtype)


@lru_cache(maxsize=1)
def _codecs() -> ModuleType | None:
    try:
        import imagecodecs
    except ImportError:
        return None
    return imagecodecs
