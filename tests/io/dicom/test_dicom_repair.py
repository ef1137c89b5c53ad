"""Repairs of stacks, with numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_medai.core.errors import ParamsError
from napari_medai.io import dicom
from napari_medai.io.dicom.repair import interpolated_mask

Write = Callable[..., Path]


def ramp(write: Write, folder: str, levels: list[float], scale: float = 10, **fields: Any) -> None:
    """A slice at each z; all its pixels are ``scale * z`` plus the number of the column."""
    for n, z in enumerate(levels):
        pixels = np.tile(np.arange(6), (4, 1)) + round(scale * z)
        values = {"ImagePositionPatient": [-10, -20, z], "InstanceNumber": n, "RescaleSlope": 1, **fields}
        write(f"{folder}/{n}", pixels.astype(np.uint16), **values)


def test_missing_slices_of_a_ramp_are_interpolated_exactly(write: Write, tmp_path: Path) -> None:
    ramp(write, "ct", [0, 1, 2, 5, 6])
    volume = dicom.open_volume(tmp_path / "ct", repair=("missing",))
    assert volume.shape == (7, 4, 6)
    assert volume.numpy()[:, 0, 0].tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert np.asarray(volume.array[3])[2].tolist() == [30, 31, 32, 33, 34, 35]
    assert volume.dtype == np.uint16
    assert volume.meta["interpolated"] == (3, 4)
    assert volume.meta["interpolated_axis"] == "z"
    assert volume.meta["repaired"] == ("missing",)
    assert volume.meta["findings"] == (
        "2 of 7 slices are missing (counted from 0: 3-4); they were interpolated between their neighbours.",
    )
    mask = interpolated_mask(volume)
    assert mask.numpy()[:, 1, 1].tolist() == [0, 0, 0, 1, 1, 0, 0]
    assert mask.meta["label_names"] == {1: "interpolated"}
    assert mask.grid.same_place(volume.grid)
    # without the choice nothing is invented
    plain = dicom.open_volume(tmp_path / "ct")
    assert plain.numpy()[:, 0, 0].tolist() == [0, 10, 20, 0, 0, 50, 60]
    assert "interpolated" not in plain.meta
    assert interpolated_mask(plain).numpy().max() == 0


def test_interpolated_slices_are_counted_along_the_axis_that_opens(write: Write, tmp_path: Path) -> None:
    # sagittal slices whose normal runs to the patient's right: x rises to the left
    for x in (0, 2, 6, 8, 10):
        write(
            f"{x}",
            np.full((4, 6), x, np.uint16),
            ImagePositionPatient=[x, -50, 40],
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
        )
    volume = dicom.open_volume(tmp_path, repair=("missing",))
    assert volume.shape == (4, 6, 6)
    assert volume.numpy()[0, 0].tolist() == [0, 2, 4, 6, 8, 10]
    assert (volume.meta["interpolated"], volume.meta["interpolated_axis"]) == ((2,), "x")
    assert "(counted from 0: 2)" in volume.meta["findings"][0]
    assert interpolated_mask(volume).numpy()[0, 0].tolist() == [0, 0, 1, 0, 0, 0]


def test_irregular_distances_are_resampled_to_their_median(write: Write, tmp_path: Path) -> None:
    # distances 2, 3, 2, 2.5, 2: the median is 2
    ramp(write, "ct", [0, 2, 5, 7, 9.5, 11.5])
    volume = dicom.open_volume(tmp_path / "ct", repair=("spacing",))
    assert volume.shape == (6, 4, 6)
    assert volume.spacing[0] == pytest.approx(2)
    assert volume.numpy()[:, 0, 0].tolist() == [0, 20, 40, 60, 80, 100]
    assert volume.meta["interpolated"] == (2, 3, 4, 5)
    assert "were resampled to 6 slices 2.000 mm apart" in volume.meta["findings"][0]
    assert dicom.open_volume(tmp_path / "ct").spacing[0] == pytest.approx(11.5 / 5)


def tilted(write: Write, folder: str, **fields: Any) -> Path:
    """Slices tilted by atan(3/4) about x, 4 mm apart along the table; a cylinder along the slices' normal.

    Rows run along (0, 4, 3)/5. From one slice to the next the table moves (0, 0, 4): 3.2 mm along the normal
    (0, -3, 4)/5 and 2.4 mm = 1.2 pixels of 2 mm along the columns. The cylinder does not move sideways in the patient,
    so that it lies 1.2 pixels earlier in each slice.
    """
    path = Path()
    for k in range(5):
        rows = np.arange(20)
        # a tent of 10 pixels, linear between its corners, about row 10 of the first slice
        tent = np.clip(100 - 20 * np.abs(rows - (10 - 1.2 * k)), 0, None)
        pixels = np.tile(np.rint(10 * tent)[:, None], (1, 6)).astype(np.uint16)
        path = write(
            f"{folder}/{k}",
            pixels,
            ImagePositionPatient=[0, 0, 4 * k],
            ImageOrientationPatient=[1, 0, 0, 0, 0.8, 0.6],
            PixelSpacing=[2, 2],
            **fields,
        )
    return path.parent


def test_a_tilted_cylinder_becomes_upright(write: Write) -> None:
    folder = tilted(write, "ct", RescaleIntercept=0, RescaleSlope=0.1)
    sheared = dicom.open_volume(folder)
    assert "tilted by 36.9 degrees" in sheared.meta["findings"][0]
    volume = dicom.open_volume(folder, repair=("tilt",))
    assert volume.is_lazy
    # 4 x 1.2 = 4.8 more pixels: 5 rows
    assert volume.shape == (5, 25, 6)
    columns = volume.affine[:3, :3]
    assert columns.T @ columns == pytest.approx(np.diag([3.2**2, 4, 4]), abs=1e-9)
    assert volume.affine[:3, 0] == pytest.approx([3.2 * 0.8, -3.2 * 0.6, 0])
    assert volume.affine[:3, 3] == pytest.approx([0, 0, 0])
    middle = volume.numpy()[:, :, 3]
    # the peak of the first slice is at row 10; linear resampling keeps the straight sides and cuts the kinks
    for k in range(5):
        assert middle[k, 6:10] == pytest.approx(middle[0, 6:10], abs=0.1)
        assert middle[k, 11:15] == pytest.approx(middle[0, 11:15], abs=0.1)
        assert (middle[k] * np.arange(25))[middle[k] > 0].sum() / middle[k][middle[k] > 0].sum() == pytest.approx(
            10, abs=0.05
        )
    # what no slice measured is air
    assert middle[4, 0] == -1000.0
    assert middle[0, 24] == -1000.0
    assert "upright stack of 25 x 6 pixels" in volume.meta["findings"][0]
    assert volume.meta["repaired"] == ("tilt",)
    # a voxel that was measured keeps its place: whole shift of slice 0
    assert np.asarray(volume.array[0])[:20] == pytest.approx(sheared.numpy()[0])


def test_a_colour_stack_is_shifted_too(write: Write, tmp_path: Path) -> None:
    for k in range(3):
        pixels = np.zeros((8, 6, 3), np.uint8)
        pixels[4 - k, :, 1] = 200
        write(
            f"{k}", pixels[..., 0], SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT", SamplesPerPixel=3,
            PhotometricInterpretation="RGB", PlanarConfiguration=0, PixelData=pixels.tobytes(), PixelSpacing=[1, 1],
            # one pixel (1 mm along y) a slice
            ImagePositionPatient=[0, k, 3 * k],
        )  # fmt: skip
    volume = dicom.open_volume(tmp_path, repair=("tilt",))
    assert volume.shape == (3, 10, 6, 3)
    assert volume.numpy()[:, 4, 0].tolist() == [[0, 200, 0]] * 3
    assert volume.numpy()[:, 3].max() == 0


def test_time_points_are_repaired_one_by_one(write: Write, tmp_path: Path) -> None:
    # the second time point lacks slice 1, both lack slice 3
    for t, levels in ((1, (0, 1, 2, 4)), (2, (0, 2, 4))):
        for z in levels:
            write(
                f"{t}-{z}",
                np.full((4, 6), 100 * t + 10 * z, np.uint16),
                Modality="MR",
                ImagePositionPatient=[0, 0, z],
                TemporalPositionIdentifier=t,
                TemporalResolution=2500,
            )
    volume = dicom.open_volume(tmp_path)
    assert volume.shape == (2, 5, 4, 6)
    assert volume.meta["axis_t"] == {"name": "t", "unit": "s", "values": (0.0, 2.5)}
    assert volume.numpy()[..., 0, 0].tolist() == [[100, 110, 120, 0, 140], [200, 0, 220, 0, 240]]
    volume = dicom.open_volume(tmp_path, repair=("missing",))
    assert volume.numpy()[..., 0, 0].tolist() == [[100, 110, 120, 130, 140], [200, 210, 220, 230, 240]]
    assert np.asarray(volume.array[1, 3])[0, 0] == 230
    assert volume.meta["interpolated"] == (1, 3)
    said = " ".join(volume.meta["findings"])
    assert "1 slices are missing in some of the 2 volumes; they were interpolated" in said
    assert "1 of 5 slices are missing (counted from 0: 3); they were interpolated" in said
    assert "blank" not in said


def test_the_latest_of_many_duplicates_by_choice(write: Write, tmp_path: Path) -> None:
    # scanned twice as a whole, the second time across midnight
    for n, clock in enumerate(("235950", "000010")):
        for z in range(3):
            write(
                f"{n}-{z}", np.full((4, 6), 10 * n + z, np.uint16), ImagePositionPatient=[0, 0, z],
                AcquisitionTime=clock, InstanceNumber=50 - 10 * n + z,
            )  # fmt: skip
    volume = dicom.open_volume(tmp_path)
    assert volume.shape == (2, 3, 4, 6)
    assert volume.meta["axis_t"] == {"name": "t", "unit": "s", "values": (0.0, 20.0)}
    volume = dicom.open_volume(tmp_path, repair=["duplicates"])
    assert volume.numpy()[:, 0, 0].tolist() == [10, 11, 12]
    assert "by acquisition time" in volume.meta["findings"][0]


def test_labels_take_the_nearest_slice(write: Write, tmp_path: Path) -> None:
    import dask.array as da

    from napari_medai.core.volume import Volume
    from napari_medai.io.dicom.repair import repaired
    from napari_medai.io.dicom.series import scan

    ramp(write, "ct", [0, 1, 4])
    (image,) = scan(tmp_path / "ct")[0].images()
    volume = image.volume()
    labels = Volume(volume.array, "zyx", volume.affine, "mm", "SEG", meta={**volume.meta, "is_labels": True})
    assert repaired(labels, image.stack, ("missing",)).numpy()[:, 0, 0].tolist() == [0, 10, 10, 40, 40]
    # an array that is not of planes on disk is left alone
    other = volume.replace(array=da.zeros(volume.shape))
    assert repaired(other, image.stack, ("missing",)) is other


def test_a_repair_that_is_not_needed_changes_nothing(write: Write, tmp_path: Path) -> None:
    ramp(write, "ct", [0, 1, 2])
    volume = dicom.open_volume(tmp_path / "ct", repair=("tilt", "missing", "spacing", "duplicates", "mosaic"))
    assert volume.meta["findings"] == ()
    assert "repaired" not in volume.meta
    assert volume.numpy()[:, 0, 0].tolist() == [0, 10, 20]


def test_an_unknown_repair_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="no repair 'warp'") as caught:
        dicom.open_volume(tmp_path / "nowhere", repair=("tilt", "warp"))
    for name in ("tilt", "missing", "spacing", "duplicates", "mosaic"):
        assert f"  {name}: " in str(caught.value)
