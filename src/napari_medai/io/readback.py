"""Labels out of written files by another path than the one that wrote them and the one that `open` takes.

What is here shares no code with the writers: pydicom frame by frame for DICOM, nibabel for NIfTI, a parser of its own
for NRRD. Positions are turned into the world (z, y, x) by each reader itself.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import ReadError
from napari_medai.core.geometry import Affine
from napari_medai.core.volume import Volume
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly

# A fractional segment counts where at least half of the voxel is inside (PS3.3, C.8.20.2.3.1 leaves it open).
HALF = 0.5


@dataclass(frozen=True, eq=False)
class Patch:
    """A block of labels with a place of its own: a volume, or one frame.

    Attributes
    ----------
    array : (k, j, i) array
        Whole numbers, 0 is background.
    affine : (4, 4) array
        Index (k, j, i) -> world (z, y, x) in mm.
    t : int
        Time point.
    """

    array: Any
    affine: Affine
    t: int = 0


@dataclass(frozen=True, eq=False)
class Labels:
    """What one reader found in a file.

    Attributes
    ----------
    by : str
        The reader.
    patches : function
        Gives the patches anew each time it is called, one by one, so that not all are in memory.
    names : mapping of int to str
        By label value.
    frame_of_reference_uid : str
        Empty if the file does not say.
    """

    by: str
    patches: Callable[[], Iterator[Patch]]
    names: Mapping[int, str] = field(default_factory=dict)
    frame_of_reference_uid: str = ""


def of_volume(volume: Volume, by: str = "memory", names: Mapping[int, str] | None = None) -> Labels:
    """The labels of a Volume, a time point at a time.

    An axis t that counts segments (``meta["axis_t"]``) is no time: each of its planes holds one segment, under its
    number.
    """
    segments = dict(volume.meta.get("axis_t") or {}).get("name") == "segment" and "t" in volume.axes
    numbers = list(dict(volume.meta.get("axis_t") or {}).get("values", ())) if segments else []

    def patches() -> Iterator[Patch]:
        array = volume.array
        if "z" not in volume.axes:
            array = np.expand_dims(array, volume.axes.index("y"))
        if "t" not in volume.axes:
            yield Patch(np.asarray(array), volume.affine)
            return
        for t in range(volume.size("t")):
            plane = np.asarray(array[t])
            if segments:
                plane = (plane != 0).astype(np.int32) * int(numbers[t] if t < len(numbers) else t + 1)
            yield Patch(plane, volume.affine, 0 if segments else t)

    found = names if names is not None else volume.meta.get("label_names") or {}
    return Labels(by, patches, dict(found), str(volume.meta.get("frame_of_reference_uid", "")))


def nifti(path: Path) -> Labels:
    """Labels of a NIfTI file as nibabel reads them.

    Raises
    ------
    ReadError
        nibabel cannot read it.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        image = nibabel.load(path)
        data = np.asanyarray(image.dataobj)  # stays on the disk where it is neither compressed nor scaled
    except (OSError, ValueError, EOFError, zlib.error, ImageFileError) as error:
        raise ReadError(f"nibabel cannot read what was written: {type(error).__name__}.") from error
    # RAS (x, y, z) -> (z, -y, -x); the array axes run backwards, so that planes lie together in memory
    affine = (np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine)[[2, 1, 0, 3]][:, [2, 1, 0, 3]]

    def patches() -> Iterator[Patch]:
        blocks = data.reshape(*data.shape[:3], -1, order="F") if data.ndim >= 3 else data.reshape(*data.shape, 1, 1)
        for t in range(blocks.shape[3]):
            yield Patch(blocks[..., t].T, affine, t)

    return Labels("nibabel", patches)


def segmentation(path: Path) -> Labels:
    """Labels of a DICOM SEG, frame by frame with pydicom alone (PS3.3, C.8.20 and A.51).

    Raises
    ------
    ReadError
        It is no segmentation or a frame says neither where it lies nor what it shows.
    """
    from pydicom import dcmread
    from pydicom.pixels import iter_pixels

    with quietly():
        try:
            dataset = dcmread(path, stop_before_pixels=True, force=True)
            kind = str(dataset.SegmentationType)
            names = {int(item.SegmentNumber): str(item.get("SegmentLabel", "")) for item in dataset.SegmentSequence}
            frames = _spaced([_frame(dataset, n) for n in range(int(dataset.NumberOfFrames))])
            top = float(dataset.get("MaximumFractionalValue", 1))
            padding = int(dataset.get("PixelPaddingValue") or 0)
        except BROKEN_FILE as error:
            raise ReadError(f"pydicom cannot read the segmentation: {type(error).__name__}.") from error

    def patches() -> Iterator[Patch]:
        for (affine, number), pixels in zip(frames, iter_pixels(path), strict=True):
            if kind == "LABELMAP":
                # the background changes places with 0 (PS3.3, C.8.20.2)
                values = np.where(pixels == 0, padding, np.where(pixels == padding, 0, pixels)) if padding else pixels
            elif kind == "FRACTIONAL":
                values = (pixels >= HALF * top) * np.int32(number)
            else:
                values = (pixels != 0) * np.int32(number)
            yield Patch(values[np.newaxis], affine)

    return Labels("pydicom", patches, names, str(dataset.get("FrameOfReferenceUID", "")))


def _frame(dataset: Any, n: int) -> tuple[Affine, int]:
    """Place and segment number of a frame: per-frame functional groups before shared ones."""
    own, shared = dataset.PerFrameFunctionalGroupsSequence[n], dataset.SharedFunctionalGroupsSequence[0]

    def group(name: str) -> Any:
        return (own if name in own else shared)[name].value[0]

    measures = group("PixelMeasuresSequence")
    down, across = (float(v) for v in measures.PixelSpacing)
    rows = np.array(group("PlaneOrientationSequence").ImageOrientationPatient, dtype=float)
    affine = np.eye(4)
    affine[:3, 0] = np.cross(rows[:3], rows[3:]) * float(measures.get("SliceThickness") or 1.0)
    affine[:3, 1] = rows[3:] * down
    affine[:3, 2] = rows[:3] * across
    affine[:3, 3] = [float(v) for v in group("PlanePositionSequence").ImagePositionPatient]
    number = 0
    if "SegmentIdentificationSequence" in own or "SegmentIdentificationSequence" in shared:
        number = int(group("SegmentIdentificationSequence").ReferencedSegmentNumber)
    return affine[[2, 1, 0, 3]], number  # (x, y, z) -> (z, y, x)


def _spaced(frames: list[tuple[Affine, int]]) -> list[tuple[Affine, int]]:
    """Frames as thick as the smallest distance between two of them: slices may be thicker than they lie apart."""
    normal = frames[0][0][:3, 0] / np.linalg.norm(frames[0][0][:3, 0])
    levels = np.unique(np.round([affine[:3, 3] @ normal for affine, _ in frames], 3))
    if len(levels) > 1:
        for affine, _ in frames:
            affine[:3, 0] *= np.diff(levels).min() / np.linalg.norm(affine[:3, 0])
    return frames


# NRRD's names of types that whole numbers have (teem's definition of the format, "type")
TYPES = {
    "unsigned char": "u1", "uchar": "u1", "uint8": "u1", "uint8_t": "u1", "signed char": "i1", "int8": "i1",
    "int8_t": "i1", "short": "i2", "int16": "i2", "int16_t": "i2", "unsigned short": "u2", "ushort": "u2",
    "uint16": "u2", "uint16_t": "u2", "int": "i4", "int32": "i4", "int32_t": "i4", "signed int": "i4",
    "unsigned int": "u4", "uint": "u4", "uint32": "u4", "uint32_t": "u4", "int64": "i8", "int64_t": "i8",
    "uint64": "u8", "uint64_t": "u8", "float": "f4", "double": "f8",
}  # fmt: skip
# Directions of each space against (x, y, z) of LPS
SPACES = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1), "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip


def nrrd(path: Path) -> Labels:
    """Labels of a NRRD file, its header parsed here by the format's definition.

    Raises
    ------
    ReadError
        A field is missing or the data do not have the size that the header says.
    """
    content = path.read_bytes()
    head, _, body = content.partition(b"\n\n")
    lines = [line.strip() for line in head.decode("utf-8", "replace").splitlines()]
    if not lines[0].startswith("NRRD000"):
        raise ReadError("What was written does not begin as NRRD does.")
    pairs = [re.split(r":=|: ", line, maxsplit=1) for line in lines[1:] if line and not line.startswith("#")]
    fields = {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}
    try:
        sizes = [int(v) for v in fields["sizes"].split()]
        order = ">" if fields.get("endian", "little") == "big" else "<"
        dtype = np.dtype(order + TYPES[fields["type"]])
        if fields["encoding"] in ("gzip", "gz"):
            body = gzip.decompress(body)
        signs = SPACES[fields["space"].lower()]
        vectors = [_vector(text) for text in re.findall(r"none|\([^)]*\)", fields["space directions"])]
        origin = _vector(fields["space origin"])
        data: NDArray[Any] = np.frombuffer(body, dtype).reshape(sizes, order="F")
    except (KeyError, ValueError, EOFError, OSError, zlib.error) as error:
        raise ReadError(f"The NRRD file that was written cannot be read: {type(error).__name__}.") from error
    spatial = [n for n, vector in enumerate(vectors) if vector is not None]
    affine = np.eye(4)
    for column, n in enumerate(spatial):
        affine[:3, column] = (np.array(vectors[n]) * signs)[::-1]
    affine[:3, 3] = (np.array(origin) * signs)[::-1]
    blocks = np.moveaxis(data, spatial, range(-3, 0)).reshape(-1, *[sizes[n] for n in spatial])
    segments = segments_of(fields)

    def patches() -> Iterator[Patch]:
        for layer, block in enumerate(blocks):
            values = [(value, number) for number, value, where, _ in segments if where == layer]
            if not values:
                if not segments:
                    yield Patch(block, affine, layer)
                continue
            named = np.zeros(block.shape, np.int32)
            for value, number in values:
                named[block == value] = number
            yield Patch(named, affine)

    return Labels("NRRD parser", patches, {number: name for number, _, _, name in segments})


def _vector(text: str) -> list[float] | None:
    return None if text == "none" else [float(v) for v in text.strip("() ").split(",")]


def segments_of(fields: Mapping[str, str]) -> list[tuple[int, int, int, str]]:
    """Number (its value if unique, else its position), value in the file, layer and name of each segment."""
    found: list[tuple[int, int, str]] = []
    while (key := f"Segment{len(found)}_LabelValue") in fields:
        start = key.removesuffix("LabelValue")
        found.append((int(fields[key]), int(fields.get(f"{start}Layer", 0)), fields.get(f"{start}Name", "")))
    unique = len({value for value, _, _ in found}) == len(found)
    return [(value if unique else n, value, layer, name) for n, (value, layer, name) in enumerate(found, 1)]
