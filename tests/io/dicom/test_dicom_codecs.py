"""Compressed grey values, against readers that share no decoder with ours."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.data import get_testdata_file

from napari_medai.core.errors import ReadError
from napari_medai.io.dicom import codecs, open_volume

# file of pydicom's, and by how much lossy decoders may differ
FILES = {
    "693_J2KR.dcm": 0,
    "JPEG-LL.dcm": 0,
    "JPGLosslessP14SV1_1s_1f_8b.dcm": 0,
    "MR_small_jpeg_ls_lossless.dcm": 0,
    "JPEGLSNearLossless_16.dcm": 0,
    "J2K_pixelrep_mismatch.dcm": 0,
    "JPGExtended.dcm": 1,  # 12 bits, which Pillow cannot decode
    "JPEG-lossy.dcm": 1,
}


def copy_of(name: str, folder: Path) -> Path:
    """The file alone in a folder."""
    return Path(shutil.copy(get_testdata_file(name, download=False), folder / "image.dcm"))


@pytest.mark.parametrize("name", FILES)
def test_each_kind_of_jpeg_is_decoded_by_imagecodecs_as_itk_decodes_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_of(name, tmp_path)
    decoded: list[str] = []
    inner = codecs.decode_grey

    def noted(data: bytes, file: codecs.PixelFile) -> np.ndarray | None:
        found = inner(data, file)
        decoded.append("" if found is None else file.syntax)
        return found

    monkeypatch.setattr("napari_medai.io.dicom.decoding.decode_grey", noted)
    got = np.squeeze(open_volume(path).numpy()).astype(int)
    assert decoded == [str(pydicom.dcmread(path).file_meta.TransferSyntaxUID)]
    wanted = np.squeeze(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))).astype(int)
    assert np.abs(got - wanted).max() <= FILES[name]


def test_a_damaged_stream_says_so(tmp_path: Path) -> None:
    path = copy_of("693_J2KR.dcm", tmp_path)
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\x4f\xff\x51")
    content[start + 60 : start + 4000] = bytes(3940)
    path.write_bytes(content)
    with pytest.raises(ReadError, match="damaged"):
        open_volume(path).numpy()
