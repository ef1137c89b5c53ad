"""DICOM: any file, folder or DICOMDIR to Volumes in patient space, lazily."""

from __future__ import annotations

from pathlib import Path

from napari_medai.io.dicom.headers import looks_like_dicom
from napari_medai.io.dicom.series import list_series, open_volume

__all__ = ["list_series", "looks_like_dicom", "open_volume", "sniff"]


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
