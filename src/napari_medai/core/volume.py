"""Volume: pixels with a place in space."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import GeometryError, InputError
from napari_medai.core.geometry import (
    Affine,
    Grid,
    Reorientation,
    as_affine,
    canonical_reorientation,
    scaling,
)

SPATIAL_AXES = "zyx"
# t time (or another series of images), c channel, s colour sample; spatial axes in the order z, y, x
KNOWN_AXES = "tczyxs"
UNITS = ("mm", "um", "pixel")


@dataclass(frozen=True, eq=False)
class Volume:
    """An image of any dimension: array, names of axes, and the affine of its spatial axes. Frozen.

    Parameters
    ----------
    array : numpy or dask array
        Pixels; never copied without need.
    axes : str
        One letter per array axis out of ``t``, ``c``, ``z``, ``y``, ``x``, ``s``, e.g. ``"zyx"``, ``"tzyx"``,
        ``"cyx"``, ``"yxs"``. ``s`` are the colour samples of RGB(A) and stands last. ``y`` and ``x`` are
        required, and z, y, x keep this order.
    affine : (4, 4) array, optional
        Index (k, j, i) -> world (z, y, x) in ``units``. A 2-D image is the plane k = 0; its first
        column holds the slice thickness. Default: the identity.
    units : {"mm", "um", "pixel"}
        Unit of the world. ``"mm"`` means patient space (or a NIfTI world).
    modality : str
        DICOM modality (``"MR"``, ``"CT"`` …), ``"fluorescence"``, ``"brightfield"``, or empty if not known.
    name : str
        What the layer or file is called; never patient identity.
    meta : mapping
        A whitelist of header fields; never patient identity.
    source : str
        Where the pixels came from (file or folder), or empty.

    Raises
    ------
    GeometryError, InputError
        The axes do not fit the array, an axis is unknown, the image is empty, or the affine is not one.
    """

    array: Any
    axes: str
    affine: Affine = field(default_factory=lambda: np.eye(4))
    units: str = "pixel"
    modality: str = ""
    name: str = "image"
    meta: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        spatial = "".join(a for a in self.axes if a in SPATIAL_AXES)
        if len(set(self.axes)) != len(self.axes) or any(a not in KNOWN_AXES for a in self.axes):
            raise InputError(f"Axes {self.axes!r} were given; use each of {', '.join(KNOWN_AXES)} at most once.")
        if (
            spatial not in ("yx", "zyx")
            or spatial not in self.axes
            or ("s" in self.axes and not self.axes.endswith("s"))
        ):
            raise InputError(
                f"Axes {self.axes!r} were given; y and x are needed, z, y, x side by side in this order, s last."
            )
        if len(self.array.shape) != len(self.axes):
            raise InputError(f"An array of shape {tuple(self.array.shape)} does not have the axes {self.axes!r}.")
        if 0 in self.array.shape:
            raise InputError(f"The image is empty: its shape is {tuple(self.array.shape)}.")
        if self.units not in UNITS:
            raise GeometryError(f"The unit {self.units!r} is not known; use one of {', '.join(UNITS)}.")
        object.__setattr__(self, "affine", as_affine(self.affine))
        self.affine.setflags(write=False)
        object.__setattr__(self, "meta", MappingProxyType(dict(self.meta)))

    def __repr__(self) -> str:
        size = " x ".join(f"{a}{n}" for a, n in zip(self.axes, self.shape, strict=True))
        return f"Volume({self.name!r}, {size}, {self.dtype}, {self.modality or 'modality unknown'}, {self.units})"

    def __reduce__(self) -> tuple[Any, ...]:
        # mapping proxies do not pickle, and a cluster moves volumes between processes
        values = [getattr(self, f.name) for f in dataclasses.fields(self)]
        values[6] = dict(self.meta)
        return (Volume, tuple(values))

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along every array axis."""
        return tuple(int(n) for n in self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Pixel type."""
        dtype: np.dtype[Any] = np.dtype(self.array.dtype)
        return dtype

    @property
    def spatial_axes(self) -> str:
        """``"zyx"`` or ``"yx"``."""
        return "zyx" if "z" in self.axes else "yx"

    @property
    def ndim_spatial(self) -> int:
        """3 for volumes and stacks, 2 for single images."""
        return len(self.spatial_axes)

    @property
    def is_rgb(self) -> bool:
        """Whether the last axis holds colour samples."""
        return self.axes.endswith("s")

    @property
    def is_lazy(self) -> bool:
        """Whether the pixels are still to be computed (dask)."""
        return hasattr(self.array, "dask")

    def size(self, axis: str) -> int:
        """Size along one axis; 1 if the volume does not have it."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        return Grid((self.size("z"), self.size("y"), self.size("x")), self.affine, self.units)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along z, y, x in ``units``."""
        return self.grid.spacing

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Size along the spatial axes the volume has: (z, y, x) or (y, x)."""
        return tuple(self.size(a) for a in self.spatial_axes)

    def numpy(self) -> NDArray[Any]:
        """The pixels in memory; computes a lazy array."""
        return np.asarray(self.array)

    def replace(self, **changes: Any) -> Volume:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def take(self, axis: str, index: int) -> Volume:
        """The volume at one index of ``t``, ``c`` or ``z``; the axis goes, the place in space stays.

        Raises
        ------
        InputError
            The volume does not have the axis, or it cannot be taken away.
        """
        if axis not in self.axes or axis not in "tcz":
            raise InputError(f"Axis {axis!r} cannot be taken from a volume with the axes {self.axes!r}.")
        position = self.axes.index(axis)
        affine = np.array(self.affine)
        if axis == "z":
            affine[:3, 3] += affine[:3, 0] * (index % self.shape[position])
        taken = self.array[(slice(None),) * position + (index,)]
        return self.replace(array=taken, axes=self.axes.replace(axis, ""), affine=affine)

    def reoriented(self, reorientation: Reorientation) -> Volume:
        """The same voxels with their spatial axes permuted and flipped, as a view.

        Raises
        ------
        InputError
            A 2-D image was to lose its plane.
        """
        if reorientation.is_identity:
            return self
        if "z" not in self.axes:
            raise InputError("A 2-D image cannot be reoriented out of its plane; add a z axis first.")
        first = self.axes.index("z")
        order = list(range(len(self.axes)))
        order[first : first + 3] = [first + n for n in reorientation.order]
        array = self.array.transpose(order)
        flips = [slice(None)] * first + [slice(None, None, -1) if f else slice(None) for f in reorientation.flips]
        grid = self.grid.reoriented(reorientation)
        return self.replace(array=array[tuple(flips)], affine=grid.affine)

    def canonical(self) -> Volume:
        """The volume with its axes nearest to +z superior, +y posterior, +x left; a view."""
        if "z" not in self.axes:
            return self
        return self.reoriented(canonical_reorientation(self.affine))


def from_array(array: Any, axes: str = "", spacing: tuple[float, ...] | None = None, **fields: Any) -> Volume:
    """A volume from an array that has no file.

    Parameters
    ----------
    array : array
        Pixels.
    axes : str, optional
        See `Volume`. Default: ``"yx"``, ``"zyx"`` or ``"tzyx"`` by the number of dimensions, and
        ``"yxs"`` for three dimensions with 3 or 4 uint8 samples last.
    spacing : tuple of float, optional
        Along the spatial axes the array has. Default 1.
    **fields
        Other fields of `Volume`, e.g. ``units="um"``.

    Raises
    ------
    InputError, GeometryError
        As `Volume`.
    """
    if not axes:
        if len(array.shape) == 3 and array.shape[-1] in (3, 4) and array.dtype == np.uint8:
            axes = "yxs"
        else:
            axes = {2: "yx", 3: "zyx", 4: "tzyx"}.get(len(array.shape), "")
    if spacing is not None and "affine" not in fields:
        fields["affine"] = scaling((1.0,) * (3 - len(spacing)) + tuple(spacing))
    return Volume(array, axes, **fields)


def labels(array: Any, like: Volume, names: Mapping[int, str] | None = None, **fields: Any) -> Volume:
    """A mask of one's own, on a scan's voxels: what `save` writes as a segmentation.

    Parameters
    ----------
    array : array of integers or bool
        0 is background; the shape of ``like`` without its channels and colour samples.
    like : Volume
        The scan.
    names : mapping of int to str, optional
        What each label value is called.
    **fields
        Other fields of `Volume`, e.g. ``name``.

    Raises
    ------
    InputError
        The values are not whole numbers, or the shape is another.

    Examples
    --------
    >>> import napari_medai as medai
    >>> bone = medai.labels(ct.numpy() > 300, ct, {1: "bone"})  # doctest: +SKIP
    >>> medai.save(bone, "bone.dcm")  # doctest: +SKIP
    """
    array = np.asarray(array) if not hasattr(array, "dask") else array
    axes = "".join(axis for axis in like.axes if axis not in "cs")
    shape = tuple(like.size(axis) for axis in axes)
    if array.dtype.kind not in "iub":
        raise InputError(f"Labels are whole numbers; an array of type {array.dtype} was given.")
    if tuple(array.shape) != shape:
        raise InputError(f"Labels of shape {tuple(array.shape)} were given for a scan of shape {shape} ({axes}).")
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    kept = {key: value for key, value in like.meta.items() if key not in ("window", "findings", "levels", "overlays")}
    meta = {**kept, "is_labels": True} | ({"label_names": dict(names)} if names else {})
    return like.replace(
        **{"array": array, "axes": axes, "modality": "SEG", "name": f"{like.name} labels", "meta": meta, **fields}
    )
