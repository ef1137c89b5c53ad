"""Whole-slide images: tiled full and sparse, pyramids, optical paths, JPEG tiles."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

from napari_medai.io import dicom
from napari_medai.io.dicom.slides import SLIDE

Write = Callable[..., Path]
TILE = 16


def item(**fields: Any) -> Dataset:
    made = Dataset()
    for keyword, value in fields.items():
        setattr(made, keyword, value)
    return made


def picture(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8)


def tiled(pixels: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """First row, first column and pixels of each tile; those at the edge are filled up with 7."""
    found = []
    for row in range(0, pixels.shape[0], TILE):
        for column in range(0, pixels.shape[1], TILE):
            tile = np.full((TILE, TILE, *pixels.shape[2:]), 7, pixels.dtype)
            part = pixels[row : row + TILE, column : column + TILE]
            tile[: part.shape[0], : part.shape[1]] = part
            found.append((row, column, tile))
    return found


def slide(
    write: Write, name: str, planes: list[np.ndarray], sparse: bool = False, leave: tuple[int, ...] = (),
    jpeg: bool = False, spacing: float = 0.0005, **fields: Any,
) -> Path:  # fmt: skip
    """A file of one resolution; ``planes`` are its optical paths."""
    tiles = [(path, *tile) for path, pixels in enumerate(planes) for tile in tiled(pixels)]
    tiles = [tile for n, tile in enumerate(tiles) if n not in leave]
    colour = planes[0].ndim == 3
    values = np.stack([tile for *_, tile in tiles])
    data = values.tobytes()
    if jpeg:
        streams = []
        for *_, tile in tiles:
            out = BytesIO()
            Image.fromarray(tile).save(out, "JPEG", quality=95, subsampling=0)
            streams.append(out.getvalue())
        data = encapsulate(streams, has_bot=False)
    groups = [
        item(
            PlanePositionSlideSequence=[
                item(
                    RowPositionInTotalImagePixelMatrix=row + 1, ColumnPositionInTotalImagePixelMatrix=column + 1,
                    ZOffsetInSlideCoordinateSystem=0.0,
                )
            ],
            OpticalPathIdentificationSequence=[item(OpticalPathIdentifier=str(path))],
        )
        for path, row, column, _ in tiles
    ]  # fmt: skip
    plain: dict[str, Any] = {
        "SOPClassUID": SLIDE, "Modality": "SM", "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        "TotalPixelMatrixRows": planes[0].shape[0], "TotalPixelMatrixColumns": planes[0].shape[1],
        "NumberOfFrames": len(tiles), "SamplesPerPixel": 3 if colour else 1, "Rows": TILE, "Columns": TILE,
        "PhotometricInterpretation": ("YBR_FULL" if jpeg else "RGB") if colour else "MONOCHROME2", "PixelData": data,
        "DimensionOrganizationType": "TILED_SPARSE" if sparse else "TILED_FULL",
        "OpticalPathSequence": [item(OpticalPathIdentifier=str(n)) for n in range(len(planes))],
        "NumberOfOpticalPaths": len(planes), "TotalPixelMatrixFocalPlanes": 1,
        "TotalPixelMatrixOriginSequence": [
            item(XOffsetInSlideCoordinateSystem=20.0, YOffsetInSlideCoordinateSystem=40.0)
        ],
        "ImageOrientationSlide": [0, -1, 0, -1, 0, 0], "FrameOfReferenceUID": "1.2.9",
        "SharedFunctionalGroupsSequence": [
            item(PixelMeasuresSequence=[item(PixelSpacing=[spacing, spacing], SliceThickness=0.001)])
        ],
    }  # fmt: skip
    plain |= {"PlanarConfiguration": 0} if colour else {}
    plain |= {"PerFrameFunctionalGroupsSequence": groups} if sparse else {}
    none = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
    return write(
        name, np.zeros((TILE, TILE), values.dtype), syntax=JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian,
        **{**plain, **none, **fields},
    )  # fmt: skip


@pytest.mark.parametrize("sparse", [False, True])
def test_tiles_are_put_together(write: Write, sparse: bool) -> None:
    pixels = picture(40, 50)
    volume = dicom.open_volume(slide(write, "a", [pixels], sparse))
    assert volume.axes == "yxs"
    assert volume.units == "um"
    assert volume.spacing == pytest.approx((1, 0.5, 0.5))
    assert volume.is_lazy
    np.testing.assert_array_equal(volume.numpy(), pixels)
    np.testing.assert_array_equal(np.asarray(volume.array[13:35, 17:18]), pixels[13:35, 17:18])
    np.testing.assert_array_equal(np.asarray(volume.array[5, ::3, 1]), pixels[5, ::3, 1])
    assert volume.meta["slide"] == {"kind": "volume", "origin_mm": (20.0, 40.0), "orientation": (0, -1, 0, -1, 0, 0)}
    assert volume.meta["findings"] == ()


def test_tiles_that_are_not_stored_are_white(write: Write) -> None:
    pixels = picture(32, 48)
    volume = dicom.open_volume(slide(write, "a", [pixels], True, leave=(1,)))
    expected = pixels.copy()
    expected[:16, 16:32] = 255
    np.testing.assert_array_equal(volume.numpy(), expected)
    assert any(f.startswith("5 of 6 tiles") for f in volume.meta["findings"])


def test_resolutions_form_a_pyramid(write: Write, tmp_path: Path) -> None:
    fine = picture(64, 96)
    coarse, coarsest = fine[::2, ::2].copy(), fine[::4, ::4].copy()
    slide(write, "a", [coarsest], spacing=0.002)
    slide(write, "b", [fine])
    slide(write, "c", [coarse], spacing=0.001)
    volume = dicom.open_volume(tmp_path)
    assert volume.shape == (64, 96, 3)
    levels = volume.meta["levels"]
    assert [level.shape for level in levels] == [(64, 96, 3), (32, 48, 3), (16, 24, 3)]
    assert levels[0] is volume.array
    for level, expected in zip(levels, (fine, coarse, coarsest), strict=True):
        np.testing.assert_array_equal(np.asarray(level), expected)


def test_any_file_opens_the_pyramid_it_belongs_to(write: Write, tmp_path: Path) -> None:
    fine = picture(32, 32)
    slide(write, "a", [fine])
    slide(write, "b", [fine[::2, ::2].copy()], spacing=0.001)
    slide(write, "c", [picture(16, 32)], ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"], SOPInstanceUID="1.9")
    found = dicom.list_series(tmp_path)
    assert [one.shape for one in found] == [(32, 32, 3), (16, 32, 3)]
    assert dicom.open_volume(tmp_path / "b").shape == (32, 32, 3)
    label = dicom.open_volume(tmp_path / "c")
    assert label.meta["slide"]["kind"] == "label"
    assert any("whose slide" in f for f in label.meta["findings"])


@pytest.mark.parametrize("sparse", [False, True])
def test_optical_paths_are_channels(write: Write, sparse: bool) -> None:
    paths = [np.arange(40 * 20, dtype=np.uint16).reshape(40, 20) + 1000 * n for n in range(3)]
    volume = dicom.open_volume(slide(write, "a", paths, sparse))
    assert volume.axes == "cyx"
    np.testing.assert_array_equal(volume.numpy(), np.stack(paths))
    np.testing.assert_array_equal(volume.take("c", 2).numpy(), paths[2])


def test_tiles_of_jpeg(write: Write) -> None:
    rows, columns = np.mgrid[:40, :50]
    pixels = np.stack([rows * 5, columns * 4, rows + columns], axis=-1).astype(np.uint8)
    volume = dicom.open_volume(slide(write, "a", [pixels], jpeg=True))
    # away from the edge tiles, whose filling disturbs their blocks
    assert np.abs(volume.numpy()[:32, :48].astype(int) - pixels[:32, :48]).max() <= 12
    assert any("loss (JPEG" in f for f in volume.meta["findings"])


def test_a_resolution_in_two_files(write: Write, tmp_path: Path) -> None:
    pixels = picture(32, 64)
    first, rest = (0, 1, 2), (3, 4, 5, 6, 7)
    slide(write, "a", [pixels], leave=rest, ConcatenationUID="1.5", ConcatenationFrameOffsetNumber=0)
    slide(write, "b", [pixels], leave=first, ConcatenationUID="1.5", ConcatenationFrameOffsetNumber=3)
    volume = dicom.open_volume(tmp_path)
    np.testing.assert_array_equal(volume.numpy(), pixels)
    assert volume.meta["findings"] == ()


def test_only_the_tiles_that_are_looked_at_are_decoded(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from napari_medai.io.dicom import slides

    volume = dicom.open_volume(slide(write, "a", [picture(64, 64)]))
    decoded = []
    real = slides.stored_frame
    monkeypatch.setattr(slides, "stored_frame", lambda file, frame: decoded.append(frame) or real(file, frame))
    source = next(v for v in volume.array.dask.values() if isinstance(v, slides.Mosaic))
    source[0, 0, 20:30, 20:30]
    assert decoded == [5]
