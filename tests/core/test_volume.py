"""Volumes: axes, place in space, views."""

from __future__ import annotations

import pickle

import dask.array as da
import numpy as np
import pytest

from napari_medai.core import geometry
from napari_medai.core.errors import GeometryError, InputError
from napari_medai.core.volume import Volume, from_array, labels

SAGITTAL = np.array([[0, -1, 0, 50], [0, 0, 1, -20], [-5, 0, 0, 30], [0, 0, 0, 1]], float)


def test_taking_a_slice_keeps_its_place() -> None:
    volume = from_array(np.arange(24).reshape(2, 3, 4), spacing=(5, 1, 1), units="mm")
    plane = volume.take("z", 1)
    assert plane.axes == "yx"
    assert plane.array.tolist() == volume.array[1].tolist()
    np.testing.assert_allclose(plane.affine[:3, 3], (5, 0, 0))
    assert volume.take("z", -1).affine[0, 3] == 5


def test_taking_time_and_channel() -> None:
    volume = from_array(np.zeros((2, 3, 4, 5)), "tcyx")
    assert volume.take("c", 1).axes == "tyx"
    assert volume.take("t", 0).shape == (3, 4, 5)
    with pytest.raises(InputError, match="Axis 'z'"):
        volume.take("z", 0)


@pytest.mark.parametrize("lazy", [False, True])
def test_canonical_is_a_view_of_the_same_voxels(lazy: bool) -> None:
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    volume = Volume(da.from_array(array) if lazy else array, "zyx", SAGITTAL, "mm")
    turned = volume.canonical()
    assert turned.shape == (3, 4, 2)
    assert turned.is_lazy == lazy
    if not lazy:
        assert np.shares_memory(turned.array, array)
    for index in np.ndindex(turned.shape):
        world = geometry.index_to_world(turned.affine, index)
        old = geometry.world_to_index(volume.affine, world).round().astype(int)
        assert turned.numpy()[index] == array[tuple(old)]
    assert geometry.orientation_code(turned.affine) == "SPL"


def test_canonical_leaves_time_and_samples_alone() -> None:
    volume = Volume(np.zeros((7, 2, 3, 4, 3), np.uint8), "tzyxs", SAGITTAL, "mm")
    assert volume.canonical().shape == (7, 3, 4, 2, 3)
    plane = from_array(np.zeros((3, 4)))
    assert plane.canonical() is plane


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ("zz", (2, 2)),
        ("xy", (2, 2)),
        ("zyxq", (2, 2, 2, 2)),
        ("syx", (3, 2, 2)),
        ("zcyx", (1, 1, 2, 2)),
    ],
)
def test_axes_that_make_no_image(axes: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="Axes"):
        Volume(np.zeros(shape), axes)


def test_other_things_that_make_no_image() -> None:
    with pytest.raises(InputError, match="does not have the axes"):
        Volume(np.zeros((2, 2)), "zyx")
    with pytest.raises(InputError, match="empty"):
        Volume(np.zeros((0, 2)), "yx")
    with pytest.raises(GeometryError, match="unit 'cm'"):
        Volume(np.zeros((2, 2)), "yx", units="cm")


def test_frozen_and_yet_moved_between_processes() -> None:
    volume = from_array(np.ones((2, 2)), meta={"window": (0, 1)})
    with pytest.raises(AttributeError):
        volume.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        volume.meta["window"] = None  # type: ignore[index]
    with pytest.raises(ValueError, match="read-only"):
        volume.affine[0, 0] = 3
    copy = pickle.loads(pickle.dumps(volume))
    assert copy.meta == {"window": (0, 1)}
    assert copy.array.tolist() == [[1, 1], [1, 1]]


def test_defaults_of_arrays_without_a_file() -> None:
    assert from_array(np.zeros((4, 5, 3), np.uint8)).axes == "yxs"
    assert from_array(np.zeros((4, 5, 3), np.float32)).axes == "zyx"
    slide = from_array(np.zeros((4, 5)), spacing=(0.5, 0.25), units="um")
    assert slide.spacing == (1.0, 0.5, 0.25)
    assert slide.grid.shape == (1, 4, 5)


def test_labels_lie_on_their_scan(oblique_scan: Volume) -> None:
    mask = labels(np.asarray(oblique_scan.array) > 100, oblique_scan, {1: "bright"}, name="mine")
    assert mask.dtype == np.uint8
    assert (mask.axes, mask.name, mask.modality) == ("zyx", "mine", "SEG")
    np.testing.assert_array_equal(mask.affine, oblique_scan.affine)
    assert mask.meta["is_labels"]
    assert mask.meta["label_names"] == {1: "bright"}
    assert "window" not in mask.meta


def test_labels_have_the_shape_of_the_scan_without_channels(oblique_affine: np.ndarray) -> None:
    scan = Volume(np.zeros((2, 3, 4, 5)), "czyx", oblique_affine, "mm")
    assert labels(np.zeros((3, 4, 5), int), scan).axes == "zyx"
    with pytest.raises(InputError, match=r"\(3, 4, 5\)"):
        labels(np.zeros((2, 3, 4, 5), int), scan)
    with pytest.raises(InputError, match="whole numbers"):
        labels(np.zeros((3, 4, 5)), scan)
