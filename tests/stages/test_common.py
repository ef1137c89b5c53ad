"""What is checked before a model runs."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from napari_medai.core.errors import InputError, ModelFitError, NotFiniteError
from napari_medai.core.volume import from_array
from napari_medai.models import load_model
from napari_medai.models.spec import Accepts, Gives, Model, ModelSpec
from napari_medai.stages.common import check_fit, for_runner, frames, one_channel, pixels


def model(tmp_path, **accepts) -> Model:
    spec = ModelSpec(
        id="phantom",
        title="Phantom",
        summary="For tests.",
        stage="segment",
        accepts=Accepts(**{"ndim": (3,), **accepts}),
        gives=Gives(kind="labels"),
        runner="none",
    )
    return Model(spec=spec, folder=tmp_path, source="test")


def test_dimensions_sizes_modalities_and_stages(tmp_path) -> None:
    volume = from_array(np.zeros((4, 20, 20)), modality="CT")
    assert check_fit(volume, model(tmp_path), "segment") == []
    with pytest.raises(ModelFitError, match="works on 3-D images; this one is 2-D"):
        check_fit(volume.take("z", 0), model(tmp_path), "segment")
    with pytest.raises(ModelFitError, match="take one slice"):
        check_fit(volume, model(tmp_path, ndim=(2,)), "segment")
    with pytest.raises(ModelFitError, match="at least 32 pixels"):
        check_fit(volume, model(tmp_path, min_size=32), "segment")
    with pytest.raises(ModelFitError, match="made for MR; this image is CT"):
        check_fit(volume, model(tmp_path, modality=("MR",)), "segment")
    with pytest.raises(ModelFitError, match="made for 'segment', not 'detect'"):
        check_fit(volume, model(tmp_path), "detect")


def test_what_is_unusual_is_noted(tmp_path) -> None:
    colour = from_array(np.zeros((20, 20, 3), np.uint8))
    notes = check_fit(colour, model(tmp_path, ndim=(2,), modality=("SM",)), "segment")
    assert notes == ["colour turned to luminance", "modality unknown; the model was made for SM"]


def test_colour_becomes_luminance_and_channels_are_chosen() -> None:
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 100
    assert one_channel(from_array(red), 0).array == pytest.approx(np.full((2, 2), 21.26))
    stack = from_array(np.stack([np.zeros((3, 3)), np.ones((3, 3))]), "cyx")
    assert one_channel(stack, 1).array.min() == 1
    with pytest.raises(InputError, match="Channel 2 was asked for; the image has 2"):
        one_channel(stack, 2)
    with pytest.raises(InputError, match="Channel 1 was asked for; the image has no channels"):
        one_channel(from_array(red), 1)


def test_pixels_that_cannot_be_computed_on() -> None:
    bad = np.ones((3, 3))
    bad[0, 0], bad[1, 1] = np.nan, np.inf
    with pytest.raises(NotFiniteError, match="2 of 9 pixels"):
        pixels(from_array(bad))
    with pytest.raises(InputError, match="Every pixel has the value 4"):
        pixels(from_array(np.full((3, 3), 4)))
    with pytest.raises(InputError, match="complex128"):
        pixels(from_array(np.ones((3, 3), complex)))
    assert pixels(from_array(np.arange(4, dtype=">i2").reshape(2, 2))).dtype == np.float32


def test_frames_of_a_series() -> None:
    series = from_array(np.arange(8).reshape(2, 1, 2, 2), "tzyx")
    assert [f.array.max() for f in frames(series)] == [3, 7]
    assert len(frames(series.take("t", 0))) == 1


def test_a_lazy_image_is_checked_in_parts_and_stays_where_it_is() -> None:
    nuclei, head = load_model("nuclei"), load_model("quality")
    image = np.arange(400, dtype=np.uint16).reshape(20, 20)
    lazy = from_array(da.from_array(image, chunks=8))
    assert for_runner(lazy, nuclei) is lazy.array
    assert for_runner(lazy, head).dtype == np.float32
    with pytest.raises(InputError, match="Every pixel has the value 7"):
        for_runner(from_array(da.full((20, 20), 7, chunks=8)), nuclei)
    bad = np.ones((20, 20))
    bad[19, 3] = bad[2, 2] = np.nan
    with pytest.raises(NotFiniteError, match="2 of 400 pixels"):
        for_runner(from_array(da.from_array(bad, chunks=8)), nuclei)


@pytest.mark.parametrize("axes", ["yxs", "tyxs"])
def test_colours_that_are_lazy_become_grey_lazily(axes) -> None:
    colour = np.random.default_rng(0).integers(0, 255, (5, 20, 20, 3)[4 - len(axes) :]).astype(np.uint8)
    grey = one_channel(from_array(da.from_array(colour, chunks=2), axes), 0)
    assert grey.is_lazy
    assert grey.axes == axes[:-1]
    np.testing.assert_allclose(grey.numpy(), one_channel(from_array(colour, axes), 0).numpy(), rtol=1e-6)
    expected = colour.astype(np.float32) @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    np.testing.assert_allclose(grey.numpy(), expected, rtol=1e-6)
