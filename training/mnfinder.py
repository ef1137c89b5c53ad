"""mnfinder's annotated fluorescence images: nuclei and micronuclei at 20x to 40x.

The wheel of mnfinder 1.2.3 (MIT licence) carries three folders of images with instance masks as RGBA
pictures in which each colour is one object. They are used here as they were split by their authors:
`"training-data"` to fit, `"validation-data"` to choose, `"test-data"` to report.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import imageio.v3 as iio
import numpy as np
import tifffile
from numpy.typing import NDArray
from skimage.measure import label

from training.packages import package_member, package_members

PACKAGE = "mnfinder"
Split = Literal["training", "validation", "test"]


@dataclass(frozen=True)
class Slide:
    """One annotated image.

    Attributes
    ----------
    name
        ``folder/file`` inside the split, without suffix.
    image
        Intensities as stored, shape (y, x).
    nuclei, micronuclei
        Instance labels, int32, shape (y, x), 0 is background.
    """

    name: str
    image: NDArray[np.generic]
    nuclei: NDArray[np.int32]
    micronuclei: NDArray[np.int32]


def instances_from_colours(rgba: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Turn a picture whose colours are objects into instance labels.

    Parameters
    ----------
    rgba
        Shape (y, x, 4), uint8. Transparent pixels are background.

    Returns
    -------
    ndarray
        int32 labels 1..n, shape (y, x). Parts of one colour that do not touch (8-neighbours) become
        separate objects, because the annotators' palette repeats.
    """
    values = rgba.astype(np.int32)
    code = (values[..., 0] << 16 | values[..., 1] << 8 | values[..., 2]) + 1
    code[rgba[..., 3] == 0] = 0
    return np.asarray(label(code, background=0, connectivity=2), dtype=np.int32)


def names(split: Split) -> list[str]:
    """Names of the images of a split, sorted."""
    prefix = f"{PACKAGE}/{split}-data/"
    return [
        member.removeprefix(prefix).removesuffix(".tif").replace("/images/", "/")
        for member in package_members(PACKAGE)
        if member.startswith(prefix) and "/images/" in member and member.endswith(".tif")
    ]


def load(split: Split, name: str) -> Slide:
    """Read one image with its masks."""
    folder, _, file = name.partition("/")
    base = f"{PACKAGE}/{split}-data/{folder}"
    image = tifffile.imread(io.BytesIO(package_member(PACKAGE, f"{base}/images/{file}.tif")))
    masks = [
        instances_from_colours(iio.imread(package_member(PACKAGE, f"{base}/{kind}/{file}.png")))
        for kind in ("nucleus_masks", "mn_masks")
    ]
    return Slide(name, image, masks[0], masks[1])


def load_split(split: Split) -> list[Slide]:
    """Read all images of a split.

    One picture of the training folder is pixel for pixel a picture of the test folder. Training images
    that occur among the test images are therefore left out, so that no test pixel is ever fitted.
    """
    slides = [load(split, name) for name in names(split)]
    if split == "test":
        return slides
    held_out = {load("test", name).image.tobytes() for name in names("test")}
    return [slide for slide in slides if slide.image.tobytes() not in held_out]


def names_with_twin() -> set[str]:
    """Names of the test images that also lie in the training folder, pixel for pixel."""
    fitted = {load("training", name).image.tobytes() for name in names("training")}
    return {name for name in names("test") if load("test", name).image.tobytes() in fitted}
