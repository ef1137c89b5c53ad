"""A prepared image that is made piece by piece is the one that is made at once."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_medai.core.errors import NotFiniteError
from napari_medai.core.geometry import Reorientation, scaling
from napari_medai.core.volume import Volume
from napari_medai.engine import prepare as prepare_module
from napari_medai.engine.planes import Planes, extremes, sample
from napari_medai.engine.prepare import prepare, turn
from napari_medai.engine.resample import resample
from napari_medai.models.spec import Prepare

TURNS = (None, Reorientation((2, 0, 1), (True, False, True)), Reorientation((0, 2, 1), (False, True, False)))


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_every_piece_equals_that_of_the_whole(data):
    shape = tuple(data.draw(st.integers(2, 9)) for _ in range(3))
    new = tuple(data.draw(st.integers(1, 14)) for _ in range(3))
    turned = data.draw(st.sampled_from(TURNS))
    image = np.random.default_rng(0).integers(-1000, 1000, (2, *shape)).astype(np.int16)
    oriented = image if turned is None else turn(image, turned)
    expected = (resample(oriented, new) - np.float32(3)) / np.float32([[[[2]]], [[[5]]]])
    stored = da.from_array(image, chunks=3) if data.draw(st.booleans()) else image
    planes = Planes(stored, turned, new, (3, 3), (2, 5))
    assert planes.shape == expected.shape
    np.testing.assert_array_equal(np.asarray(planes), expected)
    cut = tuple(slice(low := data.draw(st.integers(0, n - 1)), data.draw(st.integers(low + 1, n))) for n in new)
    np.testing.assert_array_equal(planes[(slice(None), *cut)], expected[(slice(None), *cut)])


@pytest.mark.parametrize("normalise", ["percentile", "zscore", "minmax", "range", "none"])
def test_a_scan_that_is_not_held_is_prepared_alike(monkeypatch, normalise):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 500, (12, 20, 18)).astype(np.uint16)
    how = Prepare(normalise=normalise, low=2, high=98, spacing_mm=(1.5, 1.5, 1.5), nonzero=normalise == "zscore",
                  clip=normalise == "percentile")  # fmt: skip
    affine = scaling((3, 0.8, 0.8)) @ np.diag([-1.0, 1, 1, 1])
    at_once = prepare(Volume(image, "zyx", affine), how)
    monkeypatch.setattr(prepare_module, "LAZY_SHARE", 0.0)
    lazy = prepare(Volume(da.from_array(image, chunks=5), "zyx", affine), how)
    assert isinstance(lazy.array, Planes)
    np.testing.assert_array_equal(np.asarray(lazy.array), at_once.array)
    assert (lazy.spacing, lazy.oriented_shape) == (at_once.spacing, at_once.oriented_shape)


def test_samples_and_extremes_are_those_of_the_flat_array(monkeypatch):
    from napari_medai.engine import planes

    monkeypatch.setattr(planes, "_VOXELS", 50)
    image = np.random.default_rng(2).normal(size=(11, 7, 5)).astype(np.float32)
    np.testing.assert_array_equal(sample(image, 30), image.ravel()[::13])
    assert extremes(image) == (image.min(), image.max())
    image[6, 3, 2] = np.nan
    with pytest.raises(NotFiniteError, match="NaN or infinite"):
        extremes(image)
