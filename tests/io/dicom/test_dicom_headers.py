"""Reading headers byte by byte gives what pydicom gives, for every file that it dares to read."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian

from napari_medai.core.errors import ReadError
from napari_medai.io import dicom
from napari_medai.io.dicom.elements import CHUNK, read_elements
from napari_medai.io.dicom.gathered import read_headers
from napari_medai.io.dicom.headers import _through_pydicom, numbers, read_header, text
from napari_medai.io.dicom.whitelist import WANTED

Write = Callable[..., Path]
NUMERIC = {"US", "SS", "UL", "SL", "FL", "FD", "DS", "IS"}


def test_both_ways_agree() -> None:
    compared = 0
    for path in map(Path, pydicom.data.get_testdata_files()):
        if not path.is_file():
            continue
        size = path.stat().st_size
        with path.open("rb") as file:
            found = read_elements(file, file.read(CHUNK), size, WANTED)
        if found is None:
            continue
        with path.open("rb") as file:
            other = _through_pydicom(str(path), file, size)
        if other.repaired:
            continue  # pydicom reads more into values that break the rules of their type
        assert found.syntax == other.syntax
        if found.pixel_tag and other.pixel_offset >= 0 and other.pixel_keyword:
            assert (found.pixel_offset, found.pixel_length) == (other.pixel_offset, other.pixel_length)
        for tag, vr in WANTED.items():
            if tag == 0x00280120:
                continue  # its sign depends on another element
            if vr in NUMERIC:
                assert numbers(found.values, tag) == pytest.approx(numbers(other.fields, tag)), (path.name, hex(tag))
            elif vr in ("CS", "UI", "LO", "TM"):
                assert text(found.values, tag) == text(other.fields, tag), (path.name, hex(tag))
        compared += 1
    assert compared > 100


@pytest.mark.parametrize("implicit", [False, True])
def test_nested_sequences_of_unknown_length_are_passed_over(write: Write, implicit: bool) -> None:
    inner, middle = Dataset(), Dataset()
    inner.ReferencedSOPInstanceUID = "1.2"
    inner.Rows = 999
    middle.ReferencedImageSequence = Sequence([inner, inner])
    middle["ReferencedImageSequence"].is_undefined_length = True
    middle.is_undefined_length_sequence_item = True
    fields = {"syntax": ImplicitVRLittleEndian} if implicit else {}
    path = write("a", np.zeros((4, 6), np.uint16), SourceImageSequence=Sequence([middle]), **fields)
    ds = pydicom.dcmread(path)
    ds["SourceImageSequence"].is_undefined_length = True
    ds.save_as(path)
    with path.open("rb") as file:
        found = read_elements(file, file.read(CHUNK), path.stat().st_size, WANTED)
    assert found is not None
    assert numbers(found.values, "Rows") == (4.0,)
    assert found.pixel_length == 48


def test_large_elements_before_the_pixels(write: Write) -> None:
    path = write("a", np.ones((4, 6), np.uint16), EncapsulatedDocument=b"\7" * 3 * CHUNK, PatientComments="x" * 9000)
    assert dicom.open_volume(path).numpy().tolist() == np.ones((4, 6)).tolist()


def test_a_header_names_no_patient(write: Write) -> None:
    header = read_header(write("a", np.ones((4, 6), np.uint16)))
    assert not any("Doe" in str(v) or "4711" in str(v) for v in header.fields.values())
    assert not any(tag >> 16 == 0x0010 for tag in WANTED)


def test_text_in_other_alphabets(write: Write) -> None:
    path = write("a", np.ones((4, 6), np.uint16), SpecificCharacterSet="ISO_IR 192", SeriesDescription="Schädel µ")
    assert dicom.open_volume(path).meta["series_description"] == "Schädel µ"
    path = write("b", np.ones((4, 6), np.uint16), SpecificCharacterSet="ISO_IR 144", SeriesDescription="Мозг")
    assert dicom.open_volume(path).name == "7_Мозг"


def test_a_changed_file_is_read_again(write: Write) -> None:
    path = write("a", np.ones((4, 6), np.uint16))
    assert read_header(path) is read_header(path)
    write("a", np.ones((8, 6), np.uint16))
    assert dicom.open_volume(path).shape == (8, 6)


def test_files_that_are_not_dicom_are_passed_over(write: Write, tmp_path: Path) -> None:
    good = write("a", np.ones((4, 6), np.uint16))
    (tmp_path / "text").write_text("hello " * 100)
    headers, failed = read_headers([str(good), str(tmp_path / "text"), str(tmp_path / "gone")])
    assert [h.path for h in headers] == [str(good)]
    assert len(failed) == 1
    assert isinstance(failed[0], ReadError)


def test_three_hundred_slices_open_from_their_headers(write_stack: Write) -> None:
    folder = write_stack("ct", [n * 1.25 for n in range(300)])
    start = time.perf_counter()
    volume = dicom.open_volume(folder)
    seconds = time.perf_counter() - start
    assert volume.shape == (300, 4, 6)
    # 0.1 s on an idle core; the bound leaves room for a busy one
    assert seconds < 3
