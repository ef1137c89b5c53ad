"""Brainchop's published models on its own head, at other angles, spacings and as DICOM."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy import ndimage

import napari_medai as medai
from napari_medai.core.geometry import Reorientation
from napari_medai.core.result import Mask
from napari_medai.core.volume import Volume
from napari_medai.models import Model, load, probe

FOLDER = Path(os.environ.get("MEDAI_MODELS_DIR", "nowhere")) / "brainchop"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not FOLDER.is_dir(), reason="MEDAI_MODELS_DIR names no folder that holds brainchop's models"),
]


@pytest.fixture(scope="module")
def head() -> Volume:
    """A conformed T1, 256 voxels of 1 mm a side."""
    volume = medai.open(FOLDER / "t1_crop.nii.gz")
    return volume.replace(array=volume.numpy(), modality="MR")


@pytest.fixture(scope="module")
def light() -> Model:
    return load(probe(FOLDER / "model5_gw_ae"))


@pytest.fixture(scope="module")
def upright(head: Volume, light: Model) -> Mask:
    return medai.segment(head, light, device="cpu")


def millilitres(mask: Mask) -> dict[str, float]:
    return dict(zip(mask.table["label"], mask.table["volume_ml"], strict=True))


def on_grid(head: Volume, affine: np.ndarray, shape: tuple[int, ...]) -> Volume:
    """The head as it would have been scanned on another grid: by cubic splines, which hardly blur."""
    through = np.linalg.solve(head.affine, affine)
    pixels = head.numpy().astype(np.float32)
    found = ndimage.affine_transform(pixels, through[:3, :3], through[:3, 3], shape, order=3, cval=0)
    return Volume(np.clip(found, 0, 255), "zyx", affine, units="mm", modality="MR")


def turned(head: Volume, about_x: float, about_z: float) -> np.ndarray:
    """The affine of the head's grid turned about its centre."""
    a, b = np.radians([about_x, about_z])
    first, second, there = np.eye(4), np.eye(4), np.eye(4)
    first[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    second[1:3, 1:3] = [[np.cos(b), -np.sin(b)], [np.sin(b), np.cos(b)]]
    there[:3, 3] = (head.affine @ np.r_[(np.array(head.shape) - 1) / 2, 1])[:3]
    return np.asarray(there @ first @ second @ np.linalg.inv(there) @ head.affine)


def same_volumes(found: Mask, upright: Mask) -> None:
    expected, measured = millilitres(upright), millilitres(found)
    assert measured == {name: pytest.approx(value, rel=0.02) for name, value in expected.items()}


def test_grey_and_white_matter(head: Volume, upright: Mask) -> None:
    volumes = millilitres(upright)
    assert set(volumes) == {"White Matter", "Grey Matter"}
    # an adult's: 400 to 650 ml of white and 550 to 850 ml of grey matter
    assert 480 < volumes["White Matter"] < 570
    assert 680 < volumes["Grey Matter"] < 770
    labels = upright.labels.numpy()
    intensity = [head.numpy()[labels == value].mean() for value in (2, 1)]
    assert intensity[1] > 1.2 * intensity[0]  # in T1 white matter is brighter
    assert upright.labels.shape == head.shape


def test_axes_in_another_order(head: Volume, light: Model, upright: Mask) -> None:
    found = medai.segment(head.reoriented(Reorientation((2, 0, 1), (True, False, True))), light, device="cpu")
    np.testing.assert_array_equal(found.labels.canonical().numpy(), upright.labels.canonical().numpy())


def test_an_oblique_scan(head: Volume, light: Model, upright: Mask) -> None:
    found = medai.segment(on_grid(head, turned(head, 20, 10), head.shape), light, device="cpu")
    same_volumes(found, upright)


def test_an_anisotropic_scan(head: Volume, light: Model, upright: Mask) -> None:
    grid = head.grid.resampled((1.2, 0.8, 0.8))
    same_volumes(medai.segment(on_grid(head, grid.affine, grid.shape), light, device="cpu"), upright)


def write_sagittal(head: Volume, folder: Path) -> None:
    """The head as a scanner stores it: sagittal slices from right to left, rows from above, twelve bits."""
    canonical = head.canonical()
    pixels, affine = canonical.numpy().astype(np.uint16) * 8, canonical.affine
    study, series, frame = (generate_uid() for _ in range(3))
    for n in range(pixels.shape[2]):
        z, y, x = (affine @ [pixels.shape[0] - 1, 0, n, 1])[:3]
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = MRImageStorage
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = generate_uid()
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.Modality, slice_.InstanceNumber, slice_.SeriesNumber = "MR", n + 1, 1
        slice_.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        slice_.ImagePositionPatient = [float(x), float(y), float(z)]
        slice_.PixelSpacing, slice_.SliceThickness = [1, 1], 1
        slice_.Rows, slice_.Columns = pixels.shape[:2]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 12, 11, 0
        slice_.PixelData = np.ascontiguousarray(pixels[::-1, :, n]).tobytes()
        slice_.save_as(folder / f"{n:03d}.dcm", enforce_file_format=True)


def test_as_dicom(head: Volume, light: Model, upright: Mask, tmp_path: Path) -> None:
    write_sagittal(head, tmp_path)
    scan = medai.open(tmp_path)
    assert (scan.modality, scan.shape) == ("MR", (256, 256, 256))
    found = medai.segment(scan, light, device="cpu")
    same_volumes(found, upright)
    differ = found.labels.canonical().numpy() != upright.labels.canonical().numpy()
    assert differ.mean() < 1e-4


def test_104_regions(head: Volume) -> None:
    model = load(probe(FOLDER / "model21_104class"))
    assert len(model.spec.gives.labels) == 103
    assert len({label.name for label in model.spec.gives.labels}) == 103
    found = medai.segment(head, model, device="cpu")
    volumes = millilitres(found)
    assert len(volumes) >= 100
    assert len(found.colors) == 103
    for side in ("Left", "Right"):
        assert 150 < volumes[f"{side}-Cerebral-White-Matter"] < 300
        assert 2.5 < volumes[f"{side}-Hippocampus"] < 6.5
    # left lies on the left of the patient, +x
    rows = dict(zip(found.table["label"], found.table["x_mm"], strict=True))
    assert rows["Left-Hippocampus"] > rows["Right-Hippocampus"] + 20
