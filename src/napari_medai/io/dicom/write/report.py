"""Measurements, detections and classes -> Comprehensive 3D SR with TID 1500 (PS3.16).

A label on one slice is a planar region (TID 1410), one on several a volumetric one (TID 1411); detections in 3-D are
ellipsoids, in 2-D ellipses; a class of the whole image is a group without a region (TID 1501).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_medai import __version__
from napari_medai.core.errors import WriteError
from napari_medai.core.geometry import index_to_world
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Boxes, Mask, Scores
from napari_medai.core.volume import Volume
from napari_medai.io.agreement import Size, sizes
from napari_medai.io.atomic import written
from napari_medai.io.contours import outlines
from napari_medai.io.dicom.quiet import BROKEN_FILE
from napari_medai.io.dicom.write.codes import coded
from napari_medai.io.dicom.write.equipment import MAKER, equipment, finish
from napari_medai.io.dicom.write.library import evident, library
from napari_medai.io.dicom.write.placing import refuse_nowhere, refuse_series
from napari_medai.io.dicom.write.reported import reported
from napari_medai.io.dicom.write.source import Source, source_of
from napari_medai.io.readback import of_volume

if TYPE_CHECKING:
    from pydicom import Dataset

    from napari_medai.io.verify import Saved

# Codes of our own, where no standard has one: classes that a model calls what it likes.
SCHEME = "99MEDAI"
# Numbers are decimal strings of 16 characters.
ROUNDED = 1e-9
Content = Mask | Boxes | Scores


def save_table(what: Content, path: Path, *, against: Any = None, segmentation: Path | str | None = None) -> None:
    """Write a structured report.

    Parameters
    ----------
    what : Mask, Boxes or Scores
        Volumes (or areas) and mean intensities of labels; detections with their probabilities; classes, present or
        absent, with their probabilities.
    path : Path
        Ends in ``.sr.dcm``.
    against : Volume or path, optional
        The scan, where the result does not know it.
    segmentation : path, optional
        The DICOM SEG that the same mask was saved as; its segments are referred to instead of outlines.

    Raises
    ------
    WriteError
        The scan is not DICOM, the mask forms a series in time or lies on other voxels than the scan's, or the system
        refused.
    """
    if isinstance(what, Mask):
        place = what.labels
    else:  # the grid tells the series of a folder apart
        place = Volume(np.broadcast_to(np.uint8(0), what.grid.shape), "zyx", what.grid.affine, what.grid.units)
    source = source_of(place, against)
    try:
        dataset = report(what, source, segmentation)
    except BROKEN_FILE as error:
        why = f"The headers of the scan do not allow a DICOM report ({type(error).__name__}); save as .csv or .json."
        raise WriteError(why) from error
    with written(path) as file:
        dataset.save_as(file, enforce_file_format=True)


def report(what: Content, source: Source, segmentation: Path | str | None = None) -> Dataset:
    """The data set that `save_table` writes."""
    from highdicom import UID
    from highdicom.sr import (
        Comprehensive3DSR,
        DeviceObserverIdentifyingAttributes,
        MeasurementReport,
        ObservationContext,
        ObserverContext,
    )
    from pydicom.sr.codedict import codes

    segments = None if segmentation is None else _header(Path(segmentation))
    groups: list[Any]
    if isinstance(what, Mask):
        groups = list(_regions(what, source, segments))
    elif isinstance(what, Boxes):
        groups = list(_detections(what, source))
    else:
        groups = list(_classes(what, source))
    if not groups:
        raise WriteError("There is nothing to report: no object was found.")
    device = DeviceObserverIdentifyingAttributes(
        uid=UID(), name=MAKER, manufacturer_name=MAKER, model_name=MAKER, serial_number=__version__
    )
    modality = str(source.lead.get("Modality", ""))
    procedures = {
        "CT": codes.LN.CTUnspecifiedBodyRegion,
        "MR": codes.LN.MRIUnspecifiedBodyRegion,
        "PT": codes.LN.PETUnspecifiedBodyRegion,
        "NM": codes.LN.NMUnspecifiedBodyRegion,
    }
    content = MeasurementReport(
        ObservationContext(observer_device_context=ObserverContext(codes.DCM.Device, device)),
        procedures.get(modality, codes.SCT.ImagingProcedure),
        groups,
        codes.DCM.ImagingMeasurementReport,
        referenced_images=library(source),
    )
    made = equipment(source, "report")
    evidence = [evident(header) for header in (*source.datasets, *([] if segments is None else [segments]))]
    kept = ("series_instance_uid", "series_number", "sop_instance_uid", "instance_number", "manufacturer")
    dataset = Comprehensive3DSR(evidence, content[0], is_complete=True, **{key: made[key] for key in kept})
    dataset.ManufacturerModelName = MAKER
    dataset.SoftwareVersions = dataset.DeviceSerialNumber = __version__
    finish(dataset, source, f"Measurements {what.provenance.model}".strip())
    return dataset


def _header(path: Path) -> Dataset:
    from pydicom import dcmread

    return dcmread(path, stop_before_pixels=True)


def _regions(mask: Mask, source: Source, segments: Dataset | None) -> Iterator[Any]:
    """A group for each label, planar or volumetric."""
    from highdicom.sr import (
        PlanarROIMeasurementsAndQualitativeEvaluations,
        ReferencedSegment,
        SourceSeriesForSegmentation,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )

    refuse_series(mask.labels, "a report")
    if "t" in mask.labels.axes:
        raise WriteError("Segments that overlap are reported one by one: labels.take('t', n), n from 0.")
    labels = mask.labels if segments is not None else source.on_own_voxels(mask.labels)
    if segments is None and not source.shares_grid(labels):
        raise WriteError(
            "These labels do not lie on the scan's own voxels, so that no outline can be drawn on its images. Save "
            "them as .seg.dcm first and give that file with segmentation=…"
        )
    intensities = _column(mask, "mean_intensity")
    numbers = _segment_numbers(mask, segments) if segments is not None else {}
    series = SourceSeriesForSegmentation(source.series_uid)
    for value, size in sizes(of_volume(labels)).items():
        name = _name(mask, value)
        common = _common(name, mask.provenance)
        if segments is not None:
            if value not in numbers:
                raise WriteError(f"The segmentation has no segment for label {value}; give the one of this mask.")
            region = ReferencedSegment(
                segments.SOPClassUID, segments.SOPInstanceUID, numbers[value], source_series=series
            )
            values = _measured(size, labels, source, intensities.get(value), planar=False)
            yield VolumetricROIMeasurementsAndQualitativeEvaluations(
                referenced_segment=region, measurements=values, **common
            )
            continue
        drawn = list(_drawn(labels, value, source))
        planar = len(drawn) == 1
        values = _measured(size, labels, source, intensities.get(value), planar)
        if planar:
            yield PlanarROIMeasurementsAndQualitativeEvaluations(
                referenced_region=drawn[0], measurements=values, **common
            )
        else:
            yield VolumetricROIMeasurementsAndQualitativeEvaluations(
                referenced_regions=drawn, measurements=values, **common
            )


def _name(mask: Mask, value: int) -> str:
    """What a label is called; instances, which have no names, after their model."""
    return mask.names.get(value) or f"{mask.provenance.model or 'label'} {value}"


def _segment_numbers(mask: Mask, segments: Dataset) -> dict[int, int]:
    """Which segment each label became: the one of its name, else, in a label map, the one of its value."""
    named = {str(item.get("SegmentLabel", "")): int(item.SegmentNumber) for item in segments.SegmentSequence}
    found = {value: named[name] for value in _values(mask) if (name := _name(mask, value)[:64]) in named}
    if segments.SegmentationType == "LABELMAP":
        return {n: n for n in set(named.values()) - set(found.values()) if n not in found} | found
    return found


def _values(mask: Mask) -> list[int]:
    return [int(value) for value in np.unique(mask.labels.numpy()) if value]


def _drawn(labels: Volume, value: int, source: Source) -> Iterator[Any]:
    """Outlines of a label on the images: (column, row) where a pixel's centre has a half (PS3.3, C.18.6.1.2)."""
    from highdicom.sr import ImageRegion, SourceImageForRegion

    stack = source.in_stack_order(labels).numpy()
    stack = stack if "z" in labels.axes else stack[np.newaxis]
    for k in np.flatnonzero((stack == value).any(axis=(1, 2))):
        plane = source.planes[0][int(k)]
        if plane is None:
            raise WriteError(
                "A label lies on a slice that is missing in the scan, where there is no image to refer to."
            )
        frames = [plane.frame] if plane.frame else None
        image = SourceImageForRegion(plane.dataset.SOPClassUID, plane.dataset.SOPInstanceUID, frames)
        for line in outlines(stack[k] == value):
            closed = np.concatenate([line, line[:1]])[:, ::-1] + 0.5
            yield ImageRegion("POLYLINE", closed, image)


def _measured(size: Size, labels: Volume, source: Source, mean: float | None, planar: bool) -> list[Any]:
    from highdicom.sr import CodedConcept, Measurement
    from pydicom.sr.codedict import codes

    found = []
    if planar:
        across = float(size.volume_mm3 / _thickness(labels))
        found.append(Measurement(codes.SCT.Area, across, codes.UCUM.SquareMillimeter))
    if labels.ndim_spatial == 3:
        found.append(Measurement(codes.SCT.Volume, size.volume_mm3, codes.UCUM.CubicMillimeter))
    if mean is not None and np.isfinite(mean):
        modality = str(source.lead.get("Modality", ""))
        name, unit = {
            "CT": (codes.DCM.AttenuationCoefficient, codes.UCUM.HounsfieldUnit),
            "MR": (codes.DCM.MRSignalIntensity, codes.UCUM.NoUnits),
        }.get(modality, (CodedConcept("INTENSITY", SCHEME, "Intensity"), codes.UCUM.NoUnits))
        found.append(Measurement(name, mean, unit, derivation=codes.SCT.Mean))
    return found


def _thickness(labels: Volume) -> float:
    """How far a step along the first axis leads away from the plane of the other two, mm."""
    columns = labels.affine[:3, :3]
    normal = np.cross(columns[:, 1], columns[:, 2])
    return float(abs(columns[:, 0] @ normal) / np.linalg.norm(normal))


def _detections(boxes: Boxes, source: Source) -> Iterator[Any]:
    """A group for each object."""
    from highdicom.sr import (
        ImageRegion,
        Measurement,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        SourceImageForRegion,
        SourceSeriesForSegmentation,
        VolumeSurface,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )
    from pydicom.sr.codedict import codes

    if boxes.ndim == 3:
        refuse_nowhere(source, "ellipsoids", "Save as .csv or .json.")
    series = SourceSeriesForSegmentation(source.series_uid)
    for n in range(len(boxes)):
        common = _common(boxes.labels[n], boxes.provenance, f"{boxes.labels[n]} {n + 1}")
        values = [Measurement(codes.DCM.Probability, float(boxes.scores[n]), codes.UCUM.NoUnits)]
        if boxes.ndim == 3:
            ends = _ends(boxes, n)
            diameters = np.linalg.norm(ends[1::2] - ends[::2], axis=1)
            values.append(Measurement(codes.SCT.Diameter, float(diameters.mean()), codes.UCUM.Millimeter))
            surface = VolumeSurface("ELLIPSOID", ends[:, ::-1], source.frame_of_reference_uid, source_series=series)
            yield VolumetricROIMeasurementsAndQualitativeEvaluations(
                referenced_volume_surface=surface, measurements=values, **common
            )
            continue
        plane = next(p for p in source.planes[0] if p is not None)
        image = SourceImageForRegion(
            plane.dataset.SOPClassUID, plane.dataset.SOPInstanceUID, [plane.frame] if plane.frame else None
        )
        ellipse = _ends(boxes, n, world=False)[2:, :0:-1] + 0.5
        yield PlanarROIMeasurementsAndQualitativeEvaluations(
            referenced_region=ImageRegion("ELLIPSE", _major_first(ellipse), image), measurements=values, **common
        )


def _ends(boxes: Boxes, n: int, world: bool = True) -> NDArray[np.float64]:
    """Ends of the axes of an object's ellipsoid (6, 3), two for each: (z, y, x) in mm, or indices."""
    half = np.diag(boxes.sizes[n] / 2)
    index = np.stack([boxes.centres[n] + sign * half[axis] for axis in range(3) for sign in (-1, 1)])
    return index_to_world(boxes.grid.affine, index) if world else index


def _major_first(ends: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ends of the longer axis before those of the shorter (PS3.3, C.18.6.1.2)."""
    first, second = np.linalg.norm(ends[1] - ends[0]), np.linalg.norm(ends[3] - ends[2])
    return ends if first >= second else ends[[2, 3, 0, 1]]


def _classes(scores: Scores, source: Source) -> Iterator[Any]:
    """A group for each class: how probable, and whether it is called present."""
    from highdicom.sr import (
        Measurement,
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        SourceImageForMeasurementGroup,
    )
    from pydicom.sr.codedict import codes

    images = [SourceImageForMeasurementGroup(d.SOPClassUID, d.SOPInstanceUID) for d in source.datasets]
    for name, probability in zip(scores.classes, scores.probabilities, strict=True):
        verdict = codes.SCT.Present if name in scores.present else codes.SCT.Absent
        yield MeasurementsAndQualitativeEvaluations(
            measurements=[Measurement(codes.DCM.Probability, float(probability), codes.UCUM.NoUnits)],
            qualitative_evaluations=[QualitativeEvaluation(_own_code(name), verdict)],
            source_images=images,
            **_common(name, scores.provenance),
        )


def _own_code(name: str) -> Any:
    """A code for what a model calls a class."""
    from highdicom.sr import CodedConcept

    return CodedConcept(re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_")[:16] or "CLASS", SCHEME, name[:64])


def _common(name: str, provenance: Provenance, tracking: str = "") -> dict[str, Any]:
    """What every group says: what it tracks, what was found, by which algorithm."""
    from highdicom import UID
    from highdicom.sr import AlgorithmIdentification, TrackingIdentifier
    from pydicom.sr.codedict import codes

    category, kind, _ = coded(name)
    known = kind != codes.SCT.Tissue
    found: dict[str, Any] = {
        "tracking_identifier": TrackingIdentifier(UID(), (tracking or name)[:64]),
        "finding_type": kind if known else _own_code(name),
        "finding_category": category if known else None,
    }
    if provenance.model:
        version = provenance.model_sha256 or __version__
        parameters = [f"{key} = {value}" for key, value in provenance.params.items()]
        found["algorithm_id"] = AlgorithmIdentification(provenance.model, version, parameters or None)
    return found


def _column(mask: Mask, name: str) -> dict[int, float]:
    """A column of the table by label value."""
    if name not in mask.table or "label" not in mask.table:
        return {}
    values = {label: value for value, label in mask.names.items()}
    found: dict[int, float] = {}
    for label, item in zip(mask.table["label"], mask.table[name], strict=True):
        found[int(values.get(str(label), label) if mask.names else label)] = float(item)
    return found


def verify_report(path: Path, expected: Saved | None) -> Iterator[tuple[str, bool, str]]:
    """Whether a report says the numbers that were saved, as pydicom reads it.

    Yields
    ------
    tuple of str, bool, str
        What was asked, the answer, and what was found.
    """
    groups = reported(path)
    wanted = list(_wanted(expected))
    if not wanted:
        yield "has groups of measurements", bool(groups), f"{len(groups)} groups"
        return
    yield "a group for each object", len(groups) == len(wanted), f"{len(groups)} groups for {len(wanted)} objects"
    for group, (name, numbers) in zip(groups, wanted, strict=False):
        off = [key for key, number in numbers.items() if not _near(group.numbers.get(key), number)]
        same = group.tracking == name[:64] and not off
        detail = ", ".join(f"{key} {group.numbers.get(key)} instead of {numbers[key]:g}" for key in off)
        yield f"numbers of {name}", same, detail or f"{len(numbers)} numbers"


def _near(found: float | None, wanted: float) -> bool:
    return found is not None and abs(found - wanted) <= ROUNDED * max(1.0, abs(wanted))


def _wanted(expected: Saved | None) -> Iterable[tuple[str, Mapping[str, float]]]:
    """Tracking identifier and numbers of each group, from what was saved."""
    match expected:
        case Mask():
            for value, size in sizes(of_volume(expected.labels)).items():
                name = _name(expected, value)
                yield name, {"Volume": size.volume_mm3} if expected.labels.ndim_spatial == 3 else {}
        case Boxes():
            for n, score in enumerate(expected.scores.tolist()):
                yield f"{expected.labels[n]} {n + 1}", {"Probability": score}
        case Scores():
            for name, probability in zip(expected.classes, expected.probabilities.tolist(), strict=True):
                yield name, {"Probability": probability}
