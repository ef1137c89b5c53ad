"""NRRD, and the segmentations that 3D Slicer keeps in it (``.seg.nrrd``)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import ReadError, SeriesInfo, UnsupportedFormatError, WriteError
from napari_medai.core.geometry import as_affine
from napari_medai.core.volume import Volume
from napari_medai.io import record as records
from napari_medai.io.atomic import written
from napari_medai.io.nifti_write import stored_dtype
from napari_medai.io.readback import SPACES, TYPES, segments_of
from napari_medai.io.single import only_series, series_of, stem

_SUFFIXES = (".nrrd", ".seg.nrrd")
_MAGIC = b"NRRD000"
# zlib packs at most 1032 bytes into one; a header that claims more is wrong (RFC 1951 and zlib's technical notes)
_MOST_RATIO = 1032
_LARGEST_HEADER = 16 << 20
# A level of 3 halves the time of pynrrd's 9 on label maps and costs a few per cent of their size.
_LEVEL = 3
# What 3D Slicer writes for a segment that nobody coded: SNOMED CT 85756007, Tissue.
_TAGS = (
    "TerminologyEntry:Segmentation category and type - 3D Slicer General Anatomy list"
    "~SCT^85756007^Tissue~SCT^85756007^Tissue~^^~Anatomic codes - DICOM master list~^^~^^|"
)
# Colours for segments that have none, far apart on the wheel: a golden angle from one to the next.
_GOLDEN = 0.618033988749895
_BROKEN = (ValueError, KeyError, IndexError, TypeError, OverflowError, ArithmeticError, EOFError, zlib.error)


def sniff(head: bytes, path: Path) -> bool:
    """Whether the bytes start as NRRD does."""
    return head.startswith(_MAGIC)


def list_series(path: Path) -> list[SeriesInfo]:
    """The one image of a file."""
    return [series_of(open_volume(path))]


def open_volume(path: Path, series_uid: str = "") -> Volume:
    """Open a NRRD file with its pixels in it (not ``.nhdr``).

    Parameters
    ----------
    path : Path
        The file.
    series_uid : str
        Must be empty: a file holds one image.

    Returns
    -------
    Volume
        Canonical axes. A segmentation of 3D Slicer opens as labels with names and colours; where its segments lie in
        several layers, one of them stands at each t and ``meta["axis_t"]["name"]`` is ``"segment"``.

    Raises
    ------
    ReadError
        The file is damaged or cut off.
    UnsupportedFormatError
        The pixels lie in another file, are text or blocks, or the grid has no three dimensions.
    """
    only_series(path, series_uid)
    import nrrd

    try:
        with path.open("rb") as file:
            header = nrrd.read_header(file)
            offset = file.tell()
            if offset > _LARGEST_HEADER:
                raise ReadError(f"{path} has a header of more than 16 MiB; it is damaged.")
            size = path.stat().st_size - offset
            data = _pixels(path, header, file.read() if _plausible(header, size) else b"")
        return _volume(path, header, data).canonical()
    except OSError as error:
        raise ReadError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (nrrd.NRRDError, *_BROKEN) as error:
        raise ReadError(f"The NRRD file {path} is damaged ({type(error).__name__}).") from error


def _plausible(header: Mapping[str, Any], size: int) -> bool:
    """Whether so many bytes can hold what the header says."""
    claimed = math.prod(int(n) for n in header["sizes"])
    return 0 < claimed <= size * (_MOST_RATIO if header.get("encoding") != "raw" else 1)


def _pixels(path: Path, header: Mapping[str, Any], body: bytes) -> NDArray[Any]:
    sizes = [int(n) for n in header["sizes"]]
    if "data file" in header or "datafile" in header or header["type"] not in TYPES:
        raise UnsupportedFormatError(f"{path} keeps its pixels in another file or as blocks; save it as one .nrrd.")
    dtype = np.dtype((">" if header.get("endian") == "big" else "<") + TYPES[header["type"]])
    needed = math.prod(sizes) * dtype.itemsize
    if header["encoding"] in ("gzip", "gz"):
        body = zlib.decompressobj(31).decompress(body, needed) if body else b""
    elif header["encoding"] != "raw":
        raise UnsupportedFormatError(f"{path} is encoded as {header['encoding']}; raw and gzip can be read.")
    if len(body) < needed or min(sizes) < 1:
        raise ReadError(f"{path} is cut off: {needed} bytes of pixels are needed, {len(body)} are there.")
    return np.frombuffer(body, dtype, math.prod(sizes)).reshape(sizes, order="F")


def _volume(path: Path, header: Mapping[str, Any], data: NDArray[Any]) -> Volume:
    vectors: Sequence[Any] = header.get("space directions", ())
    spatial = [n for n, v in enumerate(vectors) if v is not None and np.isfinite(v).all()]
    if not len(vectors) and data.ndim == 3:
        spatial = [0, 1, 2]
    others = [n for n in range(data.ndim) if n not in spatial]
    if len(spatial) != 3 or len(others) > 1:
        raise UnsupportedFormatError(f"{path} has {len(spatial)} axes in space and {len(others)} others; 3 and up to 1")
    kind = str(header["kinds"][others[0]]) if others and "kinds" in header else ""
    colour = kind in ("RGB-color", "RGBA-color", "3-color", "4-color") and data.dtype == np.uint8
    order = [*([] if colour else others), *spatial[::-1], *(others if colour else [])]
    array, axes = data.transpose(order), ("" if colour or not others else "t") + "zyx" + ("s" if colour else "")
    space = str(header.get("space", "")).lower()
    findings = [] if space in SPACES else ["The file does not name its space; left-posterior-superior is assumed."]
    signs = SPACES.get(space, (1, 1, 1))
    affine = np.eye(4)
    steps = header.get("spacings")
    for column, n in enumerate(spatial[::-1]):
        vector = vectors[n] if len(vectors) else np.eye(3)[n] * (steps[n] if steps is not None else 1.0)
        affine[:3, column] = (np.asarray(vector, dtype=float) * signs)[::-1]
    if "space origin" in header:
        affine[:3, 3] = (np.asarray(header["space origin"], dtype=float) * signs)[::-1]
    record = records.load(str(header.get(records.KEY, "")))
    units = str(record.get("units", "mm"))
    meta: dict[str, Any] = records.meta_of(record) | {"findings": tuple(findings)}
    segments = segments_of({k: str(v) for k, v in header.items()})
    if segments:
        array, axes = _labels(array, axes, segments)
        meta["is_labels"] = True
        meta["label_names"] = {number: name for number, _, _, name in segments}
        colors = {number: _color(header, n) for n, (number, *_) in enumerate(segments)}
        meta["label_colors"] = {number: color for number, color in colors.items() if color}
        if "t" in axes:
            meta["axis_t"] = {"name": "segment", "unit": "", "values": tuple(s[0] for s in segments)}
    name = stem(path, _SUFFIXES)
    return Volume(array, axes, as_affine(affine), units, str(record.get("modality", "")), name, meta, str(path))


def _labels(array: NDArray[Any], axes: str, segments: Sequence[tuple[int, int, int, str]]) -> tuple[NDArray[Any], str]:
    """One label map where all segments share a layer, else a segment at each t."""
    dtype = np.uint8 if max(number for number, *_ in segments) < 256 else np.int32
    if axes == "zyx" or len({layer for _, _, layer, _ in segments}) == 1:
        plane = array if axes == "zyx" else array[segments[0][2]]
        labels = np.zeros(plane.shape, dtype)
        for number, value, _, _ in segments:
            labels[plane == value] = number
        return labels, "zyx"
    parts = [(array[layer] == value).astype(dtype) * dtype(number) for number, value, layer, _ in segments]
    return np.stack(parts), "tzyx"


def _color(header: Mapping[str, Any], n: int) -> tuple[float, ...] | None:
    parts = str(header.get(f"Segment{n}_Color", "")).split()
    return tuple(float(p) for p in parts) if len(parts) == 3 else None


def save_volume(volume: Volume, path: Path, record: Mapping[str, Any] | None = None) -> None:
    """Write a volume as NRRD, gzip-compressed, in the space left-posterior-superior.

    Parameters
    ----------
    volume : Volume
        Axes ``(t)(z)yx``. ``.seg.nrrd`` takes labels only, as 3D Slicer's segments: an axis t of segments that
        overlap becomes its layers.
    path : Path
        Ends in ``.nrrd`` or ``.seg.nrrd``.
    record : mapping, optional
        Further fields of the record, e.g. ``provenance``.

    Raises
    ------
    WriteError
        The volume has channels or colours, is no set of labels, or the system refused.
    """
    extra = dict(record or {})
    is_labels = bool(volume.meta.get("is_labels") or extra.get("is_labels"))
    layered = "t" in volume.axes and dict(volume.meta.get("axis_t") or {}).get("name") == "segment"
    slicer = path.name.lower().endswith(".seg.nrrd")
    if "c" in volume.axes or volume.is_rgb:
        raise WriteError(f"NRRD files of the axes {volume.axes!r} are not written; save one channel.")
    if slicer and (not is_labels or ("t" in volume.axes and not layered) or volume.units != "mm"):
        raise WriteError(f"{path.name} holds labels of one time point in mm; save the rest as .nrrd or .nii.gz.")
    array = volume.array if "z" in volume.axes else np.expand_dims(volume.array, volume.axes.index("y"))
    dtype = stored_dtype(array, is_labels)
    data = np.asarray(array).astype(dtype, copy=False)
    affine = volume.affine
    vectors = [affine[2::-1, column].tolist() for column in (2, 1, 0)]
    header: dict[str, Any] = {
        "space": "left-posterior-superior",
        "kinds": ["domain"] * 3,
        "space directions": np.array(vectors),
        "space origin": affine[2::-1, 3],
        "encoding": "gzip",
        "endian": "little",
    }
    if data.ndim == 4:
        # layers lie beside one another (3D Slicer), time points one after another
        data = data.transpose(0, 3, 2, 1) if slicer or layered else data.transpose(3, 2, 1, 0)
        none = np.full((1, 3), np.nan)
        first = slicer or layered
        header["kinds"] = ["list", *header["kinds"]] if first else [*header["kinds"], "time"]
        header["space directions"] = np.concatenate([none, vectors] if first else [vectors, none])
    else:
        data = data.transpose(2, 1, 0)
    kept = records.record_of(volume, extra)
    if slicer:
        header |= _slicer(data, kept, volume)
    header[records.KEY] = records.dump(kept)
    _write(path, data, header)


def _slicer(data: NDArray[Any], record: Mapping[str, Any], volume: Volume) -> dict[str, str]:
    """3D Slicer's fields of segments: data is (x, y, z) or (layer, x, y, z)."""
    layers = data if data.ndim == 4 else data[np.newaxis]
    numbers = dict(volume.meta.get("axis_t") or {}).get("values", ()) if data.ndim == 4 else ()
    names, colors = record.get("label_names", {}), record.get("label_colors", {})
    found: list[tuple[int, int, int]] = []
    for layer, block in enumerate(layers):
        for value in np.unique(block):
            if value != 0:
                found.append((int(numbers[layer]) if layer < len(numbers) else int(value), int(value), layer))
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for n, (number, value, layer) in enumerate(found):
        where = np.nonzero(layers[layer] == value)
        color = colors.get(str(number)) or _wheel(n)
        key = f"Segment{n}"
        fields |= {
            f"{key}_ID": f"Segment_{number}",
            f"{key}_Name": str(names.get(str(number)) or f"Segment_{number}").replace("\n", " "),
            f"{key}_NameAutoGenerated": "0" if names.get(str(number)) else "1",
            f"{key}_Color": " ".join(f"{v:g}" for v in color),
            f"{key}_ColorAutoGenerated": "0" if colors.get(str(number)) else "1",
            f"{key}_LabelValue": str(value),
            f"{key}_Layer": str(layer),
            f"{key}_Extent": " ".join(f"{int(w.min())} {int(w.max())}" for w in where),
            f"{key}_Tags": _TAGS,
        }
    return fields


def _wheel(n: int) -> tuple[float, float, float]:
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb(n * _GOLDEN % 1.0, 0.6, 0.9)
    return round(red, 4), round(green, 4), round(blue, 4)


def _write(path: Path, data: NDArray[Any], header: Mapping[str, Any]) -> None:
    import nrrd

    with written(path) as file:
        nrrd.write(cast(Any, file), data, dict(header), compression_level=_LEVEL)
