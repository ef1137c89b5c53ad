"""Films, scintigrams and ultrasound: what runs along their frames, and how large their pixels are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from napari_medai.io import dicom

Write = Callable[..., Path]
NOWHERE = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
FRAMES = np.stack([np.full((4, 6), n, np.uint8) for n in range(4)])


def item(**fields: Any) -> Dataset:
    made = Dataset()
    for keyword, value in fields.items():
        setattr(made, keyword, value)
    return made


@pytest.mark.parametrize(
    ("fields", "times"),
    [
        ({"FrameTimeVector": [0, 40, 40, 20]}, (0, 0.04, 0.08, 0.1)),
        ({"FrameTime": "50"}, (0, 0.05, 0.1, 0.15)),
        ({"CineRate": "25"}, (0, 0.04, 0.08, 0.12)),
    ],
)
def test_a_film_has_times(write: Write, fields: dict[str, Any], times: tuple[float, ...]) -> None:
    volume = dicom.open_volume(write("a", FRAMES, Modality="XA", NumberOfFrames=4, **NOWHERE, **fields))
    assert volume.axes == "tyx"
    assert (volume.meta["axis_t"]["name"], volume.meta["axis_t"]["unit"]) == ("t", "s")
    assert volume.meta["axis_t"]["values"] == pytest.approx(times)


def test_a_film_without_times(write: Write) -> None:
    volume = dicom.open_volume(write("a", FRAMES, Modality="XA", NumberOfFrames=4, **NOWHERE))
    assert volume.meta["axis_t"] == {"name": "index", "unit": "", "values": (0.0, 1.0, 2.0, 3.0)}


def test_detectors_of_a_gamma_camera_are_no_slices(write: Write) -> None:
    fields = {"DetectorVector": [1, 2, 1, 2], "EnergyWindowVector": [1, 1, 2, 2]}
    volume = dicom.open_volume(write("a", FRAMES, Modality="NM", NumberOfFrames=4, **NOWHERE, **fields))
    assert volume.axes == "tyx"
    assert volume.meta["axis_t"]["name"] == "energy window and detector"
    fields = {"DetectorVector": [2, 1, 3, 4]}
    volume = dicom.open_volume(write("b/b", FRAMES, Modality="NM", NumberOfFrames=4, **NOWHERE, **fields))
    assert volume.meta["axis_t"] == {"name": "detector", "unit": "", "values": (1.0, 2.0, 3.0, 4.0)}
    assert volume.numpy()[:, 0, 0].tolist() == [1, 0, 2, 3]


def test_a_gated_tomogram(write: Write) -> None:
    detector = item(ImagePositionPatient=[1, 2, 3], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    fields = {
        "ImageType": ["ORIGINAL", "PRIMARY", "RECON GATED TOMO", "EMISSION"], "DetectorInformationSequence": [detector],
        "SpacingBetweenSlices": "5", "TimeSlotVector": [1, 1, 2, 2], "SliceVector": [1, 2, 1, 2],
    }  # fmt: skip
    volume = dicom.open_volume(write("a", FRAMES, Modality="NM", NumberOfFrames=4, **NOWHERE, **fields))
    assert volume.axes == "tzyx"
    assert volume.numpy()[..., 0, 0].tolist() == [[0, 1], [2, 3]]
    assert volume.spacing[0] == pytest.approx(5)
    assert volume.affine[:3, 3] == pytest.approx([3, 2, 1])


def region(step: float, unit: int = 3, kind: int = 1) -> Dataset:
    return item(
        RegionSpatialFormat=kind, PhysicalDeltaX=step, PhysicalDeltaY=step / 2, PhysicalUnitsXDirection=unit,
        PhysicalUnitsYDirection=unit,
    )  # fmt: skip


def test_ultrasound_is_measured_by_its_regions(write: Write) -> None:
    fields = {"Modality": "US", "PixelSpacing": None, **NOWHERE}
    doppler = region(0.5, unit=4, kind=3)
    volume = dicom.open_volume(write("a", FRAMES[0], SequenceOfUltrasoundRegions=[region(0.02), doppler], **fields))
    assert volume.units == "mm"
    assert volume.spacing[1:] == pytest.approx((0.1, 0.2))
    assert volume.meta["findings"] == ()
    volume = dicom.open_volume(
        write("b/b", FRAMES[0], SequenceOfUltrasoundRegions=[region(0.02), region(0.03)], **fields)
    )
    assert volume.units == "pixel"
    assert any("not calibrated alike" in f for f in volume.meta["findings"])


def test_magnification_is_said(write: Write) -> None:
    fields = {"Modality": "DX", "PixelSpacing": None, "ImagerPixelSpacing": [0.14, 0.14], **NOWHERE}
    volume = dicom.open_volume(write("a", FRAMES[0], EstimatedRadiographicMagnificationFactor="1.25", **fields))
    assert volume.spacing[1:] == pytest.approx((0.14, 0.14))
    assert any("factor of 1.25" in f for f in volume.meta["findings"])
