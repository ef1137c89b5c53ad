"""Objects that come with a scan, opened in a viewer: segmentations, overlays, pyramids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from napari.components import ViewerModel
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

import napari_medai as medai
from napari_medai.core.geometry import index_to_world, scaling
from napari_medai.core.result import Mask
from napari_medai.core.volume import Volume
from napari_medai.ui.layers import layer_to_volume, volume_to_layers
from napari_medai.ui.reslicing import PaintedView

SPACE, STUDY = generate_uid(), generate_uid()


def write_series(folder: Path, angles, number: int, overlay: bool = False) -> Path:
    """A CT of 8 slices of 12 x 16 pixels, 3 x 1 x 1.5 mm, turned about the patient's axes (degrees)."""
    folder.mkdir()
    turn = Rotation.from_euler("XYZ", angles, degrees=True).as_matrix()  # columns: z, y, x of the scan
    uid = generate_uid()
    for n in range(8):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Doe^Jane", "ID-4711", "", ""
        ds.StudyInstanceUID, ds.FrameOfReferenceUID, ds.SeriesInstanceUID = STUDY, SPACE, uid
        ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.StudyID = "20200101", "120000", "", "1"
        ds.ReferringPhysicianName, ds.Manufacturer, ds.PositionReferenceIndicator = "", "", ""
        ds.Modality, ds.SeriesNumber, ds.SeriesDescription, ds.InstanceNumber = "CT", number, "Chest", n + 1
        position = turn @ (3.0 * (n - 3.5), -5.5, -11.25)
        ds.ImagePositionPatient = [round(float(x), 6) for x in position[::-1]]
        ds.ImageOrientationPatient = [round(float(x), 8) for x in (*turn[::-1, 2], *turn[::-1, 1])]
        ds.PixelSpacing, ds.SliceThickness = [1, 1.5], 3
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
        ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 12, 16, 16, 12, 11
        ds.PixelData = np.full((12, 16), 10 * n, np.uint16).tobytes()
        if overlay:
            drawn = np.zeros((12, 16), np.uint8)
            drawn[2, 3:7] = n == 4
            ds[0x6000, 0x10] = pydicom_element(0x60000010, "US", 12)
            ds[0x6000, 0x11] = pydicom_element(0x60000011, "US", 16)
            ds[0x6000, 0x40] = pydicom_element(0x60000040, "CS", "G")
            ds[0x6000, 0x50] = pydicom_element(0x60000050, "SS", [1, 1])
            ds[0x6000, 0x100] = pydicom_element(0x60000100, "US", 1)
            ds[0x6000, 0x102] = pydicom_element(0x60000102, "US", 0)
            ds[0x6000, 0x3000] = pydicom_element(
                0x60003000, "OW", np.packbits(drawn.ravel(), bitorder="little").tobytes()
            )
        ds.save_as(folder / f"{n}.dcm", enforce_file_format=True)
    return folder


def pydicom_element(tag, vr, value):
    from pydicom.dataelem import DataElement

    return DataElement(tag, vr, value)


def add(viewer, volume):
    return [viewer._add_layer_from_data(*data)[0] for data in volume_to_layers(volume)]


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("angles", [(0, 0, 0), (5, 25, 11)])
def test_a_segmentation_lies_on_its_scan(make_napari_viewer, tmp_path, provenance, angles, slices):
    viewer = make_napari_viewer()
    straight = write_series(tmp_path / "straight", (0, 0, 0), 1)
    scan = medai.open(write_series(tmp_path / "scan", angles, 2))
    labels = np.zeros(scan.shape, np.uint8)
    labels[3 : 3 + slices, 4:8, 5:9] = 1
    path = tmp_path / "seg.dcm"
    medai.save(Mask(scan.replace(array=labels, name="seg"), provenance, {1: "lesion"}, {1: (1.0, 0.0, 0.0)}), path)
    viewer.open(str(straight), plugin="napari-medai")
    (image,) = viewer.open(str(tmp_path / "scan"), plugin="napari-medai")
    (layer,) = viewer.open(str(path), plugin="napari-medai")
    assert isinstance(layer.data, PaintedView) == any(angles)
    place = index_to_world(scan.affine, (3, 5.4, 6.4))
    viewer.dims.set_point(range(3), place)
    assert layer.get_value(place, world=True) == 1
    assert image.get_value(place, world=True) == pytest.approx(30, abs=2)
    volume = layer_to_volume(layer)
    found = index_to_world(volume.affine, np.argwhere(volume.numpy() == 1).mean(axis=0))
    np.testing.assert_allclose(found, index_to_world(scan.affine, (2.5 + slices / 2, 5.5, 6.5)), atol=1e-3)


def test_overlays_are_labels_on_the_image(make_napari_viewer, tmp_path):
    viewer = make_napari_viewer()
    layers = viewer.open(str(write_series(tmp_path / "scan", (0, 0, 0), 1, overlay=True)), plugin="napari-medai")
    assert [type(layer).__name__ for layer in layers] == ["Image", "Labels"]
    drawn = np.asarray(layers[1].data)
    assert np.argwhere(drawn).tolist() == [[4, 2, 3], [4, 2, 4], [4, 2, 5], [4, 2, 6]]
    np.testing.assert_allclose(layers[1].data_to_world((4, 2, 3)), layers[0].data_to_world((4, 2, 3)))


def test_segments_that_overlap_are_layers():
    pixels = np.zeros((2, 3, 4, 5), np.uint8)
    pixels[0, 1], pixels[1, 1:] = 3, 7
    meta = {
        "is_labels": True,
        "label_names": {3: "liver", 7: "tumour"},
        "label_colors": {3: (1.0, 0.0, 0.0), 7: (0.0, 1.0, 0.0)},
        "axis_t": {"name": "segment", "unit": "", "values": (3.0, 7.0)},
    }
    layers = add(ViewerModel(), Volume(pixels, "tzyx", scaling((2, 1, 1)), "mm", "SEG", "9_seg", meta))
    assert [layer.name for layer in layers] == ["9_seg liver", "9_seg tumour"]
    assert [layer.data.shape for layer in layers] == [(3, 4, 5)] * 2
    assert [int(layer.data.max()) for layer in layers] == [3, 7]
    assert layers[1].features["name"].tolist() == ["tumour"]
    np.testing.assert_allclose(layers[1].get_color(7), (0, 1, 0, 1))
    assert layer_to_volume(layers[0]).axes == "zyx"


def test_a_pyramid_has_its_levels():
    levels = tuple(np.full((64 // s, 64 // s, 3), s, np.uint8) for s in (1, 4))
    volume = Volume(levels[0], "yxs", scaling((1, 0.5, 0.5)), "um", "SM", "slide", {"levels": levels})
    (layer,) = add(ViewerModel(), volume)
    assert layer.multiscale
    assert layer.rgb
    assert [level.shape for level in layer.data] == [(64, 64, 3), (16, 16, 3)]
    assert layer_to_volume(layer).array is levels[0]


def test_channels_of_a_pyramid():
    levels = tuple(np.stack([np.full((64 // s, 64 // s), 10 * s), np.full((64 // s, 64 // s), 20 * s)]) for s in (1, 4))
    volume = Volume(levels[0], "cyx", scaling((1, 0.5, 0.5)), "um", "SM", "slide", {"levels": levels})
    layers = add(ViewerModel(), volume)
    assert [[int(level.max()) for level in layer.data] for layer in layers] == [[10, 40], [20, 80]]
    assert [layer_to_volume(layer).shape for layer in layers] == [(64, 64)] * 2


def test_an_image_of_one_slice_lies_on_its_slice(make_napari_viewer, tmp_path):
    viewer = make_napari_viewer()
    folder = write_series(tmp_path / "scan", (0, 0, 0), 1)
    single = write_series(tmp_path / "single", (0, 0, 0), 2)
    across = write_series(tmp_path / "across", (0, 0, 90), 3)
    for other in (single, across):
        for n in (0, 1, 2, 4, 5, 6, 7):
            (other / f"{n}.dcm").unlink()
    viewer.open(str(folder), plugin="napari-medai")
    (layer,) = viewer.open(str(single), plugin="napari-medai")
    assert layer.data.shape == (1, 12, 16)
    np.testing.assert_allclose(layer.data_to_world((0, 0, 0)), (-1.5, -5.5, -11.25))
    (localizer,) = viewer.open(str(across), plugin="napari-medai")
    assert localizer.data.shape == (12, 16)


def test_a_segmentation_of_some_slices_can_be_corrected_on_all(make_napari_viewer, tmp_path):
    folder = write_series(tmp_path / "ct", (20, 0, 0), 1)
    scan = medai.open(folder)
    drawn = np.zeros(scan.shape, np.uint8)
    drawn[3:5, 4:8, 5:9] = 1
    path = medai.save(medai.labels(drawn, scan, {1: "Liver"}), tmp_path / "seg.dcm")
    assert medai.open(path).size("z") < 8
    viewer = make_napari_viewer()
    viewer.open(str(folder), plugin="napari-medai")
    layer = viewer.open(str(path), plugin="napari-medai")[0]
    np.testing.assert_array_equal(np.asarray(layer.data), drawn)
    np.testing.assert_allclose(layer.extent.world, viewer.layers[0].extent.world, atol=1e-3)
    layer.data_setitem((np.array([0]), np.array([2]), np.array([3])), 1)
    drawn[0, 2, 3] = 1
    saved = layer_to_volume(layer)
    np.testing.assert_array_equal(np.asarray(saved.array), drawn)
    np.testing.assert_allclose(saved.affine, scan.affine, atol=1e-6)
