"""Scans to measure on: a CT series, plain and compressed, the same as NIfTI, a dump of many series."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid


@dataclass(frozen=True)
class Files:
    """What is read: a folder or file, and the paths of all files in it."""

    place: Path
    paths: tuple[str, ...] = ()


def slice_pixels(n: int) -> NDArray[np.uint16]:
    """A blob in noise of 12 bits: as hard to compress as a CT."""
    y, x = np.mgrid[:512, :512]
    noise = np.random.default_rng(n).normal(0, 15, (512, 512))
    return np.clip(1024 + 900 * np.exp(-((y - 256) ** 2 + (x - 256 - n) ** 2) / 2e4) + noise, 0, 4095).astype("<u2")


def ct_slice(n: int, pixels: NDArray[np.uint16], uids: tuple[str, str, str]) -> Dataset:
    """A CT slice with the elements that scanners write."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = CTImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid()
    made.SpecificCharacterSet, made.ImageType = "ISO_IR 100", ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.StudyDate = made.SeriesDate = made.AcquisitionDate = made.ContentDate = "20200102"
    made.StudyTime = made.SeriesTime = "101500"
    made.AcquisitionTime = made.ContentTime = f"1016{n % 60:02}.{n:06}"
    made.Modality, made.Manufacturer, made.ManufacturerModelName = "CT", "Phantom", "Model"
    made.InstitutionName, made.StationName, made.StudyDescription = "Hospital", "CT1", "Chest"
    made.SeriesDescription, made.PatientName, made.PatientID = "Chest 1.0", "Phantom", "1"
    made.PatientBirthDate, made.PatientSex, made.PatientAge = "", "O", "050Y"
    made.BodyPartExamined, made.ScanOptions, made.SliceThickness, made.KVP = "CHEST", "HELICAL MODE", "1.0", "120"
    made.DataCollectionDiameter, made.ReconstructionDiameter, made.SoftwareVersions = "500", "400", "1"
    made.GantryDetectorTilt, made.TableHeight, made.RotationDirection = "0", "150.5", "CW"
    made.ExposureTime, made.XRayTubeCurrent, made.Exposure = "500", "200", "100"
    made.FilterType, made.ConvolutionKernel, made.PatientPosition = "BODY", "B30f", "HFS"
    made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = uids
    made.StudyID, made.SeriesNumber, made.AcquisitionNumber, made.InstanceNumber = "1", 2, 1, n + 1
    made.ImagePositionPatient, made.ImageOrientationPatient = [-199.5, -199.5, -300.0 + n], [1, 0, 0, 0, 1, 0]
    made.PositionReferenceIndicator, made.SliceLocation = "", -300.0 + n
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = pixels.shape
    made.PixelSpacing = [0.78125, 0.78125]
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.WindowCenter, made.WindowWidth = 40, 400
    made.RescaleIntercept, made.RescaleSlope, made.RescaleType = -1024, 1, "HU"
    made.PixelData = pixels.tobytes()
    return made


def make_ct(folder: Path, slices: int, compressed: bool = False) -> Files:
    """A series in files whose names say nothing of the order."""
    folder.mkdir()
    uids = (generate_uid(), generate_uid(), generate_uid())
    for n in np.random.default_rng(1).permutation(slices):
        made = ct_slice(int(n), slice_pixels(int(n)), uids)
        if compressed:
            made.compress(JPEG2000Lossless)
        made.save_as(folder / f"{made.SOPInstanceUID}.dcm", enforce_file_format=True)
    return Files(folder, tuple(sorted(os.fspath(p) for p in folder.iterdir())))


def make_nifti(path: Path, slices: int) -> Files:
    """The values of that series as a compressed NIfTI."""
    stack = np.stack([slice_pixels(n).astype(np.int16) - np.int16(1024) for n in range(slices)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(stack, np.diag([-0.78, -0.78, 1, 1])), path)
    return Files(path, (os.fspath(path),))


def make_dump(folder: Path, files: int) -> Files:
    """A flat dump: series of 200 slices, mixed, without extensions."""
    folder.mkdir()
    study, space = generate_uid(), generate_uid()
    series = [generate_uid() for _ in range(-(-files // 200))]
    pixels = slice_pixels(0)[200:264, 200:264]
    for n, k in enumerate(np.random.default_rng(2).permutation(files)):
        made = ct_slice(int(k) // len(series), pixels, (study, series[int(k) % len(series)], space))
        made.SeriesNumber = int(k) % len(series)
        made.save_as(folder / f"IM{n:06}", enforce_file_format=True)
    return Files(folder, tuple(os.fspath(folder / f"IM{n:06}") for n in range(files)))
