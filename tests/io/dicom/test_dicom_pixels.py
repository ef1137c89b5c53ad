"""Stored bytes to values, with numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels.decoders import JPEG2000LosslessDecoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from napari_medai.core.errors import DependencyError, ReadError, UnsupportedFormatError
from napari_medai.io import dicom
from napari_medai.io.dicom import pixels
from napari_medai.io.dicom.planes import Planes

Write = Callable[..., Path]
RAMP = np.arange(24, dtype=np.uint16).reshape(4, 6)


def test_whole_rescale_of_a_ct_stays_integer(write: Write) -> None:
    volume = dicom.open_volume(write("a", RAMP, RescaleSlope="1.0", RescaleIntercept="-1024"))
    assert volume.dtype == np.int16
    assert volume.numpy()[0, :3].tolist() == [-1024, -1023, -1022]


def test_padding_far_out_of_range_is_held_at_the_end(write: Write) -> None:
    stored = np.array([[-32768, 0], [100, 32767]], np.int16)
    volume = dicom.open_volume(write("a", stored, RescaleSlope=1, RescaleIntercept=-1024))
    assert volume.numpy().tolist() == [[-32768, -1024], [-924, 31743]]


def test_whole_rescale_of_others_takes_a_type_that_holds_all(write: Write) -> None:
    stored = np.array([[0, 65535]], np.uint16)
    volume = dicom.open_volume(write("a", stored, Modality="PT", RescaleSlope=2, RescaleIntercept=-5))
    assert volume.dtype == np.int32
    assert volume.numpy().tolist() == [[-5, 131065]]


def test_fractional_rescale_gives_float32(write: Write) -> None:
    volume = dicom.open_volume(write("a", RAMP, Modality="MR", RescaleSlope="0.5", RescaleIntercept="1"))
    assert volume.dtype == np.float32
    assert volume.numpy()[0, :3].tolist() == [1.0, 1.5, 2.0]


def test_slopes_that_differ_from_slice_to_slice(write: Write, tmp_path: Path) -> None:
    for n, slope in enumerate(("0.5", "2")):
        write(f"{n}", RAMP, Modality="PT", ImagePositionPatient=[0, 0, n], RescaleSlope=slope, RescaleIntercept=0)
    assert dicom.open_volume(tmp_path).numpy()[:, 3, 5].tolist() == [11.5, 46.0]


def test_no_rescale_keeps_the_stored_type(write: Write) -> None:
    volume = dicom.open_volume(write("a", RAMP.astype(np.int16) - 5, Modality="MR"))
    assert volume.dtype == np.int16
    assert volume.numpy()[0, 0] == -5


def test_window(write: Write) -> None:
    # PS3.3 C.11.2.1.2.1: centre 40, width 400 shows -160 to 239
    assert dicom.open_volume(write("a", RAMP, WindowCenter=40, WindowWidth=400)).meta["window"] == (-160.0, 239.0)
    assert "window" not in dicom.open_volume(write("b", RAMP, SeriesInstanceUID="1.5")).meta


def test_monochrome1_turns_bright_and_so_does_its_window(write: Write) -> None:
    path = write(
        "a", np.array([[0, 255], [10, 245]], np.uint8), PhotometricInterpretation="MONOCHROME1", Modality="MR",
        WindowCenter=100.5, WindowWidth=101,
    )  # fmt: skip
    volume = dicom.open_volume(path)
    assert volume.numpy().tolist() == [[255, 0], [245, 10]]
    # 50 to 150 stored are 205 to 105 now
    assert volume.meta["window"] == (105.0, 205.0)
    assert "MONOCHROME1" in volume.meta["findings"][0]


def test_bits_outside_the_used_ones_do_not_count(write: Write) -> None:
    # 12 of 16 bits; an overlay sits in bit 15
    stored = np.array([[0x8001, 0x0FFF]], np.uint16)
    volume = dicom.open_volume(write("a", stored, Modality="MR", BitsStored=12, HighBit=11))
    assert volume.numpy().tolist() == [[1, 4095]]


def test_a_narrow_sign_is_extended(write: Write) -> None:
    # 0xFFF in 12 signed bits is -1
    stored = np.array([[0x0FFF, 0x07FF, 0x0800]], np.int16)
    volume = dicom.open_volume(write("a", stored, Modality="MR", BitsStored=12, HighBit=11))
    assert volume.numpy().tolist() == [[-1, 2047, -2048]]


def test_bits_at_the_top(write: Write) -> None:
    stored = np.array([[0x0010, 0xFFF0]], np.uint16)
    volume = dicom.open_volume(write("a", stored, Modality="MR", BitsStored=12, HighBit=15))
    assert volume.numpy().tolist() == [[1, 4095]]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_encodings(write: Write, syntax: str) -> None:
    volume = dicom.open_volume(write("a", RAMP, syntax=syntax, RescaleIntercept=-3, RescaleSlope=1))
    assert volume.numpy().tolist() == (RAMP.astype(int) - 3).tolist()


def test_big_endian(write: Write) -> None:
    volume = dicom.open_volume(write("a", RAMP.astype(">u2"), syntax=ExplicitVRBigEndian))
    assert volume.dtype == np.uint16
    assert volume.numpy().tolist() == RAMP.tolist()


def test_run_length_encoding(tmp_path: Path, write: Write) -> None:
    ds = pydicom.dcmread(write("a", RAMP))
    ds.compress(RLELossless, encoding_plugin="pydicom")
    ds.save_as(tmp_path / "a")
    assert dicom.open_volume(tmp_path / "a").numpy().tolist() == RAMP.tolist()


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_by_pixel_and_by_plane(write: Write, planar: int) -> None:
    colour = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    stored = colour if planar == 0 else np.ascontiguousarray(colour.transpose(2, 0, 1))
    path = write(
        "a", np.zeros((2, 4), np.uint8), PixelData=stored.tobytes(), SamplesPerPixel=3, PhotometricInterpretation="RGB",
        PlanarConfiguration=planar,
    )  # fmt: skip
    volume = dicom.open_volume(path)
    assert volume.axes == "yxs"
    assert volume.numpy().tolist() == colour.tolist()


def test_ybr_becomes_rgb(write: Write) -> None:
    # PS3.3 C.7.6.3.1.2: Y 76, Cb 85, Cr 255 is pure red
    path = write(
        "a", np.zeros((1, 2), np.uint8), PixelData=bytes([76, 85, 255, 128, 128, 128]), SamplesPerPixel=3,
        PhotometricInterpretation="YBR_FULL", PlanarConfiguration=0,
    )  # fmt: skip
    assert np.abs(dicom.open_volume(path).numpy() - np.array([[[254, 0, 0], [128, 128, 128]]])).max() <= 1


def test_palette_becomes_rgb(write: Write) -> None:
    tables = {}
    for colour, entries in (("Red", (0, 0xFF00)), ("Green", (0, 0x8000)), ("Blue", (0xFF00, 0))):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
        tables[f"{colour}PaletteColorLookupTableData"] = np.array(entries, "<u2").tobytes()
    path = write("a", np.array([[0, 1]], np.uint8), PhotometricInterpretation="PALETTE COLOR", **tables)
    volume = dicom.open_volume(path)
    assert volume.axes == "yxs"
    assert volume.dtype == np.uint8
    assert volume.numpy().tolist() == [[[0, 0, 255], [255, 128, 0]]]


def test_modality_table(write: Write) -> None:
    table = Dataset()
    table.add_new(0x00283002, "US", [3, 10, 16])
    table.add_new(0x00283006, "US", [100, 200, 400])
    table.ModalityLUTType = "US"
    path = write("a", np.array([[9, 10, 11, 12, 99]], np.uint16), ModalityLUTSequence=[table], Modality="CR")
    assert dicom.open_volume(path).numpy().tolist() == [[100, 100, 200, 400, 400]]


def test_a_transfer_syntax_that_nobody_knows(write: Write) -> None:
    path = write("a", RAMP)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"))
    with pytest.raises(UnsupportedFormatError, match="cannot be read as an image"):
        dicom.open_volume(path)


def test_missing_decoders_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    path = get_testdata_file("emri_small_jpeg_2k_lossless.dcm", download=False)
    pixels._decoder.cache_clear()
    monkeypatch.setattr(type(JPEG2000LosslessDecoder), "is_available", False)
    monkeypatch.setattr(type(JPEG2000LosslessDecoder), "missing_dependencies", ["pylibjpeg - needs pylibjpeg"])
    with pytest.raises(DependencyError, match=r"JPEG 2000.*pylibjpeg.*napari-medai\[codecs\]"):
        dicom.open_volume(path)
    pixels._decoder.cache_clear()


def test_damaged_compressed_pixels_say_so_when_used(tmp_path: Path) -> None:
    data = bytearray(Path(get_testdata_file("MR_small_RLE.dcm", download=False)).read_bytes())
    at = data.rfind(b"\xe0\x7f\x10\x00")
    data[at + 24 : at + 90] = bytes(66)
    (tmp_path / "a").write_bytes(data)
    volume = dicom.open_volume(tmp_path / "a")
    with pytest.raises(ReadError, match="cannot be decoded"):
        volume.numpy()


def test_a_file_that_vanishes(write: Write) -> None:
    path = write("a", RAMP)
    volume = dicom.open_volume(path)
    path.unlink()
    with pytest.raises(ReadError, match="no longer"):
        volume.numpy()


@pytest.mark.parametrize(
    ("stored", "fields"),
    [
        (RAMP, {"RescaleSlope": 1, "RescaleIntercept": -1024}),
        (RAMP | np.uint16(0x9000), {"BitsStored": 12, "HighBit": 11}),
        (RAMP | np.uint16(0x0FFF), {"BitsStored": 12, "HighBit": 15, "Modality": "MR"}),
        (RAMP.astype(np.int16) << 7, {"BitsStored": 12, "HighBit": 11, "Modality": "MR"}),
        (RAMP, {"PhotometricInterpretation": "MONOCHROME1", "Modality": "MR"}),
        (RAMP.astype(np.uint32), {"RescaleSlope": 0.5, "RescaleIntercept": 1, "Modality": "PT"}),
        (RAMP.astype(np.int32) - 7, {"RescaleSlope": 3, "RescaleIntercept": 1, "Modality": "PT"}),
        (RAMP.astype(np.uint8), {"RescaleSlope": 1, "RescaleIntercept": -10, "Modality": "MR"}),
    ],
)
def test_a_plane_has_the_same_values_alone_and_read_into_its_place(
    write: Write, tmp_path: Path, stored: np.ndarray, fields: dict[str, object]
) -> None:
    for n in range(3):
        write(f"{n}", stored + stored.dtype.type(n), ImagePositionPatient=[0, 0, n], **fields)
    volume = dicom.open_volume(tmp_path)
    whole = volume.numpy()
    for n in range(3):
        np.testing.assert_array_equal(whole[n], np.asarray(volume.array[n]))
    assert not np.array_equal(whole[0], whole[1])


def test_missing_slices_are_blank_in_their_place(write_stack: Write) -> None:
    volume = dicom.open_volume(write_stack("stack", [0, 1, 2, 4, 5], RescaleSlope=1, RescaleIntercept=-1024))
    assert volume.meta["missing_slices"] == 1
    levels = volume.numpy()[:, 0, 0].tolist()
    assert levels == np.asarray(volume.array[:, 0, 0]).tolist()
    assert levels == [-1024, -1023, -1022, -1000, -1021, -1020]


def test_a_file_that_was_cut_after_it_was_opened(write: Write) -> None:
    path = write("a", RAMP)
    volume = dicom.open_volume(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ReadError, match="Frame 0 of a is cut off"):
        volume.numpy()


def test_the_array_decodes_what_an_index_asks_for() -> None:
    path = get_testdata_file("rtdose.dcm", download=False)
    volume = dicom.open_volume(path, "")
    whole = volume.numpy()
    array = volume.array.whole.source
    assert isinstance(array, Planes)
    assert array.shape == (1, 15, 10, 10)
    for key in (0, (0, 3), (slice(None), slice(2, 9, 3)), (..., 4), (0, -1, slice(None), 2), (0, slice(5, 5))):
        index = key if isinstance(key, tuple) else (key,)
        assert array[key].shape == np.empty(array.shape)[index].shape
        assert array[key].tolist() == whole[np.newaxis][index].tolist()


def test_deflated_bytes_that_are_no_deflate(write: Write) -> None:
    path = write("a", RAMP, syntax=DeflatedExplicitVRLittleEndian)
    data = path.read_bytes()
    path.write_bytes(data[:-40])
    with pytest.raises(ReadError):
        dicom.open_volume(path)
