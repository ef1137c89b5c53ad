"""Stored, rescaled, real-world and uptake values; padding, loss, lookup tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import PositronEmissionTomographyImageStorage, RTDoseStorage, generate_uid

from napari_medai.core.errors import InputError, ParamsError
from napari_medai.io import dicom

from .test_dicom_segments import scan_slices

Write = Callable[..., Path]
RAMP = np.arange(24, dtype=np.uint16).reshape(4, 6)


def item(**fields: Any) -> Dataset:
    made = Dataset()
    for keyword, value in fields.items():
        setattr(made, keyword, value)
    return made


def mapping(slope: float, intercept: float, unit: str) -> Dataset:
    return item(
        RealWorldValueFirstValueMapped=0,
        RealWorldValueLastValueMapped=4095,
        RealWorldValueSlope=slope,
        RealWorldValueIntercept=intercept,
        LUTExplanation="diffusion",
        LUTLabel="ADC",
        MeasurementUnitsCodeSequence=[
            item(CodeValue=unit, CodingSchemeDesignator="UCUM", CodeMeaning=unit),
        ],
    )


def philips(ds_path: Path, scale_slope: float, scale_intercept: float = 0.0) -> Path:
    ds = pydicom.dcmread(ds_path)
    block = ds.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    block.add_new(0x0D, "FL", scale_intercept)
    block.add_new(0x0E, "FL", scale_slope)
    ds.save_as(ds_path)
    return ds_path


def test_real_world_values_by_choice(write: Write) -> None:
    path = write(
        "mr", RAMP, Modality="MR", RescaleSlope="2", RescaleIntercept="1",
        RealWorldValueMappingSequence=[mapping(0.5, -1.0, "um2/s")],
    )  # fmt: skip
    shown = dicom.open_volume(path)
    assert shown.numpy()[0, 3] == 7
    assert shown.meta["values"] == "rescale"
    assert any("diffusion in um2/s" in f for f in shown.meta["findings"])
    real = dicom.open_volume(path, values="real-world")
    assert real.numpy()[0, 3] == pytest.approx(0.5)
    assert real.meta["value_unit"] == "um2/s"
    assert real.meta["values"] == "real-world"
    assert not any("real-world" in f for f in real.meta["findings"])


def test_real_world_values_that_are_the_rescaled_ones_are_no_finding(write: Write) -> None:
    path = write(
        "ct", RAMP, RescaleSlope="1", RescaleIntercept="-1024",
        RealWorldValueMappingSequence=[mapping(1.0, -1024.0, "[hnsf'U]")],
    )  # fmt: skip
    assert dicom.open_volume(path).meta["findings"] == ()


def test_a_real_world_lookup_table(write: Write) -> None:
    lut = mapping(1.0, 0.0, "ms")
    del lut.RealWorldValueSlope, lut.RealWorldValueIntercept
    lut.RealWorldValueFirstValueMapped, lut.RealWorldValueLastValueMapped = 2, 4
    lut.RealWorldValueLUTData = [0.25, 0.5, 8.0]
    path = write("mr", RAMP, Modality="MR", RealWorldValueMappingSequence=[lut])
    assert dicom.open_volume(path, values="real-world").numpy()[0, 2:5].tolist() == [0.25, 0.5, 8.0]


def test_philips_floating_point_values(write: Write) -> None:
    path = philips(write("mr", RAMP, Modality="MR", RescaleSlope="2", RescaleIntercept="10"), 0.004)
    shown = dicom.open_volume(path)
    assert shown.numpy()[1, 0] == 6 * 2 + 10
    assert any("Philips floating point value" in f for f in shown.meta["findings"])
    # FP = (stored * RS + RI) / (RS * SS) = 22 / (2 * 0.004)
    assert dicom.open_volume(path, values="real-world").numpy()[1, 0] == pytest.approx(2750)
    assert dicom.open_volume(path, values="display").numpy()[1, 0] == 22
    assert dicom.open_volume(path, values="stored").numpy()[1, 0] == 6


def test_values_that_are_not_there(write: Write) -> None:
    path = write("mr", RAMP, Modality="MR")
    with pytest.raises(InputError, match="no real-world values"):
        dicom.open_volume(path, values="real-world")
    with pytest.raises(InputError, match="PET"):
        dicom.open_volume(path, values="suv")
    with pytest.raises(ParamsError, match="real-world: "):
        dicom.open_volume(path, values="hounsfield")


def test_the_window_follows_the_values(write: Write) -> None:
    path = philips(
        write("mr", RAMP, Modality="MR", RescaleSlope="2", RescaleIntercept="0", WindowCenter="10.5", WindowWidth="11"),
        0.5,
    )
    assert dicom.open_volume(path).meta["window"] == (5.0, 15.0)
    assert dicom.open_volume(path, values="real-world").meta["window"] == (5.0, 15.0)
    assert dicom.open_volume(path, values="stored").meta["window"] == (2.5, 7.5)


def pet(write: Write, **fields: Any) -> Path:
    tracer = item(
        RadionuclideTotalDose="370000000", RadionuclideHalfLife="6586.2", RadiopharmaceuticalStartTime="120000.00"
    )
    plain: dict[str, Any] = {
        "SOPClassUID": PositronEmissionTomographyImageStorage, "Modality": "PT", "Units": "BQML",
        "DecayCorrection": "START", "CorrectedImage": ["ATTN", "DECY"], "PatientWeight": "70",
        "SeriesDate": "20200101", "SeriesTime": "130000", "AcquisitionDate": "20200101", "AcquisitionTime": "130010",
        "RadiopharmaceuticalInformationSequence": [tracer], "RescaleSlope": "100", "RescaleIntercept": "0",
    }  # fmt: skip
    return write("pet", RAMP, **{k: v for k, v in {**plain, **fields}.items() if v is not None})


def test_uptake_by_body_weight(write: Write) -> None:
    path = pet(write)
    volume = dicom.open_volume(path, values="suv")
    # 70 kg * 1000 / (370 MBq * 2^(-3600 / 6586.2)) = 70000 / 253.309e6
    factor = 70000 / (370e6 * 0.5 ** (3600 / 6586.2))
    assert factor == pytest.approx(2.7634e-4, rel=1e-4)
    assert volume.numpy()[1, 0] == pytest.approx(600 * factor)
    suv = volume.meta["suv"]
    assert (suv["weight_kg"], suv["dose_bq"], suv["half_life_s"], suv["decay_seconds"]) == (70, 370e6, 6586.2, 3600)
    assert suv["factor"] == pytest.approx(factor)
    assert volume.meta["value_unit"] == "g/ml"
    assert not any("2020" in str(v) for v in volume.meta.values())
    plain = dicom.open_volume(path)
    assert plain.meta["value_unit"] == "Bq/ml"
    assert "suv" not in plain.meta


def test_uptake_corrected_to_the_injection(write: Write) -> None:
    volume = dicom.open_volume(pet(write, DecayCorrection="ADMIN"), values="suv")
    assert volume.meta["suv"]["factor"] == pytest.approx(70000 / 370e6)


def test_uptake_of_a_derived_series_counts_from_its_images(write: Write) -> None:
    volume = dicom.open_volume(pet(write, SeriesTime="170000"), values="suv")
    assert volume.meta["suv"]["decay_seconds"] == 3610
    assert any("later than its images" in f for f in volume.meta["findings"])


def test_uptake_over_midnight(write: Write) -> None:
    tracer = item(
        RadionuclideTotalDose="370000000", RadionuclideHalfLife="6586.2", RadiopharmaceuticalStartTime="233000"
    )
    fields = {"SeriesTime": "003000", "AcquisitionTime": "003000", "RadiopharmaceuticalInformationSequence": [tracer]}
    assert dicom.open_volume(pet(write, **fields), values="suv").meta["suv"]["decay_seconds"] == 3600


def test_uptake_that_is_stored_already(write: Write) -> None:
    volume = dicom.open_volume(pet(write, Units="GML", PatientWeight=None), values="suv")
    assert volume.numpy()[1, 0] == 600


def test_uptake_from_philips_counts(write: Write) -> None:
    path = pet(write, Units="CNTS")
    with pytest.raises(InputError, match="7053,1000"):
        dicom.open_volume(path, values="suv")
    ds = pydicom.dcmread(path)
    block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
    block.add_new(0x09, "DS", "2.5")
    ds.save_as(path)
    factor = 2.5 * 70000 / (370e6 * 0.5 ** (3600 / 6586.2))
    assert dicom.open_volume(path, values="suv").meta["suv"]["factor"] == pytest.approx(factor)
    block.add_new(0x00, "DS", "0.125")
    ds.save_as(path)
    assert dicom.open_volume(path, values="suv").numpy()[1, 0] == pytest.approx(75)


def test_uptake_names_what_is_missing(write: Write) -> None:
    with pytest.raises(InputError, match=r"Weight \(0010,1030\), Decay Correction"):
        dicom.open_volume(pet(write, PatientWeight=None, DecayCorrection="NONE"), values="suv")


def test_a_dose_in_megabecquerel_is_doubted(write: Write) -> None:
    tracer = item(RadionuclideTotalDose="370", RadionuclideHalfLife="6586.2", RadiopharmaceuticalStartTime="120000")
    volume = dicom.open_volume(pet(write, RadiopharmaceuticalInformationSequence=[tracer]), values="suv")
    assert any("MBq" in f for f in volume.meta["findings"])


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.uint16])
def test_parametric_maps_of_highdicom(tmp_path: Path, kind: type) -> None:
    import highdicom as hd

    slices = scan_slices(4)
    pixels = (np.arange(4 * 35).reshape(4, 5, 7) + (0.5 if kind is not np.uint16 else 0)).astype(kind)
    slope = 0.001 if kind is np.uint16 else 1.0
    unit = hd.sr.CodedConcept("mm2/s", "UCUM", "mm2/s")
    real = hd.pm.RealWorldValueMapping(
        lut_label="ADC", lut_explanation="Apparent diffusion", unit=unit, slope=slope, intercept=0.0,
        value_range=(0, 4095) if kind is np.uint16 else (0.0, 4095.0),
    )  # fmt: skip
    made = hd.pm.ParametricMap(
        slices,
        pixels,
        generate_uid(),
        3,
        generate_uid(),
        1,
        "maker",
        "model",
        "1",
        "0",
        False,
        [real],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=70, window_width=140)],
    )
    path = tmp_path / "pm.dcm"
    made.save_as(path)
    volume = dicom.open_volume(path)
    np.testing.assert_allclose(volume.numpy(), pixels * slope, rtol=1e-6)
    assert volume.dtype == (np.float64 if kind is np.float64 else np.float32)
    assert volume.meta["value_unit"] == "mm2/s"
    assert volume.meta["values"] == "real-world"
    assert volume.meta["quantity"] == "Apparent diffusion"
    assert volume.affine[:3, 3] == pytest.approx([30, -20, -10])
    assert volume.spacing == pytest.approx((2, 0.5, 0.5))
    assert volume.meta["findings"] == ()


def test_dose_offsets_that_are_coordinates(write: Write) -> None:
    pixels = np.arange(3 * 24, dtype=np.uint32).reshape(3, 4, 6)
    fields = {"SOPClassUID": RTDoseStorage, "Modality": "RTDOSE", "NumberOfFrames": 3, "DoseGridScaling": "0.5"}
    relative = write("a", pixels, GridFrameOffsetVector=[0, 2.5, 5], ImagePositionPatient=[1, 2, 30], **fields)
    absolute = write("b/b", pixels, GridFrameOffsetVector=[30, 32.5, 35], ImagePositionPatient=[1, 2, 30], **fields)
    # rows run to the right and columns up: the normal points down, coordinates still rise
    down = write(
        "c/c", pixels, GridFrameOffsetVector=[30, 32.5, 35], ImagePositionPatient=[1, 2, 30],
        ImageOrientationPatient=[-1, 0, 0, 0, 1, 0], **fields,
    )  # fmt: skip
    for path in (relative, absolute, down):
        volume = dicom.open_volume(path)
        assert volume.affine[0, 3] == pytest.approx(30)
        assert volume.affine[0, 0] == pytest.approx(2.5)
        np.testing.assert_allclose(volume.numpy()[:, 0].max(axis=1), (pixels[:, 0] * 0.5).max(axis=1))


def test_a_dose_says_what_it_is(write: Write) -> None:
    volume = dicom.open_volume(
        write("dose", RAMP, SOPClassUID=RTDoseStorage, Modality="RTDOSE", DoseUnits="GY", DoseType="PHYSICAL",
              DoseSummationType="PLAN", DoseGridScaling="0.01")
    )  # fmt: skip
    assert (volume.meta["value_unit"], volume.meta["dose_type"], volume.meta["dose_summation"]) == (
        "Gy", "physical", "plan",
    )  # fmt: skip
    assert volume.numpy()[1, 0] == pytest.approx(0.06)


@pytest.mark.parametrize("name", ["rtdose.dcm", "rtdose_rle.dcm", "rtdose_expb.dcm"])
def test_real_doses(name: str) -> None:
    path = pydicom.data.get_testdata_file(name)
    ds = pydicom.dcmread(path)
    volume = dicom.open_volume(path)
    np.testing.assert_allclose(volume.numpy(), ds.pixel_array * float(ds.DoseGridScaling), rtol=1e-6)
    assert volume.spacing[0] == pytest.approx(ds.GridFrameOffsetVector[1] - ds.GridFrameOffsetVector[0])


def test_padding_is_a_range_in_the_values_shown(write: Write) -> None:
    path = write(
        "ct", RAMP.astype(np.int16), RescaleSlope="2", RescaleIntercept="-1000", PixelPaddingValue=-2000,
        PixelPaddingRangeLimit=-1500,
    )  # fmt: skip
    assert dicom.open_volume(path).meta["padding"] == (-5000, -4000)
    assert dicom.open_volume(path, values="stored").meta["padding"] == (-2000, -1500)


def test_loss_is_said_with_its_method_and_ratio(write: Write) -> None:
    path = write(
        "ct", RAMP, LossyImageCompression="01", LossyImageCompressionRatio="12.5",
        LossyImageCompressionMethod="ISO_15444_1",
    )  # fmt: skip
    assert "The pixels were compressed with loss (JPEG 2000, 12.5 : 1)." in dicom.open_volume(path).meta["findings"]


def test_a_reversed_image_with_a_lookup_table(write: Write) -> None:
    lut = item(LUTDescriptor=[4, 0, 16], ModalityLUTType="OD", LUTData=np.array([10, 20, 40, 80], np.uint16).tobytes())
    pixels = np.array([[0, 1, 2, 3]], np.uint16)
    path = write("cr", pixels, Modality="CR", PhotometricInterpretation="MONOCHROME1", ModalityLUTSequence=[lut])
    assert dicom.open_volume(path).numpy().tolist() == [[80, 70, 50, 10]]


def test_nothing_is_said_of_elements_that_are_too_long(write: Write) -> None:
    # found by mutation: warnings of pydicom are errors here
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lut = mapping(0.5, -1.0, "um2/s")
        lut.LUTLabel = "A" * 32
        del lut.LUTExplanation
        path = write("mr", RAMP, Modality="MR", RealWorldValueMappingSequence=[lut])
    assert dicom.open_volume(path, values="real-world").meta["quantity"] == "A" * 32
