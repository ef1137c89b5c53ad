"""Surfaces: closed, outward, in LPS millimetres, as large as the labels."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

import napari_medai as medai
from napari_medai.core.errors import WriteError
from napari_medai.core.geometry import index_to_world
from napari_medai.core.result import Mask
from napari_medai.core.volume import Volume
from napari_medai.io.surface import read_surfaces, surfaces_of
from napari_medai.io.verify import check, verify

BALL = np.linalg.norm(np.indices((25, 25, 25)) - 12, axis=0) <= 10


@pytest.fixture
def mask(oblique_affine, provenance) -> Mask:
    labels = np.zeros((25, 25, 30), np.uint8)
    labels[:, :, 4:29][BALL] = 1
    labels[0:2, 0:3, 0:4] = 2  # touches the border
    return Mask(Volume(labels, "zyx", oblique_affine, "mm"), provenance, {1: "ball of wool", 2: "box"})


def test_volume_and_centre_of_a_ball(mask):
    ball, box = surfaces_of(mask.labels, mask.names)
    voxels = int(BALL.sum()) * mask.grid.voxel_volume
    # the surface cuts the corners of voxels: 1 % of a ball of 20 voxels across
    assert ball.volume == pytest.approx(voxels, rel=0.01)
    np.testing.assert_allclose(
        ball.vertices.mean(axis=0)[::-1], index_to_world(mask.grid.affine, (12, 12, 16)), atol=0.01
    )
    assert ball.is_closed
    assert box.is_closed
    assert 0 < box.volume < 24 * mask.grid.voxel_volume


@pytest.mark.parametrize("mirrored", [False, True])
def test_sheared_and_mirrored_grids_face_outwards(mask, mirrored):
    affine = np.array(mask.grid.affine)
    affine[:3, 0] += 0.6 * affine[:3, 1]  # a tilted gantry
    if mirrored:
        affine[:3, 2] *= -1
    ball = next(surfaces_of(mask.labels.replace(affine=affine)))
    assert ball.volume == pytest.approx(BALL.sum() * abs(np.linalg.det(affine[:3, :3])), rel=0.01)


@pytest.mark.parametrize("suffix", [".stl", ".obj"])
def test_other_software_reads_it(mask, tmp_path, suffix):
    path = medai.save(mask, tmp_path / f"m{suffix}")
    assert b"SPACE=LPS" in path.read_bytes()[:80]
    mesh = trimesh.load(path, force="mesh")
    assert mesh.is_watertight
    ours = [s.volume for s in surfaces_of(mask.labels)]
    assert mesh.volume == pytest.approx(sum(ours), rel=1e-3)
    low = np.concatenate([s.vertices for s in surfaces_of(mask.labels)]).min(axis=0)
    np.testing.assert_allclose(mesh.bounds[0], low, atol=1e-3)


@pytest.mark.parametrize("suffix", [".stl", ".obj"])
def test_labels_are_told_apart(mask, tmp_path, suffix):
    ball, box = read_surfaces(medai.save(mask, tmp_path / f"m{suffix}"))
    assert (ball.value, box.value) == (1, 2)
    if suffix == ".obj":
        assert (ball.name, box.name) == ("ball_of_wool", "box")
    assert verify(tmp_path / f"m{suffix}").ok


@pytest.mark.parametrize("suffix", [".stl", ".obj"])
def test_a_surface_elsewhere_is_refused(mask, tmp_path, suffix):
    path = medai.save(mask, tmp_path / f"m{suffix}")
    for wrong in (
        mask.labels.replace(affine=mask.grid.affine + 0.2 * np.eye(4, k=3)),
        mask.labels.replace(array=mask.labels.array[::-1]),
        mask.labels.replace(array=mask.labels.array.clip(0, 1)),
        mask.labels.replace(array=np.array([0, 2, 1], np.uint8)[mask.labels.array]),
    ):
        with pytest.raises(WriteError, match="not what was saved"):
            check(wrong, path)


def test_nothing_to_draw(mask, oblique_scan, tmp_path):
    with pytest.raises(WriteError, match="segment the image first"):
        medai.save(oblique_scan, tmp_path / "a.stl")
    empty = mask.labels.replace(array=mask.labels.array * 0, meta={"is_labels": True})
    with pytest.raises(WriteError, match="no voxel is labelled"):
        medai.save(empty, tmp_path / "a.obj")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".stl", ".obj"])
def test_against_other_files(mask, tmp_path, suffix):
    path = medai.save(mask, tmp_path / f"a{suffix}")
    assert verify(path).ok
    labels = medai.save(mask, tmp_path / "labels.nii.gz")
    report = verify(path, labels)
    assert report.ok
    assert report.checks[0].what == "a surface for each label"
    moved = mask.labels.affine.copy()
    moved[:3, 3] += moved[:3, 0]
    other = medai.save(mask.labels.replace(affine=moved, meta={"is_labels": True}), tmp_path / "other.nii.gz")
    assert any("lies on its voxels" in fault for fault in verify(path, other).faults)
    image = mask.labels.replace(array=np.zeros(mask.labels.shape, np.float32), meta={})
    assert verify(path, medai.save(image, tmp_path / "scan.nii.gz")).ok
    moved[:3, 3] += 100 * moved[:3, 0]
    away = verify(path, medai.save(image.replace(affine=moved), tmp_path / "away.nii.gz"))
    assert away.faults == ("inside the scan's field of view: 0.0% of the vertices",)
