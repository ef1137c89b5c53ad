"""A cleaned or repaired image -> a derived series of the same kind of instances, with UIDs of its own."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_medai import __version__
from napari_medai.core.errors import WriteError
from napari_medai.core.volume import Volume
from napari_medai.io.atomic import write_error
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly
from napari_medai.io.dicom.write.equipment import MAKER, RESEARCH, made_by, say_side, series_number, tell
from napari_medai.io.dicom.write.placing import Placed, place, reference
from napari_medai.io.dicom.write.quantise import Stored, stored
from napari_medai.io.dicom.write.source import Source, SourcePlane
from napari_medai.io.dicom.write.stale import (
    OF_ACQUISITION,
    OF_STORED_VALUES,
    OF_WINDOW,
    forget,
    is_rescaled,
    say_unit,
)

if TYPE_CHECKING:
    from pydicom import Dataset

# Kinds of image whose module definitions have no slope and intercept, or fix them at 1 and 0 (DX: PS3.3 C.8.11.3).
_NO_RESCALE = ("DX", "MG", "IO", "PX", "XA", "RF", "US", "NM", "IVUS")
_NOT_IMAGES = ("SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "SM", "SR")
# Functional groups that say what stored values mean, or how they are shown.
_OF_VALUES = ("PixelValueTransformationSequence", "RealWorldValueMappingSequence", "FrameVOILUTSequence")


def save_derived(
    volume: Volume, source: Source, path: Path, record: Mapping[str, Any] | None = None, check: bool = True
) -> Path:
    """Write an image as a derived series of the scan.

    Parameters
    ----------
    volume : Volume
        Axes ``yx``, ``zyx``, ``tzyx`` or ``tyx``, with ``s`` for colour.
    source : Source
        The scan.
    path : Path
        Ends in ``.dcm`` where the image is one file: one slice, or frames of multi-frame instances; else a folder that
        is not there yet or is empty, which gets a file for each slice.
    record : mapping, optional
        Of the result.
    check : bool
        Read what was written back by two readers before it takes its name, and refuse it if its voxels lie elsewhere
        or its values differ by more than rounding; see `napari_medai.io.verify`.

    Returns
    -------
    Path
        Of the file or folder.

    Raises
    ------
    WriteError
        The name does not fit the number of files, the values cannot be stored, the folder is not empty, or the system
        refused. No partial file or folder is left.
    """
    from pydicom import dcmwrite

    datasets = derived(volume, source, record)
    if path.suffix and len(datasets) > 1:
        raise WriteError(
            f"{len(datasets)} slices make as many DICOM files; give the name of a folder, which has no suffix, in "
            f"place of {path.name}."
        )
    target = path.resolve()
    if target.is_dir() and (path.suffix or any(target.iterdir())):
        raise WriteError(f"{path} was not written: it is a folder that is not empty. Give a new name.")
    if not path.suffix and target.is_file():
        raise WriteError(f"{path} was not written: it is a file. Give the name of a folder, or one that ends in .dcm.")
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        temporary.mkdir()
        for n, dataset in enumerate(datasets, 1):
            # a scan of the other byte order can be written by this function, not by the data set's own
            dcmwrite(
                temporary / f"{n:05}.dcm", dataset, enforce_file_format=True, implicit_vr=False, little_endian=True
            )
        if check:
            from napari_medai.io.verify import check as look

            look(volume, temporary, path.name)
        if path.suffix:
            os.replace(temporary / "00001.dcm", target)
            temporary.rmdir()
        else:
            if target.is_dir():
                target.rmdir()
            os.replace(temporary, target)
    except BaseException as problem:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(problem, OSError):
            raise write_error(path, problem) from problem
        raise
    return path


def derived(volume: Volume, source: Source, record: Mapping[str, Any] | None = None) -> list[Dataset]:
    """The data sets that `save_derived` writes."""
    from pydicom.uid import generate_uid

    modality = str(source.lead.get("Modality", ""))
    if modality in _NOT_IMAGES:
        raise WriteError(f"A derived series cannot be made of {modality}; save it as .nii.gz or .tif.")
    placed = place(volume, source)
    pixels = placed.volume.numpy()
    pixels = pixels if "z" in placed.volume.axes else np.expand_dims(pixels, placed.volume.axes.index("y"))
    pixels = pixels if "t" in placed.volume.axes else pixels[None]
    if volume.is_rgb:
        if pixels.max() > 255:
            raise WriteError("Colour of more than 8 bits cannot be stored in a derived series; save it as .tif.")
        # samples of 8 bits, as those of the scan
        values = Stored(np.clip(np.rint(pixels[..., :3]), 0, 255).astype(np.uint8), error=0.5)
    else:
        values = stored(pixels, rescales=modality not in _NO_RESCALE, through_zero=modality == "PT")
    tell(source)
    series = _Series(source, placed, values, dict(record or {}), generate_uid())
    with quietly():
        try:
            return [series.frames()] if source.is_multiframe else series.slices()
        except BROKEN_FILE as error:
            raise WriteError(
                f"The headers of the scan do not allow a derived series ({type(error).__name__}); save it as .nii.gz."
            ) from error


class _Series:
    """What all instances of the series have in common."""

    def __init__(self, source: Source, placed: Placed, values: Stored, record: dict[str, Any], uid: str) -> None:
        self.source, self.placed, self.values, self.uid = source, placed, values, uid
        self.now = datetime.now()
        stage = str(dict(record.get("provenance") or {}).get("stage", ""))
        self.whole = placed.own_grid and all(plane is not None for row in placed.sources for plane in row)
        self.word = "denoised" if stage == "denoise" else "derived" if self.whole else "repaired"
        self.description = made_by(record) or self.word
        if values.error:
            self.description += f"; stored in steps of {values.slope:.6g}, largest rounding error {values.error:.6g}"

    def slices(self) -> list[Dataset]:
        """One instance for each slice, those of one time point after the other."""
        found: list[Dataset] = []
        planes = [plane for row in self.placed.sources for plane in row if plane is not None]
        tiled = len({id(plane.dataset) for plane in planes}) < len(planes)  # a mosaic's position is that of all tiles
        for t, row in enumerate(self.placed.sources):
            for z, plane in enumerate(row):
                template = plane or self._nearest(t, z)
                dataset = self._start(template.dataset)
                dataset.InstanceNumber = len(found) + 1
                if plane is None or tiled or not self.placed.own_grid:
                    self._move(dataset, z)
                self._pixels(dataset, self.values.pixels[t, z])
                self._rescale(dataset)
                dataset.SourceImageSequence = [self._reference(template)]
                say_side(dataset, self.source)
                found.append(dataset)
        return found

    def frames(self) -> Dataset:
        """One multi-frame instance."""
        planes = [(t, z, plane) for t, row in enumerate(self.placed.sources) for z, plane in enumerate(row)]
        dataset = self._start(self.source.lead)
        dataset.InstanceNumber = 1
        dataset.NumberOfFrames = len(planes)
        self._pixels(dataset, self.values.pixels)
        sources = [self._reference(SourcePlane(d, 0, None)) for d in self.source.datasets]
        if "Enhanced" in dataset.SOPClassUID.keyword:
            # these always are PRIMARY and monochrome (PS3.3 C.8.13.3.1, C.8.15.2.1)
            dataset.ImageType = ["DERIVED", "PRIMARY", *dataset.ImageType[2:]]
            forget(dataset, *OF_ACQUISITION)
            if "PixelPresentation" in dataset:
                dataset.PixelPresentation = "MONOCHROME"
        if "PerFrameFunctionalGroupsSequence" not in dataset:
            dataset.SourceImageSequence = sources
            self._rescale(dataset)
            if len(planes) != int(self.source.lead.get("NumberOfFrames", 1)):
                raise WriteError("Only all frames of this multi-frame image can be saved together.")
            return dataset
        # the frames say how they were derived
        del dataset.DerivationDescription, dataset.DerivationCodeSequence
        dataset.SourceImageEvidenceSequence = [self._evidence()]
        several = len(self.source.datasets) > 1
        groups = []
        for t, z, plane in planes:
            template = plane or self._nearest(t, z)
            group = deepcopy(template.dataset.PerFrameFunctionalGroupsSequence[max(template.frame, 1) - 1])
            if several:
                for element in template.dataset.SharedFunctionalGroupsSequence[0]:
                    group.setdefault(element.tag, deepcopy(element))
            self._frame(group, template, None if plane is not None and self.placed.own_grid else z)
            groups.append(group)
        dataset.PerFrameFunctionalGroupsSequence = groups
        shared = dataset.SharedFunctionalGroupsSequence[0]
        _mark(shared)
        for keyword in list(shared.dir()):
            alone = keyword in (
                "PixelValueTransformationSequence",
                "RealWorldValueMappingSequence",
                "FrameVOILUTSequence",
            )
            if alone or any(keyword in group for group in groups):
                delattr(shared, keyword)
        return dataset

    def _start(self, header: Dataset) -> Dataset:
        from pydicom.dataset import FileMetaDataset
        from pydicom.sr.codedict import codes
        from pydicom.uid import ExplicitVRLittleEndian, generate_uid

        # private elements describe the pixels as they were, and makers read them in place of the standard ones
        dataset = deepcopy(header)
        dataset.remove_private_tags()
        for tag in [e.tag for e in dataset if 0x6000 <= e.tag.group < 0x6100]:  # overlays
            del dataset[tag]
        forget(dataset, *OF_STORED_VALUES)
        kinds = [str(k) for k in np.atleast_1d(dataset.get("ImageType", [])) if str(k) != "MOSAIC"]
        # PET images always are PRIMARY (PS3.3 C.8.9.4.1.3)
        dataset.ImageType = ["DERIVED", "PRIMARY" if header.get("Modality") == "PT" else "SECONDARY", *kinds[2:]]
        dataset.SOPInstanceUID = generate_uid()
        dataset.SeriesInstanceUID = self.uid
        dataset.SeriesNumber = series_number(self.source, "derived")
        dataset.SeriesDescription = f"{str(header.get('SeriesDescription', ''))[:50]} {self.word}".strip()
        dataset.InstanceCreationDate, dataset.InstanceCreationTime = self.now.strftime("%Y%m%d"), f"{self.now:%H%M%S}"
        if header.get("Modality") != "PT" or not header.get("SeriesTime"):
            # PET is corrected for decay to the time of its series (PS3.3 C.8.9.1)
            dataset.SeriesDate, dataset.SeriesTime = dataset.InstanceCreationDate, dataset.InstanceCreationTime
        dataset.DerivationDescription = f"{self.description}. {RESEARCH}"[:1024]
        method = codes.cid7203.Smoothing if self.word == "denoised" else codes.cid7203.SpatialResampling
        dataset.DerivationCodeSequence = [_code(method)]
        dataset.ContributingEquipmentSequence = [*dataset.get("ContributingEquipmentSequence", []), _equipment()]
        meta = dataset.file_meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
        return dataset

    def _pixels(self, dataset: Dataset, pixels: Any) -> None:
        colour = pixels.dtype == np.uint8
        size = pixels.dtype.itemsize * 8
        dataset.SamplesPerPixel = 3 if colour else 1
        if dataset.get("PhotometricInterpretation") == "MONOCHROME1":  # opened with bright as bright
            forget(dataset, *OF_WINDOW)
            if "PresentationLUTShape" in dataset:
                dataset.PresentationLUTShape = "IDENTITY"
        dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            dataset.PlanarConfiguration = 0
        dataset.Rows, dataset.Columns = self.placed.volume.spatial_shape[-2:]
        dataset.BitsAllocated = dataset.BitsStored = size
        dataset.HighBit = size - 1
        dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
        raw = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).tobytes()
        dataset.PixelData = raw + b"\0" * (len(raw) % 2)
        dataset["PixelData"].VR = "OB" if colour else "OW"

    def _rescale(self, dataset: Dataset) -> None:
        say_unit(dataset, self.placed.volume.meta)
        modality = str(dataset.get("Modality", ""))
        needs = modality in ("CT", "PT") or "RescaleSlope" in self.source.lead
        if (self.values.slope, self.values.intercept) != (1.0, 0.0) or needs:
            dataset.RescaleSlope, dataset.RescaleIntercept = _short(self.values.slope), _short(self.values.intercept)
            if "RescaleType" not in dataset and modality != "PT":
                dataset.RescaleType = "HU" if modality == "CT" and is_rescaled(self.placed.volume.meta) else "US"
        elif "RescaleType" in dataset:
            del dataset.RescaleType

    def _move(self, fields: Dataset, z: int) -> None:
        placed = self.placed
        if placed.positions is None:
            return
        fields.ImagePositionPatient = [_short(x) for x in placed.positions[z]]
        fields.ImageOrientationPatient = [_short(x) for x in placed.orientation]
        fields.PixelSpacing = [_short(x) for x in placed.spacing]
        fields.SliceThickness = _short(placed.step)
        forget(fields, "SliceLocation", "GantryDetectorTilt")
        if "SpacingBetweenSlices" in fields:
            fields.SpacingBetweenSlices = _short(placed.step)

    def _frame(self, group: Dataset, template: SourcePlane, z: int | None) -> None:
        from pydicom import Dataset

        _mark(group)
        forget(group, *_OF_VALUES)
        group.remove_private_tags()
        item = Dataset()
        item.RescaleSlope, item.RescaleIntercept = _short(self.values.slope), _short(self.values.intercept)
        rescaled = is_rescaled(self.placed.volume.meta)
        item.RescaleType = "HU" if self.source.lead.get("Modality") == "CT" and rescaled else "US"
        group.PixelValueTransformationSequence = [item]
        made = Dataset()
        made.DerivationDescription = self.description[:1024]
        made.SourceImageSequence = [self._reference(template)]
        made.DerivationCodeSequence = [_code(_unspecified())]
        group.DerivationImageSequence = [made]
        if z is not None and self.placed.positions is not None:
            where, way, size = Dataset(), Dataset(), Dataset()
            where.ImagePositionPatient = [_short(x) for x in self.placed.positions[z]]
            way.ImageOrientationPatient = [_short(x) for x in self.placed.orientation]
            size.PixelSpacing = [_short(x) for x in self.placed.spacing]
            size.SliceThickness = _short(self.placed.step)
            group.PlanePositionSequence, group.PlaneOrientationSequence = [where], [way]
            group.PixelMeasuresSequence = [size]

    def _evidence(self) -> Dataset:
        """The study, series and instances of the scan (PS3.3 10.20)."""
        from pydicom import Dataset

        study, series = Dataset(), Dataset()
        series.SeriesInstanceUID = self.source.series_uid
        series.ReferencedSOPSequence = [reference(SourcePlane(d, 0, None)) for d in self.source.datasets]
        study.StudyInstanceUID = self.source.lead.StudyInstanceUID
        study.ReferencedSeriesSequence = [series]
        return study

    def _nearest(self, t: int, z: int) -> SourcePlane:
        """The plane of the scan whose header a plane takes that is not one of its own."""
        rows = self.source.planes
        known = [p for p in rows[min(t, len(rows) - 1)] if p is not None]
        positions = self.placed.positions
        if positions is None or any(p.place is None for p in known):
            return known[min(z, len(known) - 1)]
        return min(known, key=lambda p: float(np.abs(p.place.position - positions[z]).sum()) if p.place else 0.0)

    @staticmethod
    def _reference(plane: SourcePlane) -> Dataset:
        from pydicom.sr.codedict import codes

        item = reference(plane)
        item.PurposeOfReferenceCodeSequence = [_code(codes.cid7202.SourceImageForImageProcessingOperation)]
        return item


def _mark(group: Dataset) -> None:
    """Say of the frames too that they are derived."""
    for element in list(group):
        if element.VR == "SQ" and len(element.value) and "FrameType" in element.value[0]:
            kinds = [str(k) for k in element.value[0].FrameType]
            element.value[0].FrameType = ["DERIVED", "PRIMARY", *kinds[2:]]
            if "PixelPresentation" in element.value[0]:
                element.value[0].PixelPresentation = "MONOCHROME"


def _unspecified() -> Any:
    from pydicom.sr.codedict import codes

    return codes.DCM.UnspecifiedMethodOfCalculation


def _short(value: float) -> Any:
    from pydicom.valuerep import DS

    return DS(float(value), auto_format=True)


def _code(code: Any) -> Dataset:
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme_designator, code.meaning, code.scheme_version)


def _equipment() -> Dataset:
    from pydicom import Dataset
    from pydicom.sr.codedict import codes

    item = Dataset()
    item.Manufacturer = item.ManufacturerModelName = MAKER
    item.SoftwareVersions = __version__
    item.PurposeOfReferenceCodeSequence = [_code(codes.cid7005.ProcessingEquipment)]
    return item
