"""A head from its MR series to a segmentation, report and contours that other readers find on it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

import napari_medai as medai
from napari_medai.core.geometry import Grid, from_ras, index_to_world, world_to_index
from napari_medai.core.reslice import reslice
from napari_medai.core.volume import Volume
from napari_medai.io.verify import verify

BIN = Path(sys.executable).parent
STEP = (3.0, 2.0, 2.0)


def command(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / name, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120)


def turned(head: Volume) -> Volume:
    """The head on a grid that is turned by 20 degrees about the left-right axis and by 20 about the vertical one."""
    c, s = np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20))
    tilt = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])  # of (z, y, x)
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    shape = (64, 104, 92)
    affine = np.eye(4)
    affine[:3, :3] = turn @ tilt * np.array(STEP)
    middle = index_to_world(head.affine, (np.array(head.shape) - 1) / 2)
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return reslice(head, Grid(shape, affine, "mm"))


@pytest.mark.slow
def test_a_head_is_segmented_from_the_shell(
    tmp_path: Path, write_mr: Callable[[Path, Volume], Path], errors_of: Callable[[Path], list[str]]
) -> None:
    folder = write_mr(tmp_path / "scan", turned(medai.sample("head_mr").canonical()))
    assert errors_of(folder / "0001") == []
    scan = medai.open(folder)
    out = tmp_path / "brain.dcm"
    done = command("medai", "segment", folder, "--model", "brain", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "Head" not in done.stdout + done.stderr
    assert errors_of(out) == []

    # what the API finds, voxel by voxel, as dcmqi reads the file
    mask = medai.segment(scan, "brain")
    expected = mask.labels.numpy() == 1
    brain_ml = expected.sum() * np.prod(STEP) / 1000
    assert 1000 < brain_ml < 2000
    (tmp_path / "itk").mkdir()
    read = command("segimage2itkimage", "--inputDICOM", out, "--outputDirectory", tmp_path / "itk", "-t", "nii")
    assert read.returncode == 0, read.stderr
    (name,) = (tmp_path / "itk").glob("*.nii.gz")
    image = nibabel.load(name)
    there = np.argwhere(np.asarray(image.dataobj).transpose() == 1)
    index = world_to_index(mask.labels.affine, index_to_world(from_ras(image.affine), there))
    # positions are text in the file: a thousandth of a voxel
    assert np.abs(index - np.rint(index)).max() < 1e-2
    found = np.zeros_like(expected)
    found[tuple(np.rint(index).astype(int).T)] = True
    assert 2 * np.count_nonzero(found & expected) / (found.sum() + expected.sum()) == 1.0

    # read back here it lies on the scan
    opened = medai.open(out)
    assert opened.meta["frame_of_reference_uid"] == scan.meta["frame_of_reference_uid"]
    on_scan = reslice(opened, scan.grid, 0).numpy()
    np.testing.assert_array_equal(on_scan == 1, expected)

    report, contours = tmp_path / "brain.sr.dcm", tmp_path / "brain.rtstruct.dcm"
    medai.save(mask, report)
    # the file holds the slices of the brain alone; they are the scan's
    medai.save(opened, contours, against=folder)
    for path in (report, contours):
        assert errors_of(path) == []
        assert verify(path, folder).faults == ()
    done = command("medai", "verify", out, "--against", folder, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {check["what"] for check in json.loads(done.stdout)["checks"] if check["ok"]}
    assert checks >= {"patient of the scan", "refers to the scan's instances", "frame of reference of the scan"}
    names = {str(r.ROIName) for r in pydicom.dcmread(contours).StructureSetROISequence}
    assert names == {"brain"}
    np.testing.assert_array_equal(medai.open(contours).numpy() == 1, expected)
