"""DICOM: any file, folder or DICOMDIR to Volumes in patient space, lazily."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_medai.core.errors import ReadError, SeriesInfo, UnsupportedFormatError
from napari_medai.io.dicom import rtstruct, series
from napari_medai.io.dicom.headers import looks_like_dicom

if TYPE_CHECKING:
    from napari_medai.core.volume import Volume

__all__ = ["list_series", "looks_like_dicom", "open_volume", "save_volume", "sniff"]


def sniff(head: bytes, path: Path) -> bool:
    """Whether a file is DICOM by its first bytes.

    Parameters
    ----------
    head : bytes
        The first 132 bytes or more.
    path : Path
        The file; its name does not matter.
    """
    return looks_like_dicom(head)


def list_series(path: str | os.PathLike[str]) -> list[SeriesInfo]:
    """What can be opened at a path: the images, and the structure sets that are drawn on them.

    Raises
    ------
    ReadError
        As `napari_medai.io.dicom.series.list_series`.
    """
    if os.path.isfile(path) and (alone := rtstruct.structure_sets(path)):
        return [rtstruct.structure_info(header) for header in alone]
    try:
        return series.list_series(path)
    except UnsupportedFormatError:
        found = rtstruct.structure_sets(path)
        if not found:
            raise
        return [rtstruct.structure_info(header) for header in found]


def open_volume(path: str | os.PathLike[str], series_uid: str = "", **options: Any) -> Volume:
    """Open a series, or a structure set as labels on its scan.

    A folder with images and structure sets opens the image; a structure set in it opens by its ``series_uid``.

    Parameters
    ----------
    path, series_uid, **options
        See `napari_medai.io.dicom.series.open_volume`.

    Raises
    ------
    ReadError
        As `napari_medai.io.dicom.series.open_volume`.
    """
    if os.path.isfile(path) and rtstruct.structure_sets(path):
        return rtstruct.open_structures(path)
    try:
        return series.open_volume(path, series_uid, **options)
    except ReadError as error:
        # no image of that series, or no image at all; other errors have nothing to do with structure sets
        if not os.path.isdir(path) or not (series_uid or isinstance(error, UnsupportedFormatError)):
            raise
        found = [h for h in rtstruct.structure_sets(path) if series_uid in ("", h.text("SeriesInstanceUID"))]
        if len(found) != 1:
            raise
    return rtstruct.open_structures(found[0].path)


def save_volume(
    volume: Volume,
    path: Path,
    record: Mapping[str, Any] | None = None,
    *,
    against: Any = None,
    check: bool = True,
    **options: Any,
) -> Path:
    """Write labels, heat or an image as a DICOM object of the scan that it lies on.

    Parameters
    ----------
    volume : Volume
        Labels become a Segmentation, heat a Parametric Map, any other image a derived series.
    path : Path
        A file; a folder for a derived series of several slices.
    record : mapping, optional
        Of the result.
    against : Volume or path, optional
        The scan, where the volume does not know it.
    check : bool
        Read a derived series back before it takes its name.
    **options
        Of the writer, e.g. ``kind="binary"`` for labels.

    Raises
    ------
    WriteError
        The scan is not DICOM or not there, the object cannot hold the volume, or the system refused.
    """
    from napari_medai.io.dicom.write.results import write

    return write(volume, path, dict(record or {}), against, check, **options)
