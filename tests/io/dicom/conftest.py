"""DICOM files written for the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

PATIENT = "Doe^Jane"


def dataset(pixels: np.ndarray | None, syntax: str = ExplicitVRLittleEndian, **fields: Any) -> Dataset:
    """A data set like a CT slice's; every field can be replaced, and None takes it away."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = generate_uid()
    ds.Modality = "CT"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = PATIENT, "ID-4711", "19610101"
    ds.SeriesInstanceUID = "1.2.3.4"
    ds.SeriesNumber, ds.SeriesDescription, ds.InstanceNumber = 7, "Chest 1.0", 1
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [0.5, 0.5]
    if pixels is not None:
        ds.SamplesPerPixel = 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.Rows, ds.Columns = pixels.shape[-2:]
        ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
        ds.HighBit = ds.BitsStored - 1
        ds.PixelRepresentation = int(pixels.dtype.kind == "i")
        ds.PixelData = pixels.tobytes()
        ds["PixelData"].VR = "OW"
    for keyword, value in fields.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", CTImageStorage)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """``write("a.dcm", pixels, **fields)`` -> path of a new file below tmp_path."""

    def written(name: str, pixels: np.ndarray | None = None, **fields: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset(pixels, **fields).save_as(path, enforce_file_format=True)
        return path

    return written


@pytest.fixture
def write_stack(write: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """``write_stack("folder", [z, …], **fields)`` -> folder with a slice at each z; all pixels of slice n are n."""

    def written(folder: str, levels: list[float], **fields: Any) -> Path:
        for n, z in enumerate(levels):
            pixels = np.full((4, 6), n, np.uint16)
            # names and instance numbers run against the positions
            values = {"ImagePositionPatient": [-10, -20, z], "InstanceNumber": 100 - n, **fields}
            write(f"{folder}/{99 - n}.dcm", pixels, **values)
        return tmp_path / folder

    return written
