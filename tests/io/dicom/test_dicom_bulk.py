"""Headers that are read together, against the same headers read one by one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from napari_medai.core.errors import ReadError
from napari_medai.io.dicom.bulk import HEADS, Table, read_tables
from napari_medai.io.dicom.frames import frames_of
from napari_medai.io.dicom.gathered import read_headers
from napari_medai.io.dicom.headers import Header, read_header
from napari_medai.io.dicom.pixels import pixel_file
from napari_medai.io.dicom.whitelist import OF_EACH_SLICE, WANTED

Write = Callable[..., Path]
PIXELS = np.arange(12, dtype=np.uint16).reshape(3, 4)


def check(paths: list[str]) -> list[Header]:
    """The headers, equal to those read one by one."""
    together, broken = read_headers(paths)
    assert not broken
    for header in together:
        alone = read_header(header.path)
        assert header.fields == alone.fields
        for name in ("syntax", "media_class", "pixel_keyword", "pixel_offset", "pixel_length", "pixel_vr", "size"):
            assert getattr(header, name) == getattr(alone, name), name
        files = [vars(pixel_file(h)) for h in (header, alone)]
        assert files[0] == files[1]
        frames = [frames_of(h)[0] for h in (header, alone)]
        for name in ("index", "rows", "columns", "spacing", "thickness", "slope", "window", "kind", "marks"):
            assert getattr(frames[0], name) == getattr(frames[1], name), name
        for name in ("position", "orientation", "spacing"):
            np.testing.assert_array_equal(*(getattr(f.place, name) if f.place else 0 for f in frames))
    return list(together)


def tables_of(paths: list[str]) -> list[Table]:
    return read_tables(paths, WANTED, OF_EACH_SLICE, lambda done: None)


@pytest.fixture
def series(write: Write) -> list[str]:
    """Forty slices whose positions, numbers and times are written with one to five characters."""
    made = [
        write(
            f"s{n}",
            PIXELS,
            SOPInstanceUID=f"1.2.3.{n}",
            InstanceNumber=n,
            ImagePositionPatient=[-1.5, 2, n * 2.5 - 40],
            AcquisitionTime=f"1015{n:02}.{n}",
            Manufacturer="Maker",
        )
        for n in range(40)
    ]
    return [os.fspath(p) for p in made]


def test_slices_of_a_series_are_read_together(series: list[str]) -> None:
    headers = check(series)
    kin = [h.kin for h in headers if h.kin is not None]
    assert len(kin) > 30  # layouts of fewer than four files are read one by one
    assert all(k.varying <= OF_EACH_SLICE for k in kin)
    assert [h.integer("InstanceNumber", -1) for h in headers] == list(range(40))


def test_what_differs_beyond_the_place_is_seen(write: Write) -> None:
    made = [
        write(f"s{n}", PIXELS, InstanceNumber=n % 9, EchoTime=10 + n % 3, ImagePositionPatient=[0, 0, n % 7])
        for n in range(30)
    ]
    headers = check([os.fspath(p) for p in made])
    assert {h.number("EchoTime") for h in headers} == {10, 11, 12}
    assert {frames_of(h)[0].marks["echo"] for h in headers} == {10, 11, 12}


def test_sequences_that_name_other_instances_do_not_part_a_group(write: Write) -> None:
    paths = []
    for n in range(20):
        item = Dataset()
        item.ReferencedSOPInstanceUID = f"1.2.3.{100 + n}"
        outer = Sequence([item])
        outer.is_undefined_length = item.is_undefined_length_sequence_item = True
        paths.append(
            os.fspath(write(f"s{n}", PIXELS, SOPInstanceUID=f"1.2.3.{200 + n}", ReferencedImageSequence=outer))
        )
    assert [len(table.files) for table in tables_of(paths)] == [20]
    check(paths)


def test_other_files_are_left_to_the_ordinary_reader(series: list[str], tmp_path: Path, write: Write) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    empty = tmp_path / "empty"
    empty.touch()
    cut = tmp_path / "cut"
    cut.write_bytes(Path(series[3]).read_bytes()[:300])
    implicit = os.fspath(write("implicit", PIXELS, syntax="1.2.840.10008.1.2"))
    long = os.fspath(write("long", PIXELS, ImageComments="x" * (HEADS[-1] + 10)))
    paths = [
        *series,
        os.fspath(text),
        os.fspath(empty),
        os.fspath(tmp_path),
        os.fspath(tmp_path / "gone"),
        implicit,
        long,
    ]
    tables = tables_of([*paths, os.fspath(cut)])
    assert tables
    assert all(table.files.max() < len(series) for table in tables)
    headers, broken = read_headers([*paths[:42], implicit, long])
    assert len(headers) == 42
    assert not broken


def test_pixels_that_are_cut_off_are_noticed_in_a_group(series: list[str]) -> None:
    cut = set(series[5:15])
    for path in cut:
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[:-6])
    headers, _ = read_headers(series)
    assert sum(h.kin is not None for h in headers if h.path in cut) >= 4
    for header in headers:
        if header.path in cut:
            with pytest.raises(ReadError, match="cut off"):
                pixel_file(header)
        else:
            pixel_file(header)


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "693_J2KR.dcm", "examples_palette.dcm"]
)
def test_real_files_many_times(name: str, tmp_path: Path) -> None:
    paths = []
    for n in range(20):
        path = tmp_path / f"{n}"
        shutil.copy(get_testdata_file(name, download=False), path)
        if n % 2:
            dataset = dcmread(path)
            dataset.InstanceNumber = n
            dataset.save_as(path)
        paths.append(os.fspath(path))
    check(paths)


def test_the_corpus(tmp_path: Path) -> None:
    root = os.environ.get("MEDAI_CORPUS")
    if not root:
        pytest.skip("MEDAI_CORPUS does not name a folder with the corpus")
    paths = sorted(os.fspath(p) for p in Path(root).rglob("*.dcm"))
    together = check(paths)
    assert any(h.kin is not None for h in together)
