"""Layers saved from the viewer keep their place in the patient."""

from __future__ import annotations

import csv

import nibabel
import numpy as np
import pytest
from napari.layers import Layer

import napari_medai as medai
from napari_medai.core.errors import WriteError
from napari_medai.core.geometry import index_to_world, to_ras
from napari_medai.core.result import Boxes, Mask
from napari_medai.io.surface import read_surfaces
from napari_medai.io.verify import verify
from napari_medai.ui import scans
from napari_medai.ui.layers import result_to_layers, volume_to_layer
from napari_medai.ui.scans import layer_to_volume
from napari_medai.ui.writers import points_table, save_layer, shapes_table, write_image, write_labels


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def layer_of(data):
    return Layer.create(*data)


def test_viewer_saves_painted_labels_in_the_patients_place(make_napari_viewer, tmp_path, oblique_scan):
    viewer = make_napari_viewer()
    viewer._add_layer_from_data(*volume_to_layer(oblique_scan))
    viewer._new_labels()
    viewer.layers[-1].data_setitem(tuple(np.array([[1], [2], [3]])), 1)
    path = tmp_path / "painted.nii.gz"
    assert viewer.layers[-1].save(str(path), plugin="napari-medai") == [str(path)]
    stored = nibabel.load(path)
    np.testing.assert_allclose(stored.affine @ [3, 2, 1, 1], to_ras(oblique_scan.affine) @ [3, 2, 1, 1], atol=1e-4)
    assert np.asarray(stored.dataobj)[3, 2, 1] == 1
    back = medai.open(path)
    assert back.meta["is_labels"]
    assert back.grid.same_place(oblique_scan.grid)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["painted.nii.gz"]


def test_image(tmp_path, oblique_scan):
    path = tmp_path / "scan.nii"
    data, state, _ = layer_of(volume_to_layer(oblique_scan)).as_layer_data_tuple()
    assert write_image(str(path), data, state) == [str(path)]
    back = medai.open(path)
    np.testing.assert_array_equal(back.numpy(), oblique_scan.array)
    assert back.grid.same_place(oblique_scan.grid)


def test_other_formats_of_layers(make_napari_viewer, tmp_path, oblique_scan):
    viewer = make_napari_viewer()
    viewer._add_layer_from_data(*volume_to_layer(oblique_scan))
    viewer._new_labels()
    scan, labels = viewer.layers
    labels.data[1:3, 2:5, 3:6] = 2
    for name in ("a.seg.nrrd", "b.nrrd", "c.stl", "d.obj"):
        path = tmp_path / name
        assert labels.save(str(path)) == [str(path)]
        assert verify(path, expected=layer_to_volume(labels, [scan])).ok
    back = medai.open(tmp_path / "a.seg.nrrd")
    assert back.meta["is_labels"]
    assert back.grid.same_place(oblique_scan.grid)
    np.testing.assert_array_equal(back.numpy(), labels.data)
    (surface,) = read_surfaces(tmp_path / "c.stl")
    assert surface.value == 2
    assert scan.save(str(tmp_path / "scan.nrrd")) == [str(tmp_path / "scan.nrrd")]
    np.testing.assert_array_equal(medai.open(tmp_path / "scan.nrrd").numpy(), oblique_scan.numpy())


def test_what_a_writer_cannot_do_says_what_it_can(tmp_path, oblique_scan):
    data, state, _ = layer_of(volume_to_layer(oblique_scan)).as_layer_data_tuple()
    labels = np.ones(oblique_scan.shape, np.uint8)
    for write, pixels, name, said in (
        (write_image, data, "a.stl", "save it as .nii.gz"),
        (write_image, data, "a.seg.nrrd", r"save the rest as .nrrd or .nii.gz"),
        (write_image, data, "a.mha", r"end the name in one of: .*\.nii\.gz.*\.nrrd"),
        (write_labels, labels, "a.sr.dcm", r"end the name in one of: .*\.seg\.nrrd.*\.stl"),
    ):
        with pytest.raises(WriteError, match=said):
            write(str(tmp_path / name), pixels, state if write is write_image else {})
    assert list(tmp_path.iterdir()) == []


def test_result_carries_its_record_and_colours(tmp_path, oblique_scan, provenance):
    labels = oblique_scan.replace(array=np.ones(oblique_scan.shape, np.uint8))
    mask = Mask(labels, provenance, {1: "brain"}, {1: (1.0, 0.5, 0.0)})
    layer = layer_of(result_to_layers(mask, oblique_scan)[0])
    data, state, _ = layer.as_layer_data_tuple()
    (path,) = write_labels(str(tmp_path / "mask.nii.gz"), data, state)
    meta = medai.open(path).meta
    assert meta["label_names"] == {1: "brain"}
    assert meta["label_colors"] == {1: (1.0, 0.5, 0.0)}
    assert meta["provenance"]["model"] == "brain"
    assert meta["provenance"]["notes"] == []
    layer.data[0, 0, 0] = 0
    save_layer(layer, path, [])
    assert medai.open(path).meta["provenance"]["notes"] == ["edited in the viewer after the run"]


def test_missing_folder_is_said_plainly(tmp_path, slide):
    with pytest.raises(WriteError, match="folder does not exist"):
        save_layer(layer_of(volume_to_layer(slide)), str(tmp_path / "no" / "x.nii"), [])


def test_points_of_a_result(make_napari_viewer, tmp_path, oblique_scan, provenance):
    viewer = make_napari_viewer()
    viewer._add_layer_from_data(*volume_to_layer(oblique_scan))
    boxes = Boxes(
        np.array([[2.5, 7, 9]]), np.array([[2, 4, 5.0]]), ("lesion",), np.array([0.8]), 3, oblique_scan.grid, provenance
    )
    layer = viewer._add_layer_from_data(*result_to_layers(boxes, viewer.layers[0])[0])[0]
    (path,) = layer.save(str(tmp_path / "lesions.csv"), plugin="napari-medai")
    (row,) = rows(path)
    assert (row["index"], row["label"], row["score"]) == ("0", "lesion", "0.8")
    np.testing.assert_allclose([float(row[a]) for a in "zyx"], (2.5, 7, 9), atol=1e-9)
    np.testing.assert_allclose([float(row[f"{a}_mm"]) for a in "zyx"], index_to_world(oblique_scan.affine, (2.5, 7, 9)))
    assert float(row["diameter_mm"]) == pytest.approx(8)


def test_points_set_by_hand_on_a_scan(oblique_scan):
    scan = layer_of(volume_to_layer(oblique_scan))
    place = scan.data_to_world((1, 2, 3))
    points = layer_of(([place], {"units": scan.units, "axis_labels": scan.axis_labels, "size": 6}, "points"))
    table = points_table(points, [scan])
    np.testing.assert_allclose([table[a][0] for a in "zyx"], (1, 2, 3), atol=1e-9)
    np.testing.assert_allclose(
        [table[f"{a}_mm"][0] for a in "zyx"], index_to_world(oblique_scan.affine, (1, 2, 3)), atol=1e-9
    )
    assert table["diameter_mm"].tolist() == [6]


def test_points_without_a_scan():
    table = points_table(layer_of((np.array([[3, 4.0]]), {"scale": (0.5, 0.5), "units": ("um", "um")}, "points")), [])
    assert list(table) == ["index", "y", "x", "y_um", "x_um", "diameter_um"]
    assert [table[c][0] for c in ("y", "x", "y_um", "x_um", "diameter_um")] == [3, 4, 1.5, 2, 5]


def test_shapes_of_a_result(make_napari_viewer, tmp_path, slide, provenance):
    viewer = make_napari_viewer()
    viewer._add_layer_from_data(*volume_to_layer(slide))
    boxes = Boxes(
        np.array([[0, 15.0, 20.0]]), np.array([[1, 4.0, 6.0]]), ("mn",), np.array([0.9]), 2, slide.grid, provenance
    )
    layer = viewer._add_layer_from_data(*result_to_layers(boxes, viewer.layers[0])[0])[0]
    (path,) = layer.save(str(tmp_path / "mn.csv"), plugin="napari-medai")
    (row,) = rows(path)
    assert (row["label"], row["score"], row["shape"]) == ("mn", "0.9", "rectangle")
    assert [float(row[c]) for c in ("y", "x", "y_um", "x_um", "size_y_um", "size_x_um")] == [15, 20, 7.5, 10, 2, 3]


def test_a_polygon_drawn_by_hand(slide):
    scan = layer_of(volume_to_layer(slide))
    polygon = [[2.0, 2.0], [2.0, 8.0], [6.0, 5.0]]
    shapes = layer_of(([polygon], {"shape_type": "polygon", "units": scan.units, "scale": scan.scale}, "shapes"))
    table = shapes_table(shapes, [scan])
    assert (table["shape"][0], table["y"][0], table["x"][0], table["size_x_um"][0]) == ("polygon", 4, 5, 3)


def test_current_viewer_is_where_the_scan_is_looked_for(make_napari_viewer):
    viewer = make_napari_viewer()
    layer = viewer.add_image(np.zeros((4, 4)))
    assert scans.viewer_layers() == [layer]
