"""Images of other values or on another grid than their source's, as derived series, and what lies on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import PositronEmissionTomographyImageStorage
from typer.testing import CliRunner

import napari_medai as medai
from napari_medai.cli import app
from napari_medai.core.geometry import index_to_world, world_to_index
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Denoised, Heatmap, Mask
from napari_medai.io.verify import verify

RUN = Provenance("segment", ("3",), "brain", "ab" * 32)
TILTED = (1, 0, 0, 0, round(np.cos(0.3), 9), round(np.sin(0.3), 9))
# 70 kg * 1000 / (370 MBq * 2^(-3600 / 6586.2))
FACTOR = 70000 / (370e6 * 0.5 ** (3600 / 6586.2))


@pytest.fixture
def pet(tmp_path: Path, write_ct: Callable[..., Path]) -> Path:
    """A PET series in Bq/ml of 300000 to 300500 in steps of 100, an hour after the injection."""
    folder = write_ct(tmp_path / "pet")
    tracer, nuclide = Dataset(), Dataset()
    tracer.Radiopharmaceutical = "FDG"
    tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = 370000000, "6586.2"
    tracer.RadiopharmaceuticalStartTime = "120000"
    nuclide.CodeValue, nuclide.CodingSchemeDesignator, nuclide.CodeMeaning = "C-111A1", "SRT", "^18^Fluorine"
    tracer.RadionuclideCodeSequence = [nuclide]
    for n in range(6):
        ds = pydicom.dcmread(folder / f"{n}.dcm")
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = PositronEmissionTomographyImageStorage
        del ds.KVP
        ds.Modality, ds.PatientWeight, ds.ImageType = "PT", 70, ["ORIGINAL", "PRIMARY"]
        ds.SeriesDate, ds.SeriesTime = "20200101", "130000"
        ds.AcquisitionDate, ds.AcquisitionTime = "20200101", "130010"
        ds.Units, ds.CountsSource, ds.SeriesType, ds.NumberOfSlices = "BQML", "EMISSION", ["WHOLE BODY", "IMAGE"], 6
        ds.CorrectedImage, ds.DecayCorrection, ds.CollimatorType = ["ATTN", "DECY"], "START", "NONE"
        ds.FrameReferenceTime, ds.ActualFrameDuration, ds.ImageIndex, ds.DecayFactor = 0, 60000, n + 1, 1
        ds.DoseCalibrationFactor, ds.WindowCenter, ds.WindowWidth = 2, 300250, 600
        ds.RadiopharmaceuticalInformationSequence = [tracer]
        ds.RescaleSlope, ds.RescaleIntercept, ds.BitsStored, ds.HighBit = 100, 0, 16, 15
        ds.PixelData = np.full((20, 16), 3000 + n, np.uint16).tobytes()
        ds.save_as(folder / f"{n}.dcm")
    return folder


def test_uptake_values_are_said_to_be_such(pet: Path, tmp_path: Path, errors_of: Callable[[Path], list[str]]) -> None:
    scan = medai.open(pet, values="suv")
    folder = medai.save(Denoised(scan, RUN), tmp_path / "suv")
    inherited = errors_of(pet / "0.dcm")
    for path in folder.iterdir():
        assert set(errors_of(path)) <= set(inherited)
        ds = pydicom.dcmread(path)
        assert (ds.Units, ds.SUVType, ds.RescaleIntercept) == ("GML", "BW", 0)
        assert not {"DoseCalibrationFactor", "WindowCenter", "WindowWidth", "RescaleType"} & set(ds.dir())
        # the time that decay is corrected to
        assert (ds.SeriesDate, ds.SeriesTime) == ("20200101", "130000")
    # 300000 Bq/ml * FACTOR = 82.9 g/ml, in steps of a 65535th of the largest
    opened = medai.open(folder)
    assert opened.meta["value_unit"] == "g/ml"
    np.testing.assert_allclose(opened.numpy()[:, 0, 0], (300000 + 100 * np.arange(6)) * FACTOR, atol=83 / 65535)
    # and they are not converted a second time
    np.testing.assert_array_equal(medai.open(folder, values="suv").numpy(), opened.numpy())


def test_activity_stays_activity(pet: Path, tmp_path: Path) -> None:
    folder = medai.save(Denoised(medai.open(pet), RUN), tmp_path / "clean")
    ds = pydicom.dcmread(folder / "00001.dcm")
    assert (ds.Units, ds.DoseCalibrationFactor, ds.WindowWidth) == ("BQML", 2, 600)
    again, before = medai.open(folder, values="suv"), medai.open(pet, values="suv")
    np.testing.assert_allclose(again.numpy(), before.numpy(), rtol=1e-4)


def test_results_on_pet(pet: Path, tmp_path: Path, errors_of: Callable[[Path], list[str]]) -> None:
    scan = medai.open(pet, values="suv")
    array = np.zeros(scan.shape, np.uint8)
    array[2:4, 5:9, 5:9] = 1
    table = {"label": [1], "mean_intensity": [82.9]}
    mask = Mask(scan.replace(array=array, meta=dict(scan.meta)), RUN, {1: "lesion"}, table=table)
    heat = Heatmap(scan.replace(array=array / np.float32(2)), "lesion", "gradcam++", RUN)
    for what, name in ((mask, "m.dcm"), (heat, "h.dcm"), (mask, "m.sr.dcm"), (mask, "m.rtstruct.dcm")):
        path = medai.save(what, tmp_path / name)
        assert errors_of(path) == []
        assert verify(path, pet).faults == ()


def converted(folder: Path, target: Path, repair: str) -> Path:
    """The folder of the one series that the shell's command makes."""
    done = CliRunner().invoke(app, ["convert", str(folder), str(target), "--repair", repair, "--dicom"])
    assert done.exit_code == 0, done.output
    (made,) = target.iterdir()
    assert made.name == "3_CT"
    return made


@pytest.fixture
def tilted(tmp_path: Path, write_ct: Callable[..., Path]) -> Path:
    """Slices that are tilted by 0.3 against their stacking; four by four pixels of each are bright."""
    folder = write_ct(tmp_path / "tilted", TILTED)
    for n in range(6):
        ds = pydicom.dcmread(folder / f"{n}.dcm")
        ds.ImagePositionPatient = [-10, 20, 30 + 4 * n]
        ds.GantryDetectorTilt = 17.19
        pixels = np.full((20, 16), 1000, np.uint16)
        pixels[8:12, 6:10] = 2000
        ds.PixelData = pixels.tobytes()
        ds.save_as(folder / f"{n}.dcm")
    return folder


def test_a_straightened_series(tilted: Path, tmp_path: Path, errors_of: Callable[[Path], list[str]]) -> None:
    target = converted(tilted, tmp_path / "out", "tilt")
    files = sorted(target.iterdir())
    assert len(files) >= 6
    scan, repaired, opened = medai.open(tilted), medai.open(tilted, repair=("tilt",)), medai.open(target)
    assert not any("tilt" in finding for finding in opened.meta["findings"])
    assert opened.grid.same_place(repaired.grid)
    assert np.abs(opened.numpy() - repaired.numpy()).max() <= 0.5
    assert opened.meta["frame_of_reference_uid"] == scan.meta["frame_of_reference_uid"]
    for path in files:
        assert errors_of(path) == []
        ds = pydicom.dcmread(path)
        assert "GantryDetectorTilt" not in ds
        assert "repaired" in ds.SeriesDescription
        assert ds.DerivationCodeSequence[0].CodeMeaning == "Spatial resampling"


def test_labels_on_a_straightened_volume(tilted: Path, tmp_path: Path, errors_of: Callable[[Path], list[str]]) -> None:
    scan, repaired = medai.open(tilted), medai.open(tilted, repair=("tilt",))
    assert not repaired.grid.same_place(scan.grid)
    bright = repaired.numpy() > 500
    meta = dict(repaired.meta)
    path = medai.save(
        Mask(repaired.replace(array=bright.astype(np.uint8), meta=meta), RUN, {1: "lesion"}), tmp_path / "seg.dcm"
    )
    assert errors_of(path) == []
    assert verify(path, tilted).faults == ()
    opened = medai.open(path)
    # every labelled voxel centre is where it was on the straightened volume ...
    world = index_to_world(repaired.affine, np.argwhere(bright))
    back = world_to_index(opened.affine, world)
    np.testing.assert_allclose(back, np.rint(back), atol=1e-3)
    assert (opened.numpy()[tuple(np.rint(back).astype(int).T)] == 1).all()
    assert np.count_nonzero(opened.numpy()) == len(world)
    # ... and inside the rod of the tilted scan, to half of its voxels
    on_scan = world_to_index(scan.affine, world)
    assert (on_scan[:, 1:] >= np.array([7, 5])).all()
    assert (on_scan[:, 1:] <= np.array([12, 10])).all()
    # labels of the straightened volume lie on no image of the scan
    headers = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    assert all(len(frame.DerivationImageSequence) == 0 for frame in headers)


def test_missing_slices_are_filled(tmp_path: Path, write_ct: Callable[..., Path]) -> None:
    folder = write_ct(tmp_path / "ct")
    (folder / "2.dcm").unlink()
    target = converted(folder, tmp_path / "whole", "missing")
    opened = medai.open(target)
    # 1000 + n stored, intercept -1024; slice 2 half way between its neighbours
    np.testing.assert_array_equal(opened.numpy()[:, 0, 0], [-24, -23, -22, -21, -20, -19])
    assert opened.meta["findings"] == ()
    labels = opened.replace(array=(opened.numpy() == -22).astype(np.uint8), meta=dict(opened.meta))
    repaired = medai.open(folder, repair=("missing",))
    on_it = Mask(repaired.replace(array=labels.numpy(), meta=dict(repaired.meta)), RUN, {1: "lesion"})
    seg = medai.open(medai.save(on_it, tmp_path / "seg.dcm"))
    assert seg.affine[0, 3] == pytest.approx(38)


def test_uneven_slices_are_evened(tmp_path: Path, write_ct: Callable[..., Path]) -> None:
    folder = write_ct(tmp_path / "ct")
    for n, height in enumerate((30, 34, 37, 42, 46, 50)):
        ds = pydicom.dcmread(folder / f"{n}.dcm")
        ds.ImagePositionPatient = [-10, 20, height]
        ds.save_as(folder / f"{n}.dcm")
    target = converted(folder, tmp_path / "even", "spacing")
    repaired, opened = medai.open(folder, repair=("spacing",)), medai.open(target)
    assert opened.grid.same_place(repaired.grid)
    assert np.abs(opened.numpy() - repaired.numpy()).max() <= 0.5
    assert opened.meta["findings"] == ()
    # labels too lie on the even slices, not on the scan's
    labels = np.zeros(repaired.shape, np.uint8)
    labels[2, 5:9, 5:9] = 1
    mask = Mask(repaired.replace(array=labels, meta=dict(repaired.meta)), RUN, {1: "lesion"})
    seg = medai.open(medai.save(mask, tmp_path / "seg.dcm"))
    assert seg.affine[0, 3] == pytest.approx(38)


def test_what_does_not_say_its_scan_becomes_a_series_against_it(tmp_path: Path, write_ct: Callable[..., Path]) -> None:
    folder = write_ct(tmp_path / "ct")
    medai.save(medai.open(folder), tmp_path / "values.nii.gz")
    command = ["convert", str(tmp_path / "values.nii.gz"), str(tmp_path / "made"), "--dicom"]
    assert CliRunner().invoke(app, command).exit_code == 1
    done = CliRunner().invoke(app, [*command, "--against", str(folder)])
    assert done.exit_code == 0, done.output
    (made,) = (tmp_path / "made").iterdir()
    assert np.array_equal(medai.open(made).numpy(), medai.open(folder).numpy())
    assert medai.open(made).grid.same_place(medai.open(folder).grid)
