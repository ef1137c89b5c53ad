"""How fast scans are opened and read, beside the libraries that a lab would use instead.

``python -m benchmarks.io`` makes its own files in a temporary folder, reads them by each way in turn, several rounds
in one run, and prints the ratios of the medians. Every way gives pixels in memory, and they are compared: a way that
reads something else is not timed. Files come from the system's cache, so that the ways are measured, not the disk.

A scan is opened once in a process: each way runs in a process of its own in every round, which has done its imports
and read a few small files of the same kind before the clock starts. In one process for all, the ways would fill memory
that another one has left, or not, and raw bytes would be read again and again into the same few pages. What a
second reading in the same process takes is printed beside it. All keep what they read until the clock has stopped.

Before the clock starts half a gigabyte is filled and given back to the system: a virtual machine may have handed its
free memory to its host, and waits for it longer than a scan takes to read. ``--memory-as-found`` leaves that out.

``--markdown`` prints the table for the documentation, ``--quick`` makes it a tenth as large; ``ct``, ``jpeg2000``,
``nifti`` or ``dump`` measures only that.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import psutil
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

import napari_medai as medai
from benchmarks.scans import Files, make_ct, make_dump, make_nifti

SLICES, FILES, ROUNDS = 300, 10_000, 5
OURS = "napari-medai"
MEMORY_BYTES = 1 << 29


Way = Callable[[Files], Any]


class Seconds(NamedTuple):
    """Of a first reading in a process, and of a second one in the same process."""

    first: float
    again: float


@dataclass(frozen=True)
class Row:
    """One line of the table: seconds of each way, ours first."""

    work: str
    seconds: Mapping[str, Seconds]
    goals: Mapping[str, float]
    """Ratio of ours to the way that is to be reached by a first reading."""

    def lines(self) -> list[tuple[str, ...]]:
        """Work, way, seconds, ratio, what was to be reached; seconds and ratio of a second reading."""
        ours = self.seconds[OURS]
        made = [(self.work, OURS, f"{ours.first:.3f}", "", "", f"{ours.again:.3f}", "")]
        for way, found in self.seconds.items():
            if way == OURS:
                continue
            ratio, again = ours.first / found.first, ours.again / found.again
            goal = self.goals.get(way)
            reached = "" if goal is None else f"<= {goal:.2f} {'reached' if ratio <= goal else 'missed'}"
            made.append(("", way, f"{found.first:.3f}", f"{ratio:.2f}", reached, f"{found.again:.3f}", f"{again:.2f}"))
        return made


HEADS = ("work", "way", "seconds (median)", "ours / theirs", "to reach", "again in one process", "ours / theirs")


@dataclass(frozen=True)
class Clock:
    """How ways are timed."""

    rounds: int
    fills_memory: bool

    def timed(self, ways: Mapping[str, Way], files: Files, small: Files) -> dict[str, Seconds]:
        """Median seconds of each way; the ways take turns, so that a busy moment meets all of them.

        Parameters
        ----------
        ways : mapping
            Functions that a new process can import.
        files : Files
            What is read while the clock runs.
        small : Files
            A little of the same kind, read before.
        """
        taken: dict[str, list[Seconds]] = {name: [] for name in ways}
        for _ in range(self.rounds):
            for name, way in ways.items():
                taken[name].append(self._in_a_process(way, files, small))
        return {name: Seconds(*(statistics.median(part) for part in zip(*all_of, strict=True)))
                for name, all_of in taken.items()}  # fmt: skip

    def _in_a_process(self, way: Way, files: Files, small: Files) -> Seconds:
        spawning = multiprocessing.get_context("spawn")
        here, there = spawning.Pipe(duplex=False)
        process = spawning.Process(target=_read_twice, args=(way, files, small, self.fills_memory, there))
        process.start()
        there.close()
        try:
            found: Seconds = here.recv()
        except EOFError:
            sys.exit("A process that was timed ended before it had read anything.")
        finally:
            process.join()
        return found


def _read_twice(way: Way, files: Files, small: Files, fills_memory: bool, answers: Any) -> None:
    way(small)
    taken = []
    for _ in range(2):
        forget()
        if fills_memory and not taken:
            np.ones(min(MEMORY_BYTES, psutil.virtual_memory().available // 4), np.uint8)
        start = time.perf_counter()
        kept = way(files)
        taken.append(time.perf_counter() - start)
        del kept
    answers.send(Seconds(*taken))


def forget() -> None:
    """Empty what the process remembers of files, so that a second reading starts anew."""
    from napari_medai.io import lazy
    from napari_medai.io.dicom import headers

    headers._read_header.cache_clear()
    lazy.CACHE.clear()
    gc.collect()


def through_medai(files: Files) -> NDArray[Any]:
    """All pixels."""
    return medai.open(files.place).numpy()


def first_slice(files: Files) -> NDArray[Any]:
    """What a viewer shows first: the slice in the middle."""
    array = medai.open(files.place).array
    return np.asarray(array[len(array) // 2])


def listed(files: Files) -> Any:
    """The series of a folder."""
    return medai.list_series(files.place)


def hounsfield(dataset: Dataset) -> NDArray[np.int16]:
    """Values of a slice as pydicom's documentation reads them."""
    pixels = dataset.pixel_array.astype(np.int16)
    pixels *= np.int16(dataset.RescaleSlope)
    pixels += np.int16(dataset.RescaleIntercept)
    return pixels


def through_pydicom(files: Files, plugin: str = "") -> NDArray[np.int16]:
    """Read, sort and stack."""
    found = sorted((pydicom.dcmread(p) for p in files.paths), key=lambda d: float(d.ImagePositionPatient[2]))
    if plugin:
        for one in found:
            one.pixel_array_options(decoding_plugin=plugin)
    return np.stack([hounsfield(one) for one in found])


def through_gdcm(files: Files) -> NDArray[np.int16]:
    """pydicom with its first choice, where it is installed."""
    return through_pydicom(files, "gdcm")


def through_openjpeg(files: Files) -> NDArray[np.int16]:
    """pydicom with pylibjpeg-openjpeg, which is no part of GDCM and works on one thread."""
    return through_pydicom(files, "pylibjpeg")


def through_simpleitk(files: Files) -> Any:
    """ImageSeriesReader; the image, which holds the pixels."""
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(os.fspath(files.place)))
    return reader.Execute()


def through_highdicom(files: Files) -> NDArray[Any]:
    """get_volume_from_series."""
    from highdicom import get_volume_from_series

    array: NDArray[Any] = get_volume_from_series([pydicom.dcmread(p) for p in files.paths]).array
    return array


def dcm2niix() -> str | None:
    """The program."""
    return shutil.which("dcm2niix", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")


def through_dcm2niix(files: Files) -> NDArray[Any]:
    """To an uncompressed NIfTI, and that into memory."""
    program = dcm2niix()
    assert program is not None
    with tempfile.TemporaryDirectory() as out:
        command = [program, "-z", "n", "-b", "n", "-f", "x", "-o", out, os.fspath(files.place)]
        subprocess.run(command, check=True, capture_output=True)
        return np.array(np.asanyarray(nibabel.load(Path(out) / "x.nii").dataobj)).transpose(2, 1, 0)


def through_nibabel(files: Files) -> NDArray[Any]:
    """As its documentation reads."""
    return np.asanyarray(nibabel.load(files.place).dataobj).transpose(2, 1, 0)


def itk_image(files: Files) -> Any:
    """ReadImage."""
    import SimpleITK

    return SimpleITK.ReadImage(os.fspath(files.place))


def raw_bytes(files: Files) -> list[bytes]:
    """All bytes of all files, in memory."""
    return [Path(p).read_bytes() for p in files.paths]


def first_bytes(files: Files) -> list[bytes]:
    """The first 4 KiB of each file."""
    found = []
    for path in files.paths:
        with open(path, "rb", buffering=0) as file:
            found.append(file.read(4096))
    return found


def same(ways: Mapping[str, Way], files: Files, mirrored: tuple[str, ...] = ()) -> None:
    """Check that all ways give the same values.

    Raises
    ------
    SystemExit
        They do not.
    """
    wanted = ways[OURS](files)
    for name, way in ways.items():
        got = _pixels(way(files))
        turned = [got, got[:, ::-1], *((got[::-1], got[::-1, ::-1]) if name in mirrored else ())]
        if not any(v.shape == wanted.shape and np.array_equal(v, wanted) for v in turned):
            sys.exit(f"{name} reads other values; nothing was timed.")


def of_ct(folder: Path, slices: int, clock: Clock) -> Iterator[Row]:
    """A series that is not compressed: all of it, and its first slice."""
    ct, few = make_ct(folder / "ct", slices), make_ct(folder / "few-ct", 3)
    ways: dict[str, Way] = {
        OURS: through_medai,
        "pydicom": through_pydicom,
        "SimpleITK": through_simpleitk,
        "highdicom": through_highdicom,
    }
    if dcm2niix():
        ways["dcm2niix"] = through_dcm2niix
    same(ways, ct, ("dcm2niix", "highdicom"))
    goals = {"raw bytes": 1.5} | dict.fromkeys(ways, 1.0)
    title = f"CT, {slices} slices of 512 x 512, uncompressed: all of it"
    yield Row(title, clock.timed({OURS: through_medai, "raw bytes": raw_bytes} | ways, ct, few), goals)
    ways = {OURS: first_slice, "raw bytes": raw_bytes}
    yield Row("the same: from the call to the first slice", clock.timed(ways, ct, few), {})


def of_compressed_ct(folder: Path, slices: int, clock: Clock) -> Iterator[Row]:
    """JPEG 2000, beside both of pydicom's decoders; GDCM decodes one slice on all cores."""
    count = max(10, slices // 10)
    ct, few = (make_ct(folder / f"j2k-{n}", n, compressed=True) for n in (count, 3))
    ways: dict[str, Way] = {
        OURS: through_medai,
        "pydicom, by GDCM": through_gdcm,
        "pydicom, by OpenJPEG": through_openjpeg,
    }
    same(ways, ct)
    yield Row(f"CT, {count} slices, JPEG 2000 lossless", clock.timed(ways, ct, few), {"pydicom, by GDCM": 1 / 1.7})


def of_nifti(folder: Path, slices: int, clock: Clock) -> Iterator[Row]:
    """A compressed NIfTI."""
    nifti, few = make_nifti(folder / "ct.nii.gz", slices), make_nifti(folder / "few.nii.gz", 3)
    ways: dict[str, Way] = {OURS: through_medai, "nibabel": through_nibabel, "SimpleITK": itk_image}
    same(ways, nifti)
    title = f"CT as .nii.gz, {nifti.place.stat().st_size >> 20} MiB"
    yield Row(title, clock.timed(ways, nifti, few), {"nibabel": 0.5})


def of_dump(folder: Path, files: int, clock: Clock) -> Iterator[Row]:
    """A folder of many series."""
    dump, few = make_dump(folder / "dump", files), make_dump(folder / "few-dump", 20)
    found = listed(dump)
    if sum(s.files for s in found) != files:
        sys.exit(f"{sum(s.files for s in found)} of {files} files were listed; nothing was timed.")
    ways: dict[str, Way] = {OURS: listed, "the first 4 KiB of each": first_bytes}
    title = f"a dump of {files} files in {len(found)} series: listed"
    yield Row(title, clock.timed(ways, dump, few), {"the first 4 KiB of each": 2.0})


# measurement and its size: slices, or files
PARTS: Mapping[str, tuple[Callable[[Path, int, Clock], Iterator[Row]], int]] = {
    "ct": (of_ct, SLICES),
    "jpeg2000": (of_compressed_ct, SLICES),
    "nifti": (of_nifti, SLICES),
    "dump": (of_dump, FILES),
}


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
    parser.add_argument("--memory-as-found", action="store_true")
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}; all without any")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"{', '.join(unknown)}: nothing of that name is measured")
    part = 10 if given.quick else 1
    said = machine()
    clock = Clock(given.rounds, fills_memory=not given.memory_as_found)
    lines = []
    for name in given.parts:
        measure, size = PARTS[name]
        with tempfile.TemporaryDirectory() as folder:
            for row in measure(Path(folder), size // part, clock):
                lines += row.lines()
                print(f"{name}: measured", file=sys.stderr)
    if given.markdown:
        print("| " + " | ".join(HEADS) + " |\n|" + "---|" * len(HEADS))
        print("\n".join("| " + " | ".join(line) + " |" for line in lines))
    else:
        widths = [max(len(line[n]) for line in (HEADS, *lines)) for n in range(len(HEADS))]
        for line in (HEADS, *lines):
            print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    print(f"\n{said}")


if __name__ == "__main__":
    main()
