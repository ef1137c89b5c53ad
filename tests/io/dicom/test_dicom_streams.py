"""What compressed streams say of themselves, and damaged ones that must not reach a decoder."""

from __future__ import annotations

import warnings
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import get_frame

from napari_medai.core.errors import MedaiError, ReadError
from napari_medai.io import dicom
from napari_medai.io.dicom import headers
from napari_medai.io.dicom.jpeg import stream_frame


def frame_of(name: str) -> tuple[bytes, tuple[int, int, int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(get_testdata_file(name, download=False))
    frames = int(ds.get("NumberOfFrames", 1))
    return get_frame(ds.PixelData, 0, number_of_frames=frames), (ds.Rows, ds.Columns, ds.SamplesPerPixel)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("SC_rgb_jpeg_dcmtk.dcm", 8),
        ("JPEG-LL.dcm", 16),
        ("MR_small_jpeg_ls_lossless.dcm", 16),
        ("emri_small_jpeg_2k_lossless.dcm", 16),
        ("JPEGLSNearLossless_08.dcm", 8),
    ],
)
def test_size_in_the_stream(name: str, precision: int) -> None:
    data, size = frame_of(name)
    found = stream_frame(data)
    assert found is not None
    assert found[0] <= precision
    assert found[1:] == size
    assert stream_frame(data[:20]) is None
    assert stream_frame(b"") is None


@pytest.mark.parametrize(
    "name", ["SC_rgb_jpeg_dcmtk.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"]
)
def test_a_stream_that_claims_another_size_is_refused(name: str, tmp_path: Path) -> None:
    source = Path(get_testdata_file(name, download=False))
    data, (rows, columns, _) = frame_of(name)
    if data[:2] == b"\xff\x4f":
        old, new = data[4:16], data[4:8] + b"\x00\x00\xff\xff" * 2
    else:
        size = rows.to_bytes(2, "big") + columns.to_bytes(2, "big")
        old, new = size, b"\xff\xff\xff\xff"
    content = source.read_bytes()
    at = content.index(data)
    damaged = content[:at] + data.replace(old, new, 1) + content[at + len(data) :]
    (tmp_path / "x").write_bytes(damaged)
    volume = dicom.open_volume(tmp_path / "x")
    with pytest.raises(ReadError, match="not of the size"):
        volume.numpy()


def test_every_cut_of_a_file_opens_or_says_why_not(tmp_path: Path) -> None:
    for name in ("CT_small.dcm", "MR_small_RLE.dcm", "JPEGLSNearLossless_08.dcm"):
        data = Path(get_testdata_file(name, download=False)).read_bytes()
        for length in range(0, len(data), max(1, len(data) // 40)):
            path = tmp_path / "x"
            path.write_bytes(data[:length])
            headers._read_header.cache_clear()
            try:
                volume = dicom.open_volume(path)
                volume.numpy()
            except MedaiError as error:
                message = str(error)
                if "CompressedSamples" in message:
                    pytest.fail(f"the patient's name is in the message: {message}")


def test_flipped_header_bytes_never_break_the_reader(tmp_path: Path) -> None:
    data = Path(get_testdata_file("MR_small.dcm", download=False)).read_bytes()
    for at in range(132, 1400, 9):
        for byte in (0, 0xFF):
            path = tmp_path / "x"
            path.write_bytes(data[:at] + bytes([byte]) + data[at + 1 :])
            headers._read_header.cache_clear()
            try:
                dicom.open_volume(path)
            except MedaiError:
                continue
