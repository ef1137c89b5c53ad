"""Files, folders and DICOMDIRs to images."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import BasicTextSRStorage

from napari_medai.core.errors import (
    GeometryError,
    MedaiError,
    NoImagesError,
    ReadError,
    SeriesChoiceError,
    UnsupportedFormatError,
)
from napari_medai.io import dicom
from napari_medai.io.dicom import planes
from napari_medai.io.dicom.dicomdir import referenced_files
from napari_medai.io.dicom.series import survey

Write = Callable[..., Path]


def first_pixels(volume: object) -> list[int]:
    return volume.numpy()[..., 0, 0].ravel().tolist()  # type: ignore[attr-defined]


def test_slices_are_ordered_by_position(write_stack: Write) -> None:
    volume = dicom.open_volume(write_stack("ct", [30, 10, 20]))
    assert volume.axes == "zyx"
    assert volume.shape == (3, 4, 6)
    assert first_pixels(volume) == [1, 2, 0]
    assert volume.spacing == pytest.approx((10, 0.5, 0.5))
    # (z, y, x) of the first voxel
    assert volume.affine[:3, 3] == pytest.approx([10, -20, -10])
    assert volume.units == "mm"
    assert volume.modality == "CT"
    assert volume.name == "7_Chest_1.0"
    assert volume.meta["findings"] == ()


def test_one_file_opens_its_whole_series(write_stack: Write, write: Write) -> None:
    folder = write_stack("ct", [0, 1, 2])
    write("ct/other.dcm", np.zeros((4, 6), np.uint16), SeriesInstanceUID="1.2.3.5")
    (folder / "notes.txt").write_text("not an image")
    (folder / "99.dcm").rename(folder / "IM0001")
    volume = dicom.open_volume(folder / "IM0001")
    assert volume.shape == (3, 4, 6)
    assert volume.meta["series_uid"] == "1.2.3.4"


def test_several_series_are_a_choice(write_stack: Write) -> None:
    write_stack("study/a", [0, 1, 2])
    folder = write_stack("study/b", [0, 1], SeriesInstanceUID="1.2.3.5", SeriesNumber=2).parent
    with pytest.raises(SeriesChoiceError, match="2 series in study") as caught:
        dicom.open_volume(folder)
    assert [(s.uid, s.number, s.shape, s.files) for s in caught.value.series] == [
        ("1.2.3.5", 2, (2, 4, 6), 2),
        ("1.2.3.4", 7, (3, 4, 6), 3),
    ]
    assert caught.value.series[0].spacing_mm == pytest.approx((1, 0.5, 0.5))
    assert dicom.open_volume(folder, "1.2.3.5").shape == (2, 4, 6)
    with pytest.raises(ReadError, match="No series"):
        dicom.open_volume(folder, "9.9")


def test_a_sagittal_stack_opens_canonical(write_stack: Write, write: Write, tmp_path: Path) -> None:
    for n in range(3):
        write(
            f"{n}.dcm",
            np.arange(24, dtype=np.uint16).reshape(4, 6) + 100 * n,
            ImagePositionPatient=[n * 2.0, -50, 40],
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
        )
    volume = dicom.open_volume(tmp_path)
    # columns (4) run down: they become z, turned upwards; rows (6) run posterior; slices run to the left
    assert volume.shape == (4, 6, 3)
    assert volume.affine[:3, :3] == pytest.approx(np.diag([0.5, 0.5, 2.0]))
    assert volume.affine[:3, 3] == pytest.approx([40 - 3 * 0.5, -50, 0])
    assert volume.numpy()[0, 0].tolist() == [18, 118, 218]


def test_a_single_slice_is_a_plane_in_space(write: Write) -> None:
    path = write("one.dcm", np.ones((4, 6), np.uint16), ImagePositionPatient=[1, 2, 3], SliceThickness=5)
    volume = dicom.open_volume(path)
    assert volume.axes == "yx"
    assert volume.spacing == pytest.approx((5, 0.5, 0.5))
    assert volume.affine[:3, 3] == pytest.approx([3, 2, 1])


def test_missing_slices_are_blank_and_said(write_stack: Write) -> None:
    volume = dicom.open_volume(write_stack("ct", [0, 2, 6]))
    # 16 bits unsigned cannot hold air (-1000), so its nearest value 0 stands there
    assert first_pixels(volume) == [0, 1, 0, 2]
    assert "1 of 4 slices are missing (counted from 0: 2)" in volume.meta["findings"][0]


def test_a_missing_slice_of_a_ct_is_air(write_stack: Write) -> None:
    volume = dicom.open_volume(write_stack("ct", [0, 2, 6], RescaleIntercept=-1024, RescaleSlope=1))
    assert first_pixels(volume) == [-1024, -1023, -1000, -1022]
    assert volume.dtype == np.int16


def test_duplicates_are_left_out_and_said(write_stack: Write, write: Write) -> None:
    folder = write_stack("ct", [0, 1, 2])
    again = write("ct/again.dcm", np.full((4, 6), 9, np.uint16), ImagePositionPatient=[-10, -20, 1], InstanceNumber=500)
    volume = dicom.open_volume(folder)
    # the one with the higher instance number, where no time is known
    assert first_pixels(volume) == [0, 9, 2]
    assert volume.meta["findings"] == (
        "1 slices lie where others do; of each place the one acquired last was kept "
        "(by acquisition and instance numbers).",
    )
    shutil.copy(folder / "99.dcm", folder / "copy.dcm")
    again.unlink()
    volume = dicom.open_volume(folder)
    assert volume.shape == (3, 4, 6)
    assert volume.meta["findings"] == ("1 file is a copy of another (same instance UID) and was left out.",)


def test_b_values_become_a_fourth_axis(write: Write, tmp_path: Path) -> None:
    n = 0
    for b in (1000, 0, 500):
        for z in (0, 3):
            n += 1
            write(
                f"{n}",
                np.full((4, 6), b + z, np.uint16),
                ImagePositionPatient=[0, 0, z],
                DiffusionBValue=b,
                Modality="MR",
            )
    volume = dicom.open_volume(tmp_path)
    assert volume.axes == "tzyx"
    assert first_pixels(volume) == [0, 3, 500, 503, 1000, 1003]
    assert volume.meta["axis_t"] == {"name": "b", "unit": "s/mm2", "values": (0.0, 500.0, 1000.0)}


def test_an_unfinished_last_volume_is_kept_apart(write: Write, tmp_path: Path) -> None:
    n = 0
    for time in range(3):
        for z in range(4 if time < 2 else 1):
            n += 1
            write(f"{n}", np.full((4, 6), n, np.uint16), ImagePositionPatient=[0, 0, z], InstanceNumber=n)
    whole, rest = dicom.list_series(tmp_path)
    assert (whole.uid, whole.shape) == ("1.2.3.4#1", (2, 4, 4, 6))
    assert (rest.uid, rest.shape) == ("1.2.3.4#2", (4, 6))
    assert "different numbers of images" in " ".join(dicom.open_volume(tmp_path, "1.2.3.4#2").meta["findings"])


def test_magnitude_and_phase_are_two_images(write: Write, tmp_path: Path) -> None:
    for n, kind in enumerate("MPMP"):
        write(
            f"{n}",
            np.full((4, 6), n, np.uint16),
            ImagePositionPatient=[0, 0, n // 2],
            ImageType=["ORIGINAL", "PRIMARY", kind],
        )
    assert [s.shape for s in dicom.list_series(tmp_path)] == [(2, 4, 6), (2, 4, 6)]
    assert first_pixels(dicom.open_volume(tmp_path, "1.2.3.4#2")) == [1, 3]


def test_a_localizer_with_three_directions_is_split(write: Write, tmp_path: Path) -> None:
    turned = ([1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1])
    for n, orientation in enumerate(turned):
        write(f"{n}.dcm", np.full((4, 6), n, np.uint16), ImageOrientationPatient=orientation, InstanceNumber=n)
    with pytest.raises(SeriesChoiceError) as caught:
        dicom.open_volume(tmp_path)
    assert [s.uid for s in caught.value.series] == ["1.2.3.4#1", "1.2.3.4#2", "1.2.3.4#3"]
    # one file of it opens the image that it is part of
    volume = dicom.open_volume(tmp_path / "1.dcm")
    assert volume.numpy().max() == 1
    assert "holds 3 images" in volume.meta["findings"][0]


def test_a_relative_path_outlives_the_working_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, orientation in enumerate(([1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1])):
        write(f"{n}.dcm", np.full((4, 6), n, np.uint16), ImageOrientationPatient=orientation)
    monkeypatch.chdir(tmp_path)
    volume = dicom.open_volume("./1.dcm")
    monkeypatch.chdir("/")
    assert volume.numpy().max() == 1


def test_films_without_a_place_stay_single(write: Write, tmp_path: Path) -> None:
    for n in range(2):
        write(
            f"{n}.dcm",
            np.full((4, 6), n, np.uint16),
            Modality="CR",
            ImagePositionPatient=None,
            ImageOrientationPatient=None,
            PixelSpacing=None,
            ImagerPixelSpacing=[0.2, 0.2],
        )
    assert [s.shape for s in dicom.list_series(tmp_path)] == [(4, 6), (4, 6)]
    volume = dicom.open_volume(tmp_path / "0.dcm")
    assert volume.spacing[1:] == pytest.approx((0.2, 0.2))
    assert "magnified" in " ".join(volume.meta["findings"])


def test_nothing_is_decoded_before_it_is_used(write_stack: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    real = planes.decode

    def counted(plane: planes.Plane, dtype: np.dtype) -> np.ndarray:
        decoded.append(plane.file.path)
        return real(plane, dtype)

    monkeypatch.setattr(planes, "decode", counted)
    volume = dicom.open_volume(write_stack("ct", [float(z) for z in range(30)]))
    assert volume.is_lazy
    assert decoded == []
    assert np.asarray(volume.array[7]).tolist() == np.full((4, 6), 7).tolist()
    assert len(decoded) == 1


def test_truncated_files(write: Write, write_stack: Write, tmp_path: Path) -> None:
    folder = write_stack("ct", [0, 1, 2, 3])
    victim = folder / "98.dcm"
    data = victim.read_bytes()
    for length in (0, 100, 140, 400, len(data) - 1):
        victim.write_bytes(data[:length])
        with pytest.raises(ReadError) as caught:
            dicom.open_volume(victim)
        assert "Doe" not in str(caught.value)
    # the others open, and the gap is said
    volume = dicom.open_volume(folder / "99.dcm")
    assert volume.shape == (4, 4, 6)
    assert "missing" in " ".join(volume.meta["findings"])
    assert "left out" in " ".join(volume.meta["findings"])


def test_objects_without_pixels(write: Write, tmp_path: Path) -> None:
    path = write("sr/report.dcm", SOPClassUID=BasicTextSRStorage, Modality="SR")
    with pytest.raises(UnsupportedFormatError, match=r"no.*Basic Text SR"):
        dicom.open_volume(path)
    with pytest.raises(UnsupportedFormatError, match=r"no.*Basic Text SR"):
        dicom.open_volume(path.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoImagesError):
        dicom.open_volume(tmp_path / "empty")
    with pytest.raises(ReadError):
        dicom.open_volume(tmp_path / "nowhere")


def test_a_report_beside_the_slices_is_said(write: Write, write_stack: Write) -> None:
    folder = write_stack("ct", [0, 1])
    write("ct/report.dcm", SOPClassUID=BasicTextSRStorage, Modality="SR", SeriesInstanceUID="1.9")
    assert "1 file beside it holds no pixels" in dicom.open_volume(folder).meta["findings"][0]


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_geometry_that_is_not_a_number(keyword: str, tmp_path: Path, write: Write) -> None:
    values = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write("nan.dcm", np.zeros((4, 6), np.uint16), **{keyword: [float("nan")] * values[keyword]})
    with pytest.raises(GeometryError, match="not a finite number"):
        dicom.open_volume(path)


def test_no_identity_leaves_the_reader(write_stack: Write) -> None:
    volume = dicom.open_volume(write_stack("ct", [0, 1, 2]))
    said = repr((volume, dict(volume.meta), dicom.list_series(volume.source)))
    for secret in ("Doe", "Jane", "4711", "1961"):
        assert secret not in said


def test_a_file_that_is_not_dicom(tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(b"no image" * 40)
    with pytest.raises(ReadError, match="not a DICOM file"):
        dicom.open_volume(path)


def test_without_preamble(write: Write, tmp_path: Path) -> None:
    path = write("a.dcm", np.full((4, 6), 3, np.uint16))
    bare = tmp_path / "bare"
    bare.write_bytes(path.read_bytes()[132:])
    path.unlink()
    assert dicom.sniff(bare.read_bytes()[:132], bare)
    assert dicom.open_volume(bare).numpy().tolist() == np.full((4, 6), 3).tolist()


def test_sniffing() -> None:
    assert dicom.sniff(b"\0" * 128 + b"DICM", Path("x"))
    assert not dicom.sniff(b"\0" * 200, Path("x"))
    assert not dicom.sniff(b"", Path("x"))
    assert not dicom.sniff(b"\x5c\x01\0\0" + b"\0" * 340 + b"n+1\0", Path("x.nii"))


def test_dicomdir() -> None:
    path = get_testdata_file("DICOMDIR", download=False)
    series = dicom.list_series(path)
    assert {s.modality for s in series} == {"CR", "CT", "MR"}
    chosen = next(s for s in series if s.shape == (5, 16, 16))
    volume = dicom.open_volume(path, chosen.uid)
    assert volume.shape == (5, 16, 16)
    assert volume.numpy().shape == (5, 16, 16)


def test_a_dicomdir_whose_files_are_gone(tmp_path: Path) -> None:
    shutil.copy(get_testdata_file("DICOMDIR", download=False), tmp_path / "DICOMDIR")
    with pytest.raises(NoImagesError, match="copy the whole medium"):
        dicom.open_volume(tmp_path / "DICOMDIR")
    with pytest.raises(MedaiError):
        dicom.open_volume(tmp_path)


def test_a_dicomdir_cannot_leave_its_folder(tmp_path: Path, write: Write) -> None:
    outside = write("outside.dcm", np.zeros((4, 6), np.uint16))
    medium = tmp_path / "medium"
    medium.mkdir()
    directory = pydicom.dcmread(get_testdata_file("DICOMDIR", download=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for record in directory.DirectoryRecordSequence:
            if "ReferencedFileID" in record:
                record.ReferencedFileID = ["..", outside.name]
        directory.save_as(medium / "DICOMDIR")
    with pytest.raises(NoImagesError):
        dicom.open_volume(medium / "DICOMDIR")


def test_what_of_a_medium_was_not_read(tmp_path: Path, write: Write) -> None:
    medium = tmp_path / "medium"
    shutil.copytree(Path(get_testdata_file("DICOMDIR", download=False)).parent, medium)
    write("medium/extra/I1", np.zeros((4, 6), np.uint16))
    listed = referenced_files(medium / "DICOMDIR")[0]
    found = survey(medium / "DICOMDIR")
    others = sum(1 for p in medium.rglob("*") if p.is_file() and p.name != "DICOMDIR") - len(listed)
    assert f"{others} other files were not read (the DICOMDIR does not list them)." in found.findings
    Path(listed[0]).unlink()
    found = survey(medium / "DICOMDIR")
    assert "1 files that the DICOMDIR lists are not there." in found.findings
    assert "1 files that the DICOMDIR lists are not there." in found.series[0].findings


def test_a_flat_dump_in_any_order_with_any_name(write: Write, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = rng.permutation(60)
    for n in range(60):
        series, z = n % 3, n // 3
        ending = ("", ".dcm", ".IMA", ".bak")[n % 4]
        write(
            f"dump/{names[n]}{ending}",
            np.full((4, 6), z, np.uint16),
            SeriesInstanceUID=f"1.2.{series}",
            SeriesNumber=series,
            InstanceNumber=int(names[n]),
            ImagePositionPatient=[0, 0, 2.5 * z],
        )
    (tmp_path / "dump" / "empty").touch()
    (tmp_path / "dump" / "Thumbs.db").write_bytes(bytes(range(256)) * 8)
    found = survey(tmp_path / "dump")
    assert found.findings == ("2 other files were not read (not DICOM).",)
    assert [(s.uid, s.shape, s.files) for s in dicom.list_series(tmp_path / "dump")] == [
        (f"1.2.{n}", (20, 4, 6), 20) for n in range(3)
    ]
    volume = dicom.open_volume(tmp_path / "dump", "1.2.1")
    assert first_pixels(volume) == list(range(20))
    assert volume.meta["findings"] == ()


def test_what_is_listed_is_what_opens(write: Write, tmp_path: Path) -> None:
    for x in (0, 2, 4):
        write(
            f"a/{x}",
            np.zeros((4, 6), np.uint16),
            ImagePositionPatient=[x, 0, 0],
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
        )
    write("b", np.zeros((4, 6), np.uint16), SeriesInstanceUID="1.9", ImagePositionPatient=None)
    path = get_testdata_file("color3d_jpeg_baseline.dcm", download=False) or get_testdata_file("SC_rgb.dcm")
    shutil.copy(path, tmp_path / "c")
    for entry in dicom.list_series(tmp_path):
        volume = dicom.open_volume(tmp_path, entry.uid)
        assert entry.shape == volume.shape
        assert entry.spacing_mm == pytest.approx(volume.spacing[3 - volume.ndim_spatial :])
        assert entry.modality == volume.modality


def test_the_reason_of_a_split_is_said(write: Write, tmp_path: Path) -> None:
    for n, (rows, turned) in enumerate(((4, [1, 0, 0, 0, 1, 0]), (4, [1, 0, 0, 0, 0, -1]), (8, [1, 0, 0, 0, 1, 0]))):
        write(f"{n}", np.zeros((rows, 6), np.uint16), ImageOrientationPatient=turned)
    finding = dicom.open_volume(tmp_path, "1.2.3.4#3").meta["findings"][0]
    assert finding == (
        "The series holds 3 images that do not form one stack (different size, orientation); this is number 3."
    )


def test_a_missing_slice_of_stored_values_is_not_air(write_stack: Write) -> None:
    folder = write_stack("ct", [0, 2, 6, 8], RescaleIntercept=-1024, RescaleSlope=1)
    assert (dicom.open_volume(folder).numpy()[2] == -1000).all()
    assert (dicom.open_volume(folder, values="stored").numpy()[2] == 0).all()
