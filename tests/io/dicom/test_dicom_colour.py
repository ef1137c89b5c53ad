"""Colour in all its samplings, palettes, and odd numbers of bits, against numbers by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from napari_medai.io import dicom

Write = Callable[..., Path]
PLAIN = {"Modality": "US", "ImagePositionPatient": None, "ImageOrientationPatient": None}


def samples(kind: type = np.uint8) -> np.ndarray:
    return (np.arange(4 * 6 * 3).reshape(4, 6, 3) * 3).astype(kind)


def colour(write: Write, pixels: np.ndarray, stored: np.ndarray, **fields: Any) -> Path:
    bits = 8 * pixels.dtype.itemsize
    fields = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, **fields}
    return write(
        "c", np.zeros(pixels.shape[:2], pixels.dtype), Rows=pixels.shape[0], Columns=pixels.shape[1],
        BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1, PixelData=stored.tobytes(), **PLAIN, **fields,
    )  # fmt: skip


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", [0, 1])
def test_red_green_blue(write: Write, kind: type, planar: int) -> None:
    rgb = samples(kind)
    volume = dicom.open_volume(
        colour(write, rgb, rgb.transpose(2, 0, 1) if planar else rgb, PlanarConfiguration=planar)
    )
    assert volume.axes == "yxs"
    assert volume.dtype == kind
    np.testing.assert_array_equal(volume.numpy(), rgb)


def full(ybr: np.ndarray) -> np.ndarray:
    """PS3.3 C.7.6.3.1.2, YBR_FULL."""
    y, b, r = (ybr[..., n].astype(float) for n in range(3))
    rgb = np.stack([y + 1.402 * (r - 128), y - 0.344136 * (b - 128) - 0.714136 * (r - 128), y + 1.772 * (b - 128)], -1)
    return np.clip(rgb, 0, 255)


@pytest.mark.parametrize("planar", [0, 1])
def test_luminance_and_chrominance(write: Write, planar: int) -> None:
    ybr = np.full((4, 6, 3), 128, np.uint8)
    ybr[..., 0] = 100
    ybr[0, 0] = (81, 90, 200)
    stored = ybr.transpose(2, 0, 1) if planar else ybr
    path = colour(write, ybr, stored, PhotometricInterpretation="YBR_FULL", PlanarConfiguration=planar)
    np.testing.assert_allclose(dicom.open_volume(path).numpy(), full(ybr), atol=1.01)


def test_chrominance_of_every_second_pixel(write: Write) -> None:
    # Y1 Y2 Cb Cr for each pair of pixels (PS3.3 C.7.6.3.1.2)
    stored = np.array([[[81, 90, 100, 200], [10, 20, 128, 128], [200, 210, 128, 128]]] * 4, np.uint8)
    ybr = np.zeros((4, 6, 3), np.uint8)
    ybr[:, 0::2, 0], ybr[:, 1::2, 0] = stored[..., 0], stored[..., 1]
    ybr[..., 1], ybr[..., 2] = np.repeat(stored[..., 2], 2, 1), np.repeat(stored[..., 3], 2, 1)
    path = colour(write, ybr, stored, PhotometricInterpretation="YBR_FULL_422")
    np.testing.assert_allclose(dicom.open_volume(path).numpy(), full(ybr), atol=1.01)


def test_chrominance_of_limited_range(write: Write) -> None:
    # PS3.3 C.7.6.3.1.2, YBR_PARTIAL_422: Y from 16 to 235; black, white, and grey with Cb, Cr = 128
    stored = np.array([[[16, 235, 128, 128], [126, 126, 128, 128], [16, 16, 128, 128]]] * 4, np.uint8)
    path = colour(write, np.zeros((4, 6, 3), np.uint8), stored, PhotometricInterpretation="YBR_PARTIAL_422")
    got = dicom.open_volume(path).numpy()
    assert got[0, :3, 0].tolist() == pytest.approx([0, 255, 128], abs=1)
    assert np.ptp(got[0, 0].astype(int)) == 0


def palette(write: Write, pixels: np.ndarray, bits: int, **fields: Any) -> Path:
    entries = np.arange(4, dtype=np.uint16) * (257 * 60 if bits == 16 else 60)
    fields = {
        "PhotometricInterpretation": "PALETTE COLOR",
        "RedPaletteColorLookupTableDescriptor": [4, 10, bits],
        "GreenPaletteColorLookupTableDescriptor": [4, 10, bits],
        "BluePaletteColorLookupTableDescriptor": [4, 10, bits],
        "RedPaletteColorLookupTableData": entries.astype(f"u{bits // 8}").tobytes(),
        "GreenPaletteColorLookupTableData": entries[::-1].astype(f"u{bits // 8}").tobytes(),
        "BluePaletteColorLookupTableData": np.zeros(4, f"u{bits // 8}").tobytes(),
        **fields,
    }
    return write("p", pixels, **PLAIN, **fields)


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes(write: Write, bits: int) -> None:
    # entries below the first mapped value take its colour, those above the last take the last one's
    pixels = np.array([[0, 10, 11, 12, 13, 200]], np.uint8)
    got = dicom.open_volume(palette(write, pixels, bits)).numpy()
    assert got[0, :, 0].tolist() == [0, 0, 60, 120, 180, 180]
    assert got[0, :, 1].tolist() == [180, 180, 120, 60, 0, 0]


def test_a_palette_in_segments(write: Write) -> None:
    # PS3.3 C.7.9.2: discrete (0, length, values), then linear (1, length, end)
    segments = np.array([0, 1, 0, 1, 4, 257 * 200], np.uint16)
    keys = {f"Segmented{c}PaletteColorLookupTableData": segments.tobytes() for c in ("Red", "Green", "Blue")}
    described = {f"{c}PaletteColorLookupTableDescriptor": [5, 0, 16] for c in ("Red", "Green", "Blue")}
    pixels = np.array([[0, 1, 2, 3, 4]], np.uint8)
    path = write("s", pixels, PhotometricInterpretation="PALETTE COLOR", **PLAIN, **keys, **described)
    assert dicom.open_volume(path).numpy()[0, :, 1].tolist() == pytest.approx([0, 50, 100, 150, 200], abs=1)


def test_a_supplemental_palette_leaves_the_image_grey(write: Write) -> None:
    pixels = np.array([[0, 10, 11, 12]], np.uint16)
    path = palette(write, pixels, 16, PhotometricInterpretation="MONOCHROME2", PixelPresentation="COLOR")
    volume = dicom.open_volume(path)
    assert volume.axes == "yx"
    assert volume.numpy().tolist() == pixels.tolist()
    assert any("palette" in f for f in volume.meta["findings"])


def test_the_used_bits_need_not_be_the_lowest(write: Write) -> None:
    values = np.array([[0, 1, 2047, 4095]], np.uint16)
    path = write("a", values << 4 | 0xF, BitsStored=12, HighBit=15)
    assert dicom.open_volume(path).numpy().tolist() == values.tolist()


@pytest.mark.parametrize("stored", [9, 10, 12, 13, 15])
def test_narrow_signs_are_extended(write: Write, stored: int) -> None:
    low = -(1 << stored - 1)
    values = np.array([[low, -1, 0, -low - 1]], np.int16)
    narrow = (values.astype(np.uint16) & ((1 << stored) - 1)).astype(np.int16)
    path = write("a", narrow, BitsStored=stored, HighBit=stored - 1, Modality="MR")
    assert dicom.open_volume(path).numpy().tolist() == values.tolist()


def test_one_bit_for_a_pixel(write: Write) -> None:
    pixels = np.array([[1, 0, 0, 1, 1], [0, 1, 1, 0, 1], [1, 1, 1, 0, 0]], np.uint8)
    path = write(
        "a",
        pixels,
        BitsAllocated=1,
        BitsStored=1,
        HighBit=0,
        PixelData=np.packbits(pixels, bitorder="little").tobytes(),
    )
    assert dicom.open_volume(path).numpy().tolist() == pixels.tolist()


@pytest.mark.parametrize("kind", [np.uint32, np.int32])
def test_whole_numbers_of_32_bits(write: Write, kind: type) -> None:
    values = np.array([[0, 1, np.iinfo(kind).max, np.iinfo(kind).min]], kind)
    assert dicom.open_volume(write("a", values, Modality="MR")).numpy().tolist() == values.tolist()


def test_values_that_contradict_their_sign_are_a_finding(write: Write) -> None:
    path = write("a", np.array([[65000, 3]], np.uint16), Modality="MR")
    ds = pydicom.dcmread(path)
    ds.add_new("SmallestImagePixelValue", "SS", -536)
    ds.save_as(path)
    volume = dicom.open_volume(path)
    assert volume.numpy().tolist() == [[65000, 3]]
    assert any("below 0" in f for f in volume.meta["findings"])


def test_a_stream_that_contradicts_the_header_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    shutil.copy(pydicom.data.get_testdata_file("J2K_pixelrep_mismatch.dcm"), path)
    volume = dicom.open_volume(path)
    assert any("compressed stream unsigned" in f for f in volume.meta["findings"])
    ds = pydicom.dcmread(path)
    expected = pydicom.pixels.apply_rescale(ds.pixel_array, ds)
    np.testing.assert_array_equal(volume.numpy(), expected)
