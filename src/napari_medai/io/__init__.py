"""Files <-> `Volume` and `Result`. `FORMATS` is the table of formats; modules load on first use."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Literal

from napari_medai.core.errors import ReadError, SeriesInfo, UnsupportedFormatError, WriteError

if TYPE_CHECKING:
    from napari_medai.core.contours import Contours
    from napari_medai.core.result import Result
    from napari_medai.core.volume import Volume

# DICOM's magic word stands at byte 128, tar's at 257: nothing needs more
HEAD_BYTES = 1024


@dataclass(frozen=True)
class Format:
    """A row of the table of formats.

    Attributes
    ----------
    name, title : str
        Key of the row; what people call it.
    suffixes : tuple of str
        Lower case, with the dot; the longest one that fits a name wins.
    module : str
        Imported on first use. A format that reads offers ``sniff(head, path) -> bool``,
        ``open_volume(path, series_uid="", **options) -> Volume`` and ``list_series(path) -> list[SeriesInfo]``;
        one that writes images offers ``save_volume(volume, path, record=None)``, one that writes tables
        ``save_table(content, path)``.
    reads : bool
        Whether `open` knows it.
    writes : {"", "images", "tables"}
        What `save` can put into it.
    sign : str
        What a file of the format is known by, for the message that lists every reader tried.
    names : tuple of str
        Whole file names, upper case, e.g. ``"DICOMDIR"``.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    module: str
    reads: bool
    writes: Literal["", "images", "tables"]
    sign: str = ""
    names: tuple[str, ...] = ()

    def load(self) -> ModuleType:
        """Import the module."""
        return importlib.import_module(self.module)

    def suffix_of(self, path: Path) -> str:
        """The longest suffix of the format that the name ends in, or an empty string."""
        name = path.name.lower()
        return max((s for s in self.suffixes if name.endswith(s) and name != s), key=len, default="")


_ROWS = (
    Format(
        "dicom",
        "DICOM",
        (".dcm", ".dicom", ".ima"),
        "napari_medai.io.dicom",
        reads=True,
        writes="images",
        sign="'DICM' at byte 128",
        names=("DICOMDIR",),
    ),
    Format(
        "nifti",
        "NIfTI",
        (".nii", ".nii.gz", ".hdr", ".img"),
        "napari_medai.io.nifti",
        reads=True,
        writes="images",
        sign="a header of 348 or 540 bytes with 'n+1', 'ni1' or 'n+2'",
    ),
    Format(
        "tiff",
        "TIFF and OME-TIFF",
        (".tif", ".tiff", ".ome.tif", ".ome.tiff"),
        "napari_medai.io.tiff",
        reads=True,
        writes="images",
        sign="'II' or 'MM' and 42 or 43 at the start",
    ),
    Format(
        "omezarr",
        "OME-Zarr",
        (".zarr", ".ome.zarr"),
        "napari_medai.io.omezarr",
        reads=True,
        writes="images",
        sign="a folder with zarr.json or .zgroup",
    ),
    Format(
        "raster",
        "PNG and JPEG",
        (".png", ".jpg", ".jpeg"),
        "napari_medai.io.raster",
        reads=True,
        writes="images",
        sign="PNG's or JPEG's first bytes",
    ),
    Format(
        "nrrd",
        "NRRD and 3D Slicer's segmentations",
        (".nrrd", ".seg.nrrd"),
        "napari_medai.io.nrrd",
        reads=True,
        writes="images",
        sign="'NRRD000' at the start",
    ),
    Format(
        "surface",
        "STL and OBJ surfaces of labels",
        (".stl", ".obj"),
        "napari_medai.io.surface",
        reads=False,
        writes="images",
    ),
    Format(
        "archive",
        "ZIP and tar archives",
        (".zip", ".tar"),
        "napari_medai.io.archive",
        reads=True,
        writes="",
        sign="'PK' at the start or 'ustar' at byte 257",
    ),
    Format(
        "rtstruct",
        "DICOM structure set",
        (".rtstruct.dcm",),
        "napari_medai.io.dicom.write.rtstruct",
        reads=False,
        writes="images",
    ),
    Format("sr", "DICOM structured report", (".sr.dcm",), "napari_medai.io.dicom.write.report", False, "tables"),
    Format("csv", "CSV table", (".csv",), "napari_medai.io.tables", reads=False, writes="tables"),
    Format("json", "JSON with provenance", (".json",), "napari_medai.io.tables", reads=False, writes="tables"),
)
# name -> format
FORMATS: Mapping[str, Format] = MappingProxyType({row.name: row for row in _ROWS})


def find_format(path: str | os.PathLike[str]) -> Format:
    """The format of a file or folder: by its content, where the name fits several or none by its content alone.

    A name's suffix decides which format is asked first. A folder is an OME-Zarr if it looks like one,
    else DICOM.

    Parameters
    ----------
    path : path
        An existing file or folder.

    Raises
    ------
    ReadError
        There is nothing of that name, or it may not be read.
    UnsupportedFormatError
        No reader knows it; the message lists every reader tried and what it looked for.
    """
    path = Path(path).expanduser()
    readers = [row for row in _ROWS if row.reads]
    try:
        if path.is_dir():
            zarr = FORMATS["omezarr"]
            return zarr if zarr.load().sniff(b"", path) else FORMATS["dicom"]
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise ReadError(f"{path} does not exist; check the path.") from None
    except OSError as error:
        raise ReadError(f"{path} cannot be read: {error.strerror}.") from error
    if not head:
        raise ReadError(f"{path} is empty: it has 0 bytes.")
    named = [row for row in readers if row.suffix_of(path) or path.name.upper() in row.names]
    for row in [*named, *(row for row in readers if row not in named)]:
        if row.load().sniff(head, path):
            return row
    if named:
        return named[0]  # its reader says best what is wrong with the file
    tried = "\n".join(f"  {row.title}: {row.sign} not found" for row in readers)
    raise UnsupportedFormatError(f"{path} is in no format that can be opened. Tried:\n{tried}")


def open(path: str | os.PathLike[str], *, series_uid: str = "", **options: Any) -> Volume:
    """Open an image; pixels stay on the disk until they are used where the format allows it.

    Parameters
    ----------
    path : path
        A file of any format in `FORMATS` that reads, a folder of DICOM files, or an OME-Zarr.
    series_uid : str
        Which image to open where there are several: the ``uid`` of one of `list_series`.
    **options
        Options of the format's ``open_volume``.

    Returns
    -------
    Volume
        Spatial axes nearest to +z superior, +y posterior, +x left.

    Raises
    ------
    ReadError
        The file is missing, damaged, of no known kind, or holds several series (`SeriesChoiceError`, which
        lists them).

    Examples
    --------
    >>> import napari_medai as medai
    >>> ct = medai.open("study/CT")  # doctest: +SKIP
    """
    path = Path(path).expanduser()
    volume: Volume = find_format(path).load().open_volume(path, series_uid, **options)
    return volume


def list_series(path: str | os.PathLike[str]) -> list[SeriesInfo]:
    """What a file or folder holds, without decoding pixels.

    Raises
    ------
    ReadError
        As `open`, except that several series are no error.
    """
    path = Path(path).expanduser()
    series: list[SeriesInfo] = find_format(path).load().list_series(path)
    return series


def find_writer(path: str | os.PathLike[str], kind: str = "", *, folder: bool = False) -> Format:
    """The format that writes a file of this name.

    Parameters
    ----------
    path : path
        The name to be; nothing has to exist.
    kind : {"", "images", "tables"}
        What it has to hold; empty takes any.
    folder : bool
        Whether a name without a suffix is the folder of a DICOM series.

    Raises
    ------
    WriteError
        The suffix belongs to no writer, or to one for another kind; the message lists those that fit.
    """
    path = Path(path)
    fits = [row for row in _ROWS if row.writes and kind in ("", row.writes)]
    if folder and kind == "images" and "." not in path.name:
        return FORMATS["dicom"]
    found = max(_ROWS, key=lambda row: len(row.suffix_of(path)))
    suffix = found.suffix_of(path)
    if suffix and found in fits and suffix not in (".hdr", ".img"):
        return found
    known = ", ".join(s for row in fits for s in row.suffixes if s not in (".hdr", ".img"))
    what = {"": "a result", "images": "an image", "tables": "a table"}[kind]
    raise WriteError(f"{path.name} does not say how to write {what}; end the name in one of: {known}.")


def save(
    what: Volume | Result | Contours,
    path: str | os.PathLike[str],
    *,
    check: bool = True,
    against: Volume | str | os.PathLike[str] | None = None,
    **options: Any,
) -> Path:
    """Write an image or a result; the suffix picks the writer.

    Volumes and the results that lie on a grid (`Denoised`, `Mask`, `Heatmap`) go to ``.nii``, ``.nii.gz``,
    ``.tif``, ``.ome.tif``, ``.ome.zarr`` and, where 2-D, ``.png`` and ``.jpg``. `Boxes`, `Scores` and the table of a
    `Mask` go to ``.csv`` and ``.json``; JSON carries the provenance too, and NIfTI and TIFF carry it in their headers.

    To ``.dcm`` go objects of the patient that the scan is of: a `Mask` becomes a Segmentation, a `Heatmap` a
    Parametric Map, any other image of one slice a derived image; one of several slices goes to a folder, whose name
    has no suffix.

    Parameters
    ----------
    what : Volume or Result
        What to write.
    path : path
        An older file of that name is replaced, whole or not at all.
    check : bool
        Read the file back by another path before it takes its name, and refuse it if it does not hold what was
        saved (see `napari_medai.io.verify`).
    against : Volume or path, optional
        The DICOM scan that the result lies on, where the result does not know it: painted elsewhere, or opened from
        NIfTI. Only DICOM objects need it.
    **options
        Of the format: ``kind="binary"`` or ``"labelmap"`` for labels in DICOM.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    WriteError
        The suffix does not fit, the format cannot hold the pixels, or the system refused: disk full, folder
        missing, no permission. No partial file is left.
    """
    from napari_medai.io.results import save_any

    return save_any(what, Path(path).expanduser(), check, against, options)
