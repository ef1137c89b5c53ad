"""What formats share whose files hold one image."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from napari_medai.core.errors import ReadError, SeriesInfo
from napari_medai.core.volume import Volume

# Python's filters of warnings belong to the process: two threads that change them at once leave them changed.
_ONE_AT_A_TIME = threading.RLock()
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
def heeding(findings: list[str], logger: str = "") -> Iterator[None]:
    """Turn the warnings of a library, and what it logs from a warning upwards, into findings, each once.

    Parameters
    ----------
    findings : list of str
        Added to.
    logger : str
        Name of the library's logger; its messages go nowhere else meanwhile.
    """
    heard: list[str] = []
    ear = _Ear(heard)
    log = logging.getLogger(logger) if logger else None
    filters = list(log.filters) if log else []
    if log:
        log.addFilter(ear)
    try:
        with _ONE_AT_A_TIME, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        heard += [str(warning.message) for warning in caught]
    finally:
        if log:
            log.filters[:] = filters
        findings.extend(dict.fromkeys(text.strip() for text in heard if text.strip() not in ("", *findings)))


class _Ear(logging.Filter):
    """Keeps what is logged from a warning upwards, and lets nothing through."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__()
        self.heard = heard

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            self.heard.append(record.getMessage())
        return False
