"""The viewer against the patient: series of other angles, painting on them, 3-D and back, which side is up."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers._layer_actions import _duplicate_layer
from scipy.spatial.transform import Rotation

import napari_medai as medai
from napari_medai.core.geometry import Affine, Grid, index_to_world, scaling, world_to_index
from napari_medai.core.reslice import reslice
from napari_medai.core.result import Boxes, Heatmap, Mask
from napari_medai.core.volume import Volume
from napari_medai.ui.layers import layer_to_volume, result_to_layers, volume_to_layers
from napari_medai.ui.navigate import current_index, go_to
from napari_medai.ui.placement import record
from napari_medai.ui.reslicing import PaintedView
from napari_medai.ui.scans import is_scan, shared_space, was_edited
from napari_medai.ui.viewing import attach
from napari_medai.ui.writers import points_table, save_layer, write_labels

LANDMARK = np.array([7.0, -12.0, 9.0])
SPACE = {"frame_of_reference_uid": "1.2.3"}


def placed(shape, spacing, angles=(0, 0, 0), centre=(0, 0, 0), shear=0.0) -> Affine:
    """A grid turned about the patient's axes (degrees), sheared along y with z, with its centre somewhere."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("XYZ", angles, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 0] += affine[:3, 1] / spacing[1] * shear
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def blob(shape, affine, name, at=LANDMARK, **fields) -> Volume:
    """A bright ball of 3 mm (one standard deviation) around a place in the patient."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    distance = ((index_to_world(affine, index) - at) ** 2).sum(axis=-1)
    return Volume((1000 * np.exp(-distance / 18)).astype(np.float32), "zyx", affine, "mm", "MR", name, SPACE, **fields)


def add(viewer, volume):
    shown = [record(layer) for layer in viewer.layers if is_scan(layer)]
    made = [
        viewer._add_layer_from_data(*data)[0] for data in volume_to_layers(volume, to_world=shared_space(volume, shown))
    ]
    return made[0] if len(made) == 1 else made


def seen_at(viewer, layer):
    """Where the bright ball is in the slice that the viewer shows: its centre of mass, in displayed mm."""
    raw = np.nan_to_num(np.asarray(layer._slice.image.raw, dtype=float))
    raw = np.where(raw > 0.3 * raw.max(), raw, 0)
    centre = [float((np.arange(n) * raw.sum(axis=1 - a)).sum() / raw.sum()) for a, n in enumerate(raw.shape)]
    index = np.zeros(layer.ndim)
    index[list(viewer.dims.displayed)] = centre
    return np.array(layer.data_to_world(index))[list(viewer.dims.displayed)]


@pytest.fixture
def viewer():
    model = ViewerModel()
    attach(model)
    return model


@pytest.fixture
def axial():
    return blob((40, 60, 60), placed((40, 60, 60), (1.5, 1, 1)), "axial")


@pytest.fixture
def tilted():
    return blob((25, 70, 70), placed((25, 70, 70), (3, 1, 1), (25, 11, 4), (2, -3, 4)), "tilted")


SAGITTAL_AXES = np.array([[0, -1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 0], [0, 0, 0, 1]], float)


@pytest.fixture
def sagittal():
    """As stored: slices run to the right, rows down, columns back; turned by 20 and 8 degrees."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("XYZ", (8, 20, 0), degrees=True).as_matrix()
    affine = turn @ SAGITTAL_AXES @ np.diag([4.0, 1, 1, 1])
    affine[:3, 3] -= index_to_world(affine, (11.5, 29.5, 34.5))
    return blob((24, 60, 70), affine, "sagittal")


ORDERS = [(0, 1, 2), (1, 0, 2), (2, 0, 1)]


class TestTwoAngles:
    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("pair", [("axial", "tilted"), ("tilted", "axial"), ("sagittal", "tilted")])
    def test_a_landmark_clicked_in_one_is_found_in_the_other(self, viewer, request, pair, order):
        first, second = (add(viewer, request.getfixturevalue(name)) for name in pair)
        way = record(first)["to_world"]
        place = world_to_index(way, LANDMARK)  # displayed
        viewer.dims.order = order
        viewer.dims.set_point(range(3), place)
        here = place[list(viewer.dims.displayed)]
        for layer in (first, second):
            np.testing.assert_allclose(seen_at(viewer, layer), here, atol=0.5)
            assert layer.get_value(place, world=True) > 500

    def test_the_true_volume_stays(self, viewer, axial, sagittal):
        add(viewer, axial)
        layer = add(viewer, sagittal)
        volume = layer_to_volume(layer)
        assert volume.shape == (60, 70, 24)
        np.testing.assert_allclose(volume.affine, sagittal.canonical().affine)
        assert np.shares_memory(volume.array, sagittal.array)
        assert not was_edited(layer)

    def test_beyond_the_scan_it_is_clear(self, viewer, axial, tilted):
        add(viewer, axial)
        layer = add(viewer, tilted)
        raw = np.asarray(layer.data[layer.data.shape[0] // 2])
        assert np.isnan(raw[0, 0])
        assert np.isfinite(raw[raw.shape[0] // 2, raw.shape[1] // 2])
        assert layer.contrast_limits[1] < 1001

    def test_a_series_in_time(self, viewer, axial, tilted):
        add(viewer, axial)
        series = tilted.replace(array=np.stack([tilted.array, tilted.array * 0]), axes="tzyx")
        layer = add(viewer, series)
        viewer.dims.set_point(range(4), (0, *LANDMARK))
        assert layer.get_value((0, *LANDMARK), world=True) > 500
        viewer.dims.set_point(0, 1)
        assert layer.get_value((1, *LANDMARK), world=True) == 0

    def test_moved_by_hand(self, viewer, axial, tilted):
        add(viewer, axial)
        layer = add(viewer, tilted)
        layer.translate = np.array(layer.translate) + np.array([0, 5, 0])
        np.testing.assert_allclose(
            layer_to_volume(layer).affine, scaling((1, 1, 1), (0, 5, 0)) @ tilted.affine, atol=1e-9
        )

    def test_the_table_leads_to_the_place(self, viewer, axial, tilted):
        add(viewer, axial)
        layer = add(viewer, tilted)
        voxel = world_to_index(tilted.affine, LANDMARK)
        go_to(viewer, layer, "zyx", dict(zip("zyx", voxel, strict=True)))
        np.testing.assert_allclose(viewer.dims.point, LANDMARK, atol=1e-9)
        assert current_index(viewer, layer, "zyx", "z") == round(voxel[0])


class TestShearedScan:
    @pytest.fixture
    def gantry(self):
        """Slices 3 mm apart that slide by 1 mm along their columns."""
        return blob((24, 60, 60), placed((24, 60, 60), (3, 1, 1), shear=1.0), "gantry")

    @pytest.mark.parametrize("order", ORDERS)
    def test_by_itself(self, viewer, gantry, order):
        layer = add(viewer, gantry)
        place = world_to_index(record(layer)["to_world"], LANDMARK)
        viewer.dims.order = order
        viewer.dims.set_point(range(3), place)
        np.testing.assert_allclose(seen_at(viewer, layer), place[list(viewer.dims.displayed)], atol=0.5)
        np.testing.assert_allclose(layer_to_volume(layer).affine, gantry.affine)

    def test_beside_another(self, viewer, axial, gantry):
        add(viewer, axial)
        layer = add(viewer, gantry)
        viewer.dims.set_point(range(3), LANDMARK)
        np.testing.assert_allclose(seen_at(viewer, layer), LANDMARK[1:], atol=0.5)

    def test_in_3d(self, viewer, gantry):
        layer = add(viewer, gantry)
        viewer.dims.ndisplay = 3
        np.testing.assert_allclose(layer._data_to_world.affine_matrix, gantry.affine, atol=1e-9)


class TestPaintingOnAView:
    @pytest.fixture
    def scan(self, viewer, axial, tilted):
        add(viewer, axial)
        return add(viewer, tilted)

    def paint(self, viewer, layer, label=1, size=9):
        viewer.dims.set_point(range(3), LANDMARK)
        layer.brush_size = size
        layer.paint(np.round(layer.world_to_data(LANDMARK)), label)

    def test_new_labels_are_painted_into_the_scans_voxels(self, viewer, scan, tilted, tmp_path):
        viewer.layers.selection = {scan}
        viewer._new_labels()
        labels = viewer.layers[-1]
        assert isinstance(labels.data, PaintedView)
        self.paint(viewer, labels)
        volume = layer_to_volume(labels, viewer.layers)
        assert volume.grid.same_place(tilted.grid)
        painted = np.argwhere(volume.numpy())
        assert len(painted) > 5
        np.testing.assert_allclose(index_to_world(volume.affine, painted.mean(axis=0)), LANDMARK, atol=1.5)
        assert labels.get_value(LANDMARK, world=True) == 1
        path = save_layer(labels, str(tmp_path / "painted.nii.gz"), viewer.layers)
        back = medai.open(path)
        assert back.grid.same_place(tilted.grid)
        np.testing.assert_array_equal(back.numpy(), volume.numpy())

    def test_undo_erase_and_fill(self, viewer, scan):
        viewer.layers.selection = {scan}
        viewer._new_labels()
        labels = viewer.layers[-1]
        source = labels.data.source
        self.paint(viewer, labels, 1, 15)
        first = source.copy()
        self.paint(viewer, labels, 2, 5)
        assert set(np.unique(source)) == {0, 1, 2}
        labels.undo()
        np.testing.assert_array_equal(source, first)
        labels.redo()
        assert (source == 2).any()
        self.paint(viewer, labels, 0, 5)
        assert not (source == 2).any()
        labels.undo()
        labels.fill(np.round(labels.world_to_data(LANDMARK)).astype(int), 3)
        assert (source == 3).any()
        assert not (source == 2).any()
        labels.undo()
        labels.undo()
        labels.undo()
        assert not source.any()
        labels.data_setitem(tuple(np.array([[5], [40], [60]])), 4)
        assert labels.data[5, 40, 60] == source.max()

    def test_a_copy_of_the_layer_is_painted_apart(self, viewer, scan, tilted):
        viewer.layers.selection = {scan}
        viewer._new_labels()
        labels = viewer.layers[-1]
        viewer.layers.selection = {labels}
        _duplicate_layer(viewer.layers)
        copy = next(x for x in viewer.layers if x.name.endswith("copy"))
        self.paint(viewer, copy)
        viewer.dims.ndisplay = 3
        copy.data[0, 0, 0] = 4
        viewer.dims.ndisplay = 2
        assert set(np.unique(layer_to_volume(copy).array)) == {0, 1, 4}
        assert not layer_to_volume(labels).array.any()
        assert layer_to_volume(copy).grid.same_place(tilted.grid)
        viewer.layers.selection = {scan}
        _duplicate_layer(viewer.layers)
        assert np.nanmax(np.asarray(viewer.layers[scan.name + " copy"].data[:, 30])) > 0

    def test_a_painted_box_has_no_holes(self, viewer, scan, tilted):
        viewer.layers.selection = {scan}
        viewer._new_labels()
        labels = viewer.layers[-1]
        labels.data[30:40, 70:100, 80:110] = 1
        index = np.argwhere(np.ones(tilted.shape))
        at = (index_to_world(tilted.affine, index) - labels.translate) / labels.scale
        within = index[((at > (30, 70, 80)) & (at < (39, 99, 109))).all(axis=1)]
        assert len(within) > 500
        assert labels.data.source[tuple(within.T)].all()
        assert (np.asarray(labels.data[30:40, 70:100, 80:110]) == 1).all()

    def test_what_a_stage_finds_lies_on_it(self, viewer, scan, tilted, provenance):
        grid = layer_to_volume(scan)
        mask = Mask(grid.replace(array=(grid.array > 500).astype(np.uint8), name="ball"), provenance, {1: "ball"})
        labels = viewer._add_layer_from_data(*result_to_layers(mask, scan)[0])[0]
        assert not was_edited(labels)
        viewer.dims.set_point(range(3), LANDMARK)
        np.testing.assert_allclose(seen_at(viewer, labels), LANDMARK[1:], atol=0.5)
        self.paint(viewer, labels, 2)
        assert was_edited(labels)
        assert set(np.unique(layer_to_volume(labels).array)) == {0, 1, 2}
        assert mask.labels.array.max() == 1
        assert layer_to_volume(labels).grid.same_place(tilted.grid)

        heat = Heatmap(grid.replace(array=grid.array / 1000), "noise", "gradcam++", provenance)
        layer = viewer._add_layer_from_data(*result_to_layers(heat, scan)[0])[0]
        np.testing.assert_allclose(seen_at(viewer, layer), LANDMARK[1:], atol=0.5)
        assert layer.data.shape == scan.data.shape

        voxel = world_to_index(tilted.affine, LANDMARK)
        found = Boxes(voxel[None], np.full((1, 3), 6.0), ("ball",), np.ones(1), 3, tilted.grid, provenance)
        points = viewer._add_layer_from_data(*result_to_layers(found, scan)[0])[0]
        np.testing.assert_allclose(points.data_to_world(points.data[0]), LANDMARK, atol=1e-6)
        table = points_table(points, viewer.layers)
        np.testing.assert_allclose([table[f"{a}_mm"][0] for a in "zyx"], LANDMARK, atol=1e-6)

    def test_labels_of_another_grid_fall_on_it(self, viewer, scan, axial):
        """A segmentation of the straight scan, opened beside both."""
        grid = Grid((20, 30, 30), placed((20, 30, 30), (2, 2, 2), (0, 30, 0)), "mm")
        ball = reslice(
            axial.replace(array=(axial.array > 500).astype(np.uint8), meta={**SPACE, "is_labels": True}), grid
        )
        labels = add(viewer, ball)
        viewer.dims.set_point(range(3), LANDMARK)
        np.testing.assert_allclose(seen_at(viewer, labels), LANDMARK[1:], atol=1)


class TestIn3D:
    def test_every_layer_has_its_true_affine_and_returns(self, viewer, axial, tilted, provenance):
        layers = [add(viewer, v) for v in (tilted, axial)]
        viewer.layers.selection = {layers[1]}
        viewer._new_labels()
        labels = viewer.layers[-1]
        labels.brush_size = 9
        labels.paint(np.round(labels.world_to_data(world_to_index(record(layers[0])["to_world"], LANDMARK))), 1)
        painted = labels.data.source.copy()
        voxel = world_to_index(tilted.affine, LANDMARK)
        found = Boxes(voxel[None], np.full((1, 3), 6.0), ("ball",), np.ones(1), 3, tilted.grid, provenance)
        points = viewer._add_layer_from_data(*result_to_layers(found, layers[0])[0])[0]
        foreign = viewer.add_image(tilted.array * 2, scale=layers[0].scale, translate=layers[0].translate, units="mm")
        before = [(x.data, x.scale, x.translate, x.affine.affine_matrix.copy()) for x in viewer.layers]
        point = viewer.dims.point
        limits = [x.contrast_limits for x in layers]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            viewer.dims.ndisplay = 3
            for layer, volume in ((layers[0], tilted), (layers[1], axial), (labels, axial), (foreign, tilted)):
                np.testing.assert_allclose(layer._data_to_world.affine_matrix, volume.affine, atol=1e-6)
                assert isinstance(layer.data, np.ndarray)
                assert layer_to_volume(layer, viewer.layers).grid.same_place(volume.grid)
            np.testing.assert_allclose(points.data_to_world(points.data[0]), LANDMARK, atol=1e-6)
            labels.data[0, 0, 0] = 5
            viewer.dims.ndisplay = 2
        for layer, (data, *transforms) in zip(viewer.layers, before, strict=True):
            assert layer.data is data or layer is points
            for now, then in zip((layer.scale, layer.translate, layer.affine.affine_matrix), transforms, strict=True):
                np.testing.assert_allclose(now, then, atol=1e-9)
        np.testing.assert_allclose(viewer.dims.point, point, atol=1e-6)
        assert [x.contrast_limits for x in layers] == limits
        assert labels.data.source[0, 0, 0] == 5
        labels.data.source[0, 0, 0] = 0
        np.testing.assert_array_equal(labels.data.source, painted)

    def test_made_in_3d(self, viewer, axial, tilted, provenance):
        add(viewer, tilted)
        scan = add(viewer, axial)
        viewer.dims.ndisplay = 3
        grid = layer_to_volume(scan)
        mask = Mask(grid.replace(array=(grid.array > 500).astype(np.uint8)), provenance, {1: "ball"})
        labels = viewer._add_layer_from_data(*result_to_layers(mask, scan)[0])[0]
        np.testing.assert_allclose(labels._data_to_world.affine_matrix, axial.affine, atol=1e-6)
        viewer.layers.selection = {scan}
        viewer._new_labels()
        new = viewer.layers[-1]
        new.data[tuple(np.round(world_to_index(axial.affine, LANDMARK)).astype(int))] = 3
        points = viewer.add_points([LANDMARK], units="mm", axis_labels="zyx")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            viewer.dims.ndisplay = 2
        for layer in (labels, new):
            assert isinstance(layer.data, PaintedView)
            volume = layer_to_volume(layer, viewer.layers)
            assert volume.grid.same_place(axial.grid)
            np.testing.assert_allclose(
                index_to_world(volume.affine, np.argwhere(volume.numpy()).mean(axis=0)), LANDMARK, atol=1
            )
        np.testing.assert_allclose(points_table(points, viewer.layers)["z_mm"], LANDMARK[0], atol=1e-6)
        viewer.dims.ndisplay = 3
        viewer.dims.ndisplay = 2

    def test_saved_from_3d(self, viewer, axial, tilted, tmp_path):
        add(viewer, axial)
        layer = add(viewer, tilted.replace(array=(tilted.array > 500).astype(np.uint8), meta={"is_labels": True}))
        viewer.dims.ndisplay = 3
        data, state, _ = layer.as_layer_data_tuple()
        back = medai.open(*write_labels(str(tmp_path / "ball.nii.gz"), data, state))
        assert back.grid.same_place(tilted.grid)
        np.testing.assert_array_equal(back.numpy(), tilted.array > 500)

    def test_a_series_in_time(self, viewer, tilted):
        series = tilted.replace(array=np.stack([tilted.array, tilted.array * 0]), axes="tzyx")
        layer = add(viewer, series)
        viewer.dims.set_point(0, 1)
        viewer.dims.ndisplay = 3
        np.testing.assert_allclose(layer._data_to_world.affine_matrix[1:, 1:], tilted.affine, atol=1e-9)
        assert viewer.dims.point[0] == 1
        viewer.dims.ndisplay = 2
        np.testing.assert_allclose(layer.affine.affine_matrix, np.eye(5))

    def test_attached_late(self, axial, tilted):
        viewer = ViewerModel()
        add(viewer, tilted)
        layer = add(viewer, axial)
        viewer.dims.ndisplay = 3
        attach(viewer)
        attach(viewer)
        np.testing.assert_allclose(layer._data_to_world.affine_matrix, axial.affine, atol=1e-9)


class TestWhichSideIsUp:
    def sides(self, viewer):
        return tuple(map(str, viewer.scene.camera.orientation2d))

    def test_superior_is_up_where_z_is_vertical(self, viewer, axial):
        add(viewer, axial)
        assert self.sides(viewer) == ("down", "right")
        viewer.dims.order = (1, 0, 2)
        assert self.sides(viewer) == ("up", "right")
        viewer.dims.order = (2, 0, 1)
        assert self.sides(viewer) == ("up", "right")
        viewer.dims.transpose()
        assert self.sides(viewer) == ("down", "right")

    def test_rolling_leads_through_three_upright_views(self, viewer, axial):
        add(viewer, axial)
        orders = []
        for _ in range(4):
            viewer.dims.roll()
            orders.append(tuple(viewer.dims.order))
        assert orders == [(2, 0, 1), (1, 0, 2), (0, 1, 2), (2, 0, 1)]
        viewer.dims.transpose()
        assert tuple(viewer.dims.order) == (2, 1, 0)

    def test_a_persons_choice_stays(self, viewer, axial):
        add(viewer, axial)
        viewer.scene.camera.orientation2d = ("up", "left")
        viewer.dims.order = (1, 0, 2)
        viewer.dims.order = (0, 1, 2)
        assert self.sides(viewer) == ("up", "left")

    def test_microscopes_have_no_head(self, viewer):
        viewer._add_layer_from_data(*volume_to_layers(Volume(np.zeros((4, 5, 6)), "zyx", units="um"))[0])
        viewer.dims.order = (1, 0, 2)
        assert self.sides(viewer) == ("down", "right")

    def test_from_the_front_in_3d(self, viewer, axial):
        add(viewer, axial)
        viewer.dims.ndisplay = 3
        np.testing.assert_allclose(viewer.scene.camera.view_direction, (0, 1, 0), atol=1e-9)
        np.testing.assert_allclose(viewer.scene.camera.up_direction, (1, 0, 0), atol=1e-9)
        viewer.scene.camera.angles = (10, 20, 30)
        viewer.dims.ndisplay = 2
        viewer.dims.ndisplay = 3
        np.testing.assert_allclose(viewer.scene.camera.angles, (10, 20, 30))
        viewer.reset_view()
        np.testing.assert_allclose(viewer.scene.camera.view_direction, (0, 1, 0), atol=1e-9)


class TestLetters:
    def letters(self, viewer):
        names = ("top_center", "bottom_center", "middle_left", "middle_right")
        overlays = [viewer.canvas.overlays[f"patient_{name}"] for name in names]
        return " ".join(o.text for o in overlays) if all(o.visible for o in overlays) else ""

    def test_of_an_axial_scan(self, viewer, axial):
        add(viewer, axial)
        assert self.letters(viewer) == "A P R L"
        viewer.dims.order = (1, 0, 2)
        assert self.letters(viewer) == "S I R L"
        viewer.dims.order = (2, 0, 1)
        assert self.letters(viewer) == "S I A P"
        viewer.dims.transpose()
        assert self.letters(viewer) == "A P I S"
        viewer.scene.camera.orientation2d = ("up", "left")
        assert self.letters(viewer) == "P A S I"
        viewer.dims.ndisplay = 3
        assert self.letters(viewer) == ""

    def test_of_an_oblique_scan(self, viewer):
        # turned about x by 30 degrees: its planes rise towards the front
        add(viewer, blob((20, 30, 30), placed((20, 30, 30), (2, 1, 1), (0, 0, 30)), "oblique"))
        assert self.letters(viewer) == "AS PI R L"
        viewer.layers.clear()
        assert self.letters(viewer) == ""

    def test_a_slide_has_none(self, viewer, slide):
        viewer._add_layer_from_data(*volume_to_layers(slide)[0])
        assert "patient_top_center" not in viewer.canvas.overlays
