"""What the header of a scan says that is no longer true of an image derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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
# Units (0054,1001) of PET by what a volume calls them.
_PET_UNITS = {"g/ml": "GML", "Bq/ml": "BQML", "counts": "CNTS", "counts/s": "CPS", "%": "PCNT", "1/cm": "1CM"}


def is_rescaled(meta: Mapping[str, Any]) -> bool:
    """Whether values are those that the rescale of the header gives, in its unit; see `Volume.meta`."""
    return str(meta.get("values", "rescale")) == "rescale"


def say_unit(dataset: Dataset, meta: Mapping[str, Any]) -> None:
    """Give values that are not the header's rescaled ones their own unit, and take away what spoke of the others.

    Parameters
    ----------
    dataset : Dataset
        Of the new image; is changed.
    meta : mapping
        Of the volume: ``values``, ``value_unit``, ``suv``.
    """
    if is_rescaled(meta):
        return
    forget(dataset, *OF_WINDOW, "RescaleType")
    if dataset.get("Modality") != "PT":
        return
    dataset.Units = _PET_UNITS.get(str(meta.get("value_unit", "")), "NONE")
    # of counts to Bq/ml (PS3.3 C.8.9.4)
    forget(dataset, "DoseCalibrationFactor", "SUVType")
    kind = str(dict(meta.get("suv") or {}).get("type", ""))
    if kind and dataset.Units == "GML":
        dataset.SUVType = kind


def forget(dataset: Dataset, *keywords: str) -> None:
    """Remove attributes, where they are there."""
    for keyword in keywords:
        if keyword in dataset:
            delattr(dataset, keyword)
