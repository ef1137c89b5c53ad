"""Every exception a user may catch.

A message says what was found, what was expected and what to do. It never holds patient data: no
names, birth dates or identifiers of people, and no header text that could hold them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass


class MedaiError(Exception):
    """Base of all errors that napari-medai raises on purpose."""


class ReadError(MedaiError):
    """A file or folder could not be read as an image."""


class UnsupportedFormatError(ReadError):
    """No reader knows the file, or its kind of content is not an image."""


class NoImagesError(ReadError):
    """A folder or archive holds no image that can be opened."""


@dataclass(frozen=True)
class SeriesInfo:
    """One image series as a person chooses it; holds no patient identity.

    Attributes
    ----------
    uid : str
        Series Instance UID (0020,000E), with a suffix ``#n`` where one series holds several images.
    modality : str
        Modality (0008,0060), e.g. ``"CT"``.
    description : str
        Series Description (0008,103E).
    number : int or None
        Series Number (0020,0011).
    shape : tuple of int
        Size of the array that opens, (z, y, x) or with leading axes.
    spacing_mm : tuple of float
        Voxel spacing along z, y, x in millimetres.
    files : int
        Number of files.
    """

    uid: str
    modality: str
    description: str
    number: int | None
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    files: int

    def __str__(self) -> str:
        size = " x ".join(str(n) for n in self.shape)
        number = "-" if self.number is None else str(self.number)
        return f"{self.uid}  {self.modality or '?'}  no. {number}  {self.description or '(no description)'}  {size}"


class SeriesChoiceError(ReadError):
    """Several series were found where one was asked for.

    Attributes
    ----------
    series : tuple of SeriesInfo
        What was found; pass the ``uid`` of one as ``series_uid``.
    """

    def __init__(self, where: str, series: Sequence[SeriesInfo]) -> None:
        self.series = tuple(series)
        listing = "\n".join(f"  {s}" for s in self.series)
        how = "pass series_uid=… (medai: --series …) with one of"
        super().__init__(f"{len(self.series)} series in {where}; {how}:\n{listing}")


class WriteError(MedaiError):
    """A result could not be written; no partial file is left."""


_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the system allows",
    errno.EACCES: "there is no permission to write there",
    errno.EPERM: "there is no permission to write there",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "the folder does not exist; make it first",
    errno.ENOTDIR: "a part of the folder's path is a file",
    errno.EISDIR: "it is a folder",
    errno.ENAMETOOLONG: "the name is too long",
}


def reason_of(error: OSError) -> str:
    """Why the system refused to write, in words."""
    path = error.filename if isinstance(error.filename, str | os.PathLike) else ""
    if path and error.errno == errno.ENOENT and os.path.isdir(os.path.dirname(os.path.abspath(path))):
        return "nothing can be made in that folder"  # one of the system, as /proc
    return _REASONS.get(error.errno or 0, error.strerror or "the system refused it")


class GeometryError(MedaiError):
    """An affine or a grid does not describe a place in space, or two grids do not fit together."""


class InputError(MedaiError):
    """A stage was given something that it cannot work on."""


class NotFiniteError(InputError):
    """An image holds NaN or infinite values where numbers are needed."""


class ModelError(MedaiError):
    """A model cannot be found, loaded or run."""


class ModelNotFoundError(ModelError):
    """No source knows the model's id."""


class ModelFitError(ModelError):
    """The image is not what the model accepts."""


class UntrustedError(ModelError):
    """A package carries something that is run only if its owner allows it; the message says what and where.

    Attributes
    ----------
    needs : tuple
        One `napari_medai.models.spec.Need` for each thing found.
    """

    def __init__(self, message: str, needs: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.needs = tuple(needs)


class DownloadError(ModelError):
    """A model of the catalogue cannot be brought here; what has arrived is kept where it can be gone on with."""


class DeviceError(MedaiError):
    """The device asked for is absent or ran out of memory beyond every fallback."""


class WorkerError(MedaiError):
    """The process that runs stages for a window ended, cannot be started, or met a fault of the program."""


class DependencyError(MedaiError):
    """An optional package is needed and not installed."""


class ArchiveError(MedaiError):
    """An archive (PACS) cannot be reached, refuses, or has not what was asked of it."""


class SampleError(MedaiError):
    """A sample image is not in the cache and cannot be fetched."""


class ParamsError(MedaiError):
    """A parameter has a value out of its range."""
