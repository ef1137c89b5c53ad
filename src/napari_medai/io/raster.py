"""PNG and JPEG: one 2-D image, grey or colour, without a pixel size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from napari_medai.core.errors import ReadError, SeriesInfo, WriteError
from napari_medai.core.volume import Volume
from napari_medai.io.atomic import written
from napari_medai.io.single import heeding, only_series, series_of, stem

_SUFFIXES = (".png", ".jpg", ".jpeg")
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# Floats may leave a range of whole numbers by this share of it before they are refused: a denoised
# image overshoots a little at edges.
OVERSHOOT = 0.05
JPEG_QUALITY = 95


def sniff(head: bytes, path: Path) -> bool:
    """Whether the bytes start a PNG or a JPEG."""
    return head.startswith((_PNG, _JPEG))


def list_series(path: Path) -> list[SeriesInfo]:
    """The one image of a file."""
    return [series_of(open_volume(path))]


def open_volume(path: Path, series_uid: str = "") -> Volume:
    """Open a PNG or JPEG.

    Parameters
    ----------
    path : Path
        The file.
    series_uid : str
        Must be empty: a file holds one image.

    Returns
    -------
    Volume
        ``"yx"`` (uint8 or uint16) or ``"yxs"`` (uint8), in pixels: a resolution in dots per inch is about
        printing. A photograph's orientation (EXIF) is applied; palettes become colours.

    Raises
    ------
    ReadError
        The file is damaged.
    """
    only_series(path, series_uid)
    findings: list[str] = []
    try:
        with heeding(findings), Image.open(path, formats=("PNG", "JPEG")) as file:
            file.load()
            image: Image.Image = file
            if image.getexif().get(0x0112, 1) != 1:
                findings.append("turned upright as the file's EXIF orientation says")
                image = ImageOps.exif_transpose(image)
            frames = getattr(file, "n_frames", 1)
            if frames > 1:
                findings.append(f"the first of {frames} frames was opened")
            array = _array(image, findings)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ReadError(f"{path} cannot be opened as PNG or JPEG: {error}") from error
    axes = "yx" if array.ndim == 2 else "yxs"
    return Volume(array, axes, name=stem(path, _SUFFIXES), meta={"findings": tuple(findings)}, source=str(path))


def _array(image: Image.Image, findings: list[str]) -> NDArray[Any]:
    if image.mode in ("P", "PA", "CMYK", "YCbCr", "LA", "La", "HSV", "LAB", "RGBa", "RGBX"):
        target = "RGBA" if "transparency" in image.info or image.mode in ("PA", "LA", "La", "RGBa") else "RGB"
        findings.append(f"colours turned from {image.mode} to {target}")
        image = image.convert(target)
    array = np.asarray(image)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.int32 and image.format == "PNG":  # 16-bit PNG in Pillow before 11
        return np.asarray(array, dtype=np.uint16)
    return np.array(array, dtype=array.dtype.newbyteorder("="))


def save_volume(volume: Volume, path: Path, record: Mapping[str, Any] | None = None) -> None:
    """Write a 2-D image as PNG (grey 8 or 16 bit, colour 8 bit) or JPEG (8 bit, quality 95).

    Whole numbers are written as they are. Floats: values in 0..1 are stretched to the whole range of the
    type, values up to 255 or 65,535 are rounded; an overshoot of 5 % of the range is clipped. The place in
    space and the provenance are not kept: these formats have no room for them.

    Parameters
    ----------
    volume : Volume
        Axes ``yx`` or ``yxs``; other axes of length 1 are dropped.
    path : Path
        Ends in ``.png``, ``.jpg`` or ``.jpeg``.
    record : mapping, optional
        ``is_labels`` forbids JPEG, which changes values.

    Raises
    ------
    WriteError
        The image has more dimensions or values than the format holds, or the system refused.
    """
    jpeg = path.suffix.lower() != ".png"
    labels = bool(volume.meta.get("is_labels") or (record or {}).get("is_labels"))
    if jpeg and labels:
        raise WriteError(f"{path.name}: JPEG changes values, so labels cannot be kept in it; use .png or .tif.")
    array, axes = volume.array, volume.axes
    for axis in [a for a in axes if a not in "yxs" and volume.size(a) == 1]:
        array, axes = array[(slice(None),) * axes.index(axis) + (0,)], axes.replace(axis, "")
    if axes not in ("yx", "yxs") or (axes == "yxs" and array.shape[-1] not in ((3,) if jpeg else (3, 4))):
        raise WriteError(
            f"{path.name} holds one 2-D image, grey or colour; this one has the axes {volume.axes!r} and the shape "
            f"{volume.shape}. Use .tif or .nii.gz, or take one slice with volume.take('z', index)."
        )
    pixels = _whole(np.asarray(array), 255 if jpeg or axes == "yxs" else 65535, path.name)
    with written(path) as file:
        options: dict[str, Any] = {"quality": JPEG_QUALITY, "subsampling": 0} if jpeg else {}
        Image.fromarray(pixels).save(file, format="JPEG" if jpeg else "PNG", **options)


def _whole(array: NDArray[Any], most: int, name: str) -> NDArray[Any]:
    """uint8 or uint16 pixels with no value above ``most``."""
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    finite = array.dtype.kind in "iu" or (array.dtype.kind == "f" and bool(np.isfinite(array).all()))
    if not finite:
        raise WriteError(f"{name} holds whole numbers; pixels of type {array.dtype} with NaN or infinity do not fit.")
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind == "f":
        if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
            array, low, high = np.clip(array, 0, 1) * np.float32(most), 0.0, float(most)
        for top in (255, most):
            if low >= -OVERSHOOT * high and high <= top * (1 + OVERSHOOT):
                return np.asarray(np.clip(np.rint(array), 0, top), dtype=np.uint8 if top == 255 else np.uint16)
    elif low >= 0 and high <= most:
        if array.dtype == np.uint16 and most > 255:
            return np.asarray(array)  # a 16-bit image stays one, even if it is dark
        return array.astype(np.uint8 if high <= 255 else np.uint16)
    raise WriteError(
        f"{name} holds whole numbers from 0 to {most}; the pixels go from {low:g} to {high:g}. "
        "Use .tif or .nii.gz, which keep the values."
    )
