"""What formats share whose files hold one image."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from napari_medai.core.errors import ReadError, SeriesInfo
from napari_medai.core.volume import Volume

_MM = {"mm": 1.0, "um": 1e-3, "pixel": 1.0}


def series_of(volume: Volume, uid: str = "") -> SeriesInfo:
    """The one series of a file that was opened."""
    factor = _MM[volume.units]
    spacing = tuple(step * factor for step in volume.spacing)[3 - volume.ndim_spatial :]
    return SeriesInfo(uid, volume.modality, volume.name, None, volume.shape, spacing, 1)


def only_series(path: Path, series_uid: str) -> None:
    """Refuse a series_uid where a file holds one image.

    Raises
    ------
    ReadError
        A series was asked for.
    """
    if series_uid:
        raise ReadError(f"{path} holds one image and no series {series_uid!r}; leave series_uid out.")


def stem(path: Path, suffixes: tuple[str, ...]) -> str:
    """The file's name without its suffix, ``brain`` for ``brain.nii.gz``."""
    name = path.name
    found = max((s for s in suffixes if name.lower().endswith(s)), key=len, default="")
    return name[: len(name) - len(found)] or name


@contextmanager
def heeding(findings: list[str]) -> Iterator[None]:
    """Turn the warnings of a library into findings, each once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        text = str(warning.message).strip()
        if text and text not in findings:
            findings.append(text)
