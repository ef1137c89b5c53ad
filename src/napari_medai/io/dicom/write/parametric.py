"""Heat -> DICOM Parametric Map (PS3.3 A.75): float32 on the scan's own instances."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_medai.core.errors import WriteError
from napari_medai.core.volume import Volume
from napari_medai.io.atomic import written
from napari_medai.io.dicom.quiet import BROKEN_FILE
from napari_medai.io.dicom.write.equipment import RESEARCH, equipment, finish, made_by, say_side
from napari_medai.io.dicom.write.placing import geometry_of, header_like, place, refer, refuse_series
from napari_medai.io.dicom.write.source import Source

if TYPE_CHECKING:
    from highdicom.pm import ParametricMap


def save_map(heat: Volume, source: Source, path: Path, record: Mapping[str, Any] | None = None) -> None:
    """Write heat as a DICOM Parametric Map.

    Parameters
    ----------
    heat : Volume
        Numbers without a unit, ``zyx`` or ``yx``.
    source : Source
        The scan.
    path : Path
        The file.
    record : mapping, optional
        Of the result: ``target``, ``method``, ``provenance``.

    Raises
    ------
    WriteError
        The heat is a series in time, is not finite, or lies where the scan does not; or the system refused.
    """
    try:
        dataset = parametric_map(heat, source, record)
    except BROKEN_FILE as error:
        raise WriteError(
            f"The headers of the scan do not allow a DICOM object ({type(error).__name__}); save it as .nii.gz."
        ) from error
    with written(path) as file:
        dataset.save_as(file, enforce_file_format=True)


def parametric_map(heat: Volume, source: Source, record: Mapping[str, Any] | None = None) -> ParametricMap:
    """The data set that `save_map` writes."""
    from highdicom.content import VOILUTTransformation
    from highdicom.pm import ParametricMap, RealWorldValueMapping
    from pydicom.sr.codedict import codes

    record = dict(record or {})
    refuse_series(heat, "a parametric map")
    if "t" in heat.axes or heat.is_rgb:
        raise WriteError(f"A parametric map holds one image; this one has the axes {heat.axes}.")
    placed = place(heat, source)
    if placed.positions is None and placed.volume.size("z") > 1:
        raise WriteError("The scan's slices have no positions, so that no parametric map can be placed on them.")
    if placed.positions is None:
        # so it is defined for images in the patient alone (PS3.3 A.75.3)
        raise WriteError(
            "The scan does not say where it lies in the patient, which a parametric map has to; save it as .nii.gz."
        )
    pixels = np.ascontiguousarray(placed.volume.numpy(), dtype=np.float32)
    if not np.isfinite(pixels).all():
        raise WriteError("The heat holds values that are not finite; nothing was saved.")
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    method, target = str(record.get("method", "")), str(record.get("target", ""))
    quantity = codes.cid7180.ClassActivation
    if method.startswith("gradcam"):
        quantity = codes.cid7180.GradientWeightedClassActivation
    low, high = float(min(pixels.min(), 0.0)), float(max(pixels.max(), 1.0))
    mapping = RealWorldValueMapping(
        "heat",
        f"{method} of {target}"[:64] if target else "heat",
        codes.UCUM.NoUnits,
        (low, high),
        1.0,
        0.0,
        quantity_definition=quantity,
    )
    dataset = ParametricMap(
        [header_like(source, placed)],
        pixels,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[VOILUTTransformation(window_center=(low + high) / 2, window_width=high - low)],
        content_description=RESEARCH,
        content_label="HEATMAP",
        **geometry_of(placed, float(heat.meta.get("slice_thickness_mm", 0.0)) if placed.own_grid else 0.0),
        **equipment(source, "map"),
    )
    refer(dataset, source, placed, codes.DCM.UnspecifiedMethodOfCalculation, made_by(record))
    finish(dataset, source, f"Heat {target}".strip())
    say_side(dataset, source)
    return dataset
