"""The elements of a DICOM header that are read: nothing that identifies a patient is among them."""

from __future__ import annotations

from pydicom.datadict import dictionary_VR, tag_for_keyword

from napari_medai.io.dicom.elements import NOTED

_KEYWORDS = (
    # what it is
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "Manufacturer",
    "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "BodyPartExamined", "ComplexImageComponent",
    "StudyInstanceUID", "StudyDescription",
    # when, among others of its series
    "AcquisitionTime", "ContentTime", "AcquisitionNumber", "InstanceNumber", "TemporalPositionIdentifier",
    "TemporalPositionIndex", "EchoTime", "InversionTime", "TriggerTime", "FlipAngle", "FrameTime", "DiffusionBValue",
    "AcquisitionDateTime", "RepetitionTime", "TemporalResolution", "FrameReferenceTime", "KVP", "ConvolutionKernel",
    "DiffusionGradientOrientation",
    # where
    "ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "PixelSpacing", "ImagerPixelSpacing",
    "NominalScannedPixelSpacing", "SliceThickness", "SpacingBetweenSlices", "GridFrameOffsetVector",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DetectorInformationSequence",
    # pixels
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "LossyImageCompression",
    # values
    "WindowCenter", "WindowWidth", "RescaleIntercept", "RescaleSlope", "ModalityLUTSequence", "DoseGridScaling",
    "RescaleType", "PixelPaddingRangeLimit", "PixelPresentation", "LossyImageCompressionMethod", "Units",
    "DoseUnits", "DoseType", "DoseSummationType",
    # segmentations
    "SegmentationType", "SegmentSequence", "SegmentsOverlap", "SegmentationFractionalType", "MaximumFractionalValue",
    # films, tomograms, slides and parts of a larger object
    "FrameTimeVector", "FrameIncrementPointer", "CineRate", "RecommendedDisplayFrameRate", "EnergyWindowVector",
    "DetectorVector", "PhaseVector", "RotationVector", "RRIntervalVector", "TimeSlotVector", "SliceVector",
    "AngularViewVector", "ConcatenationUID", "InConcatenationNumber", "ConcatenationFrameOffsetNumber",
    "EstimatedRadiographicMagnificationFactor", "DimensionOrganizationType", "DimensionIndexSequence",
    "TotalPixelMatrixRows", "TotalPixelMatrixColumns", "NumberOfOpticalPaths", "TotalPixelMatrixFocalPlanes",
    "ImagedVolumeWidth", "ImagedVolumeHeight", "ImageOrientationSlide", "TotalPixelMatrixOriginSequence",
    "OpticalPathSequence",
)  # fmt: skip

# Siemens: number of images in a mosaic, b value, CSA image and series headers, acquisition matrix. GE: b value.
_PRIVATE = {0x0019100A: "US", 0x0019100C: "IS", 0x00291010: "OB", 0x00291020: "OB", 0x0051100B: "CS", 0x00431039: "IS"}
# Diffusion: Siemens' gradient, Philips' b value and gradient. GE: kind of image (magnitude, phase, real, imaginary).
_PRIVATE |= {
    0x0019100E: "FD", 0x20011003: "FL", 0x200510B0: "FL", 0x200510B1: "FL", 0x200510B2: "FL", 0x0043102F: "SS",
}  # fmt: skip
# Philips: scale intercept and slope of MR; factors that turn counts of PET into SUV and Bq/ml; and their creators.
_PRIVATE |= {
    0x20050010: "LO", 0x2005100D: "FL", 0x2005100E: "FL", 0x70530010: "LO", 0x70531000: "DS", 0x70531009: "DS",
}  # fmt: skip
# Of these it is only noted that they are there: classic slices have them too, and parsing each would cost time.
_NOTED = ("RealWorldValueMappingSequence", "SequenceOfUltrasoundRegions")
# PS3.3 C.9.2: rows of up to 16 overlays, in the even groups from 6000 to 601E
OVERLAY_ROWS = tuple(0x60000010 + 0x20000 * n for n in range(16))

TAGS = {word: int(tag_for_keyword(word) or 0) for word in (*_KEYWORDS, *_NOTED)}
WANTED = {tag: dictionary_VR(tag).split(" ")[0] for tag in TAGS.values()} | _PRIVATE | dict.fromkeys(OVERLAY_ROWS, "US")
WANTED |= {TAGS[word]: NOTED for word in _NOTED}
# How a slice is to be shown: MR scanners give each its window, PET scanners each its slope.
SHOWN = frozenset(TAGS[word] for word in ("WindowCenter", "WindowWidth", "RescaleIntercept", "RescaleSlope"))
# What says which slice it is, when it was taken and how it is to be shown; all else follows from the other elements.
OF_EACH_SLICE = SHOWN | frozenset(
    TAGS[word]
    for word in (
        "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber",
        "AcquisitionNumber", "AcquisitionTime", "ContentTime", "AcquisitionDateTime", "FrameReferenceTime",
        "ImagePositionPatient",
    )
)  # fmt: skip
