"""DICOM images read back plane by plane with pydicom alone, and compared with what was saved.

The reader shares no code with the writers and none with what `napari_medai.open` uses. It knows Parametric Maps,
enhanced images and series of classic ones.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import ReadError, UnsupportedFormatError, WriteError
from napari_medai.core.geometry import SAME_PLACE_MM, Affine, Grid, index_to_world, world_to_index
from napari_medai.core.volume import Volume
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly

_GREY = ("MONOCHROME1", "MONOCHROME2")
# Two planes nearer than this lie at one place: positions are text of 16 characters.
_SAME_PLACE_DIGITS = 2
ELSEWHERE = "its voxels lie elsewhere"
OTHER_VALUES = "its values are other ones"

Row = tuple[str, bool, str]


@dataclass(frozen=True, eq=False)
class Plane:
    """Where a plane lies and what its stored values mean.

    Attributes
    ----------
    affine : (4, 4) array or None
        Index (0, j, i) -> world (z, y, x) in mm; None if the header does not say.
    t : int
        How many planes before it lie at the same place.
    slope, intercept : float
        Value = slope * stored + intercept.
    step : float
        Distance of neighbouring values that can be stored; 0 for floats.
    """

    affine: Affine | None
    t: int
    slope: float
    intercept: float
    step: float


class Planes:
    """The planes of a DICOM file, or of the files in a folder in the order of their instance numbers.

    Parameters
    ----------
    path : Path
        File or folder.

    Raises
    ------
    ReadError
        pydicom cannot read it.
    UnsupportedFormatError
        It is no image in grey values or RGB.
    """

    by = "pydicom"

    def __init__(self, path: Path) -> None:
        self._files: list[Path] = []
        self.planes: list[Plane] = []
        found = [(file, _header(file)) for file in files_of(path)]
        found.sort(key=lambda pair: (int(pair[1].get("InstanceNumber") or 0), pair[0].name))
        seen: Counter[tuple[float, ...]] = Counter()
        for file, header in found:
            self._files.append(file)
            for affine, slope, intercept, step in _frames(file, header):
                place = () if affine is None else tuple(np.round(affine[:3, 3], _SAME_PLACE_DIGITS))
                self.planes.append(Plane(affine, seen[place] if place else 0, slope, intercept, step))
                seen[place] += 1

    def values(self) -> Iterator[NDArray[Any]]:
        """Values (j, i), or (j, i, 3) in colour, of each of ``planes``."""
        from pydicom.pixels import iter_pixels

        planes = iter(self.planes)
        for file in self._files:
            with quietly():
                try:
                    for stored in iter_pixels(file):
                        plane = next(planes)
                        exact = (plane.slope, plane.intercept) == (1.0, 0.0)
                        yield stored if exact else stored.astype(np.float64) * plane.slope + plane.intercept
                except (OSError, StopIteration, *BROKEN_FILE) as error:
                    raise ReadError(f"pydicom cannot read the pixels: {type(error).__name__}.") from error


def files_of(path: Path) -> list[Path]:
    """A file itself, or the DICOM files of a folder by name."""
    if path.is_file():
        return [path]
    from napari_medai.io.dicom.headers import looks_like_dicom

    found = []
    for file in sorted(path.iterdir()):
        if file.is_file():
            with file.open("rb") as opened:
                found += [file] if looks_like_dicom(opened.read(132)) else []
    return found


def verify_images(path: Path, expected: Volume | None) -> list[Row]:
    """Compare a DICOM image with what was saved, or what two readers make of it.

    Parameters
    ----------
    path : Path
        A file of one or several frames, or a folder with the files of one series.
    expected : Volume, optional
        What was saved.

    Returns
    -------
    list of (question, answer, detail)
        Each plane's place, to `SAME_PLACE_MM`, and each value, to the rounding that the file itself declares.

    Raises
    ------
    ReadError
        It cannot be read; `UnsupportedFormatError` if pydicom's reader does not know its kind.
    """
    from napari_medai.io import open as open_volume

    with _alone(path) as there:
        planes = Planes(there)
        opened = open_volume(there)
        if expected is None:
            if "t" in opened.axes or not _placed(planes):
                return []  # readers count time points, and planes without a place, as they like
            return [_row("readers agree on the image", same_planes(opened, planes))]
        expected = expected.replace(array=expected.numpy())
        rows = []
        if _placed(planes) or len(planes.planes) == 1:
            rows.append(_row("image as read by pydicom", same_planes(expected, planes)))
        step = max((plane.step for plane in planes.planes), default=0.0)
        return [*rows, _row("image as read by napari-medai", same_volume(expected, opened, step))]


def _row(what: str, fault: str) -> Row:
    return what, not fault, fault


def _placed(planes: Planes) -> bool:
    return all(plane.affine is not None for plane in planes.planes)


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """A file in a folder of its own: readers open what lies beside it with it."""
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="medai-") as folder:
        there = Path(folder) / path.name
        try:
            there.symlink_to(path.resolve())
        except OSError:  # Windows lets few people make links
            there.write_bytes(path.read_bytes())
        yield there


def same_planes(expected: Volume, planes: Planes) -> str:
    """What is not the same of a volume and planes; empty if nothing differs.

    A single plane without a place is compared by its values alone.
    """
    array = _as_tzyx(expected)
    grid = Grid((array.shape[1], array.shape[2], array.shape[3]), expected.affine, expected.units)
    allowed = None if all(p.affine is None for p in planes.planes) else _tolerance_mm(expected, planes)
    seen: set[tuple[int, int, int]] = set()
    for plane, values in zip(planes.planes, planes.values(), strict=True):
        if plane.affine is None:
            truth = array[0, 0]
        else:
            found = _slice_of(grid, plane, values.shape[:2], allowed or SAME_PLACE_MM)
            if found is None or plane.t >= array.shape[0] or (plane.t, *found[:2]) in seen:
                return ELSEWHERE
            axis, number, order = found
            seen.add((plane.t, axis, number))
            truth = np.take(array[plane.t], number, axis)
            truth = truth.transpose(*order[0], *range(2, truth.ndim))[tuple(slice(None, None, s) for s in order[1])]
        if truth.shape != values.shape or not _close(truth, values, plane.step):
            return OTHER_VALUES
    wanted = {array.shape[0] * grid.shape[axis] for _, axis, _ in seen} or {1}
    return "" if wanted == {len(planes.planes)} else f"{len(planes.planes)} planes instead of {max(wanted)}"


def same_volume(expected: Volume, opened: Volume, step: float) -> str:
    """What is not the same of two volumes, of which one was rounded to ``step``; empty if nothing differs."""
    wanted = expected.canonical()
    if opened.units == "mm" and not opened.grid.same_place(wanted.grid):
        return ELSEWHERE
    truth = wanted.numpy()
    truth = truth[..., :3] if expected.is_rgb else truth
    if opened.array.size != truth.size or not _close(truth, opened.numpy().reshape(truth.shape), step):
        return OTHER_VALUES
    return ""


def _close(truth: NDArray[Any], values: NDArray[Any], step: float) -> bool:
    # beyond the rounding that the file declares, only that of float32
    allowed = step / 2 + 1e-6 * float(np.abs(np.nan_to_num(truth)).max(initial=0))
    return bool(np.allclose(values.astype(np.float64), truth, rtol=0, atol=allowed, equal_nan=True))


def _as_tzyx(volume: Volume) -> Any:
    """The array with axes (t, z, y, x) and colours last, three of them."""
    array = volume.array[..., :3] if volume.is_rgb else volume.array
    if "z" not in volume.axes:
        array = np.expand_dims(array, volume.axes.index("y"))
    return np.asarray(array if "t" in volume.axes else array[np.newaxis])


def _slice_of(
    grid: Grid, plane: Plane, size: tuple[int, ...], allowed_mm: float
) -> tuple[int, int, tuple[tuple[int, ...], tuple[int, ...]]] | None:
    """The slice of a grid that a plane is: its axis, its number, and how to turn and flip it; None if it is none."""
    assert plane.affine is not None
    through = np.linalg.inv(grid.affine) @ plane.affine
    rows, columns = (int(n) for n in np.abs(through[:3, 1:3]).argmax(axis=0))
    if rows == columns or size != (grid.shape[rows], grid.shape[columns]):
        return None
    corners = np.array([(0, j, i) for j in (0, size[0] - 1) for i in (0, size[1] - 1)])
    world = index_to_world(plane.affine, corners)
    nearest = np.rint(world_to_index(grid.affine, world))
    off = np.linalg.norm(index_to_world(grid.affine, nearest) - world, axis=1).max()
    if off > allowed_mm or (nearest < 0).any() or (nearest >= grid.shape).any():
        return None
    axis = 3 - rows - columns
    signs = tuple(1 if through[along, n] > 0 else -1 for n, along in ((1, rows), (2, columns)))
    return axis, int(nearest[0, axis]), ((0, 1) if rows < columns else (1, 0), signs)


def _tolerance_mm(expected: Volume, planes: Planes) -> float:
    """How far planes may lie from those of a regular grid: `SAME_PLACE_MM`, and as far as the scan's own planes do."""
    affines = [plane.affine for plane in planes.planes if plane.affine is not None]
    normal = affines[0][:3, 0] / np.linalg.norm(affines[0][:3, 0])
    levels = np.unique(np.round([affine[:3, 3] @ normal for affine in affines], 3))
    off = float(np.abs(levels - np.linspace(levels[0], levels[-1], len(levels))).max())
    if off <= SAME_PLACE_MM:
        return SAME_PLACE_MM
    from napari_medai.io.dicom.write.source import source_of

    try:
        rows = source_of(expected).planes
    except WriteError:
        return SAME_PLACE_MM + 2 * off
    own = [p.place.position[::-1] for row in rows for p in row if p is not None and p.place is not None]
    away = [np.abs(np.array(own) - affine[:3, 3]).max(axis=1).min() for affine in affines] if own else [np.inf]
    return SAME_PLACE_MM + (2 * off if max(away) <= SAME_PLACE_MM else 0.0)


def _header(file: Path) -> Any:
    from pydicom import dcmread

    with quietly():
        try:
            return dcmread(file, stop_before_pixels=True, force=True)
        except (OSError, *BROKEN_FILE) as error:
            raise ReadError(f"pydicom cannot read what was written: {type(error).__name__}.") from error


def _frames(file: Path, header: Any) -> Iterator[tuple[Affine | None, float, float, float]]:
    """Place, slope, intercept and step of each frame."""
    with quietly():
        try:
            kind = str(header.get("PhotometricInterpretation", ""))
            grey = kind in _GREY
            if not grey and (kind != "RGB" or int(header.get("BitsAllocated", 0)) != 8):
                raise UnsupportedFormatError(f"{file.name} is no image in grey values or RGB.")
            for n in range(int(header.get("NumberOfFrames") or 1)):
                groups = _Groups(header, n)
                slope, intercept = groups.rescale() if grey else (1.0, 0.0)
                # 16 bits and fewer are whole numbers, 32 and 64 may be floats (PS3.3 C.7.6.24, C.7.6.25)
                step = 0.0 if int(header.BitsAllocated) > 16 else abs(slope)
                yield groups.affine(), slope, intercept, step
        except BROKEN_FILE as error:
            raise ReadError(f"pydicom cannot read the header: {type(error).__name__}.") from error


class _Groups:
    """What is said of one frame: its own functional group before the shared one, both before the data set."""

    def __init__(self, header: Any, n: int) -> None:
        own = header.get("PerFrameFunctionalGroupsSequence") or []
        shared = header.get("SharedFunctionalGroupsSequence") or []
        self.header = header
        self.groups = [*own[n : n + 1], *shared[:1]]

    def _item(self, name: str) -> Any:
        for group in self.groups:
            if group.get(name):
                return group[name].value[0]
        return self.header if not self.groups else {}

    def rescale(self) -> tuple[float, float]:
        """Slope and intercept: of real-world values in Parametric Maps (PS3.3 C.7.6.16.2.11), else of Modality LUT."""
        if str(self.header.get("SOPClassUID", "")) == "1.2.840.10008.5.1.4.1.1.30":
            mapping = self._item("RealWorldValueMappingSequence")
            return float(mapping["RealWorldValueSlope"].value), float(mapping["RealWorldValueIntercept"].value)
        item = self._item("PixelValueTransformationSequence") or self.header
        slope, intercept = item.get("RescaleSlope"), item.get("RescaleIntercept")
        return (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))

    def affine(self) -> Affine | None:
        """Index (0, j, i) -> world (z, y, x); None if the frame does not say where it lies."""
        measures = self._item("PixelMeasuresSequence")
        way = self._item("PlaneOrientationSequence").get("ImageOrientationPatient")
        start = self._item("PlanePositionSequence").get("ImagePositionPatient")
        spacing = measures.get("PixelSpacing")
        if not (way and start and spacing):
            return None
        rows = np.array(way, dtype=float)
        affine = np.eye(4)
        affine[:3, 0] = np.cross(rows[:3], rows[3:])
        affine[:3, 1] = rows[3:] * float(spacing[0])
        affine[:3, 2] = rows[:3] * float(spacing[1])
        affine[:3, 3] = [float(v) for v in start]
        return affine[[2, 1, 0, 3]]  # (x, y, z) -> (z, y, x)
