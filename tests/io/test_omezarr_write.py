"""OME-Zarr that we write: by our reader, by zarr itself, chunk by chunk, and around labels that lie there already."""

import tracemalloc
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import zarr

import napari_medai as medai
from napari_medai.core.errors import WriteError
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Mask
from napari_medai.engine.store import ZarrStore
from napari_medai.io.omezarr_write import adopt

OBLIQUE = np.array([[2.0, 0.1, 0, 10], [-0.1, 0.5, 0, -20], [0, 0, 0.5, 30], [0, 0, 0, 1]])


def scan(shape=(12, 30, 40), **fields):
    array = np.random.default_rng(0).integers(-500, 1000, shape).astype(np.int16)
    fields = {"affine": OBLIQUE, "units": "mm", "modality": "CT", "name": "scan"} | fields
    return medai.from_array(array, "zyx" if len(shape) == 3 else "", **fields)


@pytest.mark.parametrize(
    "volume",
    [
        scan(),
        scan(units="um", affine=np.diag([3.0, 0.5, 0.5, 1])),
        medai.from_array(np.arange(600, dtype=np.uint8).reshape(20, 30), spacing=(0.3, 0.4), units="um"),
        medai.from_array(np.arange(600, dtype=np.float32).reshape(20, 30)),
        medai.from_array(np.arange(4800, dtype=np.uint16).reshape(2, 4, 20, 30), meta={"frame_seconds": 2.5}),
        medai.from_array(np.arange(4800, dtype=np.uint16).reshape(2, 3, 4, 10, 20), "tczyx", spacing=(2, 1, 1)),
    ],
    ids=lambda v: f"{v.axes} {v.units}",
)
def test_what_is_written_is_opened_again(volume, tmp_path: Path) -> None:
    medai.save(volume, tmp_path / "a.ome.zarr")
    found = medai.open(tmp_path / "a.ome.zarr")
    np.testing.assert_array_equal(found.numpy(), volume.numpy())
    assert (found.axes, found.units, found.modality, found.dtype) == (
        volume.axes, volume.units, volume.modality, volume.dtype,
    )  # fmt: skip
    np.testing.assert_allclose(found.affine, volume.affine)
    assert found.meta.get("frame_seconds") == volume.meta.get("frame_seconds")
    assert [p.name for p in tmp_path.iterdir()] == ["a.ome.zarr"]


def test_labels_carry_names_colours_and_where_they_came_from(tmp_path: Path) -> None:
    labels = scan().replace(array=np.random.default_rng(0).integers(0, 3, (12, 30, 40)), modality="SEG")
    mask = Mask(labels, Provenance("segment", model="m"), {1: "liver", 2: "spleen"}, {1: (1.0, 0.5, 0.0)})
    medai.save(mask, tmp_path / "a.zarr")
    ome = zarr.open_group(tmp_path / "a.zarr", mode="r").attrs["ome"]
    assert ome["version"] == "0.5"
    assert ome["image-label"]["colors"] == [{"label-value": 1, "rgba": [255, 128, 0, 255]}]
    assert ome["image-label"]["properties"][1] == {"label-value": 2, "name": "spleen"}
    (scales,) = ome["multiscales"]
    assert [a["unit"] for a in scales["axes"]] == ["millimeter"] * 3
    scale, translation = scales["datasets"][0]["coordinateTransformations"]
    np.testing.assert_allclose(scale["scale"], [np.hypot(2, 0.1), np.hypot(0.1, 0.5), 0.5])
    assert translation["translation"] == [10, -20, 30]
    found = medai.open(tmp_path / "a.zarr")
    assert found.meta["is_labels"]
    assert found.meta["label_names"] == {1: "liver", 2: "spleen"}
    assert found.meta["provenance"]["model"] == "m"
    assert found.dtype == np.uint8


def test_a_place_that_another_program_changed_is_believed(tmp_path: Path) -> None:
    medai.save(scan(), tmp_path / "a.zarr")
    group = zarr.open_group(tmp_path / "a.zarr")
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][1]["translation"] = [0, 0, 7]
    group.attrs["ome"] = ome
    found = medai.open(tmp_path / "a.zarr")
    np.testing.assert_allclose(found.affine[:3, 3], [0, 0, 7000])
    assert found.units == "um"


def test_colours_are_channels(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    medai.save(medai.from_array(rgb), tmp_path / "a.zarr")
    found = medai.open(tmp_path / "a.zarr")
    assert found.axes == "cyx"
    np.testing.assert_array_equal(found.numpy(), np.moveaxis(rgb, 2, 0))


def test_large_planes_have_coarser_copies(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 9, (4099, 601), dtype=np.uint8)
    medai.save(medai.from_array(image, spacing=(0.5, 0.5), units="um"), tmp_path / "a.zarr")
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    np.testing.assert_array_equal(group["1"][:], image[::2, ::2])
    np.testing.assert_array_equal(group["2"][:], image[::2, ::2][::2, ::2])
    datasets = group.attrs["ome"]["multiscales"][0]["datasets"]
    assert [d["coordinateTransformations"][0]["scale"] for d in datasets] == [[0.5, 0.5], [1, 1], [2, 2]]
    assert medai.open(tmp_path / "a.zarr").shape == image.shape


def test_a_lazy_volume_is_never_whole_in_memory(tmp_path: Path) -> None:
    lazy = da.zeros((200, 256, 256), dtype=np.uint16, chunks=(8, 256, 256)) + np.uint16(3)
    volume = medai.from_array(lazy, meta={"is_labels": True})
    tracemalloc.start()
    try:
        medai.save(volume, tmp_path / "a.zarr")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < volume.array.nbytes / 4
    assert (zarr.open_array(tmp_path / "a.zarr" / "0", mode="r")[199] == 3).all()


def test_what_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    medai.save(scan(), tmp_path / "a.zarr")
    medai.save(scan((5, 6, 7)), tmp_path / "a.zarr")  # what we wrote ourselves is
    assert medai.open(tmp_path / "a.zarr").shape == (5, 6, 7)
    other = tmp_path / "b.zarr"
    zarr.open_group(other, mode="w").attrs["mine"] = 1
    (tmp_path / "c.zarr").write_text("a file")
    for name in ("b.zarr", "c.zarr"):
        with pytest.raises(WriteError, match="something else"):
            medai.save(scan(), tmp_path / name)
    assert zarr.open_group(other, mode="r").attrs["mine"] == 1
    with pytest.raises(WriteError, match="make it first"):
        medai.save(scan(), tmp_path / "no" / "a.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "b.zarr", "c.zarr"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def broken(block):
        raise WriteError("broken")

    lazy = da.zeros((20, 30), dtype=np.uint8).map_blocks(broken, dtype=np.uint8, meta=np.zeros((0, 0), np.uint8))
    medai.save(medai.from_array(np.ones((3, 3), np.uint8)), tmp_path / "a.zarr")
    with pytest.raises(WriteError, match="broken"):
        medai.save(medai.from_array(lazy), tmp_path / "a.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    assert medai.open(tmp_path / "a.zarr").shape == (3, 3)


def test_labels_that_lie_there_already_take_their_name(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 4, (12, 30, 40), dtype=np.uint8)
    store = ZarrStore(tmp_path / "part", array.shape, array.dtype, {"a": "b"})
    store.write((), array)
    store.close()
    labels = scan().replace(array=store.labels(), modality="SEG", meta={"is_labels": True})
    before = (tmp_path / "part" / "0" / "c" / "0" / "0" / "0").stat().st_ino
    with pytest.raises(WriteError, match="holds uint8"):
        adopt(tmp_path / "part", labels.replace(array=labels.array[:5]), tmp_path / "a.zarr")
    adopt(tmp_path / "part", labels, tmp_path / "a.zarr")
    assert (tmp_path / "a.zarr" / "0" / "c" / "0" / "0" / "0").stat().st_ino == before
    found = medai.open(tmp_path / "a.zarr")
    np.testing.assert_array_equal(found.numpy(), array)
    np.testing.assert_allclose(found.affine, OBLIQUE)
    assert found.meta["is_labels"]
    assert not (tmp_path / "part").exists()
