"""Overlays as labels: packed, in the pixels' unused bits, over some frames, beside the image."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from napari_medai.io import dicom
from napari_medai.io.dicom.overlays import overlay_volumes

Write = Callable[..., Path]
CROSS = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], np.uint8)


def overlaid(path: Path, masks: np.ndarray, group: int = 0x6000, **more: Any) -> Path:
    """Put an overlay into a file; ``more`` are elements by their number, e.g. ``x50=[1, 1]``."""
    ds = pydicom.dcmread(path)
    kinds = {0x10: "US", 0x11: "US", 0x15: "IS", 0x40: "CS", 0x50: "SS", 0x51: "US", 0x100: "US", 0x102: "US"}
    values: dict[int, Any] = {0x10: masks.shape[-2], 0x11: masks.shape[-1], 0x40: "G", 0x50: [1, 1], 0x100: 1, 0x102: 0}
    values |= {int(key[1:], 16): value for key, value in more.items()}
    for element, value in values.items():
        ds.add_new((group << 16) + element, kinds[element], value)
    if values[0x102] == 0:
        packed = np.packbits(masks.ravel(), bitorder="little").tobytes()
        ds.add_new((group << 16) + 0x3000, "OW", packed + b"\0" * (len(packed) % 2))
    ds.save_as(path)
    return path


def test_a_real_overlay(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    shutil.copy(pydicom.data.get_testdata_file("examples_overlay.dcm"), path)
    volume = dicom.open_volume(path)
    (overlay,) = overlay_volumes(volume)
    assert overlay.meta["is_labels"]
    assert volume.meta["overlays"] == (0x6000,)
    np.testing.assert_array_equal(overlay.numpy(), pydicom.dcmread(path).overlay_array(0x6000))
    assert overlay.numpy().sum() > 100
    np.testing.assert_allclose(overlay.affine, volume.affine)


@pytest.mark.parametrize("origin", [(2, 3), (0, 0), (3, 5)])
def test_an_overlay_begins_at_its_origin(write: Write, origin: tuple[int, int]) -> None:
    path = overlaid(write("a", np.zeros((4, 6), np.uint16)), CROSS, x50=list(origin))
    expected = np.zeros((10, 12), np.uint8)
    expected[2 + origin[0] : 5 + origin[0], 2 + origin[1] : 5 + origin[1]] = CROSS
    (overlay,) = overlay_volumes(dicom.open_volume(path))
    np.testing.assert_array_equal(overlay.numpy(), expected[3:7, 3:9])


def test_an_overlay_in_the_unused_bits(write: Write) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4096, (4, 6), np.uint16)
    mask = rng.integers(0, 2, (4, 6), np.uint16)
    path = write("a", values | mask << 13, BitsStored=12, HighBit=11)
    overlaid(path, mask, x100=16, x102=13)
    volume = dicom.open_volume(path)
    np.testing.assert_array_equal(volume.numpy(), values)
    np.testing.assert_array_equal(overlay_volumes(volume)[0].numpy(), mask)


def test_an_overlay_on_some_frames(write: Write) -> None:
    film = np.zeros((4, 3, 3), np.uint8)
    path = write("a", film, Modality="XA", NumberOfFrames=4, ImagePositionPatient=None, ImageOrientationPatient=None)
    # of two frames of nine bits: the second does not begin at a byte
    overlaid(path, np.stack([CROSS, 1 - CROSS]), x15=2, x51=2)
    overlaid(path, np.ones((3, 3), np.uint8), 0x6002)
    first, second = overlay_volumes(dicom.open_volume(path))
    np.testing.assert_array_equal(first.numpy(), [film[0], CROSS, 1 - CROSS, film[0]])
    assert second.numpy().min() == 1


def test_overlays_follow_the_axes_of_the_image(write: Write, tmp_path: Path) -> None:
    # sagittal slices, the rows of which run towards the feet
    for n in range(3):
        pixels = np.zeros((4, 6), np.uint16)
        pixels[n, 1] = 7
        path = write(
            f"scan/{n}", pixels, ImagePositionPatient=[5 * n, 0, 0], ImageOrientationPatient=[0, 1, 0, 0, 0, -1]
        )
        overlaid(path, (pixels > 0).astype(np.uint8))
    volume = dicom.open_volume(tmp_path / "scan")
    (overlay,) = overlay_volumes(volume)
    assert overlay.shape == volume.shape
    np.testing.assert_array_equal(overlay.numpy(), volume.numpy() == 7)
    np.testing.assert_array_equal(np.asarray(overlay.array[2]), np.asarray(volume.array[2]) == 7)


def test_an_overlay_on_colour(write: Write) -> None:
    rgb = np.zeros((3, 3, 3), np.uint8)
    path = write(
        "a", rgb[..., 0], SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0,
        PixelData=rgb.tobytes() + b"\0", Modality="US", ImagePositionPatient=None, ImageOrientationPatient=None,
    )  # fmt: skip
    (overlay,) = overlay_volumes(dicom.open_volume(overlaid(path, CROSS)))
    assert overlay.axes == "yx"
    np.testing.assert_array_equal(overlay.numpy(), CROSS)


def test_an_image_without_overlays(write: Write) -> None:
    volume = dicom.open_volume(write("a", np.zeros((4, 6), np.uint16)))
    assert "overlays" not in volume.meta
    assert overlay_volumes(volume) == []
