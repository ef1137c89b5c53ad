import numpy as np
import pytest

from training import defects
from training.defects import DEFECTS


@pytest.fixture
def series():
    y, x = np.mgrid[-1:1:96j, -1:1:80j]
    disc = (y**2 + x**2 < 0.6).astype(np.float32)
    stripes = 0.6 + 0.2 * np.sign(np.sin(20 * y)) + 0.2 * x
    return np.stack([disc * stripes] * 3).astype(np.float32)


@pytest.mark.parametrize("name", DEFECTS)
@pytest.mark.parametrize("severity", [0.0, 1.0])
def test_each_defect_alone_is_labelled_and_leaves_its_input(series, name, severity):
    before = series.copy()
    out = defects.spoil(series, {name: severity}, np.random.default_rng(0))
    np.testing.assert_array_equal(series, before)
    assert out.slices.shape == series.shape
    assert out.slices.dtype == np.float32
    assert np.isfinite(out.slices).all()
    others = [c for c, n in enumerate(DEFECTS) if n != name]
    assert (out.labels[:, others] == 0).all()
    if severity == 1:
        assert (out.labels[:, DEFECTS.index(name)] == 1).any()


def test_no_defect_changes_nothing(series):
    out = defects.spoil(series, {}, np.random.default_rng(0))
    np.testing.assert_array_equal(out.slices, series)
    assert (out.labels == 0).all()


@pytest.mark.parametrize("kind", ["gaussian", "rician", "poisson"])
def test_noise_has_the_stated_deviation(kind):
    flat = np.full((1, 200, 200), 1.0, np.float32)
    flat[:, :4] = 0  # a floor for the magnitude
    rng = np.random.default_rng(3)  # its first number asks for uncorrelated noise
    out = defects.add_noise(flat, 0.0, rng, kind)
    assert out[:, 4:].std() == pytest.approx(0.045, rel=0.1)


def test_blur_spreads_a_point():
    point = np.zeros((1, 65, 65), np.float32)
    point[0, 32, 32] = 1
    for seed in range(4):
        out = defects.add_blur(point, 0.5, np.random.default_rng(seed))[0]
        assert out.sum() == pytest.approx(1, abs=0.02)
        offsets = np.arange(65) - 32
        variance = (out.sum(axis=1) * offsets**2).sum()
        # severity 0.5 is the geometric mean of 1.5 and 4.5
        assert variance == pytest.approx(1.5 * 4.5, rel=0.25)


def test_half_period_ghost_lies_half_a_field_away():
    point = np.zeros((1, 64, 64), np.float32)
    point[0, 10, 20] = 1
    ghosts = set()
    for seed in range(60):
        out = defects.add_ghosting(point, 1.0, np.random.default_rng(seed))[0]
        bright = np.argwhere(out > 0.1)
        if len(bright) == 2:
            ghosts |= {tuple(int(v) for v in b) for b in bright} - {(10, 20)}
    assert ghosts == {(42, 20), (10, 52)}


def test_motion_keeps_the_mean_brightness(series):
    for seed in range(5):
        out = defects.add_motion(series, 0.8, np.random.default_rng(seed))
        assert out.shape == series.shape
        assert out.mean() == pytest.approx(series.mean(), rel=0.35)


def test_bias_map_has_the_stated_ratio():
    for seed in range(5):
        field = defects.bias_map((2, 40, 30), 3.0, np.random.default_rng(seed))
        assert field.max() / field.min() == pytest.approx(3.0, rel=1e-4)
        assert np.abs(np.diff(field, axis=1)).max() < 0.2


def test_clipping_saturates_the_stated_share():
    ramp = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(1, 100, 100)
    out = defects.add_clipping(ramp, 1.0, np.random.default_rng(0))
    # a quarter of the pixels brighter than 0.08
    assert (out == out.max()).mean() == pytest.approx(0.25 * 0.92, abs=0.002)


def test_empty_slices_stay_unknown(series):
    series[1] = 0
    out = defects.spoil(series, {"motion": 1.0, "blur": 1.0}, np.random.default_rng(1))
    assert np.isnan(out.labels[1, DEFECTS.index("blur")])
    whole = out.series_labels()
    assert whole[DEFECTS.index("blur")] == 1
    assert whole[DEFECTS.index("noise")] == 0


def test_only_affected_slices_are_spoiled(series):
    out = defects.spoil(series, {"noise": 1.0}, np.random.default_rng(1), affected=[2])
    np.testing.assert_array_equal(out.slices[:2], series[:2])
    assert out.labels[:, 0].tolist() == [0, 0, 1]


def test_a_smear_says_nothing_about_blur(series):
    out = defects.spoil(series, {"motion": 1.0}, np.random.default_rng(1), smear=True)
    assert (out.labels[:, DEFECTS.index("motion")] == 1).all()
    assert np.isnan(out.series_labels()[DEFECTS.index("blur")])


def test_unknown_defects_are_refused(series):
    with pytest.raises(KeyError, match="ghosts"):
        defects.spoil(series, {"ghosts": 1.0}, np.random.default_rng(0))
