import numpy as np
import pytest
import torch

from napari_medai.nets.quality_cues import LONGEST_LAG, OFFSETS, SURFACE_CUES, LagReader, repeats, shading


@pytest.fixture
def texture():
    return torch.from_numpy(np.random.default_rng(0).random((1, 96, 96)).astype(np.float32))


def test_a_slice_is_itself_at_lag_zero(texture):
    lags = repeats(texture)
    assert lags.shape == (1, 2, OFFSETS, LONGEST_LAG)
    torch.testing.assert_close(lags[0, :, 0, 0], torch.ones(2), atol=1e-4, rtol=0)
    assert lags[0, :, :, 8:].abs().max() < 0.15


@pytest.mark.parametrize(("axis", "lag"), [(1, 30), (2, 20)])
def test_a_ghost_gives_a_peak_at_its_distance_along_its_axis(texture, axis, lag):
    ghosted = texture + 0.5 * torch.roll(texture, lag, axis)
    lags = repeats(ghosted)[0]
    assert lags[axis - 1, 0, 8:].argmax() + 8 == lag
    assert lags[axis - 1, 0, lag] > 0.25
    assert lags[2 - axis, 0, 8:].max() < 0.15


def test_constant_slices_are_finite():
    flat = torch.zeros(2, 6, 96, 96)
    assert torch.isfinite(repeats(flat[:, 1])).all()
    assert torch.isfinite(shading(flat)).all()


def _tissue(field: torch.Tensor) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    maps = torch.zeros(1, 6, 96, 96)
    maps[0, 0] = (0.6 + 0.1 * torch.rand(96, 96, generator=rng)) * field
    maps[0, 2:5] = torch.log10(0.05 * field / 1e-3 + 1)
    return maps


def test_a_field_shows_in_the_spread_of_all_surfaces():
    ramp = torch.linspace(1, 0.3, 96)[:, None].expand(96, 96)
    even, uneven = shading(_tissue(torch.ones(96, 96)))[0], shading(_tissue(ramp))[0]
    assert even.shape == (SURFACE_CUES,)
    assert (uneven[:4] > even[:4] + 0.05).all()
    # brightness and detail follow the same surface
    assert (uneven[24:28] > 0.9).all()


def test_shading_does_not_depend_on_how_the_slice_is_turned():
    ramp = torch.linspace(1, 0.3, 96)[:, None].expand(96, 96)
    maps = _tissue(ramp)
    turned = maps.rot90(1, (2, 3))[:, [0, 1, 2, 4, 3, 5]]
    torch.testing.assert_close(shading(maps), shading(turned), atol=2e-3, rtol=1e-2)


def test_the_reader_does_not_care_which_axis_is_which(texture):
    torch.manual_seed(0)
    reader = LagReader(8).eval()
    lags = repeats(texture + 0.5 * torch.roll(texture, 30, 1))
    with torch.inference_mode():
        torch.testing.assert_close(reader(lags), reader(lags.flip(1)))
