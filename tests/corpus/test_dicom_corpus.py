"""Series of several vendors against reference images, in patient space.

``MEDAI_CORPUS`` names a folder with ``dicom2nifti/<vendor>/…/NNN/`` and ``NNN_ground_truth.nii.gz`` beside it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from napari_medai.core.geometry import SAME_PLACE_MM, to_ras
from napari_medai.core.volume import Volume
from napari_medai.io import save
from napari_medai.io.dicom import open_volume

ROOT = Path(os.environ.get("MEDAI_CORPUS", "")) if os.environ.get("MEDAI_CORPUS") else None
SUFFIX = "_ground_truth.nii.gz"
SERIES = sorted(str(p.relative_to(ROOT))[: -len(SUFFIX)] for p in ROOT.rglob(f"*{SUFFIX}")) if ROOT else []

pytestmark = [
    pytest.mark.corpus,
    pytest.mark.skipif(not SERIES, reason="MEDAI_CORPUS does not name a folder with the corpus"),
]

# The scanner's own protocol puts the first tile, whose place the header gives, at slice 49 of 0 to 49 (z = 88.4 mm),
# and slice 0 at z = -59.9 mm. The reference keeps that order of tiles, but runs upwards from the place in the header.
MISPLACED = ("siemens/fmri/001", "siemens/fmri/001_implicit")


def canonical(array: NDArray, affine: NDArray) -> tuple[NDArray, NDArray]:
    turn = io_orientation(affine)
    return apply_orientation(array, turn), affine @ inv_ornt_aff(turn, array.shape[:3])


def as_nifti(volume: Volume) -> tuple[NDArray, NDArray]:
    """Array (x, y, z[, t][, s]) and RAS affine."""
    array = volume.numpy()
    if "z" not in volume.axes:
        array = np.expand_dims(array, volume.axes.index("y"))
    first = 1 if volume.axes.startswith("t") else 0
    order = [first + 2, first + 1, first, *range(first), *range(first + 3, array.ndim)]
    return canonical(array.transpose(order), to_ras(volume.affine))


def reference(path: Path) -> tuple[NDArray, NDArray]:
    image = nibabel.load(path)
    array = np.asanyarray(image.dataobj)
    if array.dtype.names:
        array = np.stack([array[c] for c in "RGB"], axis=-1)  # without alpha
    elif array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    return canonical(array, image.affine)


def corners(affine: NDArray, shape: tuple[int, ...]) -> NDArray:
    ends = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]], indexing="ij")).reshape(3, -1)
    return (affine[:3, :3] @ ends).T + affine[:3, 3]


@pytest.mark.parametrize("series", SERIES)
def test_series_equals_its_reference(series: str) -> None:
    assert ROOT is not None
    got, place = as_nifti(open_volume(ROOT / series))
    want, where = reference(ROOT / (series + SUFFIX))
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert np.abs(corners(place, got.shape) - corners(where, want.shape)).max() <= SAME_PLACE_MM


@pytest.mark.parametrize("series", [s for s in SERIES if s.endswith(MISPLACED)])
def test_mosaics_lie_by_choice_where_the_protocol_says(series: str) -> None:
    """Every slice's centre against sSliceArray of the protocol in the private header."""
    assert ROOT is not None
    # the last slices lie 49 x 3.08 mm apart, one way and the other
    assert "up to 151 mm from where the scan protocol" in " ".join(open_volume(ROOT / series).meta["findings"])
    volume = open_volume(ROOT / series, repair=("mosaic",))
    text = next((ROOT / series).glob("*.dcm")).read_bytes().decode("latin-1")
    depth, rows, columns = volume.spatial_shape
    for n in range(depth):
        # PS3.3: (x, y, z) in LPS; the centre of the field of view lies between pixels, half a pixel on
        found = [
            re.search(rf"sSliceArray\.asSlice\[{n}\]\.sPosition\.d{axis}\s*=\s*(\S+)", text)
            for axis in ("Tra", "Cor", "Sag")
        ]
        stated = [float(m[1]) if m else 0.0 for m in found]
        centre = (volume.affine @ [n, rows / 2, columns / 2, 1])[:3]
        assert np.abs(centre - stated).max() <= SAME_PLACE_MM


@pytest.mark.parametrize(
    ("name", "shape", "finding"),
    [
        ("gantrytilting", (4, 512, 512), "tilted by 14.0 degrees"),
        ("sliceincrement", (5, 512, 512), "1 of 5 slices are missing (counted from 0: 3)"),
    ],
)
def test_series_with_a_defect_open_and_say_so(name: str, shape: tuple[int, ...], finding: str) -> None:
    assert ROOT is not None
    folder = next(ROOT.rglob(f"failing/{name}/001"))
    volume = open_volume(folder)
    assert volume.shape == shape
    assert finding in " ".join(volume.meta["findings"])
    assert volume.numpy().shape == shape


def test_a_tilted_gantry_becomes_upright_by_choice() -> None:
    assert ROOT is not None
    folder = next(ROOT.rglob("failing/gantrytilting/001"))
    sheared, volume = open_volume(folder), open_volume(folder, repair=("tilt",))
    columns = volume.affine[:3, :3]
    assert np.abs(columns.T @ columns - np.diag(np.array(volume.spacing) ** 2)).max() < 1e-6
    assert "shifted in its plane into an upright stack" in " ".join(volume.meta["findings"])
    # a measured point of the last slice, far from its border, has the value that the upright grid shows there
    depth, rows, columns_ = sheared.shape
    there = sheared.affine @ [depth - 1, rows // 2, columns_ // 2, 1]
    k, j, i = (np.linalg.inv(volume.affine) @ there)[:3]
    assert k == pytest.approx(depth - 1, abs=1e-3)
    low = int(np.floor(j))
    got = np.asarray(volume.array[depth - 1]).astype(float)
    want = np.asarray(sheared.array[depth - 1]).astype(float)
    shown = got[low, round(i)] * (1 - (j - low)) + got[low + 1, round(i)] * (j - low)
    around = want[rows // 2 - 1 : rows // 2 + 2, columns_ // 2]
    assert around.min() - 1 <= shown <= around.max() + 1


def test_a_missing_slice_is_interpolated_by_choice() -> None:
    assert ROOT is not None
    folder = next(ROOT.rglob("failing/sliceincrement/001"))
    volume = open_volume(folder, repair=("missing",)).numpy().astype(float)
    assert np.abs(volume[3] - (volume[2] + volume[4]) / 2).max() <= 0.5


def test_mosaics_become_a_derived_series_of_slices(tmp_path: Path) -> None:
    assert ROOT is not None
    scan = open_volume(next(ROOT.rglob("siemens/fmri/001")))
    save(scan, tmp_path / "derived")
    again = open_volume(tmp_path / "derived")
    np.testing.assert_array_equal(again.numpy(), scan.numpy())
    np.testing.assert_allclose(again.affine, scan.affine, atol=1e-3)
