"""From one format to another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

import napari_medai as medai
from napari_medai.core.errors import MedaiError, ReadError, SeriesChoiceError, SeriesInfo, WriteError
from napari_medai.core.volume import Volume
from napari_medai.io.convert import convert, file_name, safe_name, unique


def info(number: int | None, description: str, modality: str = "MR") -> SeriesInfo:
    return SeriesInfo("1.2", modality, description, number, (1, 2, 3), (1.0, 1.0, 1.0), 1)


@pytest.fixture
def two_images(tmp_path: Path) -> Path:
    with tifffile.TiffWriter(tmp_path / "two.ome.tif", ome=True) as file:
        file.write(np.zeros((4, 5), np.uint8), metadata={"axes": "YX"})
        file.write(np.ones((6, 7), np.uint8), metadata={"axes": "YX"})
    return tmp_path / "two.ome.tif"


def test_file_to_file(tmp_path: Path, oblique_scan: Volume) -> None:
    source = medai.save(oblique_scan, tmp_path / "a.nii.gz")
    (written,) = convert(source, tmp_path / "b.tif")
    assert written == tmp_path / "b.tif"
    opened = medai.open(written)
    assert opened.grid.same_place(oblique_scan.grid)
    np.testing.assert_array_equal(opened.numpy(), oblique_scan.numpy())


def test_series_to_a_new_folder(tmp_path: Path, two_images: Path) -> None:
    written = convert(two_images, tmp_path / "out" / "deep")
    assert [p.name for p in written] == ["two.nii.gz", "two_2.nii.gz"]
    assert [medai.open(p).shape for p in written] == [(4, 5), (6, 7)]


def test_nothing_in_a_folder_is_overwritten(tmp_path: Path, two_images: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "TWO.nii.gz").write_bytes(b"precious")
    assert [p.name for p in convert(two_images, folder, series_uid="1")] == ["two_2.nii.gz"]
    assert (folder / "TWO.nii.gz").read_bytes() == b"precious"


def test_several_series_do_not_go_into_one_file(tmp_path: Path, two_images: Path) -> None:
    with pytest.raises(SeriesChoiceError):
        convert(two_images, tmp_path / "a.nii")
    assert medai.open(convert(two_images, tmp_path / "a.nii", series_uid="1")[0]).shape == (6, 7)


def test_unknown_series(tmp_path: Path, two_images: Path) -> None:
    with pytest.raises(ReadError, match="no series '9'"):
        convert(two_images, tmp_path / "out", series_uid="9")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_converted_does_not_stop_the_others(
    tmp_path: Path, two_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import napari_medai.io.convert as module

    real = module.open

    def first_is_damaged(path: Path, *, series_uid: str = "") -> Volume:
        if series_uid == "0":
            raise ReadError("damaged")
        return real(path, series_uid=series_uid)

    monkeypatch.setattr(module, "open", first_is_damaged)
    with pytest.raises(MedaiError, match=r"1 of 2 series .* \(1 were\)"):
        convert(two_images, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["two.nii.gz"]


def test_unknown_suffix_is_no_folder(tmp_path: Path, two_images: Path) -> None:
    with pytest.raises(WriteError, match="end the name"):
        convert(two_images, tmp_path / "brain.mha")
    (tmp_path / "study.data").mkdir()
    assert len(convert(two_images, tmp_path / "study.data")) == 2


@pytest.mark.parametrize(
    ("series", "name"),
    [
        (info(4, "T1 3D/SAG  (Gd+)"), "4_T1_3D_SAG_Gd.nii.gz"),
        (info(None, "T1"), "T1.nii.gz"),
        (info(7, ""), "7_MR.nii.gz"),
        (info(None, "", ""), "image.nii.gz"),
        (info(1, "../../etc/passwd"), "1_etc_passwd.nii.gz"),
        (info(2, "Schädel 頭"), "2_Schadel.nii.gz"),
        (info(None, "con"), "con_.nii.gz"),
        (info(3, "x" * 300), "3_" + "x" * 80 + ".nii.gz"),
    ],
)
def test_names(series: SeriesInfo, name: str) -> None:
    assert file_name(series) == name


def test_unique_names_whatever_the_letter_case() -> None:
    assert unique("a.nii.gz", {"a.nii.gz", "a_2.nii.gz"}) == "a_3.nii.gz"
    assert unique("A.nii.gz", {"a.nii.gz"}) == "A_2.nii.gz"
    assert safe_name("...") == ""
