"""Labels -> DICOM Segmentation (PS3.3 A.51, A.51.1): coded segments on the scan's own instances."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import WriteError
from napari_medai.core.provenance import EDITED
from napari_medai.core.volume import Volume
from napari_medai.io.atomic import written
from napari_medai.io.dicom.quiet import BROKEN_FILE
from napari_medai.io.dicom.write.codes import coded
from napari_medai.io.dicom.write.equipment import RESEARCH, algorithm, equipment, finish, made_by
from napari_medai.io.dicom.write.placing import geometry_of, header_like, place, refer, refuse_series
from napari_medai.io.dicom.write.source import Source

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription

Kind = Literal["", "labelmap", "binary"]
# A label map's pixels are of 16 bits at most (PS3.3 A.51.1); segment numbers begin at 1.
MOST_SEGMENTS = 65535
# Hue steps by the golden ratio: neighbouring labels differ, however many there are.
_GOLDEN = 0.618033988749895


def save_segmentation(
    labels: Volume, source: Source, path: Path, record: Mapping[str, Any] | None = None, kind: Kind = ""
) -> None:
    """Write labels as a DICOM Segmentation.

    Parameters
    ----------
    labels : Volume
        Integers, 0 is background: ``zyx`` or ``yx``; or ``tzyx`` whose t counts segments that may overlap
        (``meta["axis_t"]["name"] == "segment"``).
    source : Source
        The scan.
    path : Path
        The file.
    record : mapping, optional
        Of the result: ``label_names``, ``label_colors``, ``provenance``.
    kind : {"", "labelmap", "binary"}
        By default a label map, or a binary segmentation where segments overlap.

    Raises
    ------
    WriteError
        The labels are no labels, form a series in time, lie outside of the scan or in another frame of reference, or
        the system refused.
    """
    try:
        dataset = segmentation(labels, source, record, kind)
    except BROKEN_FILE as error:
        raise WriteError(
            f"The headers of the scan do not allow a DICOM object ({type(error).__name__}); save it as .nii.gz."
        ) from error
    with written(path) as file:
        dataset.save_as(file, enforce_file_format=True)


def consecutive(labels: Volume, record: Mapping[str, Any]) -> tuple[Volume, dict[str, Any]]:
    """Labels and their record with the labels numbered from 1, as the segments of a binary segmentation have to be.

    Label maps keep their numbers (PS3.3 C.8.20.2.3.1), and so do labels that count from 1 without a gap.
    """
    pixels = _integers(labels)
    names = {int(k): str(v) for k, v in dict(record.get("label_names") or labels.meta.get("label_names") or {}).items()}
    values = _values(pixels, names)
    if values == list(range(1, len(values) + 1)):
        return labels, dict(record)
    new = {value: n for n, value in enumerate(values, 1)}
    changed = dict(record)
    meta = dict(labels.meta)
    for known in (changed, meta):
        for key in ("label_names", "label_colors"):
            if known.get(key):
                known[key] = {new[int(k)]: v for k, v in dict(known[key]).items() if int(k) in new}
    return labels.replace(array=_renumbered(pixels, values), meta=meta), changed


def is_binary(labels: Volume, kind: Kind) -> bool:
    """Whether labels become a binary segmentation: by choice, or because segments overlap."""
    if kind or "t" not in labels.axes or (labels.meta.get("axis_t") or {}).get("name") != "segment":
        return kind == "binary"
    return _overlap(_integers(labels))


def segmentation(
    labels: Volume, source: Source, record: Mapping[str, Any] | None = None, kind: Kind = ""
) -> Segmentation:
    """The data set that `save_segmentation` writes."""
    from highdicom.seg import Segmentation
    from pydicom.sr.codedict import codes

    record = dict(record or {})
    axis: Mapping[str, Any] = labels.meta.get("axis_t") or {}
    stacked = "t" in labels.axes and axis.get("name") == "segment"
    refuse_series(labels, "a DICOM segmentation")
    placed = place(labels, source)
    if placed.positions is None and placed.volume.size("z") > 1:
        raise WriteError("The scan's slices have no positions, so that no DICOM segmentation can be placed on them.")
    pixels = _integers(placed.volume)
    pixels = pixels if "z" in labels.axes else pixels[..., None, :, :]
    names = {int(k): str(v) for k, v in dict(record.get("label_names") or labels.meta.get("label_names") or {}).items()}
    colors = record.get("label_colors") or labels.meta.get("label_colors") or {}
    colors = {int(k): tuple(v) for k, v in dict(colors).items()}
    values = _values(pixels, names)
    if placed.own_grid is False and pixels.any():
        _check_inside(labels, source)
    provenance = dict(record.get("provenance") or labels.meta.get("provenance") or {})
    binary = is_binary(labels, kind)
    if stacked and not binary and _overlap(pixels):
        raise WriteError("The segments overlap, which a label map cannot hold; choose kind='binary'.")
    numbers = {value: n for n, value in enumerate(values, 1)} if binary else {value: value for value in values}
    describe = [_describe(value, numbers[value], names, colors, provenance) for value in values]
    array = _binary(pixels, values, stacked) if binary else _labelmap(pixels, values, stacked)
    dataset = Segmentation(
        [header_like(source, placed)],
        array,
        "BINARY" if binary else "LABELMAP",
        describe,
        content_description=RESEARCH,
        content_label="SEGMENTATION",
        **geometry_of(placed, float(labels.meta.get("slice_thickness_mm", 0.0)) if placed.own_grid else 0.0),
        **equipment(source, "segmentation"),
    )
    refer(dataset, source, placed, codes.cid7203.SegmentationImageDerivation, made_by(record))
    finish(dataset, source, f"Segmentation {provenance.get('model', '')}".strip())
    return dataset


def _check_inside(labels: Volume, source: Source) -> None:
    from napari_medai.io.agreement import share_inside
    from napari_medai.io.readback import of_volume

    if share_inside(of_volume(labels), source.volume.grid) == 0:
        raise WriteError("None of the labelled voxels lies inside the scan; give the scan that they were made on.")


def _integers(volume: Volume) -> NDArray[Any]:
    pixels = volume.numpy()
    if pixels.dtype.kind not in "biu":
        whole = np.rint(pixels)
        if not np.array_equal(whole, pixels):
            raise WriteError("These are no labels: their values are not whole numbers.")
        pixels = whole
    if pixels.min() < 0 or pixels.max() > MOST_SEGMENTS:
        raise WriteError(f"Labels from {pixels.min()} to {pixels.max()} were given; DICOM takes 1 to {MOST_SEGMENTS}.")
    return pixels.astype(np.uint16)


def _values(pixels: NDArray[Any], names: Mapping[int, str]) -> list[int]:
    """The labels to be described: those in the image; where it is empty, all that were looked for."""
    values = [int(v) for v in np.flatnonzero(np.bincount(pixels.ravel())) if v]
    values = values or sorted(v for v in names if 0 < v <= MOST_SEGMENTS)
    if not values:
        raise WriteError(
            "The labels are empty and have no names, so that there is no segment to describe; nothing was saved."
        )
    return values


def _labelmap(pixels: NDArray[Any], values: list[int], stacked: bool) -> NDArray[Any]:
    whole: NDArray[Any] = pixels.max(axis=0) if stacked else pixels
    return whole.astype(np.uint8) if max(values) < 256 else whole


def _binary(pixels: NDArray[Any], values: list[int], stacked: bool) -> NDArray[Any]:
    """(z, y, x, segments) of 0 and 1 where segments may overlap, else numbers from 1 in the order of the values."""
    if stacked:
        return np.stack([(pixels == value).any(axis=0) for value in values], axis=-1)
    whole = _renumbered(pixels, values)
    return whole.astype(np.uint8) if len(values) < 256 else whole


def _renumbered(pixels: NDArray[Any], values: list[int]) -> NDArray[Any]:
    table = np.zeros(max(values) + 1, np.uint16)
    table[values] = np.arange(1, len(values) + 1)
    return np.asarray(table[pixels])


def _overlap(pixels: NDArray[Any]) -> bool:
    return bool((np.count_nonzero(pixels, axis=0) > 1).any())


def _describe(
    value: int,
    number: int,
    names: Mapping[int, str],
    colors: Mapping[int, tuple[float, ...]],
    provenance: Mapping[str, Any],
) -> SegmentDescription:
    from highdicom import UID
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept

    # instances have no names of their own: they are what their model is called after
    model = str(provenance.get("model", ""))
    label = names.get(value) or f"{model or 'label'} {value}"
    category, kind, side = coded(names.get(value) or model)
    by_hand = not model
    edited = EDITED in tuple(provenance.get("notes") or ())
    color = colors.get(value) or colorsys.hsv_to_rgb(value * _GOLDEN % 1, 0.7, 0.95)
    description = SegmentDescription(
        number,
        label[:64],
        category,
        kind,
        "MANUAL" if by_hand else "SEMIAUTOMATIC" if edited else "AUTOMATIC",
        algorithm(provenance),
        tracking_uid=UID(),
        tracking_id=f"{label[:48]} {value}",
        display_color=CIELabColor.from_rgb(*(round(255 * float(c)) for c in color[:3])),
    )
    if side is not None:
        (item,) = description.SegmentedPropertyTypeCodeSequence
        item.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept(side.value, "SCT", side.meaning)]
    return description
