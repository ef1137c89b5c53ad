"""The table of formats: which reader and which writer takes a path, and what is said when none does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

import napari_medai as medai
from napari_medai.core.errors import MedaiError, NoImagesError, ReadError, UnsupportedFormatError, WriteError
from napari_medai.core.volume import Volume
from napari_medai.io import FORMATS, find_format, find_writer

NIBABEL_DATA = Path(nibabel.__file__).parent / "tests" / "data"


def volume() -> Volume:
    return Volume(np.arange(60, dtype=np.uint8).reshape(3, 4, 5), "zyx")


def test_every_format_offers_what_the_table_says() -> None:
    for row in FORMATS.values():
        module = row.load()
        if row.reads:
            assert callable(module.sniff)
            assert callable(module.open_volume)
            assert callable(module.list_series)
            assert row.sign
        if row.writes:
            assert callable(module.save_volume if row.writes == "images" else module.save_table)
        assert all(s == s.lower() and s.startswith(".") for s in row.suffixes)


def test_the_table_itself_loads_no_reader() -> None:
    program = (
        "import sys, napari_medai.io; "
        "heavy = {'nibabel', 'tifffile', 'zarr', 'pydicom', 'PIL', 'dask', 'torch'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_missing_file(tmp_path: Path) -> None:
    for name in ("a.nii", "a.dcm", "a", "a.xyz"):
        with pytest.raises(ReadError, match="does not exist"):
            medai.open(tmp_path / name)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.nii").touch()
    with pytest.raises(ReadError, match="is empty"):
        medai.open(tmp_path / "a.nii")


def test_unknown_format_lists_every_reader(tmp_path: Path) -> None:
    (tmp_path / "notes.xyz").write_text("hello " * 300)
    with pytest.raises(UnsupportedFormatError) as caught:
        medai.open(tmp_path / "notes.xyz")
    for row in FORMATS.values():
        assert (row.title in str(caught.value)) == row.reads


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(NoImagesError):
        medai.open(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(NoImagesError):
        medai.open(tmp_path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".tif", ".ome.tif"])
def test_content_tells_the_format_of_a_file_without_a_telling_name(tmp_path: Path, suffix: str) -> None:
    written = medai.save(volume(), tmp_path / f"a{suffix}")
    for name in ("scan", "scan.bak", "scan.png", "scan.001"):
        bare = tmp_path / name
        bare.write_bytes(written.read_bytes())
        assert find_format(bare) is find_format(written)
        np.testing.assert_array_equal(medai.open(bare).numpy(), volume().numpy())


def test_letter_case_of_suffixes(tmp_path: Path) -> None:
    medai.save(volume(), tmp_path / "A.NII.GZ")
    assert medai.open(tmp_path / "A.NII.GZ").name == "A"


def test_dicom_is_known_by_its_magic_word_and_by_its_directory(tmp_path: Path) -> None:
    (tmp_path / "I0001").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 100)
    assert find_format(tmp_path / "I0001").name == "dicom"
    (tmp_path / "DICOMDIR").write_bytes(b"no such thing")
    assert find_format(tmp_path / "DICOMDIR").name == "dicom"


@pytest.mark.parametrize("path", sorted(p for p in NIBABEL_DATA.iterdir() if p.is_file()), ids=lambda p: p.name)
def test_nibabels_own_files_open_or_say_why_not(path: Path) -> None:
    said = ""
    try:
        opened = medai.open(path)
        assert opened.numpy().shape == opened.shape
        assert [s.shape for s in medai.list_series(path)] == [opened.shape]
    except MedaiError as error:
        said = str(error)
    assert not said or path.stem in said


@pytest.mark.parametrize(
    "name",
    ["anatomical.nii", "example4d.nii.gz", "functional.nii", "example_nifti2.nii.gz", "standard.nii.gz"],
)
def test_nibabels_niftis_equal_nibabel(name: str) -> None:
    image = nibabel.load(NIBABEL_DATA / name)
    values = image.get_fdata()
    opened = medai.open(NIBABEL_DATA / name)
    expected = Volume(values.T, opened.axes, nibabel_affine(image), "mm").canonical()
    assert opened.grid.same_place(expected.grid, 1e-3)
    np.testing.assert_allclose(opened.numpy(), expected.numpy(), rtol=1e-6)


def nibabel_affine(image: nibabel.Nifti1Image) -> np.ndarray:
    from napari_medai.core.geometry import from_ras

    return from_ras(image.affine)


class TestWriters:
    """The suffix picks the writer."""

    @pytest.mark.parametrize(
        ("name", "kind", "found"),
        [
            ("a.nii.gz", "images", "nifti"),
            ("a.ome.tif", "images", "tiff"),
            ("a.JPEG", "images", "raster"),
            ("a.csv", "tables", "csv"),
            ("a.json", "", "json"),
        ],
    )
    def test_found(self, name: str, kind: str, found: str) -> None:
        assert find_writer(name, kind).name == found

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("a.dcm", "tables"),
            ("a.csv", "images"),
            ("a.nii", "tables"),
            ("a", ""),
            (".nii", ""),
            ("a.gz", ""),
        ],
    )
    def test_refused_with_those_that_fit(self, name: str, kind: str) -> None:
        with pytest.raises(WriteError, match="end the name in one of") as caught:
            find_writer(name, kind)
        assert (".json" in str(caught.value)) == (kind != "images")
