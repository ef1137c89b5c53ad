"""Labels and images that are not in memory: written and read back in pieces, or refused with what it would take."""

import gzip
import tracemalloc
from pathlib import Path

import dask.array as da
import numpy as np
import psutil
import pytest
import tifffile

import napari_medai as medai
from napari_medai.core.errors import WriteError
from napari_medai.core.geometry import Reorientation
from napari_medai.core.volume import Volume
from napari_medai.io import nifti_write, readback_pieces, tiff_write
from napari_medai.io.readback_pieces import faults, verify_pieces
from napari_medai.io.results import check_room

AFFINE = np.array([[2.0, 0.1, 0, 10], [-0.1, 0.5, 0, -20], [0, 0, 0.5, 30], [0, 0, 0, 1]])
ARRAY = np.random.default_rng(0).integers(0, 200, (12, 30, 40), dtype=np.uint8)


def labels(array: np.ndarray = ARRAY, **fields) -> Volume:
    """Lazy labels; the last voxel is the largest, so that the type is kept."""
    lazy = da.from_array(array, chunks=(4, 16, 16)[-array.ndim :])
    meta = {"is_labels": True, **fields.pop("meta", {})}
    axes = {2: "yx", 3: "zyx", 4: "tzyx"}[array.ndim]
    return Volume(lazy, axes, fields.pop("affine", AFFINE), "mm", meta=meta, **fields)


@pytest.fixture
def in_pieces(monkeypatch):
    monkeypatch.setattr(readback_pieces, "PIECES_BYTES", 100)
    monkeypatch.setattr(nifti_write, "_SLAB_BYTES", 2000)
    monkeypatch.setattr(tiff_write, "_PLANE_BYTES", 100)
    monkeypatch.setattr(tiff_write, "_TILE", 16)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    "volume",
    [
        labels(),
        labels().reoriented(Reorientation((2, 0, 1), (True, False, True))),
        # written in the order of the file that the scan came from
        labels(meta={"stored_affine": labels().reoriented(Reorientation((1, 2, 0), (False, True, True))).affine}),
        labels(ARRAY[0]),
        Volume(da.from_array(np.stack([ARRAY, ARRAY[::-1]])), "tzyx", AFFINE, "mm", meta={"is_labels": True}),
        Volume(da.from_array(np.int16(ARRAY).reshape(2, 3, 2, 30, 40) - 90), "tczyx", AFFINE, "mm"),
        Volume(da.from_array(np.where(ARRAY == 7, np.nan, ARRAY / 3)), "zyx", AFFINE, "mm"),
    ],
    ids=["as it is", "turned", "stored otherwise", "plane", "series", "channels", "real numbers"],
)
def test_nifti_is_written_and_verified_in_pieces(in_pieces, tmp_path: Path, volume: Volume, name: str) -> None:
    medai.save(volume, tmp_path / name)
    assert faults(tmp_path / name, volume) == ()
    other = volume.numpy().copy()
    other.flat[-1] += 1
    assert faults(tmp_path / name, volume.replace(array=da.from_array(other)))
    moved = volume.affine.copy()
    moved[1, 3] += 0.1
    assert faults(tmp_path / name, volume.replace(affine=moved)) == ("its voxels lie elsewhere",)
    assert faults(tmp_path / name, volume.replace(array=volume.array[..., 1:]))


def test_a_damaged_file_and_lost_names_are_found(in_pieces, tmp_path: Path) -> None:
    volume = labels(meta={"label_names": {1: "liver"}})
    path = medai.save(volume, tmp_path / "a.nii.gz")
    assert all(ok for _, ok, _ in verify_pieces(path, volume, {1: "liver"}))
    assert [ok for _, ok, _ in verify_pieces(path, volume, {1: "spleen"})] == [True, False]
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-7] ^= 1
    (tmp_path / "b.nii").write_bytes(bytes(content))
    assert faults(tmp_path / "b.nii", volume) == ("its values are other ones",)
    (tmp_path / "c.nii").write_bytes(bytes(content[:-5]))
    assert faults(tmp_path / "c.nii", volume) == ("its values are other ones",)


@pytest.mark.parametrize("shape", [(70, 45), (3, 33, 50)])
def test_tiff_of_large_planes_has_tiles(in_pieces, tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 70000, shape, dtype=np.int32)
    medai.save(labels(array), tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].tile == (16, 16)
        assert file.is_ome
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), array)
    np.testing.assert_array_equal(medai.open(tmp_path / "a.tif").numpy(), array)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.ome.tif", "a.ome.zarr"])
def test_it_takes_little_memory(tmp_path: Path, name: str, monkeypatch) -> None:
    monkeypatch.setattr(readback_pieces, "PIECES_BYTES", 1 << 20)
    monkeypatch.setattr(nifti_write, "_SLAB_BYTES", 4 << 20)
    monkeypatch.setattr(tiff_write, "_PLANE_BYTES", 1 << 20)
    lazy = da.zeros((2, 4096, 4096), dtype=np.uint8, chunks=(1, 1024, 2048)) + np.uint8(3)
    volume = Volume(lazy, "zyx", np.eye(4), "mm", meta={"is_labels": True})
    medai.save(volume.replace(array=lazy[:1, :5, :5].compute()), tmp_path / name)  # imports what it needs
    tracemalloc.start()
    try:
        medai.save(volume, tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30e6 < lazy.nbytes


def test_a_format_that_needs_memory_says_how_much(tmp_path: Path, monkeypatch) -> None:
    free = psutil.virtual_memory()._replace(available=10_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(WriteError, match=r"NRRD.* is written from memory.*GiB.*ome\.zarr"):
        medai.save(labels(), tmp_path / "a.nrrd")
    with pytest.raises(WriteError, match="DICOM"):
        check_room(tmp_path / "a.dcm", ARRAY.shape)
    assert not list(tmp_path.iterdir())
    for name in ("a.nii.gz", "a.tif", "a.zarr", "a.csv"):
        check_room(tmp_path / name, (10**6, 10**6))
    medai.save(labels().replace(array=ARRAY), tmp_path / "a.nrrd")  # is in memory already
