"""Segmentations written by highdicom and dcmqi, read back in their places."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from napari_medai.io import dicom
from napari_medai.io.dicom.segments import rgb_of_lab
from napari_medai.io.verify import verify

from .conftest import dataset

Make = Callable[..., Path]
SHAPE = (6, 5, 7)


def scan_slices(count: int = 6, rows: int = 5, columns: int = 7) -> list[Dataset]:
    """A CT series, 2 mm apart, 0.5 mm pixels, first pixel at (-10, -20, 30)."""
    study, frame = generate_uid(), generate_uid()
    fields = {
        "StudyInstanceUID": study, "FrameOfReferenceUID": frame, "StudyDate": "20200101", "StudyTime": "120000",
        "PatientSex": "", "AccessionNumber": "", "StudyID": "", "ReferringPhysicianName": "", "SliceThickness": 2,
        "SeriesInstanceUID": "1.2.3.4", "PatientBirthDate": "", "ContentDate": "20200101", "ContentTime": "120000",
    }  # fmt: skip
    return [
        dataset(
            np.zeros((rows, columns), np.uint16),
            ImagePositionPatient=[-10, -20, 30 + 2 * n],
            InstanceNumber=n + 1,
            **fields,
        )
        for n in range(count)
    ]


@pytest.fixture
def segmentation(tmp_path: Path) -> Make:
    """``segmentation(pixels, kind)`` -> path of a file written by highdicom; pixels (z, y, x) or (z, y, x, segment)."""

    def made(
        pixels: np.ndarray,
        kind: str,
        count: int,
        slices: list[Dataset] | None = None,
        colored: bool = True,
        **options: Any,
    ) -> Path:
        import highdicom as hd

        slices = slices or scan_slices(pixels.shape[0], *pixels.shape[1:3])
        color = hd.color.CIELabColor(53.24, 80.09, 67.2) if colored else None
        code = hd.sr.CodedConcept("91723000", "SCT", "Anatomical structure")
        described = [
            hd.seg.SegmentDescription(n, f"organ {n}", code, code, "MANUAL", display_color=color)
            for n in range(1, count + 1)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seg = hd.seg.Segmentation(
                slices,
                pixels,
                kind,
                described,
                generate_uid(),
                9,
                generate_uid(),
                1,
                "maker",
                "model",
                "1",
                "0",
                **options,
            )
            path = tmp_path / f"{kind}.dcm"
            seg.save_as(path)
        return path

    return made


def test_binary_segments_are_merged_and_empty_slices_are_background(segmentation: Make) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1, 1:3, 2] = 1
    labels[4, 0, 3:6] = 2
    volume = dicom.open_volume(segmentation(labels, "BINARY", 2))
    assert volume.axes == "zyx"
    assert volume.dtype == np.uint8
    # written from the first to the last slice with a segment only; 2 and 3 have no frame
    np.testing.assert_array_equal(volume.numpy(), labels[1:5])
    assert volume.spacing == pytest.approx((2, 0.5, 0.5))
    assert volume.affine[:3, 3] == pytest.approx([32, -20, -10])
    assert volume.meta["is_labels"] is True
    assert volume.meta["label_names"] == {1: "organ 1", 2: "organ 2"}
    assert volume.meta["label_colors"][1] == pytest.approx((1, 0, 0), abs=0.05)
    assert volume.meta["referenced_series_uid"] == "1.2.3.4"
    assert volume.meta["findings"] == ()


def test_one_slice_with_a_segment(segmentation: Make) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[3, 2, 2] = 1
    volume = dicom.open_volume(segmentation(labels, "BINARY", 1))
    assert volume.numpy().squeeze().sum() == 1
    assert volume.affine[:3, 3] == pytest.approx([36, -20, -10])
    assert volume.spacing[0] == pytest.approx(2)


def test_overlapping_segments_stand_one_behind_the_other(segmentation: Make) -> None:
    masks = np.zeros((*SHAPE, 2), np.uint8)
    masks[1:4, 1:4, 2:5, 0] = 1
    masks[3:5, 2:4, 4:6, 1] = 1
    volume = dicom.open_volume(segmentation(masks, "BINARY", 2))
    assert volume.axes == "tzyx"
    assert volume.meta["axis_t"] == {"name": "segment", "unit": "", "values": (1.0, 2.0)}
    np.testing.assert_array_equal(volume.numpy()[0], masks[1:5, ..., 0])
    np.testing.assert_array_equal(volume.numpy()[1], masks[1:5, ..., 1] * 2)


def test_overlap_is_checked_where_it_is_not_denied(segmentation: Make) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1, 1:3, 2] = 1
    labels[1, 4, 3:6] = 2
    path = segmentation(labels, "BINARY", 2)
    ds = pydicom.dcmread(path)
    ds.SegmentsOverlap = "UNDEFINED"
    ds.save_as(path)
    assert dicom.open_volume(path).axes in ("zyx", "yx")
    assert dicom.open_volume(path).numpy().sum() == 2 * 1 + 3 * 2


def test_fractions(segmentation: Make) -> None:
    masks = np.zeros((*SHAPE, 2), np.float32)
    masks[0:3, 1, 2, 0] = 0.5
    masks[3:5, 2, 4, 1] = 1.0
    volume = dicom.open_volume(segmentation(masks, "FRACTIONAL", 2, max_fractional_value=200))
    assert volume.dtype == np.float32
    assert volume.axes == "tzyx"
    assert volume.meta["axis_t"]["name"] == "segment"
    np.testing.assert_allclose(volume.numpy(), np.moveaxis(masks, -1, 0)[:, 0:5], atol=1e-6)
    assert volume.meta["fraction"] == "probability"
    assert not volume.meta["is_labels"]
    assert volume.meta["window"] == (0.0, 1.0)


@pytest.mark.parametrize("largest", [2, 300])
def test_label_maps(segmentation: Make, largest: int) -> None:
    labels = np.zeros(SHAPE, np.uint16)
    labels[1, 1:3, 2] = 1
    labels[4, 0, 3:6] = largest
    volume = dicom.open_volume(segmentation(labels, "LABELMAP", largest))
    assert volume.dtype.kind == "u"
    got = volume.numpy()
    np.testing.assert_array_equal(got, labels[1:5] if len(got) == 4 else labels)
    assert volume.meta["label_names"][largest] == f"organ {largest}"
    assert volume.meta["findings"] == ()


def test_label_map_with_a_palette(segmentation: Make) -> None:
    import highdicom as hd

    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3, 1:3, 2] = 1
    palette = hd.content.PaletteColorLUTTransformation.from_combined_lut(
        np.array([[0, 0, 0], [255, 0, 0]], np.uint8), palette_color_lut_uid=generate_uid()
    )
    path = segmentation(labels, "LABELMAP", 1, colored=False, palette_color_lut_transformation=palette)
    assert pydicom.dcmread(path).PhotometricInterpretation == "PALETTE COLOR"
    volume = dicom.open_volume(path)
    assert volume.axes == "zyx"
    assert volume.numpy().sum() == 4
    assert volume.meta["label_colors"] == {1: (1.0, 0.0, 0.0)}


@pytest.mark.parametrize(("padding", "bits"), [(255, 8), (300, 16)])
def test_label_map_whose_background_is_not_0(segmentation: Make, padding: int, bits: int) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 1:3, 2] = 1
    labels[:, 4, 4] = 2
    path = segmentation(labels, "LABELMAP", 2)
    ds = pydicom.dcmread(path)
    stored = np.frombuffer(ds.PixelData, np.uint8)[: labels.size]
    # what is 0 becomes the padding, and segment 2 is called 0
    changed = np.array([padding, 1, 0], np.uint8 if bits == 8 else np.uint16)[stored]
    ds.PixelData = changed.tobytes() + b"\0" * (changed.nbytes % 2)
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit = bits - 1
    ds.PixelPaddingValue = padding
    ds["PixelPaddingValue"].VR = "US"
    ds.SegmentSequence[-1].SegmentNumber = 0
    ds.save_as(path)
    volume = dicom.open_volume(path)
    np.testing.assert_array_equal(volume.numpy(), np.array([0, 1, padding], np.uint16)[labels])
    assert volume.meta["label_names"] == {1: "organ 1", padding: "organ 2"}
    assert set(volume.meta["label_colors"]) == {1, padding}
    assert f"The background is stored as {padding}" in volume.meta["findings"][0]
    assert verify(path).ok


def test_oblique_segmentation_lies_on_its_scan(segmentation: Make, tmp_path: Path) -> None:
    slices = scan_slices(*SHAPE)
    c, s = np.cos(0.3), np.sin(0.3)
    for n, one in enumerate(slices):
        one.ImageOrientationPatient = [1, 0, 0, 0, round(c, 8), round(s, 8)]
        one.ImagePositionPatient = [0, round(-s * 2 * n, 8), round(c * 2 * n, 8)]
        (tmp_path / "scan").mkdir(exist_ok=True)
        one.save_as(tmp_path / "scan" / f"{n}", enforce_file_format=True)
    labels = np.zeros(SHAPE, np.uint8)
    labels[1, 1:3, 2] = labels[4, 2, 3] = 1
    mask = dicom.open_volume(segmentation(labels, "BINARY", 1, slices=slices))
    scan = dicom.open_volume(tmp_path / "scan")
    k, j, i = np.argwhere(mask.numpy() == 1).T
    there = mask.affine @ np.array([k, j, i, np.ones_like(k)])
    back = np.linalg.inv(scan.affine) @ there
    np.testing.assert_allclose(back[:3].T, np.argwhere(labels == 1), atol=1e-4)


def test_frames_that_do_not_begin_at_a_byte(segmentation: Make) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((7, 3, 5)) > 0.5).astype(np.uint8)  # 15 pixels a frame
    labels[:, 0, 0] = 1
    np.testing.assert_array_equal(dicom.open_volume(segmentation(labels, "BINARY", 1)).numpy(), labels)


def test_as_pydicom_decodes_it() -> None:
    path = pydicom.data.get_testdata_file("liver_1frame.dcm")
    np.testing.assert_array_equal(dicom.open_volume(path).numpy(), pydicom.dcmread(path).pixel_array)


def test_a_segmentation_by_dcmqi(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    program = Path(sys.executable).with_name("itkimage2segimage")
    if not program.exists():
        pytest.skip("dcmqi is not installed")
    folder = tmp_path / "scan"
    folder.mkdir()
    for n, one in enumerate(scan_slices()):
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.save_as(folder / f"{n}.dcm", enforce_file_format=True)
    labels = np.zeros(SHAPE, np.uint8)
    labels[1, 1:3, 2] = 3
    labels[4, 0, 3:6] = 7
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((0.5, 0.5, 2))
    image.SetOrigin((-10, -20, 30))
    sitk.WriteImage(image, str(tmp_path / "labels.nrrd"))
    code = {"CodeValue": "91723000", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Anatomical structure"}
    described = [
        {
            "labelID": n, "SegmentDescription": f"organ {n}", "SegmentLabel": f"organ {n}",
            "SegmentAlgorithmType": "MANUAL", "recommendedDisplayRGBValue": [0, 255, 0],
            "SegmentedPropertyCategoryCodeSequence": code, "SegmentedPropertyTypeCodeSequence": code,
        }
        for n in (3, 7)
    ]  # fmt: skip
    meta = {
        "ContentCreatorName": "Reader1", "ClinicalTrialSeriesID": "1", "ClinicalTrialTimePointID": "1",
        "SeriesDescription": "Segmentation", "SeriesNumber": "300", "InstanceNumber": "1", "BodyPartExamined": "HEAD",
        "segmentAttributes": [described], "ContentLabel": "SEGMENTATION", "ContentDescription": "x",
        "ClinicalTrialCoordinatingCenterName": "x",
    }  # fmt: skip
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    out = tmp_path / "seg.dcm"
    subprocess.run(
        [program, "--inputImageList", tmp_path / "labels.nrrd", "--inputDICOMDirectory", folder, "--outputDICOM", out,
         "--inputMetadata", tmp_path / "meta.json", "--skip"],
        check=True, capture_output=True,
    )  # fmt: skip
    volume = dicom.open_volume(out)
    numbers = {name: n for n, name in volume.meta["label_names"].items()}
    got = volume.numpy()
    expected = np.zeros_like(got)
    inside = labels[1:5] if len(got) == 4 else labels
    expected[inside == 3], expected[inside == 7] = numbers["organ 3"], numbers["organ 7"]
    np.testing.assert_array_equal(got, expected)
    assert volume.affine[:3, 3] == pytest.approx([32 if len(got) == 4 else 30, -20, -10])
    assert volume.meta["label_colors"][numbers["organ 3"]] == pytest.approx((0, 1, 0), abs=0.05)


def test_red_green_and_grey_of_cielab() -> None:
    # sRGB red is L* 54.29, a* 80.81, b* 69.89 in D50; stored on 0 … 65535
    def stored(lightness: float, a: float, b: float) -> tuple[float, ...]:
        return lightness / 100 * 65535, (a + 128) / 255 * 65535, (b + 128) / 255 * 65535

    assert rgb_of_lab(stored(54.29, 80.81, 69.89)) == pytest.approx((1, 0, 0), abs=0.01)
    assert rgb_of_lab(stored(87.82, -79.29, 80.99)) == pytest.approx((0, 1, 0), abs=0.01)
    assert rgb_of_lab(stored(100, 0, 0)) == pytest.approx((1, 1, 1), abs=0.01)
