"""One trained configuration of nnU-Net as the engine needs to know it: plain values, checked."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Channel(_Part):
    """How one channel of the image is normalised.

    Attributes
    ----------
    scheme : str
        nnU-Net's name of the normalisation.
    masked : bool
        Only voxels inside the image's non-zero region count, for z-scores.
    mean, std, low, high : float
        Of the training's foreground, for CT: mean, deviation, percentiles 0.5 and 99.5.
    """

    scheme: str
    masked: bool = False
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 1.0


class Resampling(_Part):
    """How an array is brought to another spacing.

    Attributes
    ----------
    method : {"spline", "torch", "none"}
        nnU-Net's default (scikit-image), its variant on torch, or nothing at all.
    labels : bool
        Whether the array holds labels.
    order, order_z : int
        Of the splines, in plane and across.
    separate_z : bool or None
        Whether thick slices are resampled in plane first; None: where the spacing is anisotropic.
    threshold : float
        From this ratio of the largest to the smallest spacing on it is.
    across : str
        The mode across planes, for ``"torch"``.
    in_plane : str
        The mode in planes, for ``"torch"``.
    lean : bool
        For labels by ``"torch"``: one label after the other, the last above a half wins.
    """

    method: Literal["spline", "torch", "none"] = "spline"
    labels: bool = False
    order: int = Field(default=3, ge=0, le=5)
    order_z: int = Field(default=0, ge=0, le=5)
    separate_z: bool | None = None
    threshold: float = 3.0
    across: Literal["nearest-exact", "nearest", "linear"] = "nearest-exact"
    in_plane: Literal["linear", "nearest", "nearest-exact", "bilinear", "bicubic", "area"] = "linear"
    lean: bool = False


class StagePlan(_Part):
    """One trained configuration: all that the engine needs to know to run it.

    Attributes
    ----------
    configuration : str
        ``"3d_fullres"``.
    folder : str
        Where it lies in the package; empty for the package itself.
    trainer : str
        Name of nnU-Net's trainer as the folder says it; empty if it does not.
    checkpoints : dict
        Fold -> file name within ``folder``.
    patch : tuple of int
        Tile in voxels, 2 or 3 axes, after `forward`.
    spacing : tuple of float
        Target spacing in mm, as many axes.
    forward, backward : tuple of 3 ints
        Order of the image's axes (z, y, x) for the network, and back.
    network : str
        Name in `napari_medai.nets.NETWORKS`.
    arguments : dict
        What it is built with, but for the numbers of channels in and out.
    channels : tuple of Channel
        Of the image.
    data, probabilities, labels : Resampling
        Of the image, of the network's output, of the previous stage's labels.
    previous : str
        The configuration whose labels are added to the image; empty if none.
    reader : str
        nnU-Net's name of what read the training images.
    """

    configuration: str
    folder: str = ""
    trainer: str = ""
    checkpoints: dict[str, str]
    patch: tuple[int, ...]
    spacing: tuple[float, ...]
    forward: tuple[int, int, int]
    backward: tuple[int, int, int]
    network: str
    arguments: dict[str, Any]
    channels: tuple[Channel, ...]
    data: Resampling
    probabilities: Resampling
    labels: Resampling
    previous: str = ""
    reader: str = "SimpleITKIO"
