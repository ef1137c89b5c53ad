"""NRRD: positions by hand, 3D Slicer's fields, other readers, damage."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK

import napari_medai as medai
from napari_medai.core.errors import MedaiError, UnsupportedFormatError, WriteError
from napari_medai.core.geometry import index_to_world
from napari_medai.core.result import Mask
from napari_medai.core.volume import Volume

NAMES, COLORS = {2: "heart", 5: "left lung"}, {2: (1.0, 0.5, 0.0), 5: (0.0, 0.25, 1.0)}


@pytest.fixture
def mask(oblique_affine, provenance) -> Mask:
    labels = np.zeros((6, 20, 16), np.int32)
    labels[1:3, 2:5, 3:7] = 2
    labels[4, 10:12, 1:3] = 5
    return Mask(Volume(labels, "zyx", oblique_affine, "mm"), provenance, NAMES, COLORS)


def test_slicers_fields_and_place(mask, tmp_path):
    import nrrd

    path = medai.save(mask, tmp_path / "m.seg.nrrd")
    data, header = nrrd.read(str(path))
    assert data.shape == (16, 20, 6)
    assert header["space"] == "left-posterior-superior"
    assert (header["Segment0_ID"], header["Segment0_Name"]) == ("Segment_2", "heart")
    assert header["Segment0_Color"] == "1 0.5 0"
    assert (header["Segment0_LabelValue"], header["Segment0_Layer"]) == ("2", "0")
    assert header["Segment0_Extent"] == "3 6 2 4 1 2"
    assert header["Segment1_Extent"] == "1 2 10 11 4 4"
    assert header["Segment1_Tags"].startswith("TerminologyEntry:")
    # voxel (i, j, k) = (3, 2, 1) in LPS (x, y, z)
    there = np.array([3, 2, 1]) @ header["space directions"] + header["space origin"]
    np.testing.assert_allclose(there[::-1], index_to_world(mask.grid.affine, (1, 2, 3)))


def test_itk_sees_the_same_voxels(mask, tmp_path):
    image = SimpleITK.ReadImage(str(medai.save(mask, tmp_path / "m.seg.nrrd")))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), mask.labels.array)
    # ITK indexes (i, j, k) and speaks LPS (x, y, z)
    there = image.TransformContinuousIndexToPhysicalPoint((3.0, 2.0, 1.0))
    np.testing.assert_allclose(there[::-1], index_to_world(mask.grid.affine, (1, 2, 3)), atol=1e-6)


@pytest.mark.parametrize("name", ["m.seg.nrrd", "m.nrrd"])
def test_labels_come_back(mask, tmp_path, name):
    volume = medai.open(medai.save(mask, tmp_path / name))
    np.testing.assert_array_equal(volume.numpy(), mask.labels.array)
    np.testing.assert_allclose(volume.affine, mask.grid.affine)
    assert volume.meta["is_labels"]
    assert volume.meta["label_names"] == NAMES
    assert volume.meta["label_colors"] == COLORS
    assert volume.name == "m"


def test_overlapping_segments_are_layers(mask, tmp_path):
    first = (mask.labels.array == 2).astype(np.uint8) * 2
    second = np.roll(first, 1, axis=2) // 2 * 5
    meta = {"is_labels": True, "label_names": NAMES, "axis_t": {"name": "segment", "unit": "", "values": (2, 5)}}
    both = mask.labels.replace(array=np.stack([first, second]), axes="tzyx", meta=meta)
    volume = medai.open(medai.save(both, tmp_path / "o.seg.nrrd"))
    assert volume.axes == "tzyx"
    assert volume.meta["axis_t"]["values"] == (2, 5)
    np.testing.assert_array_equal(volume.numpy(), both.array)
    assert SimpleITK.ReadImage(str(tmp_path / "o.seg.nrrd")).GetNumberOfComponentsPerPixel() == 2


def test_images_and_time(oblique_scan, tmp_path):
    volume = medai.open(medai.save(oblique_scan, tmp_path / "a.nrrd"))
    np.testing.assert_array_equal(volume.numpy(), oblique_scan.array)
    assert (volume.modality, volume.meta["window"]) == ("MR", (0.0, 1000.0))
    series = oblique_scan.replace(array=np.stack([oblique_scan.array, oblique_scan.array * 2]), axes="tzyx")
    again = medai.open(medai.save(series, tmp_path / "b.nrrd"))
    assert again.axes == "tzyx"
    np.testing.assert_array_equal(again.numpy(), series.array)


def test_right_anterior_superior_and_big_endian(tmp_path):
    pixels = np.arange(24, dtype=">i2")
    head = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 2 3 4\n"
        "space directions: (2,0,0) (0,3,0) (0,0,4)\nkinds: domain domain domain\nendian: big\nencoding: raw\n"
        "space origin: (10,20,30)\n\n"
    )
    (tmp_path / "r.nrrd").write_bytes(head.encode() + pixels.tobytes())
    volume = medai.open(tmp_path / "r.nrrd")
    # RAS (10, 20, 30) is world (z, y, x) = (30, -20, -10); x and y run backwards, so it is the last voxel of both
    np.testing.assert_allclose(index_to_world(volume.affine, (0, 2, 1)), (30, -20, -10))
    assert volume.numpy()[0, 2, 1] == 0
    assert volume.numpy()[1, 2, 1] == 6


def test_what_does_not_fit_is_refused(mask, oblique_scan, tmp_path):
    with pytest.raises(WriteError, match="holds labels"):
        medai.save(oblique_scan, tmp_path / "a.seg.nrrd")
    assert not list(tmp_path.iterdir())


def test_damage(mask, tmp_path):
    content = medai.save(mask, tmp_path / "m.nrrd").read_bytes()
    rng = np.random.default_rng(1)
    end = content.index(b"\n\n")
    for n in range(150):
        bad = bytearray(content)
        if n % 3 == 0:
            bad = bad[: int(rng.integers(8, len(bad)))]
        else:
            for at in rng.integers(8, end if n % 3 == 1 else len(bad), 3):
                bad[at] = int(rng.integers(256))
        (tmp_path / "bad.nrrd").write_bytes(bytes(bad))
        try:
            volume = medai.open(tmp_path / "bad.nrrd")
        except MedaiError:
            continue
        assert volume.numpy().size <= 6 * 20 * 16 * 1032


def test_a_header_that_claims_too_much_costs_nothing(tmp_path):
    head = "NRRD0004\ntype: double\ndimension: 3\nsizes: 99999 99999 99999\nencoding: gzip\n\n"
    (tmp_path / "huge.nrrd").write_bytes(head.encode() + b"\x1f\x8b" + b"0" * 100)
    with pytest.raises(MedaiError, match="cut off"):
        medai.open(tmp_path / "huge.nrrd")


def test_pixels_in_another_file(tmp_path):
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 2 3 4\nencoding: raw\ndata file: a.raw\n\n"
    (tmp_path / "a.nrrd").write_text(head)
    with pytest.raises(UnsupportedFormatError, match="another file"):
        medai.open(tmp_path / "a.nrrd")
