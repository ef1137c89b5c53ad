"""NIfTI files that are legal and rare, or wrong in a way that can be told: each opens right or says what it is."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

import napari_medai as medai
from napari_medai.core.errors import ReadError, UnsupportedFormatError
from napari_medai.io.nifti_wide import from_wide
from tests.io.test_nifti import patch, write

# RAS axes that the opened array keeps: neither flipped nor permuted
STRAIGHT = np.diag([-1.0, -1.0, 1.0, 1.0])


def findings(path: Path, **options: object) -> str:
    return " / ".join(medai.open(path, **options).meta["findings"])


class TestValues:
    """What the numbers in the file mean."""

    def test_parts_of_complex_pixels(self, tmp_path: Path) -> None:
        path = write(tmp_path / "k.nii", np.full((2, 2, 2), 3 - 4j, np.complex64), STRAIGHT)
        wanted = {"magnitude": 5.0, "real": 3.0, "imaginary": -4.0, "phase": -0.9272952}
        for part, value in wanted.items():
            volume = medai.open(path, part=part)
            assert volume.dtype == np.float32
            np.testing.assert_allclose(volume.numpy(), value, rtol=1e-6)
        assert 'their real is shown (part="magnitude", part="phase", part="imaginary"' in findings(path, part="real")

    def test_both_parts_of_complex_pixels_are_scaled(self, tmp_path: Path) -> None:
        # (2 * 3 + 1) + (2 * 4 + 1)i
        path = write(tmp_path / "k.nii", np.full((2, 2, 2), 3 + 4j, np.complex128), STRAIGHT)
        patch(path, 112, struct.pack("<ff", 2.0, 1.0))
        assert set(medai.open(path, part="real").numpy().ravel()) == {7.0}
        assert set(medai.open(path, part="imaginary").numpy().ravel()) == {9.0}
        assert medai.open(path).dtype == np.float64

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_numbers_of_128_bits(self, order: str) -> None:
        # IEEE 754 binary128: sign, 15 bits of exponent + 16383, 112 of fraction; x86: 64 bits with the one before
        # the point, exponent above. 1, -2.5 = -1.25 * 2, 0.1 to double precision, infinity, not a number, 0
        quads = [
            0x3FFF << 112,
            (0xC000 << 112) | (1 << 110),
            (0x3FFB << 112) | (0x999999999999A << 60),
            0x7FFF << 112,
            (0x7FFF << 112) | 1,
            0,
        ]
        short = [
            (0x3FFF << 64) | (1 << 63),
            (0xC000 << 64) | (5 << 61),
            (0x3FFB << 64) | (0x1999999999999A << 11),
            (0x7FFF << 64) | (1 << 63),
            (0x7FFF << 64) | (3 << 62),
            0,
        ]
        for kind in (quads, short):
            data = b"".join(n.to_bytes(16, "little" if order == "<" else "big") for n in kind)
            values = from_wide(np.frombuffer(data, "V16"), 1, order == ">")
            np.testing.assert_array_equal(values, [1.0, -2.5, 0.1, np.inf, np.nan, 0.0])

    @pytest.mark.skipif(np.dtype(np.longdouble).itemsize != 16, reason="no 128-bit numbers in this numpy")
    @pytest.mark.parametrize(("code", "dtype"), [(1536, np.longdouble), (2048, np.clongdouble)])
    def test_files_of_128_bits(self, tmp_path: Path, code: int, dtype: type) -> None:
        plain = write(tmp_path / "w.nii", np.zeros((2, 3, 4), np.uint8), STRAIGHT).read_bytes()[:352]
        values = np.zeros(24, dtype)
        values[:] = np.linspace(-7, 9, 24)
        (tmp_path / "w.nii").write_bytes(plain + values.tobytes())
        path = patch(tmp_path / "w.nii", 70, struct.pack("<h", code))
        (tmp_path / "w.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
        for name in ("w.nii", "w.nii.gz"):
            volume = medai.open(tmp_path / name, part="real")
            assert volume.dtype == np.float64
            np.testing.assert_allclose(volume.numpy().ravel(), np.linspace(-7, 9, 24), rtol=1e-15)
            assert "128 bits" in findings(tmp_path / name)

    @pytest.mark.parametrize("dtype", [np.int64, np.uint64])
    def test_64_bit_integers_are_exact(self, tmp_path: Path, dtype: type) -> None:
        pixels = np.full((2, 2, 2), np.iinfo(dtype).max - 1, dtype)
        nibabel.save(nibabel.Nifti1Image(pixels, STRAIGHT, dtype=dtype), tmp_path / "l.nii")
        volume = medai.open(tmp_path / "l.nii")
        assert volume.dtype == np.dtype(dtype)
        assert int(volume.numpy()[0, 0, 0]) == np.iinfo(dtype).max - 1

    def test_a_huge_slope_makes_no_infinities(self, tmp_path: Path) -> None:
        path = write(tmp_path / "s.nii", np.full((2, 2, 2), 1000, np.int16), STRAIGHT)
        volume = medai.open(patch(path, 112, struct.pack("<ff", 1e36, 0.0)))
        assert volume.dtype == np.float64
        np.testing.assert_allclose(volume.numpy(), 1e39, rtol=1e-6)

    def test_an_infinite_slope_is_left_out_and_told(self, tmp_path: Path) -> None:
        path = write(tmp_path / "s.nii", np.full((2, 2, 2), 5, np.int16), STRAIGHT)
        patch(path, 112, struct.pack("<ff", np.inf, 0.0))
        assert set(medai.open(path).numpy().ravel()) == {5}
        assert "slope is infinite" in findings(path)


class TestAxes:
    """What the fourth and later dimensions are."""

    def test_vectors_in_the_fifth_dimension(self, tmp_path: Path) -> None:
        pixels = np.arange(2 * 3 * 4 * 3, dtype=np.float32).reshape(2, 3, 4, 1, 3)
        path = write(tmp_path / "d.nii", pixels, STRAIGHT, intent_code=1006)
        volume = medai.open(path)
        assert (volume.axes, volume.shape) == ("czyx", (3, 4, 3, 2))
        assert volume.meta["nifti_intent"] == "displacement vector"
        assert volume.numpy()[2, 3, 1, 0] == pixels[0, 1, 3, 0, 2]
        assert "as stored" in findings(path)

    def test_vectors_in_the_fourth_dimension_by_their_intent(self, tmp_path: Path) -> None:
        pixels = np.arange(2 * 3 * 4 * 6, dtype=np.float32).reshape(2, 3, 4, 6)
        path = write(tmp_path / "t.nii", pixels, STRAIGHT, intent_code=1005)
        assert medai.open(path).axes == "czyx"
        assert "the fourth dimension was taken for their components" in findings(path)

    def test_statistics_keep_their_name(self, tmp_path: Path) -> None:
        volume = medai.open(write(tmp_path / "z.nii", np.ones((2, 3, 4), np.float32), STRAIGHT, intent_code=5))
        assert (volume.axes, volume.meta["nifti_intent"]) == ("zyx", "z score")

    @pytest.mark.parametrize(("intent", "samples"), [(2003, 3), (2004, 4)])
    def test_rgb_vectors_are_colour(self, tmp_path: Path, intent: int, samples: int) -> None:
        pixels = np.arange(2 * 3 * 4 * samples, dtype=np.uint8).reshape(2, 3, 4, 1, samples)
        volume = medai.open(write(tmp_path / "c.nii", pixels, STRAIGHT, intent_code=intent))
        assert (volume.axes, volume.shape) == ("zyxs", (4, 3, 2, samples))
        assert volume.numpy()[3, 2, 1].tolist() == pixels[1, 2, 3, 0].tolist()

    @pytest.mark.parametrize(
        ("stored", "axes"),
        [
            ((2, 3, 4, 1), "zyx"),
            ((2, 3, 4, 1, 1, 1, 1), "zyx"),
            ((2, 3, 4, 5, 1, 1), "tzyx"),
            ((2, 3, 4, 1, 1, 6), "czyx"),
            ((2, 3, 4, 5, 1, 1, 6), "tczyx"),
            ((2, 3, 1, 1, 1), "zyx"),
        ],
    )
    def test_dimensions_of_one(self, tmp_path: Path, stored: tuple[int, ...], axes: str) -> None:
        pixels = np.arange(np.prod(stored), dtype=np.float32).reshape(stored)
        volume = medai.open(write(tmp_path / "x.nii", pixels, STRAIGHT))
        assert volume.axes == axes
        assert volume.numpy().size == pixels.size

    def test_two_long_dimensions_beyond_time_are_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.nii", np.zeros((2, 2, 2, 2, 2, 2), np.float32))
        with pytest.raises(UnsupportedFormatError, match="2 to 5 dimensions"):
            medai.open(path)

    @pytest.mark.parametrize(
        ("code", "axis", "seconds"),
        [
            (8, {"name": "t", "unit": "s", "values": (1.0, 3.0, 5.0)}, 2.0),
            (16, {"name": "t", "unit": "s", "values": (0.001, 0.003, 0.005)}, 0.002),
            (24, {"name": "t", "unit": "s", "values": (0.000001, 0.000003, 0.000005)}, 0.000002),
            (32, {"name": "frequency", "unit": "Hz", "values": (1.0, 3.0, 5.0)}, None),
            (40, {"name": "shift", "unit": "ppm", "values": (1.0, 3.0, 5.0)}, None),
            (0, None, None),
        ],
    )
    def test_units_of_time(self, tmp_path: Path, code: int, axis: dict | None, seconds: float | None) -> None:
        path = write(tmp_path / "t.nii", np.zeros((2, 2, 2, 3), np.float32), STRAIGHT)
        image = nibabel.load(path)
        image.header.set_zooms((1, 1, 1, 2))
        image.header["toffset"], image.header["xyzt_units"] = 1, 2 | code
        nibabel.save(image, tmp_path / "u.nii")
        meta = medai.open(tmp_path / "u.nii").meta
        assert meta.get("axis_t") == axis
        assert meta.get("frame_seconds") == pytest.approx(seconds) if seconds else "frame_seconds" not in meta
        assert ("without a unit" in " ".join(meta["findings"])) == (code == 0)


class TestPlace:
    """Units, voxel sizes and rotations that are not what they should be."""

    @pytest.mark.parametrize(
        ("code", "step", "units", "spacing", "told"),
        [
            (1, 0.002, "mm", 2.0, "metres; turned into mm"),
            (3, 2000.0, "mm", 2.0, "micrometres; turned into mm"),
            (3, 0.5, "um", 0.5, ""),
            (2, 2.0, "mm", 2.0, ""),
            (2, 1e-5, "mm", 1e-5, ""),
            (0, 2.0, "mm", 2.0, "no unit of length"),
        ],
    )
    def test_units_of_length(
        self, tmp_path: Path, code: int, step: float, units: str, spacing: float, told: str
    ) -> None:
        path = write(tmp_path / "u.nii", np.zeros((3, 4, 5), np.int16), np.diag([-step, -step, step, 1.0]))
        volume = medai.open(patch(path, 123, bytes([code])))
        assert volume.units == units
        np.testing.assert_allclose(volume.spacing, spacing, rtol=1e-6)
        assert told in " ".join(volume.meta["findings"])
        assert bool(told) == bool(volume.meta["findings"])

    def test_a_quaternion_that_is_too_long_is_made_a_rotation(self, tmp_path: Path) -> None:
        path = write(tmp_path / "q.nii", np.zeros((3, 4, 5), np.int16), STRAIGHT, sform_code=0, qform_code=1)
        # b = c = 1: half a turn about the line between x and y, which swaps them and turns z round
        patch(path, 256, struct.pack("<6f", 1, 1, 0, 0, 0, 0))
        volume = medai.open(patch(path, 76, struct.pack("<4f", 0, 1, 1, 1)))  # qfac 0 counts as 1
        assert "not a unit quaternion" in volume.meta["findings"][0]
        assert volume.shape == (5, 3, 4)
        np.testing.assert_allclose(volume.spacing, 1)

    def test_a_qform_as_nibabel_computes_it(self, tmp_path: Path) -> None:
        path = write(tmp_path / "q.nii", np.zeros((3, 4, 5), np.int16), STRAIGHT, sform_code=0, qform_code=1)
        patch(path, 256, struct.pack("<6f", 0.1, -0.2, 0.3, 5, 6, 7))
        patch(path, 76, struct.pack("<4f", -1, 1.5, 2, 3))
        image = nibabel.load(path)
        expected = medai.Volume(np.zeros((5, 4, 3)), "zyx", nibabel_world(image.header.get_qform())).canonical()
        np.testing.assert_allclose(medai.open(path).affine, expected.affine, atol=1e-5)

    def test_a_negative_voxel_size_is_told(self, tmp_path: Path) -> None:
        path = write(tmp_path / "n.nii", np.zeros((3, 4, 5), np.int16), STRAIGHT)
        patch(path, 80, struct.pack("<3f", -1, 1, 1))
        assert medai.open(path).spacing == (1, 1, 1)
        assert "negative" in findings(path)

    def test_an_sform_of_other_voxel_sizes_is_told(self, tmp_path: Path) -> None:
        path = write(tmp_path / "n.nii", np.zeros((3, 4, 5), np.int16), STRAIGHT)
        patch(path, 80, struct.pack("<3f", 1, 1, 2.5))
        assert findings(path) == (
            "the sform gives voxels of 1 x 1 x 1 mm, the header's pixdim 1 x 1 x 2.5 mm; the sform was taken"
        )

    def test_an_sform_of_two_equal_rows_is_left_out(self, tmp_path: Path) -> None:
        path = write(tmp_path / "n.nii", np.zeros((3, 4, 5), np.int16), STRAIGHT)
        patch(path, 280, struct.pack("<8f", 1, 1, 0, 0, 1, 1, 0, 0))
        assert "sform is not a transform" in findings(path)


def nibabel_world(affine: np.ndarray) -> np.ndarray:
    from napari_medai.core.geometry import from_ras

    return from_ras(affine)


class TestPairs:
    """Header and image in two files."""

    @pytest.mark.parametrize("names", [("p.hdr.gz", "p.img.gz"), ("p.hdr", "p.img.gz"), ("P.HDR", "P.IMG")])
    def test_compressed_and_upper_case(self, tmp_path: Path, names: tuple[str, str]) -> None:
        pixels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
        nibabel.save(nibabel.Nifti1Pair(pixels, STRAIGHT), tmp_path / "x.hdr")
        for name in names:
            data = (tmp_path / f"x{Path(name.removesuffix('.gz').lower()).suffix}").read_bytes()
            (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        for name in names:
            volume = medai.open(tmp_path / name)
            assert volume.name.lower() == "p"
            np.testing.assert_array_equal(volume.numpy(), pixels.T)

    def test_a_whole_file_with_the_name_of_a_half(self, tmp_path: Path) -> None:
        pixels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
        whole = write(tmp_path / "x.nii", pixels, STRAIGHT).read_bytes()
        for name in ("x.img", "y.hdr"):
            (tmp_path / name).write_bytes(whole)
            np.testing.assert_array_equal(medai.open(tmp_path / name).numpy(), pixels.T)

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_analyze_opens_and_says_that_left_is_a_guess(self, tmp_path: Path, order: str) -> None:
        pixels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
        header = nibabel.Spm99AnalyzeHeader(endianness=order)
        header.set_data_dtype(np.int16)
        image = nibabel.Spm99AnalyzeImage(pixels, None, header)
        image.header.set_zooms((2, 3, 4))
        image.header["origin"][:3] = (1, 2, 3)
        nibabel.save(image, tmp_path / "a.img")
        (tmp_path / "a.mat").unlink(missing_ok=True)
        for name in ("a.img", "a.hdr"):
            volume = medai.open(tmp_path / name)
            assert "does not tell left from right" in volume.meta["findings"][0]
            # the first axis runs left as the world's x does: no flip; the second runs to the front: flipped
            np.testing.assert_array_equal(volume.numpy(), pixels.T[:, ::-1])
            np.testing.assert_allclose(volume.spacing, (4, 3, 2))
            # voxel (1, 2, 3), counted from 1, is the origin; y is 3 - 1 = 2 after the flip
            np.testing.assert_allclose(volume.affine @ (2, 2, 0, 1), (0, 0, 0, 1), atol=1e-5)


class TestLengths:
    """Headers that lie about where the pixels are, and files that go on behind them."""

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("offset", [100.0, -5.0, np.nan, np.inf, 4e9])
    def test_wrong_offset_where_the_length_tells(self, tmp_path: Path, suffix: str, offset: float) -> None:
        pixels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
        data = patch(write(tmp_path / "x.nii", pixels, STRAIGHT), 108, struct.pack("<f", offset)).read_bytes()
        path = tmp_path / f"y{suffix}"
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
        if suffix.endswith("gz") and offset == 4e9:
            with pytest.raises(ReadError, match="truncated"):
                medai.open(path)
            return
        np.testing.assert_array_equal(medai.open(path).numpy(), pixels.T)
        assert "byte 352 was taken" in findings(path)

    @pytest.mark.parametrize("size", [0, -1, 1000, 540])
    def test_wrong_length_of_the_header(self, tmp_path: Path, size: int) -> None:
        path = write(tmp_path / "x.nii", np.full((3, 4, 5), 7, np.int16), STRAIGHT)
        patch(path, 0, struct.pack("<i", size))
        assert set(medai.open(path).numpy().ravel()) == {7}
        assert f"takes {size} bytes; 348 were taken" in findings(path)

    def test_the_rest_of_a_file_is_told(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.nii", np.full((3, 4, 5), 7, np.int16), STRAIGHT)
        plain = path.read_bytes()
        path.write_bytes(plain + b"more")
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(plain + b"more"))
        (tmp_path / "b.nii.gz").write_bytes(gzip.compress(plain) + b"no gzip at all")
        for name in ("x.nii", "a.nii.gz", "b.nii.gz"):
            assert "goes on behind the pixels" in findings(tmp_path / name)
            assert set(medai.open(tmp_path / name).numpy().ravel()) == {7}
        (tmp_path / "c.nii.gz").write_bytes(gzip.compress(plain) + bytes(100))  # padding, as tapes leave it
        assert findings(tmp_path / "c.nii.gz") == ""

    def test_a_wrong_checksum_is_an_error(self, tmp_path: Path) -> None:
        data = bytearray(gzip.compress(write(tmp_path / "x.nii", np.full((3, 4, 5), 7, np.int16)).read_bytes()))
        data[-8] ^= 1
        (tmp_path / "x.nii.gz").write_bytes(data)
        with pytest.raises(ReadError, match="CRC"):
            medai.open(tmp_path / "x.nii.gz").numpy()

    def test_sizes_whose_product_overflows(self, tmp_path: Path) -> None:
        nibabel.save(nibabel.Nifti2Image(np.zeros((2, 2, 2), np.int16), STRAIGHT), tmp_path / "x.nii")
        patch(tmp_path / "x.nii", 24, struct.pack("<3q", 2**31, 2**31, 4))  # 2^65 bytes are 0 in 64 bits
        with pytest.raises(ReadError, match="truncated"):
            medai.open(tmp_path / "x.nii")
