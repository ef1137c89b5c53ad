"""Pixel sizes in micrometres out of the metadata of microscopy files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple
from xml.etree import ElementTree

# Micrometres per unit; names as OME (UnitsLength), ImageJ, and OME-Zarr (UDUNITS-2) write them.
MICROMETRES: Mapping[str, float] = {
    "µm": 1.0,
    "μm": 1.0,  # the Greek letter beside the micro sign
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "\\u00b5m": 1.0,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "nanometre": 1e-3,
    "pm": 1e-6,
    "picometer": 1e-6,
    "å": 1e-4,
    "angstrom": 1e-4,
    "mm": 1e3,
    "millimeter": 1e3,
    "millimetre": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "centimetre": 1e4,
    "m": 1e6,
    "meter": 1e6,
    "metre": 1e6,
    "inch": 25400.0,
    "in": 25400.0,
}
# A resolution tag of a plain TIFF is believed below this pixel size (1016 dots per inch): above it the
# tag says how large to print, 72 and 300 dpi being the defaults of image programs.
LARGEST_UM = 25.0


class PixelSize(NamedTuple):
    """Distances of neighbouring pixels in um; z is 0 where it is not known."""

    z: float
    y: float
    x: float


def micrometres(value: Any, unit: str) -> float:
    """A length in um; 0 where the value is no positive number or the unit no length."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    length = number * MICROMETRES.get(unit.strip().lower(), 0.0)
    return length if math.isfinite(length) and length > 0 else 0.0


def ome_size(xml: str, index: int) -> tuple[PixelSize | None, str]:
    """Pixel size and description of an image of an OME-XML header.

    Parameters
    ----------
    xml : str
        OME-XML, schema 2016-06 or older; without a unit, sizes are in µm.
    index : int
        Which ``Image``.

    Returns
    -------
    size : PixelSize or None
        None where x or y is missing.
    description : str
        Of the image, or empty.
    """
    try:
        images = [e for e in ElementTree.fromstring(xml) if _tag(e) == "Image"]
    except ElementTree.ParseError:
        return None, ""
    if index >= len(images):
        return None, ""
    image = images[index]
    description = next((e.text or "" for e in image if _tag(e) == "Description"), "")
    pixels = next((e for e in image if _tag(e) == "Pixels"), None)
    if pixels is None:
        return None, description
    z, y, x = (micrometres(pixels.get(f"PhysicalSize{a}"), pixels.get(f"PhysicalSize{a}Unit") or "µm") for a in "ZYX")
    return (PixelSize(z, y, x) if y and x else None), description


def imagej_size(metadata: Mapping[str, Any], y_per_unit: float, x_per_unit: float) -> PixelSize | None:
    """Pixel size of an ImageJ hyperstack: the resolution tags count pixels per ImageJ's own unit."""
    unit = str(metadata.get("unit", ""))
    y, x = (micrometres(1 / n, unit) if n else 0.0 for n in (y_per_unit, x_per_unit))
    if not (y and x):
        return None
    return PixelSize(micrometres(metadata.get("spacing", 0), unit), y, x)


def resolution_size(y_per_unit: float, x_per_unit: float, unit: int) -> tuple[PixelSize | None, str]:
    """Pixel size from TIFF's resolution tags, and a finding where they were not believed.

    Parameters
    ----------
    y_per_unit, x_per_unit : float
        Pixels per unit; 0 where the tag is missing.
    unit : int
        ResolutionUnit: 1 none, 2 inch, 3 centimetre (TIFF 6.0, page 38).
    """
    length = {2: 25400.0, 3: 10000.0}.get(unit, 0.0)
    if not (length and y_per_unit > 0 and x_per_unit > 0):
        return None, ""
    y, x = length / y_per_unit, length / x_per_unit
    if max(y, x) > LARGEST_UM:
        return (
            None,
            f"the resolution tag ({x_per_unit:g} per {'inch' if unit == 2 else 'cm'}) is about printing; not used",
        )
    return PixelSize(0.0, y, x), ""


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
