"""From layers back to volumes, by way of what napari and other plugins make of them."""

from __future__ import annotations

import numpy as np
import pytest
from napari.components import ViewerModel

from napari_medai.core.errors import InputError
from napari_medai.core.geometry import index_to_world, scaling
from napari_medai.core.volume import Volume
from napari_medai.ui.layers import layer_to_volume, volume_to_layer


@pytest.fixture
def viewer():
    return ViewerModel()


def add(viewer, volume):
    return viewer._add_layer_from_data(*volume_to_layer(volume))[0]


def labels_button(viewer):
    """What napari's button for new labels does."""
    viewer._new_labels()
    return viewer.layers[-1]


def volume_of(layer, viewer):
    return layer_to_volume(layer, list(viewer.layers))


def test_labels_painted_on_an_oblique_scan(viewer, oblique_scan):
    add(viewer, oblique_scan)
    labels = labels_button(viewer)
    labels.data_setitem(tuple(np.array([[1], [2], [3]])), 1)
    mask = volume_of(labels, viewer)
    assert (mask.name, mask.modality, mask.meta["is_labels"]) == ("5_t1 - Labels", "SEG", True)
    assert mask.grid.same_place(oblique_scan.grid)
    assert mask.array[1, 2, 3] == 1


def test_labels_over_several_selected_layers(viewer, oblique_scan):
    # napari makes them from the extent of the selected layers then
    first = add(viewer, oblique_scan)
    second = add(viewer, oblique_scan.replace(name="copy"))
    viewer.layers.selection = {first, second}
    labels = labels_button(viewer)
    assert labels.data.shape == oblique_scan.shape
    assert volume_of(labels, viewer).grid.same_place(oblique_scan.grid)


def test_labels_of_another_size_over_an_oblique_scan(viewer, oblique_scan):
    scan = add(viewer, oblique_scan)
    half = viewer.add_labels(
        np.zeros((3, 10, 8), int), scale=scan.scale * 2, translate=scan.translate, units=scan.units, axis_labels="zyx"
    )
    mask = volume_of(half, viewer)
    # displayed twice as coarse from the same first voxel on: index n is index 2 n of the scan
    np.testing.assert_allclose(
        index_to_world(mask.affine, (2, 4, 3)), index_to_world(oblique_scan.affine, (4, 8, 6)), atol=1e-9
    )


def test_the_scan_of_the_same_voxels_is_taken_among_several(viewer, oblique_scan):
    other = oblique_scan.replace(
        affine=oblique_scan.affine @ scaling((2, 2, 2), (-2, 3, 1)), name="other", array=np.zeros((5, 9, 8))
    )
    add(viewer, other)
    scan = add(viewer, oblique_scan)
    add(viewer, other.replace(name="third"))
    viewer.layers.selection = {scan}
    assert volume_of(labels_button(viewer), viewer).grid.same_place(oblique_scan.grid)


def test_labels_on_a_series_in_time(viewer, oblique_affine):
    series = Volume(np.zeros((2, 3, 4, 5)), "tzyx", oblique_affine, "mm", "MR")
    add(viewer, series)
    mask = volume_of(labels_button(viewer), viewer)
    assert mask.axes == "tzyx"
    assert mask.grid.same_place(series.grid)


def test_labels_on_an_oblique_slice(viewer, oblique_scan):
    single = oblique_scan.take("z", 2)
    add(viewer, single)
    mask = volume_of(labels_button(viewer), viewer)
    assert mask.axes == "yx"
    np.testing.assert_allclose(
        index_to_world(mask.affine, (0, 5, 6)), index_to_world(oblique_scan.affine, (2, 5, 6)), atol=1e-9
    )


def test_image_that_lost_its_geometry(viewer, oblique_scan):
    add(viewer, oblique_scan)
    filtered = viewer.add_image(oblique_scan.array * 2)
    volume = volume_of(filtered, viewer)
    assert volume.grid.same_place(oblique_scan.grid)
    assert (volume.units, volume.modality) == ("mm", "MR")


def test_image_without_geometry_beside_two_scans_of_its_size(viewer, oblique_scan):
    add(viewer, oblique_scan)
    add(viewer, oblique_scan.replace(affine=oblique_scan.affine @ scaling((1, 1, 1), (5, 0, 0))))
    volume = volume_of(viewer.add_image(oblique_scan.array * 2), viewer)
    assert volume.units == "pixel"
    np.testing.assert_allclose(volume.affine, np.eye(4))


def test_new_data_in_our_layer(viewer, oblique_scan):
    layer = add(viewer, oblique_scan)
    layer.data = layer.data * 3
    volume = volume_of(layer, viewer)
    assert volume.array.max() == oblique_scan.array.max() * 3
    assert volume.grid.same_place(oblique_scan.grid)


def test_our_layer_moved_by_hand(viewer, oblique_scan):
    layer = add(viewer, oblique_scan)
    layer.translate = layer.translate + np.array([4, 0, 0])  # one voxel along the scan's own first axis
    volume = volume_of(layer, viewer)
    np.testing.assert_allclose(
        index_to_world(volume.affine, (0, 5, 6)), index_to_world(oblique_scan.affine, (1, 5, 6)), atol=1e-9
    )


def test_layer_renamed(viewer, oblique_scan):
    layer = add(viewer, oblique_scan)
    layer.name = "before"
    assert volume_of(layer, viewer).name == "before"


@pytest.mark.parametrize(
    ("unit", "expected", "step"), [("um", "um", 0.5), ("nm", "um", 5e-4), ("mm", "mm", 0.5), ("cm", "mm", 5.0)]
)
def test_units_of_images_that_napari_opened(viewer, unit, expected, step):
    layer = viewer.add_image(np.zeros((8, 9)), scale=(0.5, 0.5), units=(unit, unit))
    volume = volume_of(layer, viewer)
    assert (volume.units, volume.axes) == (expected, "yx")
    np.testing.assert_allclose(volume.spacing, (1, step, step))


def test_image_that_napari_opened(viewer):
    rgb = viewer.add_image(np.zeros((40, 50, 3), np.uint8))
    stack = viewer.add_image(np.zeros((3, 8, 9)), scale=(2, 1, 1), translate=(5, 0, 0))
    time = viewer.add_image(np.zeros((3, 8, 9)), axis_labels=("t", "y", "x"))
    assert [volume_of(x, viewer).axes for x in (rgb, stack, time)] == ["yxs", "zyx", "tyx"]
    np.testing.assert_allclose(volume_of(stack, viewer).affine, scaling((2, 1, 1), (5, 0, 0)))
    assert volume_of(stack, viewer).units == "pixel"


def test_pyramid_gives_its_finest_level(viewer):
    layer = viewer.add_image([np.zeros((16, 16)), np.zeros((8, 8))], multiscale=True)
    assert volume_of(layer, viewer).shape == (16, 16)


def test_layers_that_hold_no_image(viewer):
    with pytest.raises(InputError, match="points layer"):
        volume_of(viewer.add_points(np.zeros((2, 2)), name="dots"), viewer)
    with pytest.raises(InputError, match="5 axes"):
        volume_of(viewer.add_image(np.zeros((2, 2, 2, 4, 4))), viewer)
