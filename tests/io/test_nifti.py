"""NIfTI: position by hand, scaling, labels, damage, and files that come back as they were saved."""

from __future__ import annotations

import gzip
import pickle
import struct
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

import napari_medai as medai
from napari_medai.core.errors import ParamsError, ReadError, UnsupportedFormatError, WriteError
from napari_medai.core.geometry import Affine, from_ras, index_to_world, scaling, to_ras
from napari_medai.core.volume import Volume
from napari_medai.io import nifti_pixels


def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **header: object) -> Path:
    """A file written by nibabel alone."""
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    image.header.set_xyzt_units("mm")
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def patch(path: Path, offset: int, content: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_voxel_lies_where_the_header_puts_it(tmp_path: Path, suffix: str) -> None:
    # stored axes run to the right, anterior, superior; 2 x 3 x 4 mm, first voxel at (10, 20, 30) RAS
    pixels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    affine = np.array([[2, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1.0]])
    volume = medai.open(write(tmp_path / f"scan{suffix}", pixels, affine))
    assert (volume.axes, volume.shape, volume.dtype, volume.units) == ("zyx", (6, 5, 4), np.dtype(np.int16), "mm")
    assert volume.is_lazy
    assert volume.name == "scan"
    assert volume.modality == ""
    # RAS (10, 20, 30) is world (z, y, x) = (30, -20, -10); x and y were flipped, so it is the last voxel along both
    np.testing.assert_allclose(index_to_world(volume.affine, (0, 4, 3)), (30, -20, -10))
    assert volume.numpy()[0, 4, 3] == pixels[0, 0, 0]
    # stored voxel (1, 2, 3): RAS (12, 26, 42)
    np.testing.assert_allclose(index_to_world(volume.affine, (3, 2, 2)), (42, -26, -12))
    assert volume.numpy()[3, 2, 2] == pixels[1, 2, 3]
    np.testing.assert_allclose(volume.spacing, (4, 3, 2))


def test_four_dimensions_keep_time_first_and_its_step(tmp_path: Path) -> None:
    pixels = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    path = write(tmp_path / "bold.nii", pixels, np.diag([-1, -1, 1, 1.0]))
    image = nibabel.load(path)
    image.header.set_zooms((1, 1, 1, 2.5))
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / "tr.nii")
    volume = medai.open(tmp_path / "tr.nii")
    assert (volume.axes, volume.shape) == ("tzyx", (5, 4, 3, 2))
    assert volume.meta["frame_seconds"] == 2.5
    np.testing.assert_array_equal(volume.numpy(), pixels.T)
    again = medai.open(medai.save(volume, tmp_path / "again.nii"))
    assert again.meta["frame_seconds"] == 2.5


def test_values_per_voxel_are_channels(tmp_path: Path) -> None:
    pixels = np.arange(2 * 3 * 4 * 1 * 3, dtype=np.float32).reshape(2, 3, 4, 1, 3)
    volume = medai.open(write(tmp_path / "vectors.nii", pixels, np.diag([-1, -1, 1, 1.0])))
    assert (volume.axes, volume.shape) == ("czyx", (3, 4, 3, 2))
    np.testing.assert_array_equal(volume.numpy(), pixels[:, :, :, 0].T)
    series = np.arange(2 * 3 * 4 * 5 * 2, dtype=np.float32).reshape(2, 3, 4, 5, 2)
    volume = medai.open(write(tmp_path / "both.nii", series, np.diag([-1, -1, 1, 1.0])))
    assert (volume.axes, volume.shape) == ("tczyx", (5, 2, 4, 3, 2))
    assert volume.numpy()[4, 1, 3, 2, 0] == series[0, 2, 3, 4, 1]


def test_colour(tmp_path: Path) -> None:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    pixels = np.zeros((4, 5, 6), kind)
    pixels[1, 2, 3] = (10, 20, 30)
    volume = medai.open(write(tmp_path / "rgb.nii.gz", pixels, np.diag([-1, -1, 1, 1.0])))
    assert (volume.axes, volume.shape, volume.dtype) == ("zyxs", (6, 5, 4, 3), np.dtype(np.uint8))
    assert volume.numpy()[3, 2, 1].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("stored", "slope", "inter", "dtype", "value"),
    [
        (np.uint16, 1.0, -1024.0, np.int32, -1019),  # 0..65535 minus 1024 does not fit 16 bits
        (np.uint8, 2.0, -1.0, np.int16, 9),
        (np.int16, 0.5, 3.0, np.float32, 5.5),
        (np.int32, 0.5, 3.0, np.float64, 5.5),
        (np.int16, 0.0, 7.0, np.int16, 5),  # a slope of 0 means no scaling
    ],
)
def test_slope_and_intercept(
    tmp_path: Path, stored: type, slope: float, inter: float, dtype: type, value: float
) -> None:
    path = write(tmp_path / "scaled.nii", np.full((3, 4, 5), 5, stored))
    volume = medai.open(patch(path, 112, struct.pack("<ff", slope, inter)))
    assert volume.dtype == np.dtype(dtype)
    assert set(volume.numpy().ravel()) == {value}


def test_big_endian_and_nifti2(tmp_path: Path) -> None:
    pixels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nibabel.save(nibabel.Nifti1Image(pixels, np.diag([-1, -1, 1, 1.0]), header), tmp_path / "big.nii")
    nibabel.save(nibabel.Nifti2Image(pixels, np.diag([-1, -1, 1, 1.0])), tmp_path / "two.nii.gz")
    for name in ("big.nii", "two.nii.gz"):
        volume = medai.open(tmp_path / name)
        assert volume.dtype == np.dtype("=i2")
        np.testing.assert_array_equal(volume.numpy(), pixels.T)


def test_pair_of_header_and_image(tmp_path: Path) -> None:
    pixels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    nibabel.save(nibabel.Nifti1Pair(pixels, np.diag([-1, -1, 1, 1.0])), tmp_path / "pair.hdr")
    for name in ("pair.hdr", "pair.img"):
        np.testing.assert_array_equal(medai.open(tmp_path / name).numpy(), pixels.T)
    (tmp_path / "pair.img").unlink()
    with pytest.raises(ReadError, match=r"pair\.img is missing"):
        medai.open(tmp_path / "pair.hdr")


def test_complex_pixels_are_shown_as_magnitude(tmp_path: Path) -> None:
    volume = medai.open(write(tmp_path / "k.nii", np.full((2, 2, 2), 3 - 4j, np.complex64)))
    assert volume.dtype == np.float32
    assert set(volume.numpy().ravel()) == {5.0}
    assert "magnitude" in volume.meta["findings"][0]


def test_not_a_number_is_allowed(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3, 4), np.float32)
    pixels[0, 0, 0], pixels[1, 1, 1] = np.nan, np.inf
    values = medai.open(write(tmp_path / "nan.nii.gz", pixels)).numpy()
    assert np.isnan(values).sum() == 1
    assert np.isinf(values).sum() == 1


class TestPosition:
    """Which transform of the header is taken."""

    def test_sform_before_qform_and_their_difference_told(self, tmp_path: Path) -> None:
        image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.diag([-1, -1, 1, 1.0]))
        moved = np.diag([-1, -1, 1, 1.0])
        moved[0, 3] = 7
        image.set_sform(moved, 2)
        image.set_qform(np.diag([-1, -1, 1, 1.0]), 1)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, tmp_path / "both.nii")
        volume = medai.open(tmp_path / "both.nii")
        np.testing.assert_allclose(volume.affine[:3, 3], (0, 0, -7))
        assert volume.meta["nifti_xform"] == 2
        assert volume.meta["findings"] == (
            "sform and qform differ by up to 7.00 mm and 0.0 degrees; the sform was taken "
            '(affine="qform" takes the other)',
        )
        volume = medai.open(tmp_path / "both.nii", affine="qform")
        np.testing.assert_allclose(volume.affine[:3, 3], (0, 0, 0))
        assert volume.meta["nifti_xform"] == 1
        assert "the qform was taken" in volume.meta["findings"][0]

    def test_a_turned_qform_is_told_in_degrees(self, tmp_path: Path) -> None:
        image = nibabel.Nifti1Image(np.zeros((11, 11, 11), np.int16), np.eye(4))
        turned = np.eye(4)
        turned[:3, :3] = Rotation.from_euler("z", 30, degrees=True).as_matrix()
        image.set_sform(np.eye(4), 1)
        image.set_qform(turned, 1)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, tmp_path / "turned.nii")
        # the far corner of the plane is 10 sqrt(2) mm away; a chord of 30 degrees there: 2 * 14.142 * sin 15 = 7.32
        assert "up to 7.32 mm and 30.0 degrees" in medai.open(tmp_path / "turned.nii").meta["findings"][0]

    def test_an_option_of_another_name_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.nii", np.zeros((2, 2, 2), np.int16))
        for option in ({"affine": "best"}, {"part": "both"}):
            with pytest.raises(ParamsError, match="use"):
                medai.open(path, **option)

    def test_qform_is_asked_for_and_missing(self, tmp_path: Path) -> None:
        volume = medai.open(write(tmp_path / "s.nii", np.zeros((3, 4, 5), np.int16)), affine="qform")
        assert volume.meta["findings"] == ("the header has no qform; the sform was taken",)

    def test_qform_alone(self, tmp_path: Path) -> None:
        turned = np.eye(4)
        turned[:3, :3] = Rotation.from_euler("xyz", (10, 20, 30), degrees=True).as_matrix() @ np.diag([1, 2, 3])
        image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), turned)
        image.set_qform(turned, 1)
        image.set_sform(None, 0)
        nibabel.save(image, tmp_path / "q.nii")
        expected = Volume(np.zeros((5, 4, 3)), "zyx", from_ras(turned)).canonical()
        np.testing.assert_allclose(medai.open(tmp_path / "q.nii").affine, expected.affine, atol=1e-5)

    def test_broken_sform_falls_back_to_qform(self, tmp_path: Path) -> None:
        path = write(tmp_path / "s.nii", np.zeros((3, 4, 5), np.int16), np.diag([-2, -2, 2, 1.0]))
        image = nibabel.load(path)
        image.set_qform(np.diag([-2, -2, 2, 1.0]), 1)
        nibabel.save(image, path)
        patch(path, 252, struct.pack("<h", 1))
        volume = medai.open(patch(path, 280, struct.pack("<ffff", *[0.0] * 4)))
        np.testing.assert_allclose(volume.affine, np.diag([2, 2, 2, 1.0]))
        assert "sform is not a transform" in volume.meta["findings"][0]

    def test_no_position_is_a_guess_that_is_told(self, tmp_path: Path) -> None:
        image = nibabel.Nifti1Image(np.zeros((3, 5, 7), np.int16), None)
        image.header.set_xyzt_units("mm")
        image.header.set_zooms((2, 3, 4))
        nibabel.save(image, tmp_path / "none.nii")
        volume = medai.open(tmp_path / "none.nii")
        assert "guess" in volume.meta["findings"][0]
        # centred: RAS x runs from +2 to -2 in steps of 2 mm, y from -6 to 6, z from -12 to 12
        np.testing.assert_allclose(volume.affine[:3, 3], (-12, -6, -2))
        np.testing.assert_allclose(volume.spacing, (4, 3, 2))

    def test_zero_voxel_size_is_repaired_and_told(self, tmp_path: Path) -> None:
        image = nibabel.Nifti1Image(np.zeros((3, 5, 7), np.int16), None)
        nibabel.save(image, tmp_path / "zero.nii")
        volume = medai.open(patch(tmp_path / "zero.nii", 80, struct.pack("<f", 0.0)))
        assert volume.spacing == (1.0, 1.0, 1.0)
        assert "voxel size" in volume.meta["findings"][0]

    @pytest.mark.parametrize(
        ("code", "units", "step"), [(1, "mm", 2000.0), (2, "mm", 2.0), (3, "um", 2.0), (0, "mm", 2.0)]
    )
    def test_units(self, tmp_path: Path, code: int, units: str, step: float) -> None:
        path = write(tmp_path / "u.nii", np.zeros((3, 4, 5), np.int16), np.diag([-2, -2, 2, 1.0]), xyzt_units=code)
        volume = medai.open(path)
        assert (volume.units, volume.spacing) == (units, (step,) * 3)


class TestLabels:
    """When whole numbers are labels."""

    def scan(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 200, (12, 12, 12)).astype(np.uint8)

    def atlas(self) -> np.ndarray:
        labels = np.zeros((12, 12, 12), np.uint8)
        labels[2:6, 2:10, 2:10], labels[6:10, 2:10, 2:10], labels[6:8, 4:8, 4:8] = 1, 2, 3
        return labels

    def test_patches_of_equal_values(self, tmp_path: Path) -> None:
        assert medai.open(write(tmp_path / "a.nii.gz", self.atlas())).meta["is_labels"] is True
        assert medai.open(write(tmp_path / "b.nii", (self.atlas() > 0).astype(np.uint8))).meta["is_labels"] is True
        assert "is_labels" not in medai.open(write(tmp_path / "c.nii.gz", self.scan())).meta
        assert "is_labels" not in medai.open(write(tmp_path / "d.nii", self.atlas().astype(np.float32))).meta
        assert "is_labels" not in medai.open(write(tmp_path / "e.nii", self.atlas().astype(np.int16) - 1)).meta

    def test_a_scan_on_a_constant_background_is_none(self, tmp_path: Path) -> None:
        pixels = np.full((12, 12, 12), 7, np.uint8)
        pixels[4:8, 4:8, 4:8] = self.scan()[4:8, 4:8, 4:8]
        assert "is_labels" not in medai.open(write(tmp_path / "x.nii", pixels)).meta

    def test_header_and_name_and_option_say_so(self, tmp_path: Path) -> None:
        assert medai.open(write(tmp_path / "i.nii", self.scan(), intent_code=1002)).meta["is_labels"] is True
        assert medai.open(write(tmp_path / "brain_seg.nii", self.scan())).meta["is_labels"] is True
        assert "is_labels" not in medai.open(write(tmp_path / "segura.nii", self.scan())).meta
        assert "is_labels" not in medai.open(tmp_path / "brain_seg.nii", labels=False).meta

    def test_saved_in_the_smallest_type_with_names_and_colours(self, tmp_path: Path) -> None:
        meta = {"is_labels": True, "label_names": {1: "liver", 300: "Tumör"}, "label_colors": {1: (1.0, 0.5, 0.0)}}
        labels = np.zeros((3, 4, 5), np.int64)
        labels[0, 0, 0], labels[1, 1, 1] = 1, 300
        volume = Volume(labels, "zyx", np.eye(4), "mm", meta=meta)
        path = medai.save(volume, tmp_path / "x.nii.gz")
        assert nibabel.load(path).get_data_dtype() == np.uint16
        assert nibabel.load(path).header["intent_code"] == 1002
        opened = medai.open(path)
        assert opened.meta["is_labels"] is True
        assert opened.meta["label_names"] == {1: "liver", 300: "Tumör"}
        assert opened.meta["label_colors"] == {1: (1.0, 0.5, 0.0)}
        np.testing.assert_array_equal(opened.numpy(), labels)


class TestDamage:
    """Each damaged file gives one clear error."""

    @pytest.mark.parametrize("keep", [0, 3, 200, 347, 351, 1000])
    def test_truncated(self, tmp_path: Path, keep: int) -> None:
        path = write(tmp_path / "t.nii", np.zeros((10, 10, 10), np.int16))
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(ReadError):
            medai.open(path)

    def test_message_names_both_lengths(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.nii", np.zeros((10, 10, 10), np.int16))
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ReadError, match="describes 2352 bytes, the file holds 1000"):
            medai.open(path)

    @pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
    def test_truncated_gzip_is_found_when_opening(self, tmp_path: Path, keep: float) -> None:
        pixels = np.random.default_rng(0).integers(0, 9999, (20, 20, 20)).astype(np.int16)
        path = write(tmp_path / "t.nii.gz", pixels)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])
        with pytest.raises(ReadError):
            medai.open(path)

    def test_short_stream_in_a_whole_gzip(self, tmp_path: Path) -> None:
        plain = write(tmp_path / "t.nii", np.zeros((10, 10, 10), np.int16)).read_bytes()
        (tmp_path / "t.nii.gz").write_bytes(gzip.compress(plain[:-100]))
        with pytest.raises(ReadError, match="describes 2352 bytes, the file holds 2252"):
            medai.open(tmp_path / "t.nii.gz")

    def test_flipped_bits_in_gzip_are_found_when_decoding(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 9999, (20, 20, 20)).astype(np.int16)
        path = write(tmp_path / "t.nii.gz", pixels)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
        with pytest.raises(ReadError, match="damaged"):
            medai.open(path).numpy()

    def test_members_and_padding_of_gzip_are_fine(self, tmp_path: Path) -> None:
        plain = write(tmp_path / "t.nii", np.full((10, 10, 10), 7, np.int16)).read_bytes()
        (tmp_path / "t.nii.gz").write_bytes(gzip.compress(plain[:500]) + gzip.compress(plain[500:]))
        assert medai.open(tmp_path / "t.nii.gz").numpy().sum() == 7000

    def test_a_header_that_asks_for_more_than_there_can_be(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.nii", np.zeros((2, 2, 2), np.int16))
        patch(path, 42, struct.pack("<3h", 30000, 30000, 30000))
        (tmp_path / "t.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
        for name in ("t.nii", "t.nii.gz"):
            with pytest.raises(ReadError, match="truncated"):
                medai.open(tmp_path / name)

    @pytest.mark.parametrize(
        ("offset", "content", "error"),
        [
            (344, b"xxx\0", UnsupportedFormatError),  # Analyze
            (0, b"\1\2\3\4", UnsupportedFormatError),
            (40, struct.pack("<h", 0), ReadError),
            (40, struct.pack("<h", 1), UnsupportedFormatError),
            (42, struct.pack("<h", -3), ReadError),
            (70, struct.pack("<h", 1), UnsupportedFormatError),  # one bit a voxel
            (70, struct.pack("<h", 999), UnsupportedFormatError),
            (68, struct.pack("<h", 3001), UnsupportedFormatError),  # CIFTI
            (108, struct.pack("<f", float("nan")), ReadError),
            (108, struct.pack("<f", 100.0), ReadError),
        ],
    )
    def test_damaged_headers(self, tmp_path: Path, offset: int, content: bytes, error: type[Exception]) -> None:
        path = write(tmp_path / "h.nii", np.zeros((3, 3, 3), np.int16))
        path.write_bytes(path.read_bytes() + b"\0")  # so that the length does not tell where the pixels begin
        if offset == 0:
            patch(path, 344, b"xxx\0")
        with pytest.raises(ReadError) as caught:
            medai.open(patch(path, offset, content))
        assert isinstance(caught.value, error) or offset == 0

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(where=st.integers(0, 351), byte=st.integers(0, 255))
    def test_any_byte_of_the_header_may_be_wrong(self, tmp_path: Path, where: int, byte: int) -> None:
        path = write(tmp_path / "h.nii", np.ones((3, 4, 5), np.int16))
        try:
            values = medai.open(patch(path, where, bytes([byte]))).numpy()
        except medai.MedaiError:
            return
        assert values.size > 0

    def test_extensions_of_others_are_passed_over(self, tmp_path: Path) -> None:
        image = nibabel.Nifti1Image(np.full((2, 3, 4), 9, np.int16), np.eye(4))
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(4, b"<AFNI/>"))
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b'{"napari_medai": 99, "axes": 3}'))
        nibabel.save(image, tmp_path / "x.nii")
        assert medai.open(tmp_path / "x.nii").numpy().sum() == 9 * 24

    def test_a_series_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ReadError, match="leave series_uid out"):
            medai.open(write(tmp_path / "x.nii", np.zeros((2, 2, 2), np.int16)), series_uid="1.2")


def test_listing_reads_the_header_only(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii.gz", np.zeros((4, 5, 6), np.int16), np.diag([-2, -3, 4, 1.0]))
    (series,) = medai.list_series(path)
    assert (series.shape, series.spacing_mm, series.files, series.uid) == ((6, 5, 4), (4.0, 3.0, 2.0), 1, "")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_travels_to_another_process(tmp_path: Path, suffix: str) -> None:
    pixels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    volume = medai.open(write(tmp_path / f"x{suffix}", pixels))
    before = volume.numpy()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume)).numpy(), before)


@pytest.mark.parametrize(
    ("given_dtype", "stored"),
    [
        ("float64", "float32"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("int16", "int16"),
        ("uint16", "uint16"),
        ("int64", "int16"),
        ("bool", "uint8"),
    ],
)
def test_stored_types(tmp_path: Path, given_dtype: str, stored: str) -> None:
    path = medai.save(Volume(np.ones((2, 3, 4), given_dtype), "zyx"), tmp_path / "x.nii")
    assert nibabel.load(path).get_data_dtype() == np.dtype(stored)


def test_nibabel_sees_the_same_place(tmp_path: Path, oblique_scan: Volume) -> None:
    path = medai.save(oblique_scan, tmp_path / "oblique.nii.gz")
    image = nibabel.load(path)
    np.testing.assert_allclose(image.affine, to_ras(oblique_scan.affine), atol=1e-4)
    np.testing.assert_allclose(image.header.get_qform(), to_ras(oblique_scan.affine), atol=1e-4)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    np.testing.assert_array_equal(image.get_fdata(), oblique_scan.numpy().T)
    opened = medai.open(path)
    assert opened.modality == "MR"
    assert opened.meta["window"] == (0.0, 1000.0)


def test_a_sheared_grid_has_no_qform(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[1, 0] = 0.3  # gantry tilt
    path = medai.save(Volume(np.zeros((5, 6, 7), np.int16), "zyx", affine, "mm"), tmp_path / "tilt.nii")
    assert int(nibabel.load(path).header["qform_code"]) == 0
    np.testing.assert_allclose(medai.open(path).affine, affine, atol=1e-6)
    assert medai.open(path).meta["findings"] == ()


def test_the_kind_of_space_is_kept(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4))
    image.set_sform(np.eye(4), 4)  # MNI 152
    nibabel.save(image, tmp_path / "mni.nii")
    path = medai.save(medai.open(tmp_path / "mni.nii"), tmp_path / "again.nii")
    assert int(nibabel.load(path).header["sform_code"]) == 4


def test_long_edges_take_nifti_2(tmp_path: Path) -> None:
    volume = Volume(np.zeros((1, 2, 40000), np.uint8), "zyx", np.eye(4), "um")
    path = medai.save(volume, tmp_path / "long.nii")
    assert isinstance(nibabel.load(path), nibabel.Nifti2Image)
    assert medai.open(path).shape == volume.shape


def test_equal_content_gives_equal_bytes(tmp_path: Path, oblique_scan: Volume) -> None:
    first = medai.save(oblique_scan, tmp_path / "a.nii.gz").read_bytes()
    assert medai.save(oblique_scan, tmp_path / "b.nii.gz").read_bytes() == first


@pytest.mark.parametrize("array", [np.ones((2, 2, 2), np.complex64), np.full((2, 2, 2), 1e300)])
def test_what_nifti_cannot_hold_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(WriteError):
        medai.save(Volume(array, "zyx"), tmp_path / "x.nii")
    assert list(tmp_path.iterdir()) == []


AXES = ["yx", "zyx", "tzyx", "czyx", "tczyx", "cyx", "tyx", "tcyx", "yxs", "zyxs", "tzyxs"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=st.sampled_from(AXES),
    size=st.lists(st.integers(2, 5), min_size=5, max_size=5),
    dtype=st.sampled_from(["uint8", "int16", "uint16", "int32", "float32"]),
    angles=hnp.arrays(float, 3, elements=st.floats(-180, 180)),
    steps=hnp.arrays(float, 3, elements=st.floats(0.05, 20)),
    origin=hnp.arrays(float, 3, elements=st.floats(-500, 500)),
    mirrored=st.booleans(),
    units=st.sampled_from(["mm", "um", "pixel"]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
)
def test_saved_and_opened_voxels_stay_in_place(
    tmp_path: Path,
    axes: str,
    size: list[int],
    dtype: str,
    angles: np.ndarray,
    steps: np.ndarray,
    origin: np.ndarray,
    mirrored: bool,
    units: str,
    suffix: str,
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(steps)
    affine[:3, 0] *= -1 if mirrored else 1
    affine[:3, 3] = origin
    shape = [3 if a == "s" else n for a, n in zip(axes, size, strict=False)]
    kind = "uint8" if "s" in axes else dtype
    volume = Volume(np.arange(np.prod(shape)).reshape(shape).astype(kind), axes, affine, units)
    opened = medai.open(medai.save(volume, tmp_path / f"x{suffix}"), labels=False)
    expected = volume.canonical()
    assert (opened.axes, opened.dtype, opened.units) == (axes, volume.dtype, units)
    # float32 of the sform: 500 mm to 3e-5, and a cosine to 6e-8 over the few voxels here
    if expected.grid.same_place(opened.grid, 1e-3):
        np.testing.assert_array_equal(opened.numpy(), expected.numpy())
    else:  # turned by just 45 degrees, rounding may choose the other order of axes: compare place by place
        assert opened.numpy().sum(dtype=float) == volume.numpy().sum(dtype=float)
        np.testing.assert_allclose(
            np.sort(opened.grid.corners(), axis=0), np.sort(volume.grid.corners(), axis=0), atol=1e-2
        )


@given(affine=hnp.arrays(float, (3, 4), elements=st.floats(-1e3, 1e3)))
def test_ras_and_world_are_inverse(affine: Affine) -> None:
    full = np.vstack([affine, [0, 0, 0, 1]])
    np.testing.assert_allclose(from_ras(to_ras(full)), full)
    np.testing.assert_allclose(to_ras(from_ras(full)), full)


def test_a_lazy_volume_is_written_slab_by_slab(tmp_path: Path) -> None:
    import dask.array as da

    largest = 0

    def plane(block: np.ndarray, block_info: dict | None = None) -> np.ndarray:
        nonlocal largest
        largest = max(largest, block.nbytes)
        return block + 1

    lazy = da.zeros((6, 8, 8), chunks=(1, 8, 8), dtype=np.int16).map_blocks(plane, dtype=np.int16)
    path = medai.save(Volume(lazy, "zyx", scaling((1, 1, 1)), "mm"), tmp_path / "lazy.nii")
    assert nibabel.load(path).get_fdata().sum() == 6 * 64
    assert largest <= 128


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_what_is_read_whole_may_be_written_to(tmp_path: Path, suffix: str, slope: float) -> None:
    stored = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    path = tmp_path / f"a{suffix}"
    image = nibabel.Nifti1Image(stored, np.diag([-1, -1, 1, 1]))
    image.header.set_slope_inter(slope, 0)
    nibabel.save(image, path)
    values = np.asanyarray(nibabel.load(path).dataobj).transpose(2, 1, 0)
    volume = medai.open(path)
    first = volume.numpy()
    np.testing.assert_array_equal(first, values)
    first[:] = 0
    np.testing.assert_array_equal(np.asarray(volume.array[1]), values[1])  # now it is kept
    second = volume.numpy()
    np.testing.assert_array_equal(second, values)
    second[:] = 0
    np.testing.assert_array_equal(volume.numpy(), values)


@pytest.mark.parametrize("kind", ["<i2", ">i2", "<u1", ">f4", "<c8", "<f8"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_stream_of_many_pieces_has_the_values_of_the_plain_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, scaled: bool
) -> None:
    monkeypatch.setattr(nifti_pixels, "PIECE_BYTES", 100)  # no multiple of 8: items must not be torn apart
    monkeypatch.setattr(nifti_pixels, "PIECES_AHEAD", 3)
    stored = np.random.default_rng(3).integers(0, 200, (7, 6, 5, 2)).astype(kind)
    image = nibabel.Nifti1Image(stored, np.diag([-1, -1, 1, 1]))
    image.header.set_data_dtype(np.dtype(kind))
    nibabel.save(image, tmp_path / "plain.nii")
    content = bytearray((tmp_path / "plain.nii").read_bytes())
    if scaled:
        content[112:120] = np.array([0.25, -3.0], kind[0] + "f4").tobytes()
        (tmp_path / "plain.nii").write_bytes(content)
    (tmp_path / "packed.nii.gz").write_bytes(gzip.compress(bytes(content)))
    plain, packed = (medai.open(tmp_path / name) for name in ("plain.nii", "packed.nii.gz"))
    assert packed.dtype == plain.dtype
    np.testing.assert_array_equal(packed.numpy(), plain.numpy())
    np.testing.assert_array_equal(np.asarray(packed.array[1]), plain.numpy()[1])  # one time point


def test_scaled_pixels_take_no_second_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nifti_pixels, "PIECE_BYTES", 1 << 16)
    stored = np.zeros((256, 256, 64), np.int16)
    image = nibabel.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(0.5, 1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume = medai.open(tmp_path / "a.nii.gz")
    tracemalloc.start()
    try:
        found = volume.numpy()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.dtype == np.float32
    assert peak < found.nbytes + stored.nbytes // 2


@pytest.mark.parametrize("code", ["LPS", "RAS", "ASL", "PIR", "SRP"])
def test_what_is_saved_has_the_order_of_the_file_it_came_from(tmp_path: Path, code: str) -> None:
    """So that a mask indexes the scan's own array, whichever program reads the two."""
    pixels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    start = nibabel.orientations.axcodes2ornt("RAS")
    wanted = nibabel.orientations.axcodes2ornt(code)
    oblique = nibabel.affines.from_matvec(
        nibabel.eulerangles.euler2mat(0.1, -0.2, 0.15) @ np.diag([0.8, 1.1, 2.5]), [-20, 30, 7]
    )
    image = nibabel.Nifti1Image(pixels, oblique).as_reoriented(nibabel.orientations.ornt_transform(start, wanted))
    nibabel.save(image, tmp_path / "scan.nii")
    scan = medai.open(tmp_path / "scan.nii")
    medai.save(medai.labels(scan.numpy() > 60, scan), tmp_path / "mask.nii.gz")
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    assert np.array_equal(np.asarray(mask.dataobj), np.asarray(image.dataobj) > 60)
    assert mask.affine == pytest.approx(image.affine, abs=1e-5)
    # what lies elsewhere by now keeps its own order
    part = scan.replace(
        array=scan.array[1:], affine=scan.affine @ np.array(nibabel.affines.from_matvec(np.eye(3), [1, 0, 0]))
    )
    medai.save(part, tmp_path / "part.nii")
    assert np.array_equal(medai.open(tmp_path / "part.nii").numpy(), part.numpy())
