"""Volumes and results as layers: where they lie, what they look like, and back.

napari's viewer without its window takes the layers; one test looks at the picture in a real one.
"""

from __future__ import annotations

import warnings

import dask.array as da
import numpy as np
import pytest
from napari.components import ViewerModel

from napari_medai.core.geometry import index_to_world, scaling
from napari_medai.core.result import Boxes, Denoised, Heatmap, Mask, Scores
from napari_medai.core.volume import Volume
from napari_medai.ui.layers import layer_to_volume, result_to_layers, volume_to_layer, volume_to_layers
from napari_medai.ui.placement import record
from napari_medai.ui.scans import shared_space


def add(viewer, data):
    return viewer._add_layer_from_data(*data)[0]


@pytest.fixture
def viewer():
    return ViewerModel()


class TestImage:
    def test_axial_scan_lies_in_patient_millimetres(self, viewer):
        scan = Volume(np.zeros((3, 4, 5), np.int16), "zyx", scaling((5, 0.5, 0.7), (-10, 20, 30)), "mm", "CT", "2_head")
        layer = add(viewer, volume_to_layer(scan))
        assert layer.name == "2_head"
        np.testing.assert_allclose(layer.data_to_world((1, 2, 3)), (-10 + 5, 20 + 1, 30 + 2.1))
        assert [str(u) for u in viewer.layers.extent.units] == ["millimeter"] * 3
        assert viewer.dims.axis_labels == ("z", "y", "x")

    def test_window_of_the_header_is_the_contrast(self, viewer, oblique_scan):
        assert add(viewer, volume_to_layer(oblique_scan)).contrast_limits == [0, 1000]

    def test_percentiles_are_the_contrast_without_a_window(self, viewer):
        ramp = Volume(np.linspace(0, 1000, 101 * 101).reshape(101, 101), "yx")
        low, high = add(viewer, volume_to_layer(ramp)).contrast_limits
        assert low == pytest.approx(5, abs=0.5)
        assert high == pytest.approx(998, abs=0.5)

    @pytest.mark.parametrize("value", [0, 7, -3])
    def test_constant_image_has_a_contrast(self, viewer, value):
        low, high = add(viewer, volume_to_layer(Volume(np.full((4, 4), value), "yx"))).contrast_limits
        assert low == value
        assert high > low

    def test_image_of_nan_has_a_contrast(self, viewer):
        assert add(viewer, volume_to_layer(Volume(np.full((4, 4), np.nan), "yx"))).contrast_limits == [0, 1]

    def test_lazy_volume_decodes_three_planes(self):
        decoded = []

        def plane(block_info=None):
            decoded.append(block_info[None]["chunk-location"][0])
            return np.full((1, 8, 8), decoded[-1], np.int16)

        lazy = da.map_blocks(plane, chunks=((1,) * 9, 8, 8), dtype=np.int16, meta=np.empty((0, 0, 0), np.int16))
        decoded.clear()
        data, _, kind = volume_to_layer(Volume(lazy, "zyx", units="mm"))
        assert kind == "image"
        assert data is lazy
        assert sorted(decoded) == [2, 4, 6]

    def test_oblique_scan_is_shown_straight_and_without_a_warning(self, viewer, oblique_scan):
        layer = add(viewer, volume_to_layer(oblique_scan))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            viewer.dims.set_point(0, float(viewer.dims.range[0].start) + 8)
        np.testing.assert_allclose(layer.scale, (4, 1.5, 2))
        np.testing.assert_allclose(layer.affine.affine_matrix, np.eye(4))
        middle = (np.array(oblique_scan.shape) - 1) / 2
        np.testing.assert_allclose(layer.data_to_world(middle), index_to_world(oblique_scan.affine, middle))

    def test_volume_comes_back(self, viewer, oblique_scan):
        back = layer_to_volume(add(viewer, volume_to_layer(oblique_scan)))
        assert back is oblique_scan

    def test_stored_order_of_axes_is_turned_to_the_patients(self, viewer):
        # sagittal: array axes run to the right, down and back
        affine = np.array([[0, -1, 0, 40], [0, 0, 2, -5], [-3, 0, 0, 30], [0, 0, 0, 1]], float)
        scan = Volume(np.arange(24).reshape(2, 3, 4), "zyx", affine, "mm")
        layer = add(viewer, volume_to_layer(scan))
        assert layer.data.shape == (3, 4, 2)
        np.testing.assert_allclose(layer.scale, (1, 2, 3))
        # voxel (1, 2, 3) as stored lies at world (38, 1, 27)
        viewer.dims.set_point(0, 38)
        assert layer.get_value((38, 1, 27), world=True) == scan.array[1, 2, 3]

    def test_colour(self, viewer):
        layer = add(viewer, volume_to_layer(Volume(np.zeros((6, 7, 3), np.uint8), "yxs", units="um")))
        assert layer.rgb
        assert layer.ndim == 2
        assert layer.axis_labels == ("y", "x")
        assert layer_to_volume(layer).axes == "yxs"

    @pytest.mark.parametrize("slices", [3, 4])
    def test_few_sagittal_slices_are_no_colour(self, viewer, slices, provenance):
        scan = Volume(np.zeros((40, 50, slices), np.uint8), "zyx", units="mm")
        layer = add(viewer, volume_to_layer(scan))
        assert (layer.rgb, layer.ndim) == (False, 3)
        heat = Heatmap(scan.replace(array=scan.array.astype(np.float32)), "noise", "occlusion", provenance)
        assert add(viewer, result_to_layers(heat, layer)[0]).ndim == 3

    def test_series_in_time(self, viewer, oblique_affine):
        series = Volume(np.zeros((2, 3, 4, 5)), "tzyx", oblique_affine, "mm", "MR")
        layer = add(viewer, volume_to_layer(series))
        assert layer.axis_labels == ("t", "z", "y", "x")
        assert [str(u) for u in layer.units] == ["pixel", "millimeter", "millimeter", "millimeter"]
        np.testing.assert_allclose(layer.scale, (1, 4, 1.5, 2))
        assert layer_to_volume(layer) is not None

    def test_channels_become_layers(self, viewer):
        pixels = np.stack([np.eye(5), np.eye(5) * 100])
        layers = [add(viewer, d) for d in volume_to_layers(Volume(pixels, "cyx", units="um", name="cells"))]
        assert [x.name for x in layers] == ["cells c0", "cells c1"]
        assert [x.colormap.name for x in layers] == ["magenta", "green"]
        np.testing.assert_array_equal(layer_to_volume(layers[1]).array, pixels[1])

    def test_whole_numbers_marked_as_labels(self, viewer):
        meta = {"is_labels": True, "label_names": {1: "liver"}, "label_colors": {1: (1.0, 0.0, 0.0)}}
        layer = add(viewer, volume_to_layer(Volume(np.eye(4, dtype=np.uint8), "yx", units="mm", meta=meta)))
        assert type(layer).__name__ == "Labels"
        assert layer.features["name"].tolist() == ["liver"]
        np.testing.assert_allclose(layer.get_color(1), (1, 0, 0, 1))
        assert layer_to_volume(layer).meta["label_names"] == {1: "liver"}

    def test_read_only_labels_can_be_painted(self, viewer):
        pixels = np.zeros((5, 5), np.uint8)
        pixels.setflags(write=False)
        layer = add(viewer, volume_to_layer(Volume(pixels, "yx", meta={"is_labels": True})))
        layer.data_setitem((np.array([1]), np.array([2])), 3)
        assert layer_to_volume(layer).array[1, 2] == 3

    def test_sagittal_slice_is_shown_in_its_own_plane(self, viewer):
        # rows run back, columns run down, at x = 12
        affine = np.array([[0, -2, 0, 50], [0, 0, 1, -30], [1, 0, 0, 12], [0, 0, 0, 1]], float)
        single = Volume(np.zeros((4, 6)), "yx", affine, "mm", "MR")
        layer = add(viewer, volume_to_layer(single))
        np.testing.assert_allclose(layer.scale, (2, 1))
        np.testing.assert_allclose(layer.translate, (-50, -30))
        assert layer_to_volume(layer) is single

    def test_axial_slice_falls_on_an_axial_volume(self, viewer):
        volume = Volume(np.zeros((3, 4, 5)), "zyx", scaling((5, 2, 3), (-10, 20, 30)), "mm")
        layers = [add(viewer, volume_to_layer(v)) for v in (volume, volume.take("z", 1))]
        np.testing.assert_allclose(layers[0].translate[1:], layers[1].translate)


class TestSeriesOfOneStudy:
    def test_parallel_series_coincide(self, viewer, oblique_scan):
        thick = oblique_scan.replace(
            affine=oblique_scan.affine @ scaling((2, 1, 1), (1.5, 4, 5)), array=np.zeros((3, 9, 8)), name="6_t2"
        )
        first = add(viewer, volume_to_layer(oblique_scan.replace(meta={"frame_of_reference_uid": "1.2"})))
        thick = thick.replace(meta={"frame_of_reference_uid": "1.2"})
        second = add(viewer, volume_to_layer(thick, to_world=shared_space(thick, [record(first)])))
        # voxel (1, 2, 3) of the second is (1.5 + 2, 4 + 2, 5 + 3) of the first
        np.testing.assert_allclose(second.data_to_world((1, 2, 3)), first.data_to_world((3.5, 6, 8)))
        np.testing.assert_allclose(layer_to_volume(second).affine, thick.affine)

    def test_who_shares_a_space(self, viewer, oblique_scan):
        one, two = ({"frame_of_reference_uid": uid} for uid in ("1.2", "1.3"))
        shown = [record(add(viewer, volume_to_layer(oblique_scan.replace(meta=one))))]
        small = oblique_scan.replace(
            affine=oblique_scan.affine @ scaling((1, 1, 1), (1, 2, 3)), array=np.zeros((2, 2, 2))
        )
        far = small.replace(affine=oblique_scan.affine @ scaling((1, 1, 1), (9, 0, 0)))
        assert shared_space(small.replace(meta=one), shown) is not None
        assert shared_space(far.replace(meta=one), shown) is not None
        assert shared_space(small.replace(meta=two), shown) is None
        assert shared_space(small, shown) is not None
        assert shared_space(far, shown) is None
        assert shared_space(small.replace(units="um"), shown) is None

    def test_tilted_series_share_the_axes_of_the_first(self, viewer, oblique_scan):
        first = add(viewer, volume_to_layer(oblique_scan))
        # a ramp along the patient's y
        ramp = np.broadcast_to(-100.0 + np.arange(60)[:, None], (60, 60, 70))
        straight = oblique_scan.replace(affine=scaling((2, 1, 1), (-30, -100, 30)), array=ramp, name="ramp")
        way = record(first)["to_world"]
        second = add(viewer, volume_to_layer(straight, to_world=way))
        place = np.array(first.data_to_world((3, 9, 8)))
        viewer.dims.set_point(range(3), place)
        shown = second.get_value(place, world=True)
        voxel = np.array(second.world_to_data(place))
        lie = index_to_world(way, second.data_to_world(np.round(voxel)))
        assert shown == pytest.approx(lie[1], abs=1e-3)
        assert np.abs(lie - index_to_world(oblique_scan.affine, (3, 9, 8))).max() < np.linalg.norm(second.scale) / 2
        assert layer_to_volume(second) is straight or layer_to_volume(second).grid.same_place(straight.grid)
        assert layer_to_volume(second).array is ramp

    def test_mask_of_the_same_voxels_falls_on_its_scan(self, viewer, oblique_scan):
        # the scan itself was shown beside another one
        way = scaling((1, 1, 1), (0, 0, 9)) @ oblique_scan.affine @ np.diag([1 / 4, 1 / 1.5, 1 / 2, 1])
        scan = add(viewer, volume_to_layer(oblique_scan, to_world=way))
        mask = oblique_scan.replace(array=np.zeros(oblique_scan.shape, np.uint8), meta={"is_labels": True})
        layer = add(viewer, volume_to_layer(mask, to_world=shared_space(mask, [record(scan)])))
        np.testing.assert_allclose(layer.data_to_world((1, 2, 3)), scan.data_to_world((1, 2, 3)))


class TestResults:
    def test_mask_lies_on_its_scan(self, viewer, oblique_scan, provenance):
        scan = add(viewer, volume_to_layer(oblique_scan))
        labels = oblique_scan.replace(array=(oblique_scan.array > 900).astype(np.uint8), name="5_t1 brain")
        table = {
            "index": np.array([0]),
            "label": np.array(["brain"], dtype=object),
            "score": np.ones(1),
            "volume_ml": np.array([1.5]),
        }
        mask = Mask(labels, provenance, {1: "brain"}, {1: (0.0, 1.0, 0.0)}, table)
        (data,) = result_to_layers(mask, scan)
        layer = add(viewer, data)
        assert (layer.name, type(layer).__name__) == ("5_t1 brain", "Labels")
        np.testing.assert_allclose(layer.data_to_world((1, 2, 3)), scan.data_to_world((1, 2, 3)))
        assert layer.units == scan.units
        assert layer.features.to_dict("list") == {"index": [1], "name": ["brain"], "volume_ml": [1.5]}
        assert layer.get_color(1)[:3].tolist() == [0, 1, 0]
        assert layer.metadata["medai"]["provenance"]["model"] == "brain"
        np.testing.assert_allclose(layer_to_volume(layer).affine, oblique_scan.affine)

    def test_painting_leaves_the_result_alone(self, viewer, slide, provenance):
        labels = slide.replace(array=np.zeros(slide.shape, np.int32))
        layer = add(viewer, result_to_layers(Mask(labels, provenance), slide)[0])
        layer.data_setitem((np.array([1]), np.array([2])), 3)
        assert labels.array.max() == 0
        assert layer_to_volume(layer).array.max() == 3

    def test_result_follows_a_layer_that_was_moved(self, viewer, oblique_scan, provenance):
        scan = add(viewer, volume_to_layer(oblique_scan))
        scan.translate = scan.translate + 7
        heat = Heatmap(oblique_scan.replace(array=oblique_scan.array / 2000), "noise", "gradcam++", provenance)
        layer = add(viewer, result_to_layers(heat, scan)[0])
        np.testing.assert_allclose(layer.data_to_world((1, 2, 3)), scan.data_to_world((1, 2, 3)))
        assert layer.name == "5_t1 noise (gradcam++)"
        assert layer.contrast_limits == [0, 1]
        assert layer.colormap.map([0.0, 1.0])[:, 3].tolist() == [0, 1]

    def test_denoised_has_the_contrast_of_the_scan(self, viewer, oblique_scan, provenance):
        scan = add(viewer, volume_to_layer(oblique_scan))
        scan.contrast_limits = (10, 500)
        layer = add(viewer, result_to_layers(Denoised(oblique_scan.replace(name="clean"), provenance), scan)[0])
        assert layer.contrast_limits == [10, 500]

    def test_boxes_of_an_image_are_rectangles(self, viewer, slide, provenance):
        scan = add(viewer, volume_to_layer(slide))
        centres, sizes = np.array([[0, 15.0, 20.0], [0, 30.0, 8.0]]), np.array([[1, 4.0, 6.0], [1, 2.0, 2.0]])
        boxes = Boxes(centres, sizes, ("micronucleus",) * 2, np.array([0.9, 0.6]), 2, slide.grid, provenance)
        layer = add(viewer, result_to_layers(boxes, scan)[0])
        assert type(layer).__name__ == "Shapes"
        assert layer.data[0].min(axis=0).tolist() == [13, 17]
        assert layer.data[0].max(axis=0).tolist() == [17, 23]
        np.testing.assert_allclose(layer.data_to_world((13, 17)), scan.data_to_world((13, 17)))
        assert layer.features["score"].tolist() == [0.9, 0.6]
        assert layer.units == scan.units

    def test_boxes_of_a_volume_are_spheres_of_their_diameter(self, viewer, oblique_scan, provenance):
        scan = add(viewer, volume_to_layer(oblique_scan))
        # 2 x 4 mm, 4 x 1.5 mm and 5 x 2 mm: 8 mm on average
        boxes = Boxes(
            np.array([[2.5, 7, 9]]),
            np.array([[2, 4, 5.0]]),
            ("lesion",),
            np.array([0.8]),
            3,
            oblique_scan.grid,
            provenance,
        )
        layer = add(viewer, result_to_layers(boxes, scan)[0])
        assert type(layer).__name__ == "Points"
        np.testing.assert_allclose(layer.data_to_world(layer.data[0]), scan.data_to_world((2.5, 7, 9)))
        assert layer.size[0] * layer.scale[0] == pytest.approx(8)
        assert len(set(layer.scale)) == 1
        np.testing.assert_allclose(
            layer.features[["z_mm", "y_mm", "x_mm"]].to_numpy()[0], index_to_world(oblique_scan.affine, (2.5, 7, 9))
        )

    def test_spheres_show_in_every_slice_they_touch(self, viewer, provenance):
        scan = Volume(np.zeros((9, 9, 9)), "zyx", scaling((2, 1, 1)), "mm")
        centres = np.array([[4.0, 4, 4], [1.4, 4, 4]])
        # diameters of 6 mm and of 1 mm, which is less than a slice
        sizes = np.array([[3, 6, 6.0], [0.5, 1, 1]])
        boxes = Boxes(centres, sizes, ("a", "b"), np.ones(2), 3, scan.grid, provenance)
        image = add(viewer, volume_to_layer(scan))
        layer = add(viewer, result_to_layers(boxes, image)[0])
        seen = {0: [], 1: []}
        for k in range(9):
            viewer.dims.set_point(0, 2.0 * k)
            for n in layer._view_indices:
                seen[n].append(k)
        # the first at 8 mm with a radius of 3 mm, the second at 2.8 mm: nearest is slice 1
        assert seen == {0: [3, 4, 5], 1: [1]}
        assert viewer.dims.margin_left == (0, 0, 0)

    @pytest.mark.parametrize("ndim", [2, 3])
    def test_nothing_found(self, viewer, oblique_scan, slide, provenance, ndim):
        scan = slide if ndim == 2 else oblique_scan
        none = Boxes(np.zeros((0, 3)), np.zeros((0, 3)), (), np.zeros(0), ndim, scan.grid, provenance)
        layer = add(viewer, result_to_layers(none, add(viewer, volume_to_layer(scan)))[0])
        assert len(layer.data) == 0
        assert layer.ndim == ndim
        assert [str(u) for u in layer.units] == ["millimeter" if ndim == 3 else "micrometer"] * ndim

    def test_scores_have_no_layer(self, oblique_scan, provenance):
        one, none = np.ones(1), np.zeros(0)
        scores = Scores(("a",), one, none.astype(int), np.zeros((0, 1)), none, one, oblique_scan.grid, provenance)
        assert result_to_layers(scores, oblique_scan) == []

    def test_result_of_a_volume_that_has_no_layer(self, viewer, provenance):
        affine = np.array([[0, -1, 0, 40], [0, 0, 2, -5], [-3, 0, 0, 30], [0, 0, 0, 1]], float)
        scan = Volume(np.arange(24).reshape(2, 3, 4), "zyx", affine, "mm")
        layer = add(viewer, volume_to_layer(scan))
        mask = add(viewer, result_to_layers(Mask(scan.replace(name="m"), provenance), scan)[0])
        np.testing.assert_array_equal(mask.data, layer.data)
        np.testing.assert_allclose(mask.data_to_world((1, 1, 1)), layer.data_to_world((1, 1, 1)))
        boxes = Boxes(np.array([[1, 2, 3.0]]), np.ones((1, 3)), ("a",), np.ones(1), 3, scan.grid, provenance)
        points = add(viewer, result_to_layers(boxes, scan)[0])
        # voxel (1, 2, 3) as stored lies at world (38, 1, 27)
        np.testing.assert_allclose(points.data_to_world(points.data[0]), (38, 1, 27))


def test_picture(make_napari_viewer, oblique_scan, provenance):
    viewer = make_napari_viewer(show=True)
    if not viewer.window._qt_viewer.canvas._scene_canvas.context.config:
        pytest.skip("no OpenGL here")
    bright = oblique_scan.replace(array=np.full(oblique_scan.shape, 400, np.float32))
    scan = add(viewer, volume_to_layer(bright))
    labels = np.zeros(scan.data.shape, np.uint8)
    labels[:, :10] = 1
    mask = Mask(bright.replace(array=labels), provenance, {1: "front"}, {1: (1.0, 0.0, 0.0)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = add(viewer, result_to_layers(mask, scan)[0])
        picture = viewer.screenshot(canvas_only=True, flash=False)
    layer.opacity = 1
    height, width = picture.shape[:2]
    upper, lower = picture[int(height * 0.4), width // 2], picture[int(height * 0.6), width // 2]
    assert upper[0] > upper[1] + 50  # red over grey
    assert abs(int(lower[0]) - int(lower[1])) <= 1  # grey
