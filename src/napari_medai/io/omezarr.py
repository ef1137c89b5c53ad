"""OME-Zarr (NGFF) 0.4 and 0.5: opening lazily, at full resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray

from napari_medai.core.errors import (
    GeometryError,
    NoImagesError,
    ReadError,
    SeriesChoiceError,
    SeriesInfo,
    UnsupportedFormatError,
)
from napari_medai.core.geometry import Affine, as_affine, scaling
from napari_medai.core.volume import Volume
from napari_medai.io import record as records
from napari_medai.io.omezarr_write import save_volume
from napari_medai.io.pixelsize import MICROMETRES
from napari_medai.io.single import heeding, series_of, stem

__all__ = ["list_series", "open_volume", "save_volume", "sniff"]

_SUFFIXES = (".zarr", ".ome.zarr")
_MARKS = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
# what zarr, its codecs and its metadata parsers raise on damaged stores
_BROKEN: tuple[type[Exception], ...] = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)


def sniff(head: bytes, path: Path) -> bool:
    """Whether a folder is a Zarr group or array."""
    return path.is_dir() and any((path / mark).is_file() for mark in _MARKS)


def list_series(path: Path) -> list[SeriesInfo]:
    """The images of a store: one, those of a converted multi-image file, or the fields of a plate.

    The uid is the path of the image inside the store.
    """
    uids = _images(path, _group(path))
    return [series_of(_open_image(path, uid), uid) for uid in uids]


def open_volume(path: Path, series_uid: str = "") -> Volume:
    """Open an OME-Zarr image.

    Parameters
    ----------
    path : Path
        The folder of the store, or of an image or label image inside it.
    series_uid : str
        Path of the image inside the store, where it holds several.

    Returns
    -------
    Volume
        Lazy (dask, in the store's chunks), the finest level, axes ``(t)(c)(z)yx``, in um by the scale and translation
        of ``multiscales``, or in pixels where the axes have no unit of length. Label images carry
        ``meta["is_labels"]``; ``meta["levels"]`` are the arrays of all levels of a 2-D pyramid, the finest first.

    Raises
    ------
    SeriesChoiceError
        The store holds several images.
    NoImagesError
        The store has no ``multiscales``.
    ReadError, UnsupportedFormatError
        The store is damaged, or its axes are not those of an image.
    """
    uids = _images(path, _group(path))
    if series_uid and series_uid not in uids:
        raise ReadError(
            f"{path} has no image {series_uid!r}; it has: {', '.join(u or '(the store itself)' for u in uids)}."
        )
    if not series_uid and len(uids) > 1:
        raise SeriesChoiceError(path.name, list_series(path))
    return _open_image(path, series_uid or uids[0])


@dataclass(frozen=True, eq=False)
class _StoredLevel:
    """An array of the store with the look of an array for dask; damaged chunks become a `ReadError`."""

    path: Path
    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(self.array.dtype)
        return dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shards where there are any: they are what is read at once."""
        return tuple(getattr(self.array, "shards", None) or self.array.chunks)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        try:
            return np.asarray(self.array[key])
        except _BROKEN as error:
            raise ReadError(f"{self.path} has a damaged chunk of pixels: {error}. Copy the store again.") from error


def _group(path: Path) -> Any:
    try:
        return zarr.open_group(str(path), mode="r")
    except _BROKEN as error:
        if (path / ".zarray").is_file() or (path / "zarr.json").is_file():
            raise UnsupportedFormatError(
                f"{path} is a bare Zarr array, which says nothing about axes and spacing; give the folder of the "
                "OME-Zarr image above it."
            ) from error
        raise ReadError(f"{path} cannot be opened as Zarr: {error}") from error


def _attributes(group: Any) -> Mapping[str, Any]:
    """OME attributes; 0.5 puts them under ``ome``, 0.4 at the top."""
    attributes = dict(group.attrs)
    ome = attributes.get("ome", attributes)
    return ome if isinstance(ome, Mapping) else {}


def _images(path: Path, group: Any) -> list[str]:
    """Paths of the images inside the store; an empty one is the store itself."""
    attributes = _attributes(group)
    try:
        if "multiscales" in attributes:
            return [""]
        if "plate" in attributes:
            wells = [str(well["path"]) for well in attributes["plate"]["wells"]]
            return [f"{well}/{field['path']}" for well in wells for field in _well(group, well)["images"]]
        if "well" in attributes:
            return [str(field["path"]) for field in attributes["well"]["images"]]
        found = sorted(
            (name for name, child in group.groups() if "multiscales" in _attributes(child)),
            key=lambda name: (len(name), name),
        )
    except _BROKEN as error:
        raise ReadError(f"{path} has damaged OME-Zarr metadata: {error!r}") from error
    if not found:
        raise NoImagesError(f"{path} is a Zarr store without an OME-Zarr image: no 'multiscales' in its attributes.")
    return found


def _well(group: Any, name: str) -> Mapping[str, Any]:
    well: Mapping[str, Any] = _attributes(group[name])["well"]
    return well


def _open_image(path: Path, uid: str) -> Volume:
    findings: list[str] = []
    group = _group(path)
    with heeding(findings):
        try:
            image = group[uid] if uid else group
            attributes = _attributes(image)
            multiscales = attributes["multiscales"]
            if len(multiscales) > 1:
                findings.append(f"the first of {len(multiscales)} multiscales was opened")
            scales = multiscales[0]
            level = scales["datasets"][0]
            stored = _StoredLevel(path / uid, image[level["path"]])
            array = da.from_array(stored, chunks=stored.chunks, name=False)
            coarser = _coarser(path / uid, image, scales["datasets"][1:], stored)
            axes, factors = _axes(scales, array.ndim)
            transforms = [*level.get("coordinateTransformations", ()), *scales.get("coordinateTransformations", ())]
            scale, origin = _transform(transforms, array.ndim)
        except _BROKEN as error:
            raise ReadError(f"{path / uid} has damaged OME-Zarr metadata or pixels: {error!r}") from error
    if 0 in array.shape or array.dtype.kind not in "biuf":
        raise UnsupportedFormatError(f"{path / uid} has the shape {array.shape} and pixels of type {array.dtype}.")
    affine, units = _place(axes, factors, scale, origin, findings)
    record = records.load(records.dump(dict(image.attrs).get(records.KEY) or {}))
    affine, units = _recorded(record, axes, affine, units)
    levels = tuple(_canonical(path / uid, level, axes)[0] for level in (array, *coarser))
    axes = _canonical(path / uid, array, axes)[1]
    inside = path / uid
    name = stem(path, _SUFFIXES) + (f"_{uid.replace('/', '_')}" if uid else "")
    meta: dict[str, Any] = records.meta_of(record) | {"findings": tuple(findings)}
    if coarser and "z" not in axes:
        meta["levels"] = levels
    if "image-label" in attributes and array.dtype.kind in "iu":
        meta["is_labels"] = True
    modality = record.get("modality", "")
    return Volume(levels[0], axes, affine, units, modality, name, meta, str(inside)).canonical()


def _coarser(path: Path, image: Any, datasets: Sequence[Mapping[str, Any]], finest: _StoredLevel) -> list[Any]:
    """The other levels of a pyramid, with the axes and the type of the finest."""
    found = []
    for dataset in datasets:
        stored = _StoredLevel(path, image[dataset["path"]])
        if stored.ndim == finest.ndim and stored.dtype == finest.dtype and 0 not in stored.shape:
            found.append(da.from_array(stored, chunks=stored.chunks, name=False))
    return found


def _recorded(record: Mapping[str, Any], axes: str, affine: Affine, units: str) -> tuple[Affine, str]:
    """The whole affine where we wrote it; what OME-Zarr has of it if that was changed since."""
    try:
        whole = as_affine(record["affine"])
    except (LookupError, GeometryError, TypeError, ValueError):
        return affine, units
    of = ["zyx".index(a) for a in axes if a in "zyx"]
    factor = 1e3 if record.get("units") == "mm" and units == "um" else 1.0  # millimetres are read as micrometres
    spacing, origin = np.linalg.norm(whole[:3, :3], axis=0) * factor, whole[:3, 3] * factor
    same = np.allclose(spacing[of], np.diag(affine)[of], rtol=1e-6) and np.allclose(origin[of], affine[of, 3])
    return (whole, record.get("units", units)) if same else (affine, units)


def _axes(scales: Mapping[str, Any], ndim: int) -> tuple[str, list[float]]:
    """Letters of the axes, and micrometres per unit of each; 0 where there is no unit of length."""
    listed: Sequence[Any] = scales.get("axes") or list("tczyx"[-ndim:])  # 0.1 and 0.2 had five and named none
    letters, factors = "", []
    for axis in listed:
        entry = {"name": axis} if isinstance(axis, str) else axis  # 0.3 gave names only
        letters += str(entry["name"]).lower()
        factors.append(MICROMETRES.get(str(entry.get("unit", "")).lower(), 0.0))
    if len(letters) != ndim:
        raise ValueError(f"{len(letters)} letters of axes for {ndim} dimensions")
    return letters, factors


def _transform(transforms: Sequence[Mapping[str, Any]], ndim: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and origin along every axis, after all transforms in their order."""
    scale, origin = np.ones(ndim), np.zeros(ndim)
    for transform in transforms:
        kind = transform["type"]
        if kind == "scale":
            factor = np.asarray(transform["scale"], dtype=float)
            scale, origin = scale * factor, origin * factor
        elif kind == "translation":
            origin = origin + np.asarray(transform["translation"], dtype=float)
        elif kind != "identity":
            raise ValueError(f"coordinate transformation of type {kind!r}; scale and translation are known")
    if scale.shape != (ndim,) or origin.shape != (ndim,):
        raise ValueError(f"a coordinate transformation does not have {ndim} numbers")
    return scale, origin


def _place(
    axes: str, factors: Sequence[float], scale: NDArray[np.float64], origin: NDArray[np.float64], findings: list[str]
) -> tuple[Affine, str]:
    """Affine and unit of the axes z, y, x."""
    spatial = [axes.index(a) if a in axes else -1 for a in "zyx"]
    known = all(factors[n] > 0 for n in spatial if n >= 0)
    if not known and any(factors[n] > 0 for n in spatial if n >= 0):
        findings.append("some spatial axes have a unit and some have none; pixels were taken")
    step = [1.0 if n < 0 else float(scale[n]) * (factors[n] if known else 1.0) for n in spatial]
    start = [0.0 if n < 0 else float(origin[n]) * (factors[n] if known else 1.0) for n in spatial]
    try:
        return scaling(step, start), "um" if known else "pixel"
    except GeometryError:
        findings.append(f"the scale {step} is not one; 1 was taken")
        return np.eye(4), "pixel"


def _canonical(path: Path, array: Any, axes: str) -> tuple[Any, str]:
    """The array with its axes in the order t, c, z, y, x."""
    if any(a not in "tczyx" for a in axes) or len(set(axes)) != len(axes) or not {"y", "x"} <= set(axes):
        raise UnsupportedFormatError(f"{path} has the axes {axes!r}; those of an image are out of t, c, z, y, x.")
    order = [a for a in "tczyx" if a in axes]
    return array.transpose([axes.index(a) for a in order]), "".join(order)
