"""Heat as parametric maps, cleaned images as derived series, and how values become 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.data import get_testdata_file
from typer.testing import CliRunner

import napari_medai as medai
from napari_medai.cli import app
from napari_medai.core.errors import NotFiniteError, WriteError
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Denoised, Heatmap
from napari_medai.core.volume import Volume
from napari_medai.io.dicom.write.quantise import stored

RUN = Provenance("denoise", ("3",), "self3d")
SAGITTAL = (0, 1, 0, 0, 0, -1)


def wavy(scan: Volume) -> Volume:
    """The scan with a quarter of a unit of ripple on it."""
    pixels = scan.numpy().astype(np.float32)
    return scan.replace(array=pixels + np.sin(np.arange(pixels.size, dtype=np.float32)).reshape(pixels.shape) / 4)


def test_heat_survives_to_the_last_bit(
    tmp_path: Path, write_ct: Callable[..., Path], errors_of: Callable[[Path], list[str]]
) -> None:
    scan = medai.open(write_ct(tmp_path / "ct", SAGITTAL))
    values = np.linspace(0, 1, scan.array.size, dtype=np.float32).reshape(scan.shape)
    heat = Heatmap(scan.replace(array=values), "noise", "gradcam++", Provenance("explain", (), "quality", "cd" * 32))
    path = medai.save(heat, tmp_path / "heat.dcm")
    assert errors_of(path) == []
    opened = medai.open(path)
    assert opened.grid.same_place(scan.grid)
    np.testing.assert_array_equal(opened.numpy(), values)
    read = highdicom.pm.ParametricMap.from_dataset(pydicom.dcmread(path))
    shared = read.SharedFunctionalGroupsSequence[0]
    mapping = shared.RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeValue == "130403"
    for frame in read.PerFrameFunctionalGroupsSequence:
        made = frame.DerivationImageSequence[0].DerivationDescription
        assert made == f"explain gradcam++ of noise by quality sha256 {'cd' * 32}"


@pytest.mark.parametrize("way", [(1, 0, 0, 0, 1, 0), SAGITTAL])
def test_a_cleaned_series(
    tmp_path: Path, write_ct: Callable[..., Path], errors_of: Callable[[Path], list[str]], way: tuple[float, ...]
) -> None:
    scan = medai.open(write_ct(tmp_path / "ct", way))
    image = wavy(scan)
    folder = medai.save(Denoised(image, RUN), tmp_path / "clean")
    files = sorted(folder.iterdir())
    assert [p.name for p in files] == [f"{n:05}.dcm" for n in range(1, 7)]
    sources = {pydicom.dcmread(p).SOPInstanceUID: pydicom.dcmread(p) for p in (tmp_path / "ct").iterdir()}
    for path in files:
        assert errors_of(path) == []
        ds = pydicom.dcmread(path)
        (item,) = ds.SourceImageSequence
        source = sources[item.ReferencedSOPInstanceUID]
        for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient"):
            assert ds[keyword].value == source[keyword].value
        assert ds.SOPInstanceUID not in sources
        assert ds.SeriesInstanceUID != source.SeriesInstanceUID
        assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
        assert ds.DerivationCodeSequence[0].CodeValue == "113087"
        assert "largest rounding error" in ds.DerivationDescription
    opened = medai.open(folder)
    assert opened.grid.same_place(scan.grid)
    # 5.5 Hounsfield units in 65,535 steps
    assert np.abs(opened.numpy() - image.numpy()).max() < 6 / 65535


def test_whole_numbers_survive_exactly(tmp_path: Path, write_ct: Callable[..., Path]) -> None:
    scan = medai.open(write_ct(tmp_path / "ct"))
    image = scan.replace(array=scan.numpy().astype(np.float32) - 1200)
    opened = medai.open(medai.save(Denoised(image, RUN), tmp_path / "clean"))
    np.testing.assert_array_equal(opened.numpy(), image.numpy())


def test_slices_that_were_interpolated_have_a_place_of_their_own(
    tmp_path: Path, write_ct: Callable[..., Path], errors_of: Callable[[Path], list[str]]
) -> None:
    folder = write_ct(tmp_path / "ct")
    (folder / "2.dcm").unlink()
    scan = medai.open(folder)
    values = np.nan_to_num(scan.numpy())
    values[2] = 5
    opened = medai.open(medai.save(scan.replace(array=values), tmp_path / "whole"))
    assert opened.shape == (6, 20, 16)
    assert opened.meta["findings"] == ()
    np.testing.assert_array_equal(opened.numpy()[2], 5)
    made = pydicom.dcmread(tmp_path / "whole" / "00003.dcm")
    assert float(made.ImagePositionPatient[2]) == 38
    assert errors_of(tmp_path / "whole" / "00003.dcm") == []
    assert "repaired" in made.SeriesDescription


def test_an_enhanced_image_stays_one_file(tmp_path: Path, errors_of: Callable[[Path], list[str]]) -> None:
    scan = medai.open(get_testdata_file("eCT_Supplemental.dcm"))
    image = wavy(scan)
    path = medai.save(Denoised(image, RUN), tmp_path / "clean.dcm")
    assert errors_of(path) == []
    opened = medai.open(path)
    assert opened.grid.same_place(scan.grid)
    span = float(np.ptp(image.numpy()))
    assert np.abs(opened.numpy() - image.numpy()).max() <= span / 65535
    assert pydicom.dcmread(path).SOPClassUID == pydicom.dcmread(scan.source, stop_before_pixels=True).SOPClassUID


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "RG1_UNCR.dcm", "SC_rgb.dcm"])
def test_two_dimensional_images(tmp_path: Path, name: str) -> None:
    source = get_testdata_file(name)
    if source is None:
        pytest.skip("not among the installed test files")
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / name).write_bytes(Path(source).read_bytes())
    scan = medai.open(tmp_path / "scan")
    opened = medai.open(medai.save(Denoised(scan, RUN), tmp_path / "clean.dcm"))
    np.testing.assert_array_equal(opened.numpy(), scan.numpy())


def test_names_that_do_not_fit(tmp_path: Path, write_ct: Callable[..., Path]) -> None:
    scan = medai.open(write_ct(tmp_path / "ct"))
    with pytest.raises(WriteError, match="6 slices make as many"):
        medai.save(Denoised(scan, RUN), tmp_path / "clean.dcm")
    with pytest.raises(WriteError, match="not empty"):
        medai.save(Denoised(scan, RUN), tmp_path / "ct")
    with pytest.raises(WriteError, match="folder does not exist"):
        medai.save(Denoised(scan, RUN), tmp_path / "no" / "clean")
    bad = scan.replace(array=np.full(scan.shape, np.nan, np.float32))
    with pytest.raises(NotFiniteError):
        medai.save(Denoised(bad, RUN), tmp_path / "clean")
    assert [p.name for p in tmp_path.iterdir()] == ["ct"]


def test_from_the_shell(tmp_path: Path, write_ct: Callable[..., Path]) -> None:
    scan = medai.open(write_ct(tmp_path / "ct"))
    labels = scan.replace(array=(scan.numpy() > -22).astype(np.uint8), meta={"is_labels": True})
    mask = medai.save(labels, tmp_path / "mask.nii.gz")
    run = CliRunner()
    done = run.invoke(app, ["convert", str(mask), str(tmp_path / "seg.dcm"), "--against", str(tmp_path / "ct")])
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(medai.open(tmp_path / "seg.dcm").grid.spacing, scan.spacing)
    assert medai.open(tmp_path / "seg.dcm").numpy().sum() == labels.numpy().sum()
    done = run.invoke(app, ["convert", str(mask), str(tmp_path / "other.dcm")])
    assert done.exit_code != 0
    assert not (tmp_path / "other.dcm").exists()
    # refused before a network is even loaded
    done = run.invoke(app, ["denoise", str(tmp_path / "ct"), "--out", str(tmp_path / "clean.dcm")])
    assert done.exit_code != 0
    assert isinstance(done.exception, WriteError | SystemExit)


@given(
    arrays(np.float32, (3, 4), elements=st.floats(-3e4, 3e4, width=32)),
    st.booleans(),
)
def test_values_come_back_within_the_error_that_is_said(values: np.ndarray, through_zero: bool) -> None:
    found = stored(values, through_zero=through_zero)
    back = found.pixels * found.slope + found.intercept
    # float64 arithmetic of numbers up to 3e4
    assert np.abs(back - values).max() <= found.error * (1 + 1e-6) + 1e-8
    assert not through_zero or found.intercept == 0
    assert found.pixels.dtype in (np.uint16, np.int16)


def test_where_there_is_no_slope_values_are_rounded() -> None:
    found = stored(np.array([0.0, 1.4, 700.6]), rescales=False)
    assert found.pixels.tolist() == [0, 1, 701]
    assert (found.slope, found.intercept, found.error) == (1, 0, 0.5)
    with pytest.raises(WriteError, match="16 bits"):
        stored(np.array([0.0, 70000.0]), rescales=False)
