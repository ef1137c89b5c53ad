"""A series of a DICOMweb archive as a Volume whose instances are fetched when they are looked at."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from napari_medai.core.errors import ArchiveError, ParamsError
from napari_medai.io.atomic import written
from napari_medai.io.dicom import open_volume
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly
from napari_medai.io.dicom.remote import RemoteSeries, register
from napari_medai.pacs.archive import is_uid
from napari_medai.pacs.transfer import uid_name

if TYPE_CHECKING:
    from napari_medai.core.volume import Volume
    from napari_medai.pacs.dicomweb import WebArchive

_PIXELS = {"7FE00008": "FloatPixelData", "7FE00009": "DoubleFloatPixelData", "7FE00010": "PixelData"}
# Long values that headers are read for: lookup tables, offsets, overlays are small; Siemens' private headers hold the
# geometry of mosaics and b-values. Other bulk data are left out.
_TABLES = {"00281201", "00281202", "00281203", "00281221", "00281222", "00281223", "00283006", "3004000C"}
_CSA = {"00291010", "00291020"}
_DS_LENGTH = 16
_THREADS = 4


def open_lazily(archive: Any, study_uid: str, series_uid: str, cache: Path | None = None) -> Volume:
    """See `napari_medai.pacs.open_remote`."""
    base = series_uid.partition("#")[0]
    for uid in (study_uid, base):
        if not is_uid(uid):
            raise ParamsError(f"{uid[:80]!r} is no UID: up to 64 digits and dots.")
    # a folder of its own for each opening: layers of an earlier one keep theirs
    root = Path(tempfile.mkdtemp(prefix="series-", dir=cache or own_cache()))
    remote = fetch_headers(archive, study_uid, base, root)
    register(remote)
    return open_volume(remote.folder, series_uid)


def fetch_headers(archive: WebArchive, study_uid: str, series_uid: str, root: Path) -> RemoteSeries:
    """Write the headers of a series into a folder below ``root``.

    Raises
    ------
    ArchiveError
        The archive has no such series, or its answer cannot be read.
    """
    folder, pixels = root / uid_name(series_uid), root / "instances"
    folder.mkdir(parents=True)
    pixels.mkdir()
    uids: dict[str, str] = {}
    keywords: dict[str, str] = {}

    def write(one: dict[str, Any]) -> None:
        dataset = _dataset(one, archive)
        uid = str(dataset.get("SOPInstanceUID", ""))
        name = f"{uid_name(uid)}.dcm"
        with written(folder / name) as file:
            dataset.save_as(file, enforce_file_format=True)
        uids[name] = uid
        keyword = _pixel_keyword(one)
        if keyword:
            keywords[name] = keyword

    try:
        with quietly(), ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(write, archive.metadata(study_uid, series_uid)))
    except BROKEN_FILE as error:
        raise ArchiveError(
            f"The headers that {archive.node} sent cannot be read ({type(error).__name__}); pull the series instead."
        ) from error

    def fetch(name: str, target: Path) -> None:
        archive.fetch(study_uid, series_uid, uids[name], target)

    return RemoteSeries(folder, pixels, keywords, fetch)


def _pixel_keyword(one: dict[str, Any]) -> str:
    """Which pixels an instance has; archives leave the element out of headers, at least of compressed instances."""
    said = next((keyword for tag, keyword in _PIXELS.items() if tag in one), "")
    if said or "00280010" not in one:
        return said
    # PS3.3 C.7.6.24: float pixels have Bits Allocated, but not Bits Stored
    floats = {32: "FloatPixelData", 64: "DoubleFloatPixelData"} if "00280101" not in one else {}
    bits = next(iter(one.get("00280100", {}).get("Value", ())), 0)
    return floats.get(bits, "PixelData")


def _dataset(one: dict[str, Any], archive: WebArchive) -> Dataset:
    """The header of an instance from its JSON, without pixels."""
    wanted = set(_TABLES)
    maker = "".join(map(str, one.get("00080070", {}).get("Value", ())))
    if maker.upper().startswith("SIEMENS") and one.get("00080060", {}).get("Value") == ["MR"]:
        wanted |= _CSA

    def bulk(tag: str, _vr: str, url: str) -> bytes | None:
        overlay = tag.upper().startswith("60") and tag.endswith("3000")
        return archive.bulk(url) if tag.upper() in wanted or overlay else None

    # group 2 belongs to the file, not to the data set; some archives repeat it
    plain = {t: v for t, v in one.items() if t.upper() not in _PIXELS and not t.startswith("0002")}
    with quietly():
        dataset = Dataset.from_json(plain, bulk_data_uri_handler=bulk)
        _short_numbers(dataset)
    dataset.SpecificCharacterSet = "ISO_IR 192"  # JSON is UTF-8
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta = meta
    return dataset


def _short_numbers(dataset: Dataset) -> None:
    """JSON writes decimal numbers in more digits than a DICOM file may hold (PS3.5 6.2: 16 characters)."""
    for element in dataset.iterall():
        if element.VR == "DS" and element.value not in (None, ""):
            many = element.VM > 1
            numbers = list(element.value) if many else [element.value]
            if any(len(str(n)) > _DS_LENGTH for n in numbers):
                short = [str(n) if len(str(n)) <= _DS_LENGTH else format_number_as_ds(float(n)) for n in numbers]
                element.value = short if many else short[0]


_making = threading.Lock()


def own_cache() -> Path:
    """A folder that only this user can read and that goes when the program ends: it holds patients' data."""
    with _making:
        return _made_cache()


@lru_cache(maxsize=1)
def _made_cache() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="napari-medai-pacs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
