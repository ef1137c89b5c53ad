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
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def _errors_of(path: Path) -> list[str]:
    """What dciodvfy calls an error."""
    program = shutil.which("dciodvfy") or str(Path(sys.executable).with_name("dciodvfy"))
    done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    return [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("Error")]


def _write_ct(folder: Path, way: tuple[float, ...] = (1, 0, 0, 0, 1, 0), count: int = 6, patient: str = "A") -> Path:
    """A CT of 20 x 16 pixels of 1.5 x 2 mm, slices of 4 mm, with every module that a CT has to have."""
    folder.mkdir(parents=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    normal = np.cross(way[:3], way[3:])
    for n in range(count):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
            CTImageStorage,
            ds.SOPInstanceUID,
        )
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = f"{patient}^Test", patient, "19700101", "O"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20200101", "120000", "1", ""
        ds.ReferringPhysicianName = ds.PositionReferenceIndicator = ds.PatientPosition = ""
        ds.Modality, ds.SeriesNumber, ds.InstanceNumber, ds.Manufacturer = "CT", 3, n + 1, "none"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.ImageOrientationPatient = list(way)
        ds.ImagePositionPatient = [round(float(v), 6) for v in (-10.0, 20.0, 30.0) + 4.0 * n * normal]
        ds.PixelSpacing, ds.SliceThickness, ds.SpacingBetweenSlices = [1.5, 2.0], 4.0, 4.0
        ds.RescaleIntercept, ds.RescaleSlope, ds.KVP, ds.AcquisitionNumber = -1024, 1, "", 1
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
        ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 20, 16, 16, 12, 11
        ds.PixelData = np.full((20, 16), 1000 + n, np.uint16).tobytes()
        ds.save_as(folder / f"{n}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture
def errors_of() -> Callable[[Path], list[str]]:
    """``errors_of(path)`` -> what dciodvfy calls an error."""
    return _errors_of


@pytest.fixture
def write_ct() -> Callable[..., Path]:
    """``write_ct(folder, way, count, patient)`` -> the folder with a series of 20 x 16 pixels, 1.5 x 2 x 4 mm."""
    return _write_ct
