"""What the header of a scan says that is no longer true of an image derived from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

# What described the stored values of the source, and describes no longer what is stored here.
OF_STORED_VALUES = (
    "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction",
    "RealWorldValueMappingSequence", "IconImageSequence", "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "PaletteColorLookupTableUID", "PlanarConfiguration", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    "RescaleSlope", "RescaleIntercept", "DigitalSignaturesSequence", "MACParametersSequence",
    "EncryptedAttributesSequence", "OriginalAttributesSequence", "ReferencedImageSequence", "SourceImageSequence",
    "DerivationDescription", "DerivationCodeSequence",
)  # fmt: skip
# How stored values are shown.
OF_WINDOW = ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation")
# Of acquired enhanced images alone (PS3.3 C.8.13.4, C.8.13.5.18).
OF_ACQUISITION = (
    "PulseSequenceName", "MRAcquisitionType", "EchoPulseSequence", "MultipleSpinEcho", "MultiPlanarExcitation",
    "PhaseContrast", "VelocityEncodingAcquisitionSequence", "TimeOfFlightContrast", "ArterialSpinLabelingContrast",
    "SteadyStatePulseSequence", "EchoPlanarPulseSequence", "SaturationRecovery", "SpectrallySelectedSuppression",
    "OversamplingPhase", "GeometryOfKSpaceTraversal", "RectilinearPhaseEncodeReordering",
    "SegmentedKSpaceTraversal", "CoverageOfKSpace", "NumberOfKSpaceTrajectories", "BulkMotionCompensationTechnique",
)  # fmt: skip


def forget(dataset: Dataset, *keywords: str) -> None:
    """Remove attributes, where they are there."""
    for keyword in keywords:
        if keyword in dataset:
            delattr(dataset, keyword)
