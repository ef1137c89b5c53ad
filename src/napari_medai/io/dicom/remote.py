"""Series whose pixels are elsewhere: their headers lie in a folder here, an instance is fetched when it is decoded.

The folder holds each header as a DICOM file without pixels, so that whatever reads folders reads it: grouping,
geometry, values and findings are those of the whole files. Who knows how to fetch registers here (`register`); this
package knows nothing of networks.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_medai.io.dicom.headers import Header
    from napari_medai.io.dicom.pixels import PixelFile

# What fetched instances may take on the disk before those that were longest unused go.
CACHE_BYTES = 8 << 30
# These many stay in any case: other threads may be decoding them.
_KEPT = 16
_EXPLICIT = "1.2.840.10008.1.2.1"


class RemoteSeries:
    """A folder of headers, and the instances behind them.

    Parameters
    ----------
    folder : Path
        Of the headers; a file each.
    pixels : Path
        Folder for the whole instances, outside of ``folder``.
    keywords : mapping of str to str
        File name -> keyword of its pixels, e.g. ``"PixelData"``; files that are not in it have none.
    fetch : callable
        ``fetch(name, target)`` writes the whole instance of the header ``name`` to the path ``target``, whole or not
        at all, and raises a `MedaiError` if it cannot. Called from any thread, several at once.
    cache_bytes : int
        What the instances may take.
    """

    def __init__(
        self,
        folder: Path,
        pixels: Path,
        keywords: Mapping[str, str],
        fetch: Callable[[str, Path], None],
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.folder, self.pixels = folder.absolute(), pixels.absolute()
        self.keywords = dict(keywords)
        self.cache_bytes = cache_bytes
        self._fetch = fetch
        self._sizes: OrderedDict[str, int] = OrderedDict()  # longest unused first
        self._lock = threading.Lock()
        self._fetching: dict[str, threading.Lock] = {}

    def instance(self, name: str) -> Path:
        """The whole instance of a header, fetched if it is not there.

        Raises
        ------
        MedaiError
            It cannot be fetched.
        """
        target = self.pixels / name
        with self._lock:
            mine = self._fetching.setdefault(name, threading.Lock())
        with mine:  # two threads that want planes of one instance fetch it once
            if not target.is_file():
                self._fetch(name, target)
            with self._lock:
                self._sizes[name] = target.stat().st_size
                self._sizes.move_to_end(name)
                gone = self._surplus()
        for old in gone:
            (self.pixels / old).unlink(missing_ok=True)
        return target

    def _surplus(self) -> list[str]:
        gone = []
        total = sum(self._sizes.values())
        while total > self.cache_bytes and len(self._sizes) > _KEPT:
            name, size = self._sizes.popitem(last=False)
            total -= size
            gone.append(name)
        return gone


_registered: dict[str, RemoteSeries] = {}


def register(series: RemoteSeries) -> None:
    """Make a folder of headers open as the series that it stands for."""
    _registered[os.fspath(series.folder)] = series


def unregister(folder: str | os.PathLike[str]) -> None:
    """Forget a folder; its images can no longer fetch."""
    _registered.pop(os.path.abspath(folder), None)


def as_if_whole(header: Header) -> Header:
    """The header with the pixels that the instance behind it has."""
    series = _registered.get(os.path.dirname(header.path)) if _registered else None
    keyword = series.keywords.get(os.path.basename(header.path), "") if series else ""
    if not keyword:
        return header
    # where they begin, and in which transfer syntax, is known once the instance is here
    return dataclasses.replace(
        header, syntax=_EXPLICIT, pixel_keyword=keyword, pixel_offset=-1, pixel_length=-1, pixel_vr=""
    )


def on_disk(file: PixelFile) -> PixelFile:
    """The pixels of the instance behind a header; the same object for a file that is whole.

    Raises
    ------
    MedaiError
        It cannot be fetched, or is not what its header said.
    """
    series = _registered.get(os.path.dirname(file.path)) if _registered else None
    if series is None or os.path.basename(file.path) not in series.keywords:
        return file
    from napari_medai.core.errors import ReadError
    from napari_medai.io.dicom.headers import read_header
    from napari_medai.io.dicom.pixels import pixel_file

    found = pixel_file(read_header(series.instance(os.path.basename(file.path))))
    said = (file.frames, file.rows, file.columns, file.samples, file.allocated, file.signed)
    if said != (found.frames, found.rows, found.columns, found.samples, found.allocated, found.signed):
        raise ReadError("The archive sent pixels of another size or type than the header that it gave before.")
    return found
