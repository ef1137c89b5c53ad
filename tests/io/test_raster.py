"""PNG and JPEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import napari_medai as medai
from napari_medai.core.errors import ReadError, WriteError
from napari_medai.core.volume import Volume

GREY = np.arange(20, dtype=np.uint8).reshape(4, 5)
RGB = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
RGBA = np.arange(80, dtype=np.uint8).reshape(4, 5, 4)


@pytest.mark.parametrize(
    ("pixels", "axes"), [(GREY, "yx"), (GREY.astype(np.uint16) + 300, "yx"), (RGB, "yxs"), (RGBA, "yxs")]
)
def test_png_comes_back_as_it_was(tmp_path: Path, pixels: np.ndarray, axes: str) -> None:
    opened = medai.open(medai.save(Volume(pixels, axes), tmp_path / "a.png"))
    assert (opened.axes, opened.dtype, opened.units, opened.name) == (axes, pixels.dtype, "pixel", "a")
    np.testing.assert_array_equal(opened.numpy(), pixels)


def test_jpeg_is_close(tmp_path: Path) -> None:
    pixels = np.repeat(np.linspace(0, 255, 64, dtype=np.uint8)[None], 64, axis=0)
    opened = medai.open(medai.save(Volume(pixels, "yx"), tmp_path / "a.jpg"))
    assert np.abs(opened.numpy().astype(int) - pixels).max() <= 4


@pytest.mark.parametrize("mode", ["P", "1", "LA", "CMYK"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    name = "a.jpg" if mode == "CMYK" else "a.png"
    Image.fromarray(RGB).convert(mode).save(tmp_path / name)
    opened = medai.open(tmp_path / name)
    assert opened.shape[:2] == (4, 5)
    assert opened.dtype == np.uint8
    assert opened.shape[2:] == {"P": (3,), "1": (), "LA": (4,), "CMYK": (3,)}[mode]


def test_orientation_of_a_photograph(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    Image.fromarray(np.zeros((40, 80), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    opened = medai.open(tmp_path / "a.jpg")
    assert opened.shape == (80, 40)
    assert "EXIF" in opened.meta["findings"][0]


@pytest.mark.parametrize("keep", [10, 40, 50])
def test_truncated(tmp_path: Path, keep: int) -> None:
    path = medai.save(Volume(RGB, "yxs"), tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ReadError):
        medai.open(path)


@pytest.mark.parametrize(
    ("low", "high", "stored"),
    [(0.0, 1.0, [0, 65535]), (-2.0, 255.0, [0, 255]), (0.0, 258.4, [0, 255]), (0.0, 1000.4, [0, 1000])],
)
def test_floats_become_whole(tmp_path: Path, low: float, high: float, stored: list[int]) -> None:
    opened = medai.open(medai.save(Volume(np.array([[low, high]], np.float32), "yx"), tmp_path / "a.png"))
    assert opened.numpy()[0].tolist() == stored


@pytest.mark.parametrize(
    ("pixels", "axes", "name"),
    [
        (np.zeros((3, 4, 5), np.uint8), "zyx", "a.png"),
        (np.array([[-500.0, 3.0]]), "yx", "a.png"),
        (np.array([[np.nan, 3.0]]), "yx", "a.png"),
        (np.array([[70000]]), "yx", "a.png"),
        (np.array([[300]]), "yx", "a.jpg"),
        (RGBA, "yxs", "a.jpg"),
        (np.zeros((4, 5, 2), np.uint8), "yxs", "a.png"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, pixels: np.ndarray, axes: str, name: str) -> None:
    with pytest.raises(WriteError):
        medai.save(Volume(pixels, axes), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_one_plane_of_a_stack_fits(tmp_path: Path) -> None:
    opened = medai.open(medai.save(Volume(GREY[None], "zyx"), tmp_path / "a.png"))
    np.testing.assert_array_equal(opened.numpy(), GREY)


def test_jpeg_refuses_labels(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="JPEG changes values"):
        medai.save(Volume(GREY, "yx", meta={"is_labels": True}), tmp_path / "a.jpg")
