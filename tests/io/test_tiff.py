"""TIFF: pixel sizes of every kind of metadata, axes, damage, and files that come back as they were saved."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import napari_medai as medai
from napari_medai.core.errors import ReadError, SeriesChoiceError, UnsupportedFormatError, WriteError
from napari_medai.core.geometry import scaling
from napari_medai.core.volume import Volume


def test_ome_pixel_size_and_axes(tmp_path: Path) -> None:
    pixels = np.arange(2 * 3 * 4 * 5, dtype=np.uint16).reshape(2, 3, 4, 5)
    size = {"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, metadata={"axes": "CZYX", **size})
    volume = medai.open(tmp_path / "a.ome.tif")
    assert (volume.axes, volume.units, volume.name) == ("czyx", "um", "a")
    assert volume.spacing == (2.0, 0.5, 0.25)
    assert volume.is_lazy
    np.testing.assert_array_equal(volume.numpy(), pixels)


def test_imagej_pixel_size(tmp_path: Path) -> None:
    pixels = np.arange(3 * 2 * 4 * 5, dtype=np.uint16).reshape(3, 2, 4, 5)
    metadata = {"axes": "ZCYX", "spacing": 1.5, "unit": "\\u00B5m"}
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, resolution=(2, 4), metadata=metadata)
    volume = medai.open(tmp_path / "a.tif")
    assert (volume.axes, volume.units) == ("czyx", "um")
    assert volume.spacing == (1.5, 0.25, 0.5)
    np.testing.assert_array_equal(volume.numpy(), pixels.swapaxes(0, 1))


def test_resolution_in_centimetres(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5), np.uint8), resolution=(20000, 40000), resolutionunit=3)
    volume = medai.open(tmp_path / "a.tif")
    assert (volume.units, volume.spacing) == ("um", (1.0, 0.25, 0.5))


def test_resolution_for_printing_is_not_a_pixel_size(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5), np.uint8), resolution=(300, 300), resolutionunit=2)
    volume = medai.open(tmp_path / "a.tif")
    assert (volume.units, volume.spacing) == ("pixel", (1.0, 1.0, 1.0))
    assert "about printing" in volume.meta["findings"][0]


def test_pages_without_a_meaning_are_planes(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for n in range(3):
            file.write(np.full((4, 5), n, np.uint8), contiguous=False, metadata=None)
    volume = medai.open(tmp_path / "a.tif")
    assert volume.axes == "zyx"
    assert volume.numpy()[:, 0, 0].tolist() == [0, 1, 2]
    assert "z axis" in volume.meta["findings"][0]


def test_planar_colour_is_moved_last(tmp_path: Path) -> None:
    pixels = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", planarconfig="separate")
    volume = medai.open(tmp_path / "a.tif")
    assert volume.axes == "yxs"
    np.testing.assert_array_equal(volume.numpy(), np.moveaxis(pixels, 0, -1))


def test_finest_level_of_a_pyramid_in_tiles(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (256, 256, 3)).astype(np.uint8)
    options = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels, subifds=1, **options)
        file.write(pixels[::2, ::2], subfiletype=1, **options)
    volume = medai.open(tmp_path / "a.tif")
    assert (volume.axes, volume.shape) == ("yxs", (256, 256, 3))
    np.testing.assert_array_equal(volume.numpy(), pixels)
    assert [level.shape for level in volume.meta["levels"]] == [(256, 256, 3), (128, 128, 3)]
    assert volume.meta["levels"][0] is volume.array
    np.testing.assert_array_equal(np.asarray(volume.meta["levels"][1]), pixels[::2, ::2])


def test_chunks_are_whole_tiles_of_a_screen(tmp_path: Path) -> None:
    pixels = np.zeros((3000, 2900), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(384, 256), compression="zlib")
    assert medai.open(tmp_path / "a.tif").array.chunksize == (768, 1024)


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_what_lies_in_the_file_as_it_is_is_not_read_as_a_whole(tmp_path: Path, byteorder: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 60000, (2000, 1500)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, byteorder=byteorder, metadata=None)
    volume = medai.open(tmp_path / "a.tif")
    part = np.asarray(volume.array[700:710, 20:31])
    np.testing.assert_array_equal(part, pixels[700:710, 20:31])
    assert part.dtype.isnative
    # a chunk that is asked for is the only one that is read: the rest of the file may be gone
    data = (tmp_path / "a.tif").read_bytes()
    at = data.index(pixels[1024:1025].astype(f"{byteorder}u2").tobytes())
    with (tmp_path / "a.tif").open("r+b") as file:
        file.seek(at)
        file.write(bytes(len(data) - at))
    np.testing.assert_array_equal(np.asarray(volume.array[:1024]), pixels[:1024])
    assert not np.asarray(volume.array[1024:1030]).any()


def test_several_images_of_ome_are_listed(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        file.write(np.zeros((4, 5), np.uint8), metadata={"axes": "YX"})
        file.write(np.ones((6, 7), np.uint8), metadata={"axes": "YX"})
    with pytest.raises(SeriesChoiceError) as caught:
        medai.open(tmp_path / "a.ome.tif")
    assert [s.shape for s in caught.value.series] == [(4, 5), (6, 7)]
    assert medai.open(tmp_path / "a.ome.tif", series_uid="1").shape == (6, 7)
    with pytest.raises(ReadError, match="numbered from 0 to 1"):
        medai.open(tmp_path / "a.ome.tif", series_uid="2")


def test_largest_image_of_a_plain_file_with_a_thumbnail(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.zeros((4, 5), np.uint8), metadata=None)
        file.write(np.ones((60, 70), np.uint8), metadata=None)
    volume = medai.open(tmp_path / "a.tif")
    assert volume.shape == (60, 70)
    assert "2 images" in volume.meta["findings"][0]


@pytest.mark.parametrize("keep", [4, 8, 60, 0.5, 0.9])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"imagej": True}, {"tile": (16, 16)}])
def test_truncated(tmp_path: Path, keep: float, options: dict) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 50, 50)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(ReadError):
        medai.open(tmp_path / "a.tif")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 1500), byte=st.integers(0, 255), suffix=st.sampled_from([".tif", ".ome.tif"]))
def test_any_byte_of_the_header_may_be_wrong(tmp_path: Path, where: int, byte: int, suffix: str) -> None:
    path = tmp_path / f"good{suffix}"
    if not path.exists():
        medai.save(Volume(np.ones((3, 4, 5), np.uint16), "zyx"), path)
    data = bytearray(path.read_bytes())
    data[where % len(data)] = byte
    (tmp_path / f"bad{suffix}").write_bytes(data)
    try:
        values = medai.open(tmp_path / f"bad{suffix}").numpy()
    except medai.MedaiError:
        return
    assert values.size > 0


def test_time_between_frames_is_kept(tmp_path: Path) -> None:
    volume = Volume(np.zeros((2, 4, 5), np.uint8), "tyx", meta={"frame_seconds": 2.5})
    assert medai.open(medai.save(volume, tmp_path / "a.tif")).meta["frame_seconds"] == 2.5


def test_axes_that_are_no_image(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3, 2, 4, 5, 6), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata={"axes": "HATZYX"}, photometric="minisblack")
    with pytest.raises(UnsupportedFormatError, match="axes"):
        medai.open(tmp_path / "a.tif")


def test_travels_to_another_process(tmp_path: Path, slide: Volume) -> None:
    volume = medai.open(medai.save(slide, tmp_path / "a.tif"))
    before = volume.numpy()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume)).numpy(), before)


def test_imagej_and_others_see_axes_and_pixel_size(tmp_path: Path) -> None:
    pixels = np.arange(2 * 3 * 4 * 5, dtype=np.uint16).reshape(2, 3, 4, 5)
    volume = Volume(pixels, "czyx", scaling((2.0, 0.5, 0.25)), "um")
    with tifffile.TiffFile(medai.save(volume, tmp_path / "a.tif")) as file:
        metadata = file.imagej_metadata
        assert file.series[0].axes == "ZCYX"
        assert (metadata["unit"], metadata["spacing"], metadata["channels"]) == ("um", 2.0, 2)
        assert file.pages[0].tags["XResolution"].value == (4, 1)
    with tifffile.TiffFile(medai.save(volume, tmp_path / "a.ome.tif")) as file:
        assert file.is_ome
        assert 'PhysicalSizeX="0.25"' in file.ome_metadata
        assert 'PhysicalSizeZUnit="µm"' in file.ome_metadata


@pytest.mark.parametrize(
    ("dtype", "stored"), [("int16", "int16"), ("float64", "float32"), ("bool", "uint8"), ("int64", "int16")]
)
def test_stored_types(tmp_path: Path, dtype: str, stored: str) -> None:
    path = medai.save(Volume(np.ones((3, 4), dtype), "yx"), tmp_path / "a.tif")
    assert tifffile.imread(path).dtype == np.dtype(stored)


def test_labels_keep_names(tmp_path: Path) -> None:
    labels = np.zeros((4, 5), np.int32)
    labels[1, 2] = 70000
    volume = Volume(labels, "yx", scaling((1, 0.5, 0.5)), "um", meta={"is_labels": True, "label_names": {70000: "x"}})
    opened = medai.open(medai.save(volume, tmp_path / "a.tif"))
    assert opened.dtype == np.uint32
    assert opened.meta["is_labels"] is True
    assert opened.meta["label_names"] == {70000: "x"}


def test_what_tiff_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WriteError):
        medai.save(Volume(np.full((3, 4), 2**40), "yx"), tmp_path / "a.tif")
    with pytest.raises(WriteError):
        medai.save(Volume(np.ones((3, 4), np.complex64), "yx"), tmp_path / "a.tif")
    assert list(tmp_path.iterdir()) == []


AXES = ["yx", "zyx", "tzyx", "czyx", "tczyx", "cyx", "tyx", "tcyx", "yxs", "zyxs", "tyxs"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=st.sampled_from(AXES),
    size=st.lists(st.integers(2, 6), min_size=5, max_size=5),
    single=st.booleans(),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "int32", "float32"]),
    steps=st.tuples(*[st.floats(0.05, 20)] * 3),
    units=st.sampled_from(["mm", "um", "pixel"]),
    suffix=st.sampled_from([".tif", ".ome.tiff"]),
)
def test_saved_and_opened_is_the_same(
    tmp_path: Path,
    axes: str,
    size: list[int],
    single: bool,
    dtype: str,
    steps: tuple[float, float, float],
    units: str,
    suffix: str,
) -> None:
    shape = [3 if a == "s" else 1 if a == "z" and single else n for a, n in zip(axes, size, strict=False)]
    kind = "uint8" if "s" in axes else dtype
    pixels = np.arange(np.prod(shape)).reshape(shape).astype(kind)
    volume = Volume(pixels, axes, scaling(steps, (3, -5, 7)), units)
    opened = medai.open(medai.save(volume, tmp_path / f"a{suffix}"))
    assert (opened.axes, opened.dtype, opened.units) == (axes, volume.dtype, units)
    np.testing.assert_array_equal(opened.affine, volume.affine)
    np.testing.assert_array_equal(opened.numpy(), pixels)


def test_an_oblique_place_survives(tmp_path: Path, oblique_scan: Volume) -> None:
    opened = medai.open(medai.save(oblique_scan, tmp_path / "a.tif"))
    assert opened.grid.same_place(oblique_scan.grid)
    assert (opened.units, opened.modality) == ("mm", "MR")
