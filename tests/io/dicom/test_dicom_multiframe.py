"""Many planes in one file: enhanced objects, mosaics, doses, films."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage, RTDoseStorage, SegmentationStorage, UltrasoundMultiFrameImageStorage

from napari_medai.core.errors import GeometryError
from napari_medai.io import dicom
from napari_medai.io.dicom.headers import read_header
from napari_medai.io.dicom.mosaic import mosaic_of

Write = Callable[..., Path]


def item(**fields: Any) -> Dataset:
    made = Dataset()
    for keyword, value in fields.items():
        setattr(made, keyword, value)
    return made


def enhanced(write: Write, frames: list[dict[str, Any]], name: str = "a", **fields: Any) -> Path:
    """An enhanced MR file; frame n is filled with n and described by ``frames[n]``."""
    groups = []
    for n, frame in enumerate(frames):
        group = item(
            PlanePositionSequence=[item(ImagePositionPatient=frame.get("position", [0, 0, 0]))],
            FrameContentSequence=[item(TemporalPositionIndex=frame.get("t", 1), InStackPositionNumber=n + 1)],
            PixelValueTransformationSequence=[
                item(RescaleSlope=frame.get("slope", 1), RescaleIntercept=0, RescaleType="US")
            ],
        )
        if "b" in frame:
            group.MRDiffusionSequence = [item(DiffusionBValue=float(frame["b"]))]
        groups.append(group)
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.25], SliceThickness=2)],
        FrameVOILUTSequence=[item(WindowCenter=100.5, WindowWidth=101)],
    )
    pixels = np.stack([np.full((4, 6), n, np.uint16) for n in range(len(frames))])
    fields = {"SOPClassUID": EnhancedMRImageStorage, "Modality": "MR", **fields}
    none = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
    return write(
        name, pixels, NumberOfFrames=len(frames), SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=groups, **none, **fields,
    )  # fmt: skip


def test_enhanced_frames_are_ordered_by_position(write: Write) -> None:
    path = enhanced(write, [{"position": [5, 6, z]} for z in (3, 9, 0, 6)])
    volume = dicom.open_volume(path)
    assert volume.axes == "zyx"
    assert volume.numpy()[:, 0, 0].tolist() == [2, 0, 3, 1]
    assert volume.spacing == pytest.approx((3, 0.5, 0.25))
    assert volume.affine[:3, 3] == pytest.approx([0, 6, 5])
    assert volume.meta["window"] == (50.0, 150.0)
    assert volume.meta["findings"] == ()


def test_enhanced_slopes_belong_to_their_frames(write: Write) -> None:
    path = enhanced(write, [{"position": [0, 0, n], "slope": slope} for n, slope in enumerate((0.5, 2, 4))])
    assert dicom.open_volume(path).numpy()[:, 0, 0].tolist() == [0.0, 2.0, 8.0]


def test_enhanced_time_points(write: Write) -> None:
    frames = [{"position": [0, 0, z], "t": t} for z in (0, 1, 2) for t in (2, 1)]
    volume = dicom.open_volume(enhanced(write, frames))
    assert volume.axes == "tzyx"
    assert volume.numpy()[..., 0, 0].tolist() == [[1, 3, 5], [0, 2, 4]]
    assert volume.meta["axis_t"]["values"] == (1.0, 2.0)


def test_enhanced_b_values(write: Write) -> None:
    frames = [{"position": [0, 0, z], "b": b} for b in (800, 0) for z in (0, 1)]
    volume = dicom.open_volume(enhanced(write, frames))
    assert volume.numpy()[..., 0, 0].tolist() == [[2, 3], [0, 1]]
    assert volume.meta["axis_t"] == {"name": "b", "unit": "s/mm2", "values": (0.0, 800.0)}


def test_two_enhanced_files_of_one_series_are_one_image(write: Write, tmp_path: Path) -> None:
    enhanced(write, [{"position": [0, 0, z]} for z in (0, 1)], "a")
    enhanced(write, [{"position": [0, 0, z]} for z in (2, 3)], "b")
    assert dicom.open_volume(tmp_path).shape == (4, 4, 6)


def test_enhanced_geometry_that_is_not_a_number(write: Write) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = enhanced(write, [{"position": [0, 0, float("nan")]}, {"position": [0, 0, 1]}])
    with pytest.raises(GeometryError):
        dicom.open_volume(path)


def test_dose_planes_follow_their_offsets(write: Write) -> None:
    path = write(
        "dose", np.arange(3 * 24, dtype=np.uint16).reshape(3, 4, 6), SOPClassUID=RTDoseStorage, Modality="RTDOSE",
        NumberOfFrames=3, GridFrameOffsetVector=[0, 2.5, 5], DoseGridScaling="0.5", ImagePositionPatient=[1, 2, 3],
    )  # fmt: skip
    volume = dicom.open_volume(path)
    assert volume.spacing[0] == pytest.approx(2.5)
    assert volume.affine[:3, 3] == pytest.approx([3, 2, 1])
    assert volume.numpy()[2, 0, 0] == 24.0


def test_a_film_has_time(write: Write) -> None:
    path = write(
        "film", np.arange(3 * 24, dtype=np.uint8).reshape(3, 4, 6), SOPClassUID=UltrasoundMultiFrameImageStorage,
        Modality="US", NumberOfFrames=3, FrameTime="40", ImagePositionPatient=None, ImageOrientationPatient=None,
        PixelSpacing=None,
    )  # fmt: skip
    volume = dicom.open_volume(path)
    assert volume.axes == "tyx"
    assert volume.units == "pixel"
    assert volume.meta["axis_t"] == {"name": "t", "unit": "s", "values": (0.0, 0.04, 0.08)}
    assert volume.numpy()[2, 0, 0] == 48


def test_a_binary_segmentation_becomes_labels(write: Write) -> None:
    # two segments; the second has no frame on the middle slice
    masks = np.zeros((5, 4, 6), np.uint8)
    masks[:3, 0, :2] = 1
    masks[3:, 0, 2:4] = 1
    places = [(1, 0), (1, 2), (1, 4), (2, 0), (2, 4)]
    groups = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[0, 0, z])],
            SegmentIdentificationSequence=[item(ReferencedSegmentNumber=number)],
        )
        for number, z in places
    ]
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[1, 1], SliceThickness=2)],
    )
    path = write(
        "seg", masks, SOPClassUID=SegmentationStorage, Modality="SEG", NumberOfFrames=5, SegmentationType="BINARY",
        SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=groups,
        SegmentSequence=[item(SegmentNumber=1, SegmentLabel="Liver"), item(SegmentNumber=2, SegmentLabel="Tumour")],
        PixelData=np.packbits(masks.ravel(), bitorder="little").tobytes(), BitsAllocated=1, BitsStored=1, HighBit=0,
        ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None,
    )  # fmt: skip
    volume = dicom.open_volume(path)
    assert volume.axes == "zyx"
    assert volume.dtype == np.uint8
    assert volume.meta["is_labels"]
    assert volume.meta["label_names"] == {1: "Liver", 2: "Tumour"}
    assert volume.numpy()[:, 0, :4].tolist() == [[1, 1, 2, 2], [1, 1, 0, 0], [1, 1, 2, 2]]


PROTOCOL = """### ASCCONV BEGIN ###
sSliceArray.asSlice[0].sPosition.dTra\t = {first}
sSliceArray.asSlice[2].sPosition.dTra\t = {last}
sSliceArray.lSize\t = 3
### ASCCONV END ###"""


def mosaic(write: Write, first: float, last: float, name: str = "m", **fields: Any) -> Path:
    """Three tiles of 2 x 3 pixels in a mosaic of 4 x 6; the first tile is centred at (0, 0, 10)."""
    pixels = np.zeros((4, 6), np.uint16)
    pixels[:2, :3], pixels[:2, 3:], pixels[2:, :3] = 1, 2, 3
    # the header's position is that of the large image: 6 x 4 pixels of 2 mm about the centre
    private = item()
    private.add_new(0x00290010, "LO", "SIEMENS CSA HEADER")
    private.add_new(0x00291020, "OB", PROTOCOL.format(first=first, last=last).encode())
    path = write(
        name, pixels, Modality="MR", Manufacturer="SIEMENS", ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"],
        PixelSpacing=[2, 2], SpacingBetweenSlices=5, ImagePositionPatient=[-6, -4, 10], **fields,
    )  # fmt: skip
    ds = pydicom.dcmread(path)
    ds.update(private)
    ds.save_as(path)
    return path


def test_a_mosaic_becomes_a_stack(write: Write) -> None:
    volume = dicom.open_volume(mosaic(write, 10, 20))
    assert volume.axes == "zyx"
    assert volume.shape == (3, 2, 3)
    assert volume.numpy()[:, 0, 0].tolist() == [1, 2, 3]
    # centre (0, 0) less 3/2 pixels of 2 mm along x and 2/2 along y
    assert volume.affine[:3, 3] == pytest.approx([10, -2, -3])
    assert volume.spacing == pytest.approx((5, 2, 2))


def test_a_mosaic_whose_first_tile_is_the_last_slice_of_the_protocol(write: Write) -> None:
    path = mosaic(write, 0, 10)
    # from the header's position towards the head, the first tile on top as in the protocol
    volume = dicom.open_volume(path)
    assert volume.numpy()[:, 0, 0].tolist() == [3, 2, 1]
    assert volume.affine[:3, 3] == pytest.approx([10, -2, -3])
    # z = 10 to 20, where the protocol has 0 to 10
    assert "up to 10 mm from where the scan protocol has them" in " ".join(volume.meta["findings"])
    # by choice as the protocol has it: from z = 10 down to 0
    volume = dicom.open_volume(path, repair=("mosaic",))
    assert volume.numpy()[:, 0, 0].tolist() == [3, 2, 1]
    assert volume.affine[:3, 3] == pytest.approx([0, -2, -3])
    assert "lie where the scan protocol has them" in " ".join(volume.meta["findings"])
    # where the two agree there is nothing to say or to repair
    assert dicom.open_volume(mosaic(write, 20, 10, "agrees")).meta["findings"] == ()


@pytest.mark.parametrize(
    ("orientation", "stated", "step"),
    # what dcm2niix 1.0.20260724 makes of the same headers
    [
        ([1, 0, 0, 0, 1, 0], None, [0, 0, 5]),
        ([1, 0, 0, 0, 1, 0], ["0", "0", "-1.0"], [0, 0, -5]),
        ([1, 0, 0, 0, -1, 0], None, [0, 0, 5]),
        ([1, 0, 0, 0, -1, 0], ["0", "0", "-1.0"], [0, 0, -5]),
        ([0, 1, 0, 0, 0, -1], None, [-5, 0, 0]),
        ([0, 1, 0, 0, 0, -1], ["1.0", "0", "0"], [5, 0, 0]),
    ],
)
def test_tiles_run_along_the_stated_normal(
    orientation: list[float], stated: list[str] | None, step: list[float], write: Write
) -> None:
    path = mosaic(write, 10, 20, ImageOrientationPatient=orientation)
    ds = pydicom.dcmread(path)
    words = {"NumberOfImagesInMosaic": ["3"], "ProtocolSliceNumber": ["2"]}
    ds.add_new(0x00291010, "OB", csa(**words, **({"SliceNormalVector": stated} if stated else {})))
    ds.save_as(path)
    found = mosaic_of(read_header(path))
    assert found is not None
    assert found.positions[1] - found.positions[0] == pytest.approx(step)


def test_mosaics_of_a_series_are_time_points(write: Write, tmp_path: Path) -> None:
    for n in (1, 2, 3):
        mosaic(write, 10, 20, f"{n}", AcquisitionNumber=n, InstanceNumber=n)
    volume = dicom.open_volume(tmp_path)
    assert volume.axes == "tzyx"
    assert volume.shape == (3, 3, 2, 3)


def csa(**values: list[str]) -> bytes:
    """A CSA header of Siemens, "SV10"."""
    made = b"SV10\4\3\2\1" + len(values).to_bytes(4, "little") + (77).to_bytes(4, "little")
    for name, words in values.items():
        made += name.encode().ljust(64, b"\0") + len(words).to_bytes(4, "little") + b"FD\0\0" + bytes(4)
        made += len(words).to_bytes(4, "little") + bytes(4)
        for word in words:
            raw = word.encode() + b"\0"
            made += len(raw).to_bytes(4, "little") * 4 + raw + bytes(-len(raw) % 4)
    return made


def test_the_image_header_of_a_mosaic(write: Write) -> None:
    path = mosaic(write, 10, 20)
    ds = pydicom.dcmread(path)
    del ds[0x00291020]
    ds.add_new(0x00291010, "OB", csa(NumberOfImagesInMosaic=["4"], SliceNormalVector=["0", "0", "-1.0"]))
    ds.save_as(path)
    found = mosaic_of(read_header(path))
    assert found is not None
    assert len(found.tiles) == 4
    assert found.positions[1] - found.positions[0] == pytest.approx([0, 0, -5])


def test_the_number_of_tiles_in_an_element_of_its_own(write: Write) -> None:
    path = mosaic(write, 10, 20)
    ds = pydicom.dcmread(path)
    del ds[0x00291020]
    ds.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
    ds.add_new(0x0019100A, "US", 2)
    ds.save_as(path)
    found = mosaic_of(read_header(path))
    assert found is not None
    assert found.tiles == ((0, 0), (0, 3))


def test_a_mosaic_that_does_not_say_how_many_tiles_stays_one_image(write: Write) -> None:
    path = mosaic(write, 10, 20)
    ds = pydicom.dcmread(path)
    del ds[0x00291020]
    ds.save_as(path)
    assert dicom.open_volume(path).shape == (4, 6)
