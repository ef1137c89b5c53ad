"""A Volume as MONAI's readers would give it, and what a bundle makes of it back on the Volume's voxels.

MONAI's arrays are (x, y, z) with an affine to RAS millimetres. A scan out of a NIfTI file is handed over with its axes
in the order and direction of the file, one out of DICOM with x to the left, y to posterior, z to superior: as MONAI's
own readers do, which matters to bundles that do not turn images themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from numpy.typing import NDArray

from napari_medai.core.geometry import (
    Affine,
    Grid,
    Reorientation,
    canonical_reorientation,
    to_ras,
)
from napari_medai.core.volume import Volume

# Affines of one grid that went forth and back differ by rounding only; a tenth of a micrometre is far above it.
_SAME_MM = 1e-4


@dataclass(frozen=True)
class Handed:
    """An image as it was handed to a bundle.

    Attributes
    ----------
    array : (c, x, y, z) or (c, x, y) float32 array
        A view of the Volume's pixels.
    affine : (4, 4) array
        Index (x, y, z) -> RAS millimetres.
    turn : Reorientation
        From the axes of ``array``, read backwards as (z, y, x), to those of the Volume.
    ndim : int
        Spatial dimensions of the Volume.
    flat : bool
        Whether a single image was given a third axis.
    """

    array: NDArray[np.float32]
    affine: Affine
    turn: Reorientation
    ndim: int
    flat: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along (x, y, z) or (x, y)."""
        return self.array.shape[1:]

    def tensor(self, channels: slice, channel_dim: int | str | None, name: str) -> MetaTensor:
        """Some channels as MONAI's LoadImage gives them: with their axis where the bundle says that it is.

        Parameters
        ----------
        channels : slice
            Which of them.
        channel_dim : int, str, optional
            The axis of channels; ``"no_channel"`` for one without an axis of its own. Default: none for a single
            channel, the first for several.
        name : str
            What stands in the place of a file's name.
        """
        array = self.array[channels]
        axis: float = float("nan")
        if isinstance(channel_dim, int):
            axis = channel_dim
            array = np.moveaxis(array, 0, channel_dim)
        elif len(array) == 1:
            array = array[0]
        else:
            axis = 0
        # a copy in C order, as MONAI's has it: sums over another order of memory round otherwise
        pixels = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
        meta = {
            "original_channel_dim": axis,
            "spatial_shape": np.array(self.shape),
            "space": "RAS",
            "filename_or_obj": name,
            "affine": self.affine.copy(),
            "original_affine": self.affine.copy(),
        }
        return MetaTensor.ensure_torch_and_prune_meta(pixels, meta)

    def back(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array (x, y, z) or (x, y) on the Volume's voxels, (z, y, x) or (y, x)."""
        array = array.transpose(range(array.ndim)[::-1])
        if self.ndim == 2:
            return array[0] if self.flat else array
        array = array.transpose(self.turn.order)
        return array[tuple(slice(None, None, -1 if flip else 1) for flip in self.turn.flips)]

    def index_back(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        """Index coordinates (n, 3) along (x, y, z) as index coordinates along the Volume's (z, y, x)."""
        reversed_ = index[:, ::-1]
        turned = np.stack([reversed_[:, old] for old in self.turn.order], axis=1)
        sizes = [self.shape[::-1][old] for old in self.turn.order]
        for axis, flip in enumerate(self.turn.flips):
            if flip:
                turned[:, axis] = sizes[axis] - 1 - turned[:, axis]
        return turned


def hand_over(volume: Volume, three: bool, spacing_mm: Sequence[float] | None = None) -> Handed:
    """An image as a bundle takes it.

    Parameters
    ----------
    volume : Volume
        (c)zyx or (c)yx, in memory.
    three : bool
        Whether a single image gets a third axis, because the bundle looks at volumes slice by slice.
    spacing_mm : sequence of 3 floats, optional
        (z, y, x) that the bundle resamples to: taken for an image of which the size of voxels is not known, so that
        it is not resampled.
    """
    array = volume.numpy() if "c" in volume.axes else volume.numpy()[np.newaxis]
    ndim = volume.ndim_spatial
    turn, affine = _as_stored(volume)
    if volume.units == "pixel":
        affine = np.diag([*(spacing_mm or (1.0, 1.0, 1.0)), 1.0])
    elif volume.units == "um":
        affine = np.diag([1e-3, 1e-3, 1e-3, 1.0]) @ affine
    if ndim == 3:
        undo = turn.inverse()
        array = array.transpose(0, *(n + 1 for n in undo.order))
        array = array[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in undo.flips))]
    elif three:
        array = array[:, np.newaxis]
    array = array.transpose(0, *range(array.ndim - 1, 0, -1))
    # -0.0 out of the turning of axes is 0.0 in a file
    return Handed(array, np.asarray(to_ras(affine)) + 0.0, turn, ndim, three and ndim == 2)


def _as_stored(volume: Volume) -> tuple[Reorientation, Affine]:
    """How the file's axes were turned to the Volume's, and the file's affine; nothing if it was not or is not known."""
    stored = volume.meta.get("stored_affine")
    if stored is not None and volume.ndim_spatial == 3 and volume.units != "pixel":
        affine = np.array(stored, dtype=np.float64)
        turn = canonical_reorientation(affine)
        undo = turn.inverse()
        shape = tuple(volume.spatial_shape[n] for n in undo.order)
        found = Grid((shape[0], shape[1], shape[2]), affine, volume.units).reoriented(turn)
        # the Volume may have been cut since it was read
        if found.shape == volume.grid.shape and np.allclose(found.affine, volume.affine, rtol=0, atol=_SAME_MM):
            return turn, affine
    return Reorientation((0, 1, 2), (False, False, False)), np.array(volume.affine)


def on_grid(result: Any, handed: Handed, nearest: bool = True) -> tuple[torch.Tensor, str]:
    """A result (c, x, y, z) on the voxels that were handed over, and what was done to it to bring it there.

    Nothing is done where the bundle brought it back itself.
    """
    tensor = result if isinstance(result, torch.Tensor) else torch.as_tensor(np.asarray(result))
    shape = tuple(tensor.shape[1:])
    affine = np.asarray(tensor.affine.cpu()) if isinstance(tensor, MetaTensor) else handed.affine
    plain = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
    same = len(handed.shape) == 2 or np.allclose(affine, handed.affine, rtol=0, atol=_SAME_MM)
    if shape == handed.shape and same:
        return plain, ""
    mode = "nearest" if nearest else "bilinear"
    if len(handed.shape) == 3:
        resample = SpatialResample(mode=mode, padding_mode="zeros", align_corners=False)
        moved = resample(
            MetaTensor(plain.float(), affine=torch.as_tensor(affine)), torch.as_tensor(handed.affine), handed.shape
        )
        plain = moved.as_tensor()
    else:
        plain = torch.nn.functional.interpolate(plain.float()[None], handed.shape, mode=mode)[0]
    sizes = " to ".join(" x ".join(map(str, size)) for size in (shape, handed.shape))
    return plain, f"the bundle's result was brought back to the scan's voxels ({sizes}, nearest neighbour)"
