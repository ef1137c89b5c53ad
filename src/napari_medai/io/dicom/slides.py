"""Whole-slide images: tiles of several files and resolutions as one lazy pyramid (PS3.3 A.32.8, C.8.12.4, C.7.6.17).

A slide lies on the glass, not in a patient: its pixels keep the rows and columns of the file, in micrometres, and
the place of the total pixel matrix on the slide stays in ``meta``.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import ReadError
from napari_medai.core.geometry import scaling
from napari_medai.io.dicom.decoding import stored_frame
from napari_medai.io.dicom.headers import Header, frame_count, integers, items, number, numbers, text
from napari_medai.io.dicom.pixels import PixelFile
from napari_medai.io.lazy import PlaneCache

if TYPE_CHECKING:
    from napari_medai.io.dicom.frames import Frame

SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
# Chunks of several tiles, about as wide as this: fewer to handle, and none larger than a screen.
_CHUNK = 1024
_WHITE = 255
# Decoded tiles: what a large screen shows several times over. A run reads each once and would fill any cache in vain.
_TILES = PlaneCache(2**27)
# A pixel matrix of more pixels along a side than this is taken for damage (a slide at 0.1 um has 750,000).
_LARGEST = 1 << 22
# So is one with more empty tiles than these for each stored one (a slide with a few cells stores one in fifty).
_MOST_CELLS, _MOST_EMPTY = 1024, 256

Tiles = Mapping[tuple[int, int, int, int], tuple[str, int]]


@dataclass(frozen=True, eq=False)
class Level:
    """One resolution of a slide.

    Attributes
    ----------
    rows, columns : int
        Size of the total pixel matrix.
    tile : tuple of 2 ints
        Rows and columns of a tile.
    spacing_mm : tuple of 2 floats or None
        Distance of rows and of columns.
    paths, planes : int
        Number of optical paths and of focal planes.
    tiles : mapping of (path, plane, row, column) to (str, int)
        File and frame number of each tile by the row and column of its first pixel, from 0.
    """

    rows: int
    columns: int
    tile: tuple[int, int]
    spacing_mm: tuple[float, float] | None
    paths: int
    planes: int
    tiles: Tiles


def is_slide(header: Header) -> bool:
    """Whether a file is a whole-slide image."""
    return header.text("SOPClassUID") == SLIDE and header.integer("TotalPixelMatrixRows") > 0


def flavour(header: Header) -> str:
    """``"VOLUME"``, ``"LABEL"``, ``"OVERVIEW"`` or ``"THUMBNAIL"``, the third value of Image Type."""
    return (*header.texts("ImageType"), "", "", "")[2] or "VOLUME"


def level_of(header: Header, shared: Any, groups: Sequence[Any], measures: Any) -> Level:
    """The part of a resolution that a file holds.

    Parameters
    ----------
    header : Header
        Of the file.
    shared, groups
        Its functional groups.
    measures : item or mapping
        Where Pixel Spacing stands.

    Raises
    ------
    ReadError
        The total pixel matrix cannot be.
    """
    rows, columns = header.integer("TotalPixelMatrixRows"), header.integer("TotalPixelMatrixColumns")
    tile = header.integer("Rows"), header.integer("Columns")
    if not (0 < rows <= _LARGEST and 0 < columns <= _LARGEST and min(tile) > 0):
        raise ReadError(f"A slide of {rows} x {columns} pixels in tiles of {tile[0]} x {tile[1]} cannot be.")
    spacing = numbers(measures, "PixelSpacing")
    if len(spacing) != 2 or not (np.isfinite(spacing).all() and min(spacing) > 0):
        size = header.number("ImagedVolumeHeight"), header.number("ImagedVolumeWidth")
        spacing = (size[0] / rows, size[1] / columns) if size[0] and size[1] else ()
    sparse = len(groups) == frame_count(header) and len(items(groups[0], "PlanePositionSlideSequence")) > 0
    if sparse and header.text("DimensionOrganizationType") != "TILED_FULL":
        tiles, paths, planes = _listed(header, shared, groups)
    else:
        tiles, paths, planes = _full(header, rows, columns, tile)
    cells = -(-rows // tile[0]) * -(-columns // tile[1])
    if cells > _MOST_CELLS + _MOST_EMPTY * len(tiles):
        raise ReadError(f"Of a slide of {cells} tiles the file holds {len(tiles)}; its header is damaged.")
    return Level(rows, columns, tile, (spacing[0], spacing[1]) if spacing else None, paths, planes, tiles)


def _full(header: Header, rows: int, columns: int, tile: tuple[int, int]) -> tuple[Tiles, int, int]:
    # PS3.3 C.7.6.17.3: tiles along a row, then rows, then focal planes, then optical paths
    paths = max(1, header.integer("NumberOfOpticalPaths", len(header.items("OpticalPathSequence"))))
    planes = max(1, header.integer("TotalPixelMatrixFocalPlanes", 1))
    down, across = -(-rows // tile[0]), -(-columns // tile[1])
    first = header.integer("ConcatenationFrameOffsetNumber")
    tiles = {}
    for n in range(frame_count(header)):
        rest, column = divmod(first + n, across)
        rest, row = divmod(rest, down)
        path, plane = divmod(rest, planes)
        if path < paths:
            tiles[path, plane, row * tile[0], column * tile[1]] = header.path, n
    return tiles, paths, planes


def _listed(header: Header, shared: Any, groups: Sequence[Any]) -> tuple[Tiles, int, int]:
    known = [text(item, "OpticalPathIdentifier") for item in header.items("OpticalPathSequence")]
    places: list[tuple[str, float, int, int]] = []
    for group in groups:
        place = next(iter(items(group, "PlanePositionSlideSequence")), None)
        identity = _first(group, shared, "OpticalPathIdentificationSequence")
        row = _whole(place, "RowPositionInTotalImagePixelMatrix")
        column = _whole(place, "ColumnPositionInTotalImagePixelMatrix")
        depth = (None if place is None else number(place, "ZOffsetInSlideCoordinateSystem")) or 0.0
        depth = depth if np.isfinite(depth) else 0.0
        name = "" if identity is None else text(identity, "OpticalPathIdentifier")
        places.append((name, depth, row - 1, column - 1))
    found = {name for name, *_ in places}
    names = [name for name in known if name in found] + sorted(found - set(known))
    depths = sorted({depth for _, depth, *_ in places})
    tiles = {
        (names.index(name), depths.index(depth), row, column): (header.path, n)
        for n, (name, depth, row, column) in enumerate(places)
    }
    return tiles, len(names), len(depths)


def _whole(place: Any, keyword: str) -> int:
    return 1 if place is None else next(iter(integers(place, keyword)), 1)


def _first(group: Any, shared: Any, keyword: str) -> Any:
    for source in (group, shared):
        if source is not None:
            found = next(iter(items(source, keyword)), None)
            if found is not None:
                return found
    return None


def pyramids(frames: Sequence[Frame]) -> list[Frame]:
    """The frames of a series with the resolutions of one slide put together; the slide first, then its label …

    Parts of one resolution in several files (concatenations, or a file for each optical path) become one.
    """
    by_flavour: dict[str, list[Frame]] = {}
    others = []
    for frame in frames:
        if frame.levels:
            by_flavour.setdefault(flavour(frame.header), []).append(frame)
        else:
            others.append(frame)
    found = []
    for kind in sorted(by_flavour, key=lambda name: (name != "VOLUME", name)):
        group = by_flavour[kind]
        sizes: dict[tuple[int, int], list[Frame]] = {}
        for frame in group:
            sizes.setdefault((frame.rows, frame.columns), []).append(frame)
        ordered = sorted(sizes.values(), key=lambda same: -same[0].rows * same[0].columns)
        levels = tuple(_joined([f.levels[0] for f in same]) for same in ordered)
        # napari wants each level smaller than the one before, with the same axes
        like = tuple(e for e in levels if (e.paths, e.planes) == (levels[0].paths, levels[0].planes))
        found.append(replace(ordered[0][0], levels=like))
    return found + others


def _joined(parts: list[Level]) -> Level:
    if len(parts) == 1:
        return parts[0]
    tiles: dict[tuple[int, int, int, int], tuple[str, int]] = {}
    for part in parts:
        # the same places once more: another optical path
        free = max(k[0] for k in tiles) + 1 if tiles.keys() & part.tiles.keys() else 0
        tiles |= {(path + free, *rest): where for (path, *rest), where in part.tiles.items()}  # type: ignore[misc]
    paths = max(key[0] for key in tiles) + 1
    return replace(parts[0], tiles=tiles, paths=paths, planes=max(p.planes for p in parts))


class Mosaic:
    """An array (path, plane, y, x[, s]) over the tiles of a level; decodes the tiles that an index touches."""

    def __init__(self, level: Level, files: Mapping[str, PixelFile]) -> None:
        self.level = level
        self.name = uuid.uuid4().hex
        used = {path for path, _ in level.tiles.values()}
        self.files = {path: file for path, file in files.items() if path in used}
        lead = next(iter(self.files.values()))
        self.colour = lead.colour
        self.dtype: np.dtype[Any] = (
            np.dtype(np.uint8) if "PALETTE" in lead.photometric else lead.dtype.newbyteorder("=")
        )
        self.shape = (level.paths, level.planes, level.rows, level.columns) + ((3,) if self.colour else ())
        self.ndim = len(self.shape)
        self.blank = _WHITE if self.colour and self.dtype == np.uint8 else 0
        # where tiles lie on a grid they are found by it; sparse ones may lie anywhere
        rows, columns = level.tile
        self._by_cell: dict[tuple[int, int, int, int], list[tuple[int, int, str, int]]] = {}
        for (path, plane, row, column), (name, frame) in level.tiles.items():
            for y in range(row // rows, (row + rows - 1) // rows + 1):
                for x in range(column // columns, (column + columns - 1) // columns + 1):
                    self._by_cell.setdefault((path, plane, y, x), []).append((row, column, name, frame))

    def __getitem__(self, key: Any) -> NDArray[Any]:
        key = key if isinstance(key, tuple) else (key,)
        key = (*key, *[slice(None)] * (self.ndim - len(key)))
        paths, planes = (np.arange(size)[k] for size, k in zip(self.shape[:2], key[:2], strict=True))
        spans = [range(size)[k] for size, k in zip(self.shape[2:4], key[2:4], strict=True)]
        if any(isinstance(span, int) for span in spans):
            wide = tuple(slice(k, k + 1) if isinstance(k, int | np.integer) else k for k in key[2:4])
            narrow = tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in key[2:4])
            return np.asarray(self[(*key[:2], *wide, *key[4:])][(..., *narrow, *[slice(None)] * (self.ndim - 4))])
        ys, xs = spans
        found = np.full((paths.size, planes.size, len(ys), len(xs), *self.shape[4:]), self.blank, self.dtype)
        if len(ys) and len(xs):
            for a, path in enumerate(paths.flat):
                for b, plane in enumerate(planes.flat):
                    self._fill(found[a, b], int(path), int(plane), ys, xs)
        found = found.reshape(paths.shape + planes.shape + found.shape[2:])
        return found[(..., *key[4:])] if self.ndim > 4 else found

    def _fill(self, out: NDArray[Any], path: int, plane: int, ys: range, xs: range) -> None:
        if (ys.step, xs.step) != (1, 1):
            whole = np.full((max(ys) - min(ys) + 1, max(xs) - min(xs) + 1, *out.shape[2:]), self.blank, self.dtype)
            self._fill(whole, path, plane, range(min(ys), max(ys) + 1), range(min(xs), max(xs) + 1))
            out[...] = whole[np.ix_([y - min(ys) for y in ys], [x - min(xs) for x in xs])]
            return
        rows, columns = self.level.tile
        drawn: set[tuple[int, int]] = set()
        for cell_y in range(ys.start // rows, (ys.stop - 1) // rows + 1):
            for cell_x in range(xs.start // columns, (xs.stop - 1) // columns + 1):
                for row, column, name, frame in self._by_cell.get((path, plane, cell_y, cell_x), ()):
                    if (row, column) in drawn:
                        continue
                    drawn.add((row, column))
                    top, left = max(row, ys.start), max(column, xs.start)
                    bottom, right = min(row + rows, ys.stop), min(column + columns, xs.stop)
                    if top < bottom and left < right:
                        tile = self._tile(name, frame)
                        part = tile[top - row : bottom - row, left - column : right - column]
                        out[top - ys.start : bottom - ys.start, left - xs.start : right - xs.start] = part

    def _tile(self, name: str, frame: int) -> NDArray[Any]:
        def decode() -> NDArray[Any]:
            return np.ascontiguousarray(stored_frame(self.files[name], frame)[..., : 3 if self.colour else None])

        return _TILES.get((self.name, name, frame), decode)

    def lazy(self) -> da.Array:
        """A dask array in chunks of whole tiles."""
        size = tuple(max(1, _CHUNK // tile) * tile for tile in self.level.tile)
        chunks = (1, 1, min(size[0], self.shape[2]), min(size[1], self.shape[3]), *self.shape[4:])
        meta = np.empty((0,) * self.ndim, self.dtype)
        return da.from_array(self, chunks=chunks, name=f"slide-{self.name}", meta=meta)


def slide_array(frame: Frame, files: Mapping[str, PixelFile]) -> tuple[da.Array, str, dict[str, Any], list[str]]:
    """The finest resolution of a slide, and all of them.

    Parameters
    ----------
    frame : Frame
        As `pyramids` gives it.
    files : mapping of str to PixelFile
        By path.

    Returns
    -------
    array : dask array
        With axes ``yx``, ``c`` before for several optical paths, ``z`` for focal planes, ``s`` behind for colour.
    axes : str
    meta : dict
        ``levels``: the arrays of all resolutions, the finest first; ``slide``: which picture of the slide it is, and
        where its first pixel and its rows and columns lie on the glass (mm, PS3.3 C.8.12.2.1.1).
    findings : list of str
    """
    header, lead = frame.header, frame.levels[0]
    axes = ("c" if lead.paths > 1 else "") + ("z" if lead.planes > 1 else "") + "yx"
    arrays = []
    for level in frame.levels:
        mosaic = Mosaic(level, files)
        array = mosaic.lazy()
        arrays.append(array[(slice(None) if lead.paths > 1 else 0, slice(None) if lead.planes > 1 else 0)])
    axes += "s" if mosaic.colour else ""
    kind = flavour(header)
    slide: dict[str, Any] = {"kind": kind.lower()[:16]}
    origin = next(iter(header.items("TotalPixelMatrixOriginSequence")), None)
    if origin is not None:
        place = [number(origin, f"{axis}OffsetInSlideCoordinateSystem") for axis in "XY"]
        slide |= {"origin_mm": tuple(place)} if None not in place else {}
    orientation = header.numbers("ImageOrientationSlide")
    slide |= {"orientation": orientation} if len(orientation) == 6 else {}
    meta: dict[str, Any] = {"slide": slide}
    meta |= {"levels": tuple(arrays)} if len(arrays) > 1 else {}
    notes = []
    if kind == "LABEL":
        notes.append("This is the slide's label; it may show whose slide it is.")
    wanted = lead.paths * lead.planes * -(-lead.rows // lead.tile[0]) * -(-lead.columns // lead.tile[1])
    if len(lead.tiles) < wanted:
        notes.append(f"{len(lead.tiles)} of {wanted} tiles are stored; the others are left blank.")
    return arrays[0], axes, meta, notes


def slide_affine(frame: Frame) -> tuple[NDArray[np.float64], str]:
    """Affine in micrometres and its unit; pixels where the header has no spacing."""
    spacing = frame.levels[0].spacing_mm
    if spacing is None:
        return np.eye(4), "pixel"
    return scaling(((frame.thickness or 0.001) * 1000, spacing[0] * 1000, spacing[1] * 1000)), "um"
