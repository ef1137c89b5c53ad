"""Scans with every module that a CT has to have, and dciodvfy's opinion."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from napari_medai.core.volume import Volume


def _errors_of(path: Path) -> list[str]:
    """What dciodvfy calls an error."""
    program = shutil.which("dciodvfy") or str(Path(sys.executable).with_name("dciodvfy"))
    done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    return [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("Error")]


def _blank(study: UID, series: UID, frame: UID, kind: UID) -> Dataset:
    """A slice with the patient, study, series, equipment and pixel modules of type 1 and 2, without place or pixels."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = kind, generate_uid()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = kind, ds.SOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20200101", "120000", "1", ""
    ds.ReferringPhysicianName = ds.PositionReferenceIndicator = ds.PatientPosition = ""
    ds.SeriesNumber, ds.Manufacturer, ds.AcquisitionNumber = 3, "none", 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    return ds


def _write_ct(folder: Path, way: tuple[float, ...] = (1, 0, 0, 0, 1, 0), count: int = 6, patient: str = "A") -> Path:
    """A CT of 20 x 16 pixels of 1.5 x 2 mm, slices of 4 mm, with every module that a CT has to have."""
    folder.mkdir(parents=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    normal = np.cross(way[:3], way[3:])
    for n in range(count):
        ds = _blank(study, series, frame, CTImageStorage)
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = f"{patient}^Test", patient, "19700101", "O"
        ds.Modality, ds.InstanceNumber = "CT", n + 1
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.ImageOrientationPatient = list(way)
        ds.ImagePositionPatient = [round(float(v), 6) for v in (-10.0, 20.0, 30.0) + 4.0 * n * normal]
        ds.PixelSpacing, ds.SliceThickness, ds.SpacingBetweenSlices = [1.5, 2.0], 4.0, 4.0
        ds.RescaleIntercept, ds.RescaleSlope, ds.KVP = -1024, 1, ""
        ds.Rows, ds.Columns = 20, 16
        ds.PixelData = np.full((20, 16), 1000 + n, np.uint16).tobytes()
        ds.save_as(folder / f"{n}.dcm", enforce_file_format=True)
    return folder


def _write_mr(folder: Path, image: Volume) -> Path:
    """The slices of a volume as classic MR images, in files that are named and numbered from the last to the first."""
    folder.mkdir(parents=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    step, down, across = (round(v, 6) for v in image.spacing)
    columns = image.affine[::-1, [2, 1, 0, 3]][1:]  # of x, y, z, towards the right, downwards, to the next slice
    for n, plane in enumerate(image.numpy().astype(np.uint16)):
        ds = _blank(study, series, frame, MRImageStorage)
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Head^Test", "H", "19700101", "O"
        ds.Modality, ds.BodyPartExamined, ds.InstanceNumber = "MR", "HEAD", image.size("z") - n
        ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
        ds.ImageOrientationPatient = [f"{v:.10f}" for v in (*(columns[:, 0] / across), *(columns[:, 1] / down))]
        ds.ImagePositionPatient = [f"{v:.8f}" for v in columns[:, 3] + n * columns[:, 2]]
        ds.PixelSpacing, ds.SliceThickness, ds.SpacingBetweenSlices = [down, across], step, step
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "GR", "NONE", "", "3D"
        ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength = 20, 5, 1
        ds.Rows, ds.Columns = plane.shape
        ds.PixelData = plane.tobytes()
        ds.save_as(folder / f"{image.size('z') - n:04}", enforce_file_format=True)
    return folder


@pytest.fixture
def errors_of() -> Callable[[Path], list[str]]:
    """``errors_of(path)`` -> what dciodvfy calls an error."""
    return _errors_of


@pytest.fixture
def write_ct() -> Callable[..., Path]:
    """``write_ct(folder, way, count, patient)`` -> the folder with a series of 20 x 16 pixels, 1.5 x 2 x 4 mm."""
    return _write_ct


@pytest.fixture
def write_mr() -> Callable[[Path, Volume], Path]:
    """``write_mr(folder, volume)`` -> the folder with its slices as classic MR images."""
    return _write_mr
