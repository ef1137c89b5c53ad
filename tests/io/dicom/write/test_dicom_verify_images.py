"""Parametric Maps and derived series are compared plane by plane; what was changed is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.data import get_testdata_file
from typer.testing import CliRunner

import napari_medai as medai
from napari_medai.cli import app
from napari_medai.core.errors import ReadError, WriteError
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Denoised, Heatmap
from napari_medai.core.volume import Volume
from napari_medai.io.readback_images import Planes, same_planes
from napari_medai.io.verify import check, verify

RUN = Provenance("denoise", ("3",), "self3d")
WAYS = {"axial": (1, 0, 0, 0, 1, 0), "sagittal": (0, 1, 0, 0, 0, -1), "oblique": (0.8, 0.6, 0, 0, 0, -1)}
READERS = ["image as read by pydicom", "image as read by napari-medai"]


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def scan(request: pytest.FixtureRequest, tmp_path: Path, write_ct: Callable[..., Path]) -> Volume:
    return medai.open(write_ct(tmp_path / "CT", request.param))


@pytest.fixture
def heat(scan: Volume) -> Heatmap:
    values = np.linspace(0, 1, scan.array.size, dtype=np.float32).reshape(scan.shape)
    return Heatmap(scan.replace(array=values), "noise", "gradcam++", Provenance("explain", (), "quality"))


@pytest.fixture
def clean(scan: Volume) -> Denoised:
    values = np.linspace(-20.5, 7.25, scan.array.size, dtype=np.float32).reshape(scan.shape)
    return Denoised(scan.replace(array=values), RUN)


def change(path: Path, how: Callable[[Dataset], None]) -> None:
    ds = pydicom.dcmread(path)
    how(ds)
    ds.save_as(path)


def aside(item: Dataset) -> None:
    """3 mm to the left and the back."""
    x, y, z = item.ImagePositionPatient
    item.ImagePositionPatient = [x + 3, y + 3, z]


def map_aside(ds: Dataset) -> None:
    for frame in ds.PerFrameFunctionalGroupsSequence:
        aside(frame.PlanePositionSequence[0])


def map_scaled(ds: Dataset) -> None:
    ds.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0].RealWorldValueSlope = 1.001


def map_turned(ds: Dataset) -> None:
    frames = ds.PerFrameFunctionalGroupsSequence
    places = [frame.PlanePositionSequence for frame in frames]
    for frame, place in zip(frames, reversed(places), strict=True):
        frame.PlanePositionSequence = place


def map_one_value(ds: Dataset) -> None:
    values = np.frombuffer(ds.FloatPixelData, np.float32).copy()
    values[500] += 0.001
    ds.FloatPixelData = values.tobytes()


def test_a_map_is_what_was_saved(scan: Volume, heat: Heatmap, tmp_path: Path) -> None:
    path = medai.save(heat, tmp_path / "heat.dcm")
    report = verify(path, tmp_path / "CT", expected=heat)
    assert report.faults == ()
    assert [c.what for c in report.checks] == [
        *READERS,
        "frame of reference of the scan",
        "patient of the scan",
        "refers to the scan's instances",
    ]
    assert report.checks[-1].detail == "6 of 6 instances it refers to are there"
    assert [c.what for c in verify(path).checks] == ["readers agree on the image"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (map_aside, "voxels lie elsewhere"),
        (map_turned, "values are other ones"),
        (map_scaled, "values are other ones"),
        (map_one_value, "values are other ones"),
    ],
)
def test_a_changed_map_is_refused(heat: Heatmap, tmp_path: Path, damage: Callable[[Dataset], None], says: str) -> None:
    path = medai.save(heat, tmp_path / "heat.dcm")
    change(path, damage)
    with pytest.raises(WriteError) as error:
        check(heat, path)
    for reader in READERS:
        assert f"{reader}: its {says}" in str(error.value)
    assert verify(path).ok  # both readers see the same change


def test_a_wrong_writer_of_maps_leaves_no_file(heat: Heatmap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from napari_medai.io.dicom.write import parametric

    made = parametric.parametric_map

    def wrong(*arguments: object) -> Dataset:
        dataset = made(*arguments)
        map_aside(dataset)
        return dataset

    monkeypatch.setattr(parametric, "parametric_map", wrong)
    with pytest.raises(WriteError, match=r"heat\.dcm was not written.*\n.*voxels lie elsewhere"):
        medai.save(heat, tmp_path / "heat.dcm")
    assert [p.name for p in tmp_path.iterdir()] == ["CT"]


def test_a_derived_series_is_what_was_saved(clean: Denoised, tmp_path: Path, write_ct: Callable[..., Path]) -> None:
    folder = medai.save(clean, tmp_path / "clean")
    report = verify(folder, tmp_path / "CT", expected=clean)
    assert report.faults == ()
    assert [c.what for c in report.checks[:2]] == READERS
    assert report.checks[-1].detail == "6 of 6 instances it refers to are there"
    other = verify(folder, write_ct(tmp_path / "other", patient="B"))
    assert [c.ok for c in other.checks] == [True, False, False, False]  # readers, space, patient, instances
    assert "B" not in " ".join(other.faults)
    one = verify(folder / "00003.dcm", tmp_path / "CT")
    assert one.faults == ()
    assert one.checks[-1].detail == "1 of 1 instances it refers to are there"


def test_the_scan_is_found_among_several_series(clean: Denoised, tmp_path: Path, write_ct: Callable[..., Path]) -> None:
    folder = medai.save(clean, tmp_path / "clean")
    write_ct(tmp_path / "CT" / "another")
    assert verify(folder, tmp_path / "CT").faults == ()


def scaled(ds: Dataset) -> None:
    ds.RescaleSlope = float(ds.RescaleSlope) * 1.001


def next_slice(ds: Dataset) -> None:
    ds.PixelData = np.frombuffer(ds.PixelData, np.uint16)[::-1].tobytes()


@pytest.mark.parametrize(
    ("damage", "says"),
    [(aside, "voxels lie elsewhere"), (scaled, "values are other"), (next_slice, "values are other")],
)
def test_a_changed_series_is_refused(
    clean: Denoised, tmp_path: Path, damage: Callable[[Dataset], None], says: str
) -> None:
    folder = medai.save(clean, tmp_path / "clean")
    for path in folder.iterdir():
        change(path, damage)
    with pytest.raises(WriteError) as error:
        check(clean, folder)
    for reader in READERS:
        assert f"{reader}: its {says}" in str(error.value)


def test_one_slice_that_lies_elsewhere_or_is_lost(clean: Denoised, tmp_path: Path) -> None:
    folder = medai.save(clean, tmp_path / "clean")
    change(folder / "00003.dcm", aside)
    assert same_planes(clean.image, Planes(folder)) == "its voxels lie elsewhere"
    (folder / "00003.dcm").unlink()
    assert same_planes(clean.image, Planes(folder)) == "5 planes instead of 6"
    assert not verify(folder, expected=clean).ok


def test_slices_at_uneven_distances_lie_where_the_scans_do(tmp_path: Path, write_ct: Callable[..., Path]) -> None:
    folder = write_ct(tmp_path / "CT")

    def further(ds: Dataset) -> None:
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y, z + 0.7]

    change(folder / "2.dcm", further)
    scan = medai.open(folder)
    assert scan.shape == (6, 20, 16)
    clean = medai.save(scan, tmp_path / "clean")
    assert verify(clean, expected=scan).faults == ()
    change(clean / "00002.dcm", further)
    assert same_planes(scan, Planes(clean)) == "its voxels lie elsewhere"


def test_an_enhanced_image(tmp_path: Path) -> None:
    scan = medai.open(get_testdata_file("eCT_Supplemental.dcm"))
    image = scan.replace(array=scan.numpy().astype(np.float32) + 0.25)
    path = medai.save(Denoised(image, RUN), tmp_path / "clean.dcm")
    report = verify(path, scan, expected=image)
    assert report.faults == ()
    assert [c.what for c in report.checks[:2]] == READERS

    def other(ds: Dataset) -> None:
        for frame in ds.PerFrameFunctionalGroupsSequence:
            frame.PixelValueTransformationSequence[0].RescaleIntercept += 1

    change(path, other)
    with pytest.raises(WriteError, match="pydicom: its values are other ones"):
        check(image, path)


def test_colour(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "a.dcm").write_bytes(Path(str(get_testdata_file("SC_rgb.dcm"))).read_bytes())
    scan = medai.open(tmp_path / "scan")
    path = medai.save(scan, tmp_path / "copy.dcm")
    assert [(c.what, c.ok) for c in verify(path, expected=scan).checks] == [(reader, True) for reader in READERS]
    swapped = scan.replace(array=scan.numpy()[..., ::-1])
    with pytest.raises(WriteError, match="pydicom: its values are other ones"):
        check(swapped, path)


def test_what_the_second_reader_does_not_know_is_skipped() -> None:
    report = verify(str(get_testdata_file("OBXXXX1A.dcm")))
    assert report.ok
    assert "no image in grey values or RGB" in report.skipped


def test_a_folder_without_dicom(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="nor a folder of DICOM files"):
        verify(tmp_path)


def test_from_the_shell(clean: Denoised, tmp_path: Path) -> None:
    folder = medai.save(clean, tmp_path / "clean")
    good = CliRunner().invoke(app, ["verify", str(folder), "--against", str(tmp_path / "CT")])
    assert good.exit_code == 0, good.output
    assert "ok  patient of the scan: yes" in good.output
    change(folder / "00001.dcm", lambda ds: setattr(ds, "PatientID", "somebody"))
    bad = CliRunner().invoke(app, ["verify", str(folder), "--against", str(tmp_path / "CT")])
    assert bad.exit_code == 1
    assert "NO  patient of the scan: no" in bad.output
