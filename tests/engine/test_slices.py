import numpy as np
import pytest

from napari_medai.engine import slices as sl


def test_passes_cover_each_slice_once_and_span_the_volume():
    passes = sl.slice_passes(50, every=True, max_slices=24)
    assert sorted(i for p in passes for i in p) == list(range(50))
    assert max(len(p) for p in passes) <= 24
    assert passes[0][:3] == (0, 3, 6)
    assert passes[2][-1] == 47


@pytest.mark.parametrize(("count", "expected"), [(1, (0,)), (3, (0, 1, 2)), (5, (0, 2, 4)), (300, (0, 150, 299))])
def test_one_pass_is_evenly_spaced(count, expected):
    # 299 / 2 = 149.5, which numpy rounds to the even 150.
    assert sl.slice_passes(count, max_slices=3) == [expected]


def test_no_slices_is_an_error():
    with pytest.raises(sl.SliceInputError, match="0 slices"):
        sl.slice_passes(0)


def test_grey_uses_broadcast_weights():
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[0, 0] = (255, 0, 0)
    colour[0, 1] = (0, 100, 0)
    np.testing.assert_allclose(sl.to_grey(colour, -1), [[76.245, 58.7], [0, 0]], rtol=1e-5)


def test_grey_ignores_opacity_and_averages_other_counts():
    rgba = np.full((4, 1, 1), 10, np.uint8)
    rgba[3] = 255
    assert sl.to_grey(rgba, 0)[0, 0] == pytest.approx(10)
    assert sl.to_grey(np.array([[[1.0]], [[3.0]]]), 0)[0, 0] == 2


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((64, 64), (16, 16, 64, 64)),  # never enlarged, continued by mirroring
        ((96, 80), (0, 8, 96, 80)),
        ((192, 96), (0, 24, 96, 48)),
        ((1024, 1024), (0, 0, 96, 96)),
        ((9, 700), (47, 0, 1, 96)),
    ],
)
def test_window_of_an_image(shape, window):
    image = np.random.default_rng(0).random(shape)
    series = sl.volume_slices(image)
    assert series.window == window
    assert series.slice_shape == shape
    assert series.indices == (0,)
    assert series.inputs.shape == (1, 6, sl.GRID_SIZE, sl.GRID_SIZE)
    assert series.inputs.dtype == np.float32


def test_small_slices_are_mirrored():
    image = np.random.default_rng(1).random((64, 64))
    maps = sl.volume_slices(image).inputs[0, 0]
    np.testing.assert_array_equal(maps[15], maps[16])
    np.testing.assert_array_equal(maps[14], maps[17])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64, ">i2"])
def test_range_and_number_format_do_not_matter(dtype):
    ramp = np.linspace(0, 200, 96 * 96).round().reshape(96, 96)
    expected, _ = sl.network_input(ramp[None])
    scaled = (
        ramp.astype(dtype) if dtype == np.uint8 else (ramp * 100 - (0 if dtype == np.uint16 else 900)).astype(dtype)
    )
    inputs, _ = sl.network_input(scaled[None])
    np.testing.assert_allclose(inputs, expected, atol=2e-4)


def test_brightness_is_scaled_by_percentiles():
    image = np.arange(9216, dtype=np.float32).reshape(96, 96)
    brightness = sl.network_input(image[None])[0][0, 0]
    # ranks 92 and 9168 of 0..9215 are the values themselves
    np.testing.assert_allclose(brightness, (image - 92) / (9168 - 92), atol=1e-5)


def test_fine_detail_of_white_noise_is_its_mean_deviation():
    rng = np.random.default_rng(2)
    base = np.zeros((192, 192))
    base[:, 96:] = 1000.0
    noisy = base + 50 * rng.standard_normal(base.shape)
    fine = sl.network_input(noisy[None])[0][0, 2]
    spread = np.quantile(noisy, 0.995) - np.quantile(noisy, 0.01)
    # E|x| of a normal variable is 0.798 of its deviation; the map is decades above a thousandth
    measured = (10 ** fine[:, :40] - 1) * 1e-3
    assert measured.mean() == pytest.approx(0.798 * 50 / spread, rel=0.02)


def test_blur_lowers_fine_against_coarse_detail():
    from scipy.ndimage import gaussian_filter

    image = (np.random.default_rng(3).random((200, 200)) > 0.5).astype(np.float32)
    image = gaussian_filter(image, 1.0)
    blurred = gaussian_filter(image, 3.0)
    sharp_maps, soft_maps = (sl.network_input(i[None])[0][0] for i in (image, blurred))
    assert (sharp_maps[2] - sharp_maps[3]).mean() > (soft_maps[2] - soft_maps[3]).mean() + 0.3


def test_saturation_counts_pixels_at_the_top_before_shrinking():
    image = np.random.default_rng(4).random((192, 192)) * 0.9
    image[:64, :64] = 1.0  # 32 x 32 cells of the grid
    image[96::2, 96::2] = 1.0  # every fourth pixel of a quarter
    saturation = (10 ** sl.network_input(image[None])[0][0, 5] - 1) / 100
    np.testing.assert_allclose(saturation[:32, :32], 1, rtol=1e-5)
    assert saturation[:32, 32:].max() == 0
    np.testing.assert_allclose(saturation[48:, 48:], 0.25, rtol=1e-5)


@pytest.mark.parametrize("value", [0, 7, -3.5])
def test_constant_images_give_zeros(value):
    inputs, _ = sl.network_input(np.full((2, 40, 40), value))
    assert np.isfinite(inputs).all()
    assert inputs[:, :5].max() == 0


def test_pixels_that_are_not_numbers_count_as_the_lowest():
    image = np.random.default_rng(5).random((50, 50)) + 1
    image[0, 0] = image.min()
    holed = image.copy()
    holed[10, 10] = np.nan
    holed[11, 11] = np.inf
    image[10, 10] = image[11, 11] = image.min()
    np.testing.assert_array_equal(sl.network_input(holed[None])[0], sl.network_input(image[None])[0])
    assert np.isfinite(sl.network_input(np.full((1, 9, 9), np.nan))[0]).all()


def test_only_chosen_slices_are_read():
    class Lazy:
        shape = (300, 32, 32)

        def __init__(self):
            self.read = []

        def __getitem__(self, k):
            self.read.append(int(k))
            return np.full((32, 32), k, np.int16)

    lazy = Lazy()
    series = sl.volume_slices(lazy)
    assert len(series.indices) == sl.MAX_SLICES
    assert lazy.read == list(series.indices)
    assert series.indices[0] == 0
    assert series.indices[-1] == 299


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4, 5), (0, 4, 4), (4, 0)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(sl.SliceInputError, match="expected"):
        sl.volume_slices(np.zeros(shape))


def test_complex_values_are_refused():
    with pytest.raises(sl.SliceInputError, match="magnitude"):
        sl.volume_slices(np.zeros((4, 4), complex))


@pytest.mark.parametrize("shape", [(300, 150), (40, 60), (96, 96)])
def test_heat_lands_on_the_slice(shape):
    image = np.zeros(shape)
    y, x = shape[0] // 4, 3 * shape[1] // 4
    image[y - 3 : y + 4, x - 3 : x + 4] = 1
    series = sl.volume_slices(image)
    heat = sl.heat_on_slices(series.inputs[:, 0], series)
    assert heat.shape == (1, *shape)
    peak = np.argwhere(heat[0] >= heat.max() - 1e-3).mean(axis=0)
    np.testing.assert_allclose(peak, (y, x), atol=1.5)


def test_coarse_heat_covers_the_whole_input():
    series = sl.volume_slices(np.random.default_rng(6).random((2, 64, 64)))
    heat = np.zeros((2, 12, 12), np.float32)
    heat[1, 2:10, 2:10] = 1  # the window of a 64 x 64 slice in a grid of 96
    back = sl.heat_on_slices(heat, series)
    assert back[0].max() == 0
    assert back[1, 8:-8, 8:-8].min() == 1


def test_stripes_show_in_the_detail_across_them():
    image = np.tile(np.sin(np.arange(96) * 0.8), (96, 1))
    along_y, along_x = sl.network_input(image[None])[0][0, 3:5]
    assert along_y.max() < 0.01
    assert along_x.mean() > 1.5
