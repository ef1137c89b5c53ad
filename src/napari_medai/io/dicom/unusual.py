"""What is unusual about the pixels of an image: loss, reversed grey, signs that contradict each other, palettes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from napari_medai.core.errors import MedaiError
from napari_medai.io.dicom.decoding import Plane, stream_signed
from napari_medai.io.dicom.details import details
from napari_medai.io.dicom.headers import Header, numbers

# Transfer syntaxes that lose something whatever the header says, and the terms of (0028,2114)
_LOSSY = {
    "1.2.840.10008.1.2.4.50": "JPEG",
    "1.2.840.10008.1.2.4.51": "JPEG",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
}
_METHODS = {
    "ISO_10918_1": "JPEG", "ISO_14495_1": "JPEG-LS", "ISO_15444_1": "JPEG 2000", "ISO_15444_15": "HTJ2K",
    "ISO_13818_2": "MPEG2", "ISO_14496_10": "MPEG-4", "ISO_23008_2": "HEVC",
}  # fmt: skip


def pixel_findings(headers: Sequence[Header], lead: Plane) -> list[str]:
    """Sentences about the pixels of an image.

    Parameters
    ----------
    headers : sequence of Header
        Of its files.
    lead : Plane
        Its first plane.
    """
    found = []
    if lead.inverted:
        found.append("MONOCHROME1: the stored values were reversed, so that bright is bright.")
    header, file = headers[0], lead.file
    if not file.colour and header.text("PixelPresentation") in ("COLOR", "MIXED"):
        found.append("Some of the pixels are meant to be shown in colours of a palette; they are shown in grey.")
    if not file.signed and not file.colour and min(_varying(header, "SmallestImagePixelValue"), default=0) < 0:
        found.append("The header counts stored values below 0 but calls them unsigned; that is how they are read.")
    in_stream = stream_signed(file)
    if in_stream is not None and in_stream != file.signed:
        names = {True: "signed", False: "unsigned"}
        found.append(f"The header says {names[file.signed]} pixels, the compressed stream {names[in_stream]} ones.")
    lossy = next(filter(None, map(_loss, headers)), "")
    return [*found, lossy] if lossy else found


def _varying(header: Header, keyword: str) -> tuple[float, ...]:
    # what differs from slice to slice is not among the elements that are read of each
    try:
        return numbers(details(header), keyword)
    except MedaiError:
        return ()


def _loss(header: Header) -> str:
    if header.text("LossyImageCompression") != "01" and header.syntax not in _LOSSY:
        return ""
    methods = [_METHODS.get(word, word) for word in header.texts("LossyImageCompressionMethod") if word]
    ratios = [f"{ratio:g} : 1" for ratio in _varying(header, "LossyImageCompressionRatio") if math.isfinite(ratio)]
    said = ", ".join([*methods, *ratios])[:64] or _LOSSY.get(header.syntax, "")
    return f"The pixels were compressed with loss{f' ({said})' if said else ''}."
