"""Labels as DICOM segmentations, as read by dciodvfy, dcmqi, highdicom and ourselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

import napari_medai as medai
from napari_medai.core.errors import WriteError
from napari_medai.core.geometry import from_ras, index_to_world, scaling, world_to_index
from napari_medai.core.provenance import EDITED, Provenance
from napari_medai.core.result import Mask
from napari_medai.core.volume import Volume
from napari_medai.io.dicom.write.codes import _TABLES, coded

TURN = np.deg2rad(25)
OBLIQUE = (np.cos(TURN), np.sin(TURN), 0.0, -np.sin(TURN) * np.cos(0.2), np.cos(TURN) * np.cos(0.2), np.sin(0.2))
WAYS = {"axial": (1, 0, 0, 0, 1, 0), "sagittal": (0, 1, 0, 0, 0, -1), "oblique": tuple(round(w, 9) for w in OBLIQUE)}
RUN = Provenance("segment", ("3",), "brain", "ab" * 32, {"threshold": 0.5})


def labels_on(scan: Volume, **changes: Any) -> Mask:
    """Two blocks, 1 and 5, neither touching the border."""
    array = np.zeros(scan.spatial_shape, np.uint8)
    z, y, x = array.shape
    array[1 : z // 2, 2 : y // 2, 2 : x // 2] = 1
    array[z // 2 : z - 1, y // 2 : y - 2, x // 3 : x - 1] = 5
    labels = scan.replace(array=array, modality="SEG", meta=dict(scan.meta))
    mask = Mask(labels, RUN, {1: "left kidney", 5: "liver lesion"}, {1: (1.0, 0.0, 0.0)})
    return replace(mask, **changes)


def by_dcmqi(path: Path, folder: Path) -> dict[int, set[tuple[int, ...]]]:
    """Centres of the voxels of each label in tenths of a millimetre of the world (z, y, x), as dcmqi reads them."""
    program = shutil.which("segimage2itkimage") or str(Path(sys.executable).with_name("segimage2itkimage"))
    folder.mkdir()
    subprocess.run(
        [program, "--inputDICOM", str(path), "--outputDirectory", str(folder), "-t", "nii"],
        check=True,
        capture_output=True,
    )
    found: dict[int, set[tuple[int, ...]]] = {}
    for name in sorted(folder.glob("*.nii.gz")):
        image = nibabel.load(name)
        array = np.asarray(image.dataobj).transpose()
        for value in np.unique(array[array > 0]):
            found.setdefault(int(value), set()).update(places(from_ras(image.affine), np.argwhere(array == value)))
    return found


def places(affine: np.ndarray, index: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, np.rint(index_to_world(affine, index) * 10).astype(int).tolist()))


@pytest.mark.parametrize("kind", ["labelmap", "binary"])
@pytest.mark.parametrize("way", WAYS)
def test_other_readers_find_the_same_voxels(
    tmp_path: Path, write_ct: Callable[..., Path], errors_of: Callable[[Path], list[str]], way: str, kind: str
) -> None:
    scan = medai.open(write_ct(tmp_path / "ct", WAYS[way], 7))
    mask = labels_on(scan)
    path = medai.save(mask, tmp_path / "seg.dcm", kind=kind)
    assert errors_of(path) == []
    # segments of a binary segmentation are counted from 1
    new = {1: 1, 5: 5 if kind == "labelmap" else 2}
    expected = {new[v]: places(scan.affine, np.argwhere(mask.labels.numpy() == v)) for v in (1, 5)}
    found = by_dcmqi(path, tmp_path / "itk")
    assert found.keys() == expected.keys()
    for value, voxels in expected.items():
        assert 2 * len(_near(found[value], voxels)) / (len(found[value]) + len(voxels)) == 1.0
    opened = medai.open(path)
    assert opened.meta["label_names"][1] == "left kidney"
    assert opened.meta["frame_of_reference_uid"] == scan.meta["frame_of_reference_uid"]


def _near(some: set[tuple[int, ...]], others: set[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Those that have one of the others within 0.2 mm, and that one not twice."""
    from scipy.spatial import cKDTree

    first, second = np.array(sorted(some)), np.array(sorted(others))
    distance, partner = cKDTree(second).query(first)
    assert len(set(partner.tolist())) == len(first)
    return [tuple(row) for row, far in zip(first.tolist(), distance, strict=True) if far <= 2]


def test_frames_refer_to_the_slices_they_lie_on(tmp_path: Path, write_ct: Callable[..., Path]) -> None:
    scan = medai.open(write_ct(tmp_path / "ct"))
    path = medai.save(labels_on(scan), tmp_path / "seg.dcm")
    slices = {pydicom.dcmread(p).SOPInstanceUID: pydicom.dcmread(p) for p in (tmp_path / "ct").iterdir()}
    seg = pydicom.dcmread(path)
    assert seg.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    for frame in seg.PerFrameFunctionalGroupsSequence:
        (item,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert "ReferencedFrameNumber" not in item
        there = slices[item.ReferencedSOPInstanceUID].ImagePositionPatient
        assert list(map(float, there)) == list(map(float, frame.PlanePositionSequence[0].ImagePositionPatient))
    whole = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {item.ReferencedSOPInstanceUID for item in whole} == slices.keys()


def test_what_stands_of_patient_study_segments_and_model(tmp_path: Path, write_ct: Callable[..., Path]) -> None:
    scan = medai.open(write_ct(tmp_path / "ct"))
    path = medai.save(labels_on(scan), tmp_path / "seg.dcm")
    source = pydicom.dcmread(next((tmp_path / "ct").iterdir()))
    seg = highdicom.seg.segread(path)
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[keyword].value == source[keyword].value
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert seg.SeriesNumber == 301
    kidney = seg.get_segment_description(1)
    assert (kidney.segmented_property_category.value, kidney.segmented_property_type.value) == ("91723000", "64033007")
    (side,) = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
    assert side.CodeMeaning == "Left"
    lesion = seg.get_segment_description(5)
    assert (lesion.segmented_property_category.value, lesion.segmented_property_type.value) == ("49755003", "52988006")
    assert lesion.segment_label == "liver lesion"
    assert kidney.algorithm_type.value == "AUTOMATIC"
    (algorithm,) = kidney.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("brain", "ab" * 32)
    assert highdicom.color.CIELabColor.from_dicom_value(kidney.RecommendedDisplayCIELabValue).to_rgb(clip=True) == (
        255, 0, 0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("provenance", "kind"),
    [(RUN, "AUTOMATIC"), (replace(RUN, notes=(EDITED,)), "SEMIAUTOMATIC"), (Provenance("paint"), "MANUAL")],
)
def test_who_drew_it(tmp_path: Path, write_ct: Callable[..., Path], provenance: Provenance, kind: str) -> None:
    scan = medai.open(write_ct(tmp_path / "ct"))
    path = medai.save(labels_on(scan, provenance=provenance), tmp_path / "seg.dcm")
    assert {s.SegmentAlgorithmType for s in pydicom.dcmread(path).SegmentSequence} == {kind}


def test_a_tilted_gantry(tmp_path: Path, write_ct: Callable[..., Path], errors_of: Callable[[Path], list[str]]) -> None:
    folder = write_ct(tmp_path / "ct", (1, 0, 0, 0, round(np.cos(0.3), 9), round(np.sin(0.3), 9)))
    for n in range(6):
        header = pydicom.dcmread(folder / f"{n}.dcm")
        header.ImagePositionPatient = [-10, 20, 30 + 4 * n]
        header.save_as(folder / f"{n}.dcm")
    scan = medai.open(folder)
    path = medai.save(labels_on(scan), tmp_path / "seg.dcm")  # which verifies it in the patient
    assert errors_of(path) == []
    starts = {tuple(map(float, f.PlanePositionSequence[0].ImagePositionPatient))
              for f in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence}  # fmt: skip
    assert starts == {(-10, 20, 30 + 4 * n) for n in (1, 2, 3, 4)}


def test_labels_on_another_grid_lie_where_they_are(
    tmp_path: Path, write_ct: Callable[..., Path], errors_of: Callable[[Path], list[str]]
) -> None:
    scan = medai.open(write_ct(tmp_path / "ct", WAYS["oblique"]))
    inside = index_to_world(scan.affine, np.array([2.0, 8.0, 8.0]))
    array = np.zeros((5, 6, 7), np.uint8)
    array[1:4, 2:4, 2:6] = 1
    grid = scaling((1.2, 1.1, 0.9), inside - 3)
    path = medai.save(Mask(scan.replace(array=array, affine=grid), RUN, {1: "lesion"}), tmp_path / "seg.dcm")
    assert errors_of(path) == []
    seg = pydicom.dcmread(path)
    assert seg.FrameOfReferenceUID == scan.meta["frame_of_reference_uid"]
    assert [len(f.DerivationImageSequence) for f in seg.PerFrameFunctionalGroupsSequence] == [0, 0, 0]
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 6
    opened = medai.open(path)
    (first,) = np.argwhere(opened.numpy() == 1)[:1]
    np.testing.assert_allclose(index_to_world(opened.affine, first), index_to_world(grid, [1, 2, 2]), atol=1e-3)


def test_a_mask_out_of_a_nifti_against_its_scan(tmp_path: Path, write_ct: Callable[..., Path]) -> None:
    scan = medai.open(write_ct(tmp_path / "ct", WAYS["sagittal"]))
    there = medai.save(labels_on(scan), tmp_path / "mask.nii.gz")
    mask = medai.open(there)
    with pytest.raises(WriteError, match="against"):
        medai.save(mask, tmp_path / "seg.dcm")
    opened = medai.open(medai.save(mask, tmp_path / "seg.dcm", against=tmp_path / "ct"))
    index = np.argwhere(labels_on(scan).labels.numpy() == 5)
    k, j, i = np.rint(world_to_index(opened.affine, index_to_world(scan.affine, index))).astype(int).T
    assert (opened.numpy()[k, j, i] == 5).all()
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


def test_overlapping_segments_are_binary(
    tmp_path: Path, write_ct: Callable[..., Path], errors_of: Callable[[Path], list[str]]
) -> None:
    scan = medai.open(write_ct(tmp_path / "ct"))
    array = np.zeros((2, *scan.shape), np.uint8)
    array[0, 1:4, 4:12, 4:12] = 1
    array[1, 2:5, 8:16, 8:14] = 2
    meta = dict(scan.meta) | {"axis_t": {"name": "segment", "unit": "", "values": (1.0, 2.0)}, "is_labels": True}
    stacked = scan.replace(array=array, axes="tzyx", meta=meta | {"label_names": {1: "liver", 2: "lesion"}})
    path = medai.save(stacked, tmp_path / "seg.dcm")
    assert errors_of(path) == []
    seg = highdicom.seg.segread(path)
    assert seg.SegmentationType == "BINARY"
    assert seg.SegmentsOverlap == "YES"
    assert np.unpackbits(np.frombuffer(seg.PixelData, np.uint8)).sum() == np.count_nonzero(array)
    with pytest.raises(WriteError, match="overlap"):
        medai.save(stacked, tmp_path / "no.dcm", kind="labelmap")


def test_an_enhanced_scan_is_referred_to_by_frame(tmp_path: Path, errors_of: Callable[[Path], list[str]]) -> None:
    scan = medai.open(get_testdata_file("eCT_Supplemental.dcm"))
    array = np.zeros(scan.shape, np.uint8)
    array[:, 100:200, 100:180] = 1
    path = medai.save(Mask(scan.replace(array=array), RUN, {1: "brain"}), tmp_path / "seg.dcm")
    assert errors_of(path) == []
    frames = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    found = {
        float(f.PlanePositionSequence[0].ImagePositionPatient[2]): int(
            f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        )
        for f in frames
    }
    assert found == {-159.0: 1, -149.0: 2}


def test_a_single_slice(tmp_path: Path, errors_of: Callable[[Path], list[str]]) -> None:
    scan = medai.open(get_testdata_file("CT_small.dcm"))
    array = np.zeros(scan.shape, np.uint8)
    array[20:40, 30:70] = 1
    path = medai.save(Mask(scan.replace(array=array), RUN, {1: "brain"}), tmp_path / "seg.dcm")
    assert errors_of(path) == []
    np.testing.assert_array_equal(np.squeeze(medai.open(path).numpy()), array)


def test_an_empty_mask_says_what_was_looked_for(
    tmp_path: Path, write_ct: Callable[..., Path], errors_of: Callable[[Path], list[str]]
) -> None:
    scan = medai.open(write_ct(tmp_path / "ct"))
    empty = Mask(scan.replace(array=np.zeros(scan.shape, np.uint8)), RUN, {1: "lesion"})
    path = medai.save(empty, tmp_path / "seg.dcm")
    assert errors_of(path) == []
    assert [s.SegmentLabel for s in pydicom.dcmread(path).SegmentSequence] == ["Background", "lesion"]
    with pytest.raises(WriteError, match="no names"):
        medai.save(replace(empty, names={}), tmp_path / "no.dcm")


def test_hundreds_of_instances_keep_their_numbers(tmp_path: Path, write_ct: Callable[..., Path]) -> None:
    scan = medai.open(write_ct(tmp_path / "ct"))
    array = np.arange(np.prod(scan.shape), dtype=np.uint16).reshape(scan.shape) % 701
    nuclei = Mask(scan.replace(array=array), replace(RUN, model="nuclei"))
    path = medai.save(nuclei, tmp_path / "seg.dcm")
    segments = pydicom.dcmread(path).SegmentSequence
    assert [s.SegmentNumber for s in segments] == list(range(701))
    assert segments[700].SegmentLabel == "nuclei 700"
    assert segments[700].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Nucleus"


def test_what_cannot_be_a_segmentation(tmp_path: Path, write_ct: Callable[..., Path]) -> None:
    scan = medai.open(write_ct(tmp_path / "ct"))
    mask = labels_on(scan)
    series = scan.replace(array=np.stack([mask.labels.numpy()] * 2), axes="tzyx")
    far = mask.labels.replace(affine=scaling((1, 1, 1), (5000, 0, 0)))
    other = mask.labels.replace(meta=dict(scan.meta) | {"frame_of_reference_uid": "1.2.3"})
    negative = mask.labels.replace(array=-mask.labels.numpy().astype(np.int16))
    for labels, message in (
        (series, "take"),
        (far, "outside of the scan"),
        (other, "another frame of reference"),
        (negative, "Labels from -5"),
    ):
        with pytest.raises(WriteError, match=message):
            medai.save(replace(mask, labels=labels), tmp_path / "seg.dcm")
    with pytest.raises(WriteError, match="options"):
        medai.save(mask, tmp_path / "seg.nii.gz", kind="binary")
    assert [p.name for p in tmp_path.iterdir()] == ["ct"]


def test_codes_are_of_the_dictionary() -> None:
    for category, table in _TABLES:
        for name, keyword in table.items():
            found = coded(name)
            assert found[0].meaning.replace(" ", "").lower() == category.lower()
            assert found[1].scheme_designator == "SCT", keyword
    assert coded("Nuclei")[1].value == "84640000"
    assert coded("kidney_right")[2].meaning == "Right"
    assert coded("splotch")[1].meaning == "Tissue"
