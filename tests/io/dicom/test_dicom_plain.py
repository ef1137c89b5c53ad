"""Listings out of tables, against the same listings with every header read and every slice looked at by itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.uid import JPEG2000Lossless

from napari_medai.core.errors import MedaiError
from napari_medai.core.stage import Cancelled, Progress
from napari_medai.io.dicom import bulk, gathered
from napari_medai.io.dicom.frames import Frame
from napari_medai.io.dicom.gathered import Headers, read_headers
from napari_medai.io.dicom.headers import Header, read_header
from napari_medai.io.dicom.images import Image, Series
from napari_medai.io.dicom.plain import plain_stack
from napari_medai.io.dicom.series import list_series, survey
from tests.io.dicom.conftest import dataset

PIXELS = np.arange(12, dtype=np.uint16).reshape(3, 4)


def fields_of(header: Header) -> tuple[object, ...]:
    """All that a header says."""
    fields = sorted((tag, repr(value)) for tag, value in header.fields.items())
    pixels = (header.pixel_keyword, header.pixel_offset, header.pixel_length, header.pixel_vr)
    return header.path, fields, header.media_class, header.syntax, pixels, header.size, header.repaired


def plane_of(frame: Frame | None) -> object:
    """All that a plane says."""
    if frame is None:
        return None
    place = frame.place
    where = None if place is None else (place.position.tolist(), place.orientation.tolist(), place.spacing)
    shown = (frame.slope, frame.intercept, frame.window, frame.kind, sorted(dict(frame.marks).items()))
    size = (frame.rows, frame.columns, frame.spacing, frame.thickness)
    return frame.header.path, frame.index, where, size, shown, frame.tile, frame.segments


def image_of(image: Image) -> object:
    """All that an image says, its planes included."""
    stack = image.stack
    shape = (stack.has_time, stack.has_depth, stack.affine.tolist(), stack.units, stack.axis, stack.directions)
    fit = (stack.findings, stack.distances, stack.irregular, stack.tilted, plane_of(stack.lead), stack.file_count)
    planes = [[plane_of(frame) for frame in row] for row in stack.planes]
    files = sorted((path, sorted(vars(file).items(), key=str)) for path, file in image.files.items())
    volume = image.opened()
    seen = (volume.axes, volume.shape, str(volume.dtype), volume.affine.tolist(), volume.units, repr(volume.meta))
    return image.uid, image.info(), image.findings, shape, fit, planes, str(files), seen


def told(folder: Path) -> list[object]:
    """Everything that is said of a folder."""
    try:
        found = survey(folder)
    except MedaiError as error:
        return [type(error), str(error)]
    said: list[object] = [found.findings]
    for one in found.series:
        said.append((one.uid, one.findings, [fields_of(h) for h in one.headers], [h.path for h in one.beside]))
        for repair in ((), ("duplicates", "missing", "tilt")):
            try:
                said += [image_of(image) for image in one.images(repair)]
            except MedaiError as error:
                said.append((type(error), str(error)))
    try:
        said += list_series(folder)
    except MedaiError as error:
        said.append((type(error), str(error)))
    return said


@dataclass(frozen=True)
class ByOne:
    """Makes `told` read each file by itself and look at each slice."""

    patch: pytest.MonkeyPatch

    def __call__(self, folder: Path) -> list[object]:
        """What it says then."""
        with self.patch.context() as patch:
            patch.setattr(gathered, "_TABLED", 1 << 30)
            patch.setattr("napari_medai.io.dicom.images.plain_stack", lambda headers: None)
            return told(folder)


@pytest.fixture
def by_one(monkeypatch: pytest.MonkeyPatch) -> ByOne:
    return ByOne(monkeypatch)


def check(folder: Path, by_one: ByOne) -> list[Series]:
    """The series of a folder, whose listing is the same both ways."""
    together, alone = told(folder), by_one(folder)
    assert len(together) == len(alone)
    for one, other in zip(together, alone, strict=True):
        assert one == other
    return survey(folder).series


def write(folder: Path, name: str, pixels: np.ndarray | None = PIXELS, compress: bool = False, **fields: Any) -> Path:
    made = dataset(pixels, **fields)
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID or "1.2"
    if compress:
        made.compress(JPEG2000Lossless)
    made.save_as(folder / name, enforce_file_format=True)
    return folder / name


def is_plain(series: Series) -> bool:
    return isinstance(series.headers, Headers) and plain_stack(series.headers) is not None


def slices(n: int) -> dict[str, Any]:
    return {"SOPInstanceUID": f"1.2.3.{n}", "InstanceNumber": n, "ImagePositionPatient": [-1.5, 2, 2.5 * n - 40]}


def test_a_plain_series_needs_no_object_for_each_slice(tmp_path: Path, by_one: ByOne) -> None:
    for n in range(60):
        write(tmp_path, f"{(n * 37) % 60:02}", **slices(n))
    (one,) = check(tmp_path, by_one)
    fresh, failed = read_headers(sorted(os.fspath(p) for p in tmp_path.iterdir()))
    stack = plain_stack(fresh)
    assert not failed
    assert stack is not None
    assert stack.file_count == 60
    assert len(fresh._source._made) < 10
    assert [f.header.integer("InstanceNumber") for f in stack.frames] == list(range(60))
    assert is_plain(one)


# What may be unusual about the slices of a series: name -> fields of slice n of a series of many.
_QUIRKS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "none": lambda n, many: {},
    "missing slices": lambda n, many: {"ImagePositionPatient": [0, 0, n + (n > many // 2)]},
    "two stacks far apart": lambda n, many: {"ImagePositionPatient": [0, 0, n + 500 * (n > many // 2)]},
    "uneven distances": lambda n, many: {"ImagePositionPatient": [0, 0, n + 0.3 * (n % 3)]},
    "tilted": lambda n, many: {"ImagePositionPatient": [0, n * 0.4, n]},
    "echoes": lambda n, many: {"ImagePositionPatient": [0, 0, n // 2], "EchoTime": 10 + 20 * (n % 2)},
    "windows": lambda n, many: {"WindowCenter": 40 + n % 7, "WindowWidth": 400 - n % 3},
    "windows that are none": lambda n, many: {"WindowCenter": "" if n % 4 == 1 else 40, "WindowWidth": n % 2},
    "slopes": lambda n, many: {"RescaleSlope": 1 + n % 3, "RescaleIntercept": -n},
    "slopes that are none": lambda n, many: {"RescaleSlope": n % 2, "RescaleIntercept": "" if n % 7 == 1 else 100},
    "PET": lambda n, many: {"Modality": "PT", "RescaleSlope": 0.5 + n / 64, "FrameReferenceTime": 100.0 * n},
    "one place": lambda n, many: {"ImagePositionPatient": [0, 0, n // 2], "AcquisitionTime": f"1015{n % 60:02}"},
    "copies": lambda n, many: {"SOPInstanceUID": f"1.2.9.{n // 2}"},
    "no instances": lambda n, many: {"SOPInstanceUID": ""},
    "no positions": lambda n, many: {"ImagePositionPatient": None},
    "some no positions": lambda n, many: {"ImagePositionPatient": None} if n % 5 == 2 else {},
    "empty positions": lambda n, many: {"ImagePositionPatient": ""},
    "no series": lambda n, many: {"SeriesInstanceUID": None},
    "frames of reference": lambda n, many: {"FrameOfReferenceUID": f"1.7.{n % 2}"},
    "orientations": lambda n, many: {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1] if n % 4 else [1, 0, 0, 0, 1, 0]},
    "nearly parallel": lambda n, many: {"ImageOrientationPatient": [1, 0, 0, 0, 1, (n % 3) * 4e-4]},
    "localizer": lambda n, many: {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL" if n else "LOCALIZER"]},
    "sizes": lambda n, many: {"Rows": 2, "PixelData": PIXELS[:2].tobytes()} if n % 3 == 0 else {},
    "colour": lambda n, many: {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0,
                               "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelData": bytes(36)},
    "films": lambda n, many: {"NumberOfFrames": 2, "PixelData": PIXELS.tobytes() * 2},
    "damaged sizes": lambda n, many: {"Rows": 0} if n % 6 == 0 else {},
    "too few pixels": lambda n, many: {"Rows": 300} if n % 6 == 0 else {},
    "directions that are none": lambda n, many: {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
    "modality SEG": lambda n, many: {"Modality": "SEG"},
    "private text": lambda n, many: {"SeriesDescription": "Hals\n1" if n % 2 else "Hals 1"},
}  # fmt: skip


@pytest.mark.parametrize("quirk", _QUIRKS)
def test_each_quirk_alone(quirk: str, tmp_path: Path, by_one: ByOne) -> None:
    for n in range(40):
        write(tmp_path, f"{(n * 37) % 40:02}", **{**slices(n), **_QUIRKS[quirk](n, 40)})
    series = check(tmp_path, by_one)
    if quirk in ("none", "missing slices", "tilted", "no instances", "windows", "slopes", "PET"):
        assert is_plain(series[0])


def test_compressed_slices(tmp_path: Path, by_one: ByOne) -> None:
    for n in range(24):
        write(tmp_path, f"{n}", np.full((64, 64), n * n, np.uint16), n > 3, **slices(n))
    assert is_plain(check(tmp_path, by_one)[0])


def test_files_that_are_cut_off(tmp_path: Path, by_one: ByOne) -> None:
    for n in range(40):
        path = write(
            tmp_path,
            f"{n}",
            np.full((64, 64), n, np.uint16),
            n >= 30,
            **{**slices(n), "SeriesInstanceUID": f"1.2.{n // 10}"},
        )
        content = path.read_bytes()
        if n in (3, 4, 5, 6, 7, 13, 35):
            path.write_bytes(content[:-6])
        if n in (25, 26, 27, 28, 36):
            path.write_bytes(content[: len(content) // 2])
    assert len(check(tmp_path, by_one)) == 4


_SERIES = st.fixed_dictionaries(
    {
        "quirk": st.sampled_from(sorted(_QUIRKS)),
        "count": st.integers(1, 30),
        "step": st.sampled_from([1, 2.5, -3, 0.625, 0]),
        "uid": st.integers(1, 3),
        "number": st.sampled_from([None, 1, 2, 12]),
        "scanner": st.sampled_from([{}, {"Manufacturer": "Maker A"}, {"Manufacturer": "Maker B", "KVP": "120"}]),
        "syntax": st.sampled_from(["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]),
    }
)


@settings(
    max_examples=10,
    deadline=None,
    # a failing dump is small enough as it is; each takes a second
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(parts=st.lists(_SERIES, min_size=1, max_size=4), others=st.sets(st.sampled_from(["text", "empty", "cut", "sr"])))
def test_mixed_dumps(
    parts: list[dict[str, Any]], others: set[str], tmp_path_factory: pytest.TempPathFactory, by_one: ByOne
) -> None:
    folder = tmp_path_factory.mktemp("dump")
    total = 0
    for k, part in enumerate(parts):
        for n in range(part["count"]):
            own = {
                "SeriesInstanceUID": f"1.2.{part['uid']}",
                "SOPInstanceUID": f"1.2.{k}.{n}",
                "SeriesNumber": part["number"],
                "InstanceNumber": n,
                "ImagePositionPatient": [k, 0, n * part["step"]],
            }
            fields = {**own, **part["scanner"], **_QUIRKS[part["quirk"]](n, part["count"])}
            write(folder, f"{(total * 37) % 101:03}-{total}", syntax=part["syntax"], **fields)
            total += 1
    if "text" in others:
        (folder / "notes").write_text("no image")
    if "empty" in others:
        (folder / "nothing").touch()
    if "cut" in others:
        (folder / "half").write_bytes(write(folder, "whole").read_bytes()[:500])
    if "sr" in others:
        write(folder, "report", None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")
    check(folder, by_one)


def test_headers_that_end_behind_the_first_page(tmp_path: Path, by_one: ByOne) -> None:
    for n in range(30):
        long = {"ImageComments": "x" * (bulk.HEADS[0] if n % 2 else 10)}
        write(tmp_path, f"{n:02}", **slices(n), **long)
    paths = sorted(os.fspath(p) for p in tmp_path.iterdir())
    headers, _ = read_headers(paths)
    assert sum(header.kin is not None for header in headers) > 20
    check(tmp_path, by_one)


def test_more_files_than_are_compared_at_once(tmp_path: Path, by_one: ByOne, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(50):
        write(tmp_path, f"{(n * 37) % 50:02}", **slices(n))
    monkeypatch.setattr(bulk, "BATCH", 7)
    headers, _ = read_headers(sorted(os.fspath(p) for p in tmp_path.iterdir()))
    assert len({id(header.kin) for header in headers}) < 6
    assert is_plain(check(tmp_path, by_one)[0])


def test_slow_drives_are_read_on_threads(tmp_path: Path, by_one: ByOne, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(50):
        write(tmp_path, f"{n}", **slices(n))
    (tmp_path / "notes").write_text("no image")
    monkeypatch.setattr(bulk, "BATCH", 16)
    monkeypatch.setattr(bulk, "_SLOW_S", 0.0)
    assert is_plain(check(tmp_path, by_one)[0])


def test_reading_tells_how_far_it_is_and_can_be_stopped(tmp_path: Path) -> None:
    class Heard(Progress):
        def __init__(self, stop_at: float) -> None:
            self.done: list[float] = []
            self.stop_at = stop_at

        def update(self, done: float, total: float, message: str = "") -> None:
            self.done.append(done / total)
            if self.done[-1] >= self.stop_at:
                raise Cancelled

    for n in range(40):
        syntax = "1.2.840.10008.1.2.1" if n % 2 else "1.2.840.10008.1.2"
        write(tmp_path, f"{n:02}", syntax=syntax, **slices(n))
    paths = sorted(os.fspath(p) for p in tmp_path.iterdir())
    heard = Heard(2)
    read_headers(paths, heard)
    assert heard.done == sorted(heard.done)
    assert heard.done[-1] == 1
    with pytest.raises(Cancelled):
        read_headers(paths, Heard(0.1))


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "examples_palette.dcm", "rtdose.dcm"])
def test_real_files_among_others(name: str, tmp_path: Path, by_one: ByOne) -> None:
    for n in range(20):
        shutil.copy(get_testdata_file(name, download=False), tmp_path / f"{n}")
        write(tmp_path, f"other{n}", **slices(n))
    assert len(check(tmp_path, by_one)) == 2


def _folders(root: Path) -> Iterator[Path]:
    return (folder for folder in (root, *root.rglob("*")) if folder.is_dir())


def test_folders_of_real_files(by_one: ByOne) -> None:
    root = Path(get_testdata_file("CT_small.dcm", download=False)).parent
    for folder in _folders(root):
        for one, other in zip(told(folder), by_one(folder), strict=True):
            assert one == other


def test_the_corpus(by_one: ByOne) -> None:
    root = os.environ.get("MEDAI_CORPUS")
    if not root:
        pytest.skip("MEDAI_CORPUS does not name a folder with the corpus")
    for folder in _folders(Path(root)):
        for one, other in zip(told(folder), by_one(folder), strict=True):
            assert one == other


def test_parts_share_what_they_made(tmp_path: Path) -> None:
    for n in range(20):
        write(tmp_path, f"{n:02}", **{**slices(n), "SeriesInstanceUID": f"1.2.{n % 2}"})
    headers, _ = read_headers(sorted(os.fspath(p) for p in tmp_path.iterdir()))
    parts = headers.by_text("SeriesInstanceUID")
    assert [len(part) for part in parts.values()] == [10, 10]
    assert parts["1.2.0"][0] is headers[0]
    assert parts["1.2.1"][-1] is headers[-1]
    assert [h.path for h in parts["1.2.1"][2:4]] == [headers[5].path, headers[7].path]
    assert parts["1.2.1"].paths == [read_header(h.path).path for h in parts["1.2.1"]]
