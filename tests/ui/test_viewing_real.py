"""What is really drawn: markers at the patient's sides in a window, and a head cut at two angles."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from napari_medai.core.geometry import Grid, index_to_world, scaling, world_to_index
from napari_medai.core.reslice import reslice
from napari_medai.core.volume import Volume
from napari_medai.ui.placement import record
from napari_medai.ui.readers import layers_of
from napari_medai.ui.scans import layer_to_volume

# Where a marker is, and where it must appear: rows grow downwards, columns to the right of the screen.
SIDES = {"superior": (20, 0, 0), "posterior": (0, 20, 0), "left": (0, 0, 20)}
VIEWS = {
    "axial": ((0, 1, 2), {"left": "right", "posterior": "lower"}),
    "coronal": ((1, 0, 2), {"left": "right", "superior": "upper"}),
    "sagittal": ((2, 0, 1), {"posterior": "right", "superior": "upper"}),
}


def open_in(viewer, *volumes):
    return [viewer._add_layer_from_data(*data)[0] for volume in volumes for data in layers_of([volume])]


def turned(angles):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("XYZ", angles, degrees=True).as_matrix()
    return affine


def marked(side, angles=(0, 0, 0)):
    """A dim cube of 64 mm with a bright ball at one side."""
    affine = turned(angles)
    affine[:3, 3] = -affine[:3, :3] @ (31.5, 31.5, 31.5)
    index = np.stack(np.meshgrid(*[np.arange(64)] * 3, indexing="ij"), axis=-1)
    away = np.linalg.norm(index_to_world(affine, index) - SIDES[side], axis=-1)
    return Volume(np.where(away < 6, 1000, 200).astype(np.int16), "zyx", affine, "mm", "MR", side)


def bright_side(viewer):
    """Where the bright pixels of the canvas lie from the centre of those that are not black."""
    picture = viewer.screenshot(canvas_only=True, flash=False)[..., :3].mean(axis=-1)
    rows, columns = np.nonzero(picture > 200)
    assert len(rows) > 20
    below = rows.mean() - (picture.shape[0] - 1) / 2
    right = columns.mean() - (picture.shape[1] - 1) / 2
    if abs(below) > abs(right):
        return "lower" if below > 0 else "upper"
    return "right" if right > 0 else "left"


@pytest.fixture
def window(make_napari_viewer):
    viewer = make_napari_viewer(show=True)
    if not viewer.window._qt_viewer.canvas._scene_canvas.context.config:
        pytest.skip("no OpenGL here")
    viewer.window._qt_window.resize(900, 700)
    return viewer


@pytest.mark.parametrize("side", list(SIDES))
def test_the_patients_sides_on_the_screen(window, side):
    (layer,) = open_in(window, marked(side, (3, 5, 0)))
    layer.contrast_limits = (0, 1000)
    for order, sides in VIEWS.values():
        if side in sides:
            window.dims.order = order
            window.dims.set_point(range(3), (0, 0, 0))
            window.reset_view()
            assert bright_side(window) == sides[side], order
    window.dims.order = (0, 1, 2)
    window.dims.ndisplay = 3
    window.reset_view()
    layer.rendering = "mip"
    layer.contrast_limits = (300, 1000)
    if side != "posterior":  # towards the back of the picture
        assert bright_side(window) == {"superior": "upper", "left": "right"}[side]
    else:
        # from the patient's left, as in the sagittal view: a mirrored one would show the back on the left
        window.scene.camera.set_view_direction((0, 0, -1), (1, 0, 0))
        assert bright_side(window) == "right"


@pytest.fixture(scope="module")
def head():
    """Colin27 at 2 mm, brought to a place of its own in the patient."""
    from napari_medai.samples import sample

    whole = sample("head_mr").canonical()
    grid = whole.grid.resampled((2, 2, 2))
    small = reslice(whole.replace(array=whole.numpy()), grid)
    return small.replace(array=small.numpy().astype(np.float32))


def cut(head, angles, axes, spacing, name, landmark):
    """The head as a scanner would have acquired it, with a bright ball of 2 mm at the landmark."""
    shape = tuple(int(np.ceil(200 / s)) for s in spacing)
    affine = turned(angles) @ axes @ scaling(spacing)
    centre = index_to_world(head.affine, (np.array(head.shape) - 1) / 2)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    pixels = reslice(head, Grid(shape, affine, "mm")).numpy()
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    away = ((index_to_world(affine, index) - landmark) ** 2).sum(axis=-1)
    pixels = pixels + 4 * head.array.max() * np.exp(-away / 8)
    meta = {"frame_of_reference_uid": "1.2.840.1"}
    return Volume(pixels.astype(np.int16), "zyx", affine, "mm", "MR", name, meta)


SAGITTAL = np.array([[0, -1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 0], [0, 0, 0, 1]], float)


@pytest.mark.parametrize("first", ["sagittal", "tilted"])
def test_a_landmark_of_a_head_in_two_angles(window, head, first):
    landmark = index_to_world(head.affine, np.array(head.shape) * (0.55, 0.45, 0.4))
    sagittal = cut(head, (4, 0, 0), SAGITTAL, (3, 2, 2), "sagittal", landmark)
    tilted = cut(head, (0, 11, 25), np.eye(4), (3, 2, 2), "tilted", landmark)
    pair = (sagittal, tilted) if first == "sagittal" else (tilted, sagittal)
    layers = open_in(window, *pair)
    # clicked: the voxel of the landmark in the first, where it is displayed
    shown = layers[0].data_to_world(world_to_index(layer_to_volume(layers[0]).affine, landmark))
    for order, _ in VIEWS.values():
        window.dims.order = order
        window.dims.set_point(range(3), shown)
        found = []
        for layer in layers:
            raw = np.nan_to_num(np.asarray(layer._slice.image.raw, dtype=float))
            raw = np.where(raw > 0.5 * raw.max(), raw, 0)
            index = np.zeros(3)
            for n, axis in enumerate(window.dims.displayed):
                index[axis] = (np.arange(raw.shape[n]) * raw.sum(axis=1 - n)).sum() / raw.sum()
            found.append(np.array(layer.data_to_world(index))[list(window.dims.displayed)])
        # half of the finer voxel
        np.testing.assert_allclose(found[0], found[1], atol=1.0)
    assert record(layers[1])["volume"].grid.same_place(pair[1].canonical().grid)


def test_a_view_is_clear_where_it_does_not_reach(window):
    below = Volume(np.full((40, 40, 40), 1000, np.int16), "zyx", scaling((1, 1, 1), (-20, -20, -20)), "mm", "MR", "a")
    over = Volume(np.zeros((10, 10, 10), np.int16), "zyx", turned((30, 20, 10)), "mm", "MR", "b")
    first, second = open_in(window, below, over.replace(meta={"frame_of_reference_uid": "1"}))
    first.contrast_limits, second.contrast_limits = (0, 1000), (0, 1000)
    window.dims.set_point(range(3), index_to_world(over.affine, (4.5, 4.5, 4.5)))

    def black():
        return (window.screenshot(canvas_only=True, flash=False)[..., :3].mean(axis=-1) < 20).mean()

    with_it = black()
    second.visible = False
    # of 40 x 40 mm a cube of 10 mm covers about a tenth, the box around its turned slice twice as much
    covered = (with_it - black()) / (1 - black())
    assert 0.05 < covered < 0.13
