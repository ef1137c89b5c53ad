"""How fast scans are opened and read, beside the libraries that a lab would use instead.

``python -m benchmarks.io`` makes its own files in a temporary folder, reads them by each way in turn, several rounds
in one run, and prints the ratios of the medians. Every way gives pixels in memory, and they are compared: a way that
reads something else is not timed. Files come from the system's cache, so that the ways are measured, not the disk.

``--markdown`` prints the table for the documentation, ``--quick`` makes it a tenth as large.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

import napari_medai as medai

SLICES, FILES, ROUNDS = 300, 10_000, 5
Way = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One line of the table: seconds of each way, ours first."""

    work: str
    seconds: dict[str, float]
    goals: dict[str, float]
    """Ratio of ours to the way that is to be reached."""

    def lines(self) -> list[tuple[str, str, str, str, str]]:
        """Work, against, seconds, ratio, and what was to be reached."""
        ours = self.seconds["napari-medai"]
        made = [(self.work, "napari-medai", f"{ours:.3f}", "", "")]
        for way, seconds in self.seconds.items():
            if way != "napari-medai":
                goal = self.goals.get(way)
                reached = "" if goal is None else f"<= {goal:.2f} {'reached' if ours / seconds <= goal else 'missed'}"
                made.append(("", way, f"{seconds:.3f}", f"{ours / seconds:.2f}", reached))
        return made


def timed(ways: dict[str, Way], rounds: int) -> dict[str, float]:
    """Median seconds of each way; the ways take turns, so that a busy moment meets all of them."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for n in range(rounds + 1):
        for name, way in ways.items():
            forget()
            start = time.perf_counter()
            kept = way()
            seconds = time.perf_counter() - start
            if n:  # the first round fills caches of the system and imports
                taken[name].append(seconds)
            del kept
    return {name: statistics.median(all_of) for name, all_of in taken.items()}


def forget() -> None:
    """Empty what the process remembers of files, so that each round starts anew."""
    from napari_medai.io import lazy
    from napari_medai.io.dicom import headers

    headers._read_header.cache_clear()
    lazy.CACHE.clear()
    gc.collect()


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


def make_ct(folder: Path, slices: int, compressed: bool = False) -> list[str]:
    """A series in files whose names say nothing of the order."""
    folder.mkdir()
    uids = (generate_uid(), generate_uid(), generate_uid())
    for n in np.random.default_rng(1).permutation(slices):
        made = ct_slice(int(n), slice_pixels(int(n)), uids)
        if compressed:
            made.compress(JPEG2000Lossless)
        made.save_as(folder / f"{made.SOPInstanceUID}.dcm", enforce_file_format=True)
    return sorted(os.fspath(p) for p in folder.iterdir())


def make_dump(folder: Path, files: int) -> list[str]:
    """A flat dump: series of 200 slices, mixed, without extensions."""
    folder.mkdir()
    study, space = generate_uid(), generate_uid()
    series = [generate_uid() for _ in range(-(-files // 200))]
    pixels = slice_pixels(0)[200:264, 200:264]
    for n, k in enumerate(np.random.default_rng(2).permutation(files)):
        made = ct_slice(int(k) // len(series), pixels, (study, series[int(k) % len(series)], space))
        made.SeriesNumber = int(k) % len(series)
        made.save_as(folder / f"IM{n:06}", enforce_file_format=True)
    return [os.fspath(folder / f"IM{n:06}") for n in range(files)]


def hounsfield(dataset: Dataset) -> NDArray[np.int16]:
    """Values of a slice as pydicom's documentation reads them."""
    pixels = dataset.pixel_array.astype(np.int16)
    pixels *= np.int16(dataset.RescaleSlope)
    pixels += np.int16(dataset.RescaleIntercept)
    return pixels


def through_pydicom(paths: list[str]) -> NDArray[np.int16]:
    """Read, sort and stack."""
    found = sorted((pydicom.dcmread(p) for p in paths), key=lambda d: float(d.ImagePositionPatient[2]))
    return np.stack([hounsfield(one) for one in found])


def through_simpleitk(folder: Path) -> Any:
    """ImageSeriesReader; the image, which holds the pixels."""
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(os.fspath(folder)))
    return reader.Execute()


def through_highdicom(paths: list[str]) -> NDArray[Any]:
    """get_volume_from_series."""
    from highdicom import get_volume_from_series

    array: NDArray[Any] = get_volume_from_series([pydicom.dcmread(p) for p in paths]).array
    return array


def through_dcm2niix(program: str, folder: Path) -> NDArray[Any]:
    """To an uncompressed NIfTI, and that into memory."""
    with tempfile.TemporaryDirectory() as out:
        command = [program, "-z", "n", "-b", "n", "-f", "x", "-o", out, os.fspath(folder)]
        subprocess.run(command, check=True, capture_output=True)
        return np.array(nibabel.load(Path(out) / "x.nii").dataobj).transpose(2, 1, 0)


def raw_bytes(paths: list[str]) -> list[bytes]:
    """All bytes of all files, in memory."""
    return [Path(p).read_bytes() for p in paths]


def first_bytes(paths: list[str]) -> list[bytes]:
    """The first 4 KiB of each file."""
    found = []
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            found.append(file.read(4096))
    return found


def same(ways: dict[str, Way], mirrored: tuple[str, ...] = ()) -> None:
    """Check that all ways give the same values.

    Raises
    ------
    SystemExit
        They do not.
    """
    wanted = ways["napari-medai"]()
    for name, way in ways.items():
        got = _pixels(way())
        turned = [got, got[:, ::-1], *((got[::-1], got[::-1, ::-1]) if name in mirrored else ())]
        if not any(v.shape == wanted.shape and np.array_equal(v, wanted) for v in turned):
            sys.exit(f"{name} reads other values; nothing was timed.")


def table_of(folder: Path, slices: int, files: int, rounds: int) -> list[Row]:
    """All measurements."""
    rows = []
    paths = make_ct(folder / "ct", slices)
    dcm2niix = shutil.which("dcm2niix", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    ours = {"napari-medai": lambda: medai.open(folder / "ct").numpy()}
    peers: dict[str, Way] = {
        "pydicom": lambda: through_pydicom(paths),
        "SimpleITK": lambda: through_simpleitk(folder / "ct"),
        "highdicom": lambda: through_highdicom(paths),
    }
    if dcm2niix:
        peers["dcm2niix"] = lambda: through_dcm2niix(dcm2niix, folder / "ct")
    same(ours | peers, ("dcm2niix", "highdicom"))
    raw: dict[str, Way] = {"raw bytes": lambda: raw_bytes(paths)}
    goals = {"raw bytes": 1.5, "pydicom": 1.0, "SimpleITK": 1.0, "highdicom": 1.0, "dcm2niix": 1.0}
    title = f"CT, {slices} slices of 512 x 512, uncompressed: all of it"
    rows.append(Row(title, timed(ours | raw | peers, rounds), goals))

    first = {"napari-medai": lambda: np.asarray(medai.open(folder / "ct").array[slices // 2])}
    rows.append(Row("the same: from the call to the first slice", timed(first | raw, rounds), {}))
    shutil.rmtree(folder / "ct")

    few = max(10, slices // 10)
    packed = make_ct(folder / "j2k", few, compressed=True)
    ways: dict[str, Way] = {
        "napari-medai": lambda: medai.open(folder / "j2k").numpy(),
        "pydicom": lambda: through_pydicom(packed),
    }
    same(ways)
    rows.append(Row(f"CT, {few} slices, JPEG 2000 lossless", timed(ways, rounds), {"pydicom": 1 / 1.7}))
    shutil.rmtree(folder / "j2k")

    nifti = folder / "ct.nii.gz"
    stack = np.stack([slice_pixels(n).astype(np.int16) - np.int16(1024) for n in range(slices)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(stack, np.diag([-0.78, -0.78, 1, 1])), nifti)
    ways = {
        "napari-medai": lambda: medai.open(nifti).numpy(),
        "nibabel": lambda: np.asanyarray(nibabel.load(nifti).dataobj).transpose(2, 1, 0),
        "SimpleITK": lambda: _itk_image(nifti),
    }
    same(ways)
    rows.append(Row(f"the same as .nii.gz, {nifti.stat().st_size >> 20} MiB", timed(ways, rounds), {"nibabel": 0.5}))
    nifti.unlink()

    dump = make_dump(folder / "dump", files)
    ways = {
        "napari-medai": lambda: medai.list_series(folder / "dump"),
        "the first 4 KiB of each": lambda: first_bytes(dump),
    }
    found = ways["napari-medai"]()
    if sum(s.files for s in found) != files:
        sys.exit(f"{sum(s.files for s in found)} of {files} files were listed; nothing was timed.")
    goals = {"the first 4 KiB of each": 2.0}
    rows.append(Row(f"a dump of {files} files in {len(found)} series: listed", timed(ways, rounds), goals))
    return rows


def _itk_image(path: Path) -> Any:
    import SimpleITK

    return SimpleITK.ReadImage(os.fspath(path))


def _pixels(found: Any) -> NDArray[Any]:
    if isinstance(found, np.ndarray):
        return found
    import SimpleITK

    return np.asarray(SimpleITK.GetArrayFromImage(found))


def machine() -> str:
    """What the figures were measured on."""
    processor = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total >> 30
    load = os.getloadavg()[0]
    return (
        f"{processor}, {cores} cores, {memory} GiB, {platform.system()}, Python {platform.python_version()}; "
        f"load before the run {load:.1f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    part = 10 if given.quick else 1
    said = machine()
    with tempfile.TemporaryDirectory() as folder:
        rows = table_of(Path(folder), SLICES // part, FILES // part, given.rounds)
    heads = ("work", "way", "seconds (median)", "ours / theirs", "to reach")
    lines = [line for row in rows for line in row.lines()]
    if given.markdown:
        print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
        print("\n".join("| " + " | ".join(line) + " |" for line in lines))
    else:
        widths = [max(len(line[n]) for line in (heads, *lines)) for n in range(len(heads))]
        for line in (heads, *lines):
            print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    print(f"\n{said}")


if __name__ == "__main__":
    main()
