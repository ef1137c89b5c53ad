"""What is written as OME-Zarr is what was saved, a file that is not is refused, and `medai verify` reads any."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import zarr

import napari_medai as medai
from napari_medai.core.errors import WriteError
from napari_medai.core.result import Heatmap, Mask
from napari_medai.core.volume import Volume
from napari_medai.engine.store import ZarrStore
from napari_medai.io import omezarr_write
from napari_medai.io.verify import check, verify
from napari_medai.writing import save_result


def cells(provenance, shape=(300, 40)) -> Mask:
    """Two squares of 9 and 4 pixels of 0.5 um."""
    labels = np.zeros(shape, np.int32)
    labels[2:5, 3:6], labels[-3:-1, 7:9] = 1, 2
    return Mask(Volume(labels, "yx", np.diag([1, 0.5, 0.5, 1]), "um", meta={"is_labels": True}), provenance, {})


def test_labels_are_read_by_two_readers(mask: Mask, tmp_path: Path) -> None:
    report = verify(medai.save(mask, tmp_path / "a.ome.zarr"))
    assert report.ok
    assert [(r.value, r.name, r.by, r.found.count, r.dice) for r in report.labels] == [
        (1, "heart", "napari-medai", 24, 1), (2, "lung", "napari-medai", 4, 1),
    ]  # fmt: skip
    assert report.labels[1].found.volume_mm3 == pytest.approx(4 * 4 * 1.5 * 2)
    check(mask, tmp_path / "a.ome.zarr")


def test_volumes_of_microscopy_are_those_of_its_pixels(provenance, tmp_path: Path) -> None:
    report = verify(medai.save(cells(provenance), tmp_path / "a.ome.zarr"))
    first, second = report.labels
    assert [first.found.count, second.found.count] == [9, 4]
    assert first.found.volume_mm3 == pytest.approx(9 * 0.5 * 0.5 / 1e9)
    assert second.found.centroid == pytest.approx((0, 297.5 * 0.5e-3, 7.5 * 0.5e-3))


def one_voxel(group: zarr.Group) -> None:
    group["0"][4, 10, 1] = 0


def lost(group: zarr.Group) -> None:
    for chunk in chunks(group):
        chunk.unlink()


def cut_short(group: zarr.Group) -> None:
    for chunk in chunks(group):
        chunk.write_bytes(chunk.read_bytes()[:-5])


def chunks(group: zarr.Group) -> list[Path]:
    return [p for p in (Path(group.store.root) / "0" / "c").rglob("*") if p.is_file()]


def turned_the_other_way(group: zarr.Group) -> None:
    record = dict(group.attrs["napari_medai"])
    affine = np.array(record["affine"])
    affine[:3, :3] = affine[:3, :3] @ np.diag(1 / np.linalg.norm(affine[:3, :3], axis=0))
    affine[:3, :3] = affine[:3, :3].T @ np.diag([4.0, 1.5, 2.0])
    group.attrs["napari_medai"] = record | {"affine": affine.tolist()}


def other_scale(group: zarr.Group) -> None:
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"][2] += 0.01
    group.attrs["ome"] = ome


def other_name(group: zarr.Group) -> None:
    ome = dict(group.attrs["ome"])
    ome["image-label"]["properties"][0]["name"] = "liver"
    group.attrs["ome"] = ome


def coarser(group: zarr.Group) -> None:
    group["1"][1, 2, 2] = 7


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (one_voxel, "voxels as read by zarr: its values are other ones"),
        (lost, "voxels as read by zarr: its values are other ones"),
        (cut_short, "zarr cannot read a chunk"),
        (turned_the_other_way, "voxels as read by zarr: its voxels lie elsewhere"),
        (other_scale, "place by scale and translation: its voxels lie elsewhere"),
        (other_name, "names: labels have other ones"),
        (coarser, "coarser copies as read by zarr: its values are other ones"),
    ],
)
def test_a_store_that_is_not_what_was_saved_does_not_take_its_name(
    mask: Mask, tmp_path: Path, monkeypatch, damage, says
):
    older = medai.save(mask, tmp_path / "mask.zarr")
    before = sorted(p.read_bytes() for p in older.rglob("*") if p.is_file())
    look_at = omezarr_write.look_at

    def damaged(folder: Path, name: str) -> None:
        damage(zarr.open_group(folder))
        look_at(folder, name)

    monkeypatch.setattr(omezarr_write, "look_at", damaged)
    monkeypatch.setattr(omezarr_write, "_WINDOW", 12)
    with pytest.raises(WriteError, match=rf"mask\.zarr was not written[\s\S]*{says}"):
        medai.save(mask, tmp_path / "mask.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["mask.zarr"]
    assert sorted(p.read_bytes() for p in older.rglob("*") if p.is_file()) == before
    medai.save(mask, tmp_path / "mask.zarr", check=False)  # damaged, and not looked at


def test_labels_that_a_run_has_written_are_read_back_before_they_take_their_name(mask: Mask, tmp_path: Path) -> None:
    store = ZarrStore(tmp_path / ".part", mask.labels.shape, np.uint8, {"a": "b"})
    store.write((), mask.labels.numpy())
    store.close()
    found = Mask(mask.labels.replace(array=store.labels()), mask.provenance, mask.names)
    cut_short(zarr.open_group(tmp_path / ".part", mode="r"))
    with pytest.raises(WriteError, match="read back, it is not what was saved"):
        save_result(found, tmp_path / "a.zarr", tmp_path / ".part")
    assert [p.name for p in tmp_path.iterdir()] == [".part"]
    save_result(found, tmp_path / "a.zarr", tmp_path / ".part", check=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize(
    "volume",
    [
        medai.from_array(np.linspace(-1e30, 1, 960, dtype=np.float64).reshape(4, 12, 20), units="mm"),
        medai.from_array(np.full((12, 20), np.nan, np.float32), units="um"),
        medai.from_array(np.arange(2880, dtype=np.uint16).reshape(3, 4, 12, 20), "czyx"),
        medai.from_array(np.arange(720, dtype=np.uint8).reshape(12, 20, 3)),
    ],
    ids=lambda v: f"{v.axes} {v.dtype}",
)
def test_images_are_compared_voxel_by_voxel(volume: Volume, tmp_path: Path) -> None:
    path = medai.save(volume, tmp_path / "a.zarr")
    assert verify(path).ok
    level = zarr.open_group(path)["0"]
    level[(-1,) * level.ndim] = 3
    with pytest.raises(WriteError, match="values are other ones"):
        check(volume, path)


def test_a_number_that_float32_does_not_hold_is_refused(tmp_path: Path) -> None:
    with np.errstate(over="ignore"), pytest.raises(WriteError, match="values are other ones"):
        medai.save(medai.from_array(np.full((3, 4), 1e300)), tmp_path / "a.zarr")


def test_heat_and_labels_lie_on_their_scan(mask: Mask, oblique_scan: Volume, tmp_path: Path, command) -> None:
    labels, scan = medai.save(mask, tmp_path / "a.zarr"), medai.save(oblique_scan, tmp_path / "scan.nii")
    heat = Heatmap(
        oblique_scan.replace(array=oblique_scan.array / 2000),
        target="brain",
        method="occlusion",
        provenance=mask.provenance,
    )
    for path in (labels, medai.save(heat, tmp_path / "heat.zarr")):
        assert verify(path, against=scan).ok
    assert verify(labels, against=medai.save(mask, tmp_path / "a.nii.gz")).ok
    moved = mask.labels.replace(affine=mask.labels.affine + 60 * np.eye(4, k=3))
    other = medai.save(moved, tmp_path / "moved.zarr")
    assert "inside the scan's field of view" in verify(other, against=scan).faults[0]
    assert [row.faults[-1] for row in verify(other, against=labels).labels] == ["Dice 0.0000"] * 4
    for path, code in ((labels, 0), (other, 1)):
        done = command("verify", path, "--against", scan, "--json")
        assert (done.returncode, json.loads(done.stdout)["ok"]) == (code, code == 0)


@pytest.mark.parametrize("version", [2, 3])
def test_stores_of_other_programs(tmp_path: Path, version: int) -> None:
    """OME-Zarr 0.4 and 0.5, in millimetres, in the folder of labels of an image."""
    group = zarr.open_group(tmp_path / "scan.zarr", mode="w", zarr_format=version).create_group("labels/brain")
    pixels = np.zeros((4, 12, 20), np.uint16)
    pixels[1:3, 4:6, 7:9] = 3
    group.create_array("s0", data=pixels, chunks=(1, 8, 8))
    axes = [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]
    place = [{"type": "scale", "scale": [2.0, 0.5, 0.5]}, {"type": "translation", "translation": [10.0, 0, -3]}]
    ome = {
        "multiscales": [{"axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": place}]}],
        "image-label": {"properties": [{"label-value": 3, "name": "brain"}]},
    }
    group.attrs.update(ome if version == 2 else {"ome": {"version": "0.5", **ome}})
    (row,) = verify(tmp_path / "scan.zarr" / "labels" / "brain").labels
    assert (row.value, row.name, row.found.count, row.dice) == (3, "brain", 8, 1)
    assert row.found.volume_mm3 == pytest.approx(4)
    assert row.found.centroid == pytest.approx((13, 2.25, 0.75))
    scan = medai.from_array(
        pixels, units="mm", affine=np.array([[2.0, 0, 0, 10], [0, 0.5, 0, 0], [0, 0, 0.5, -3], [0, 0, 0, 1]])
    )
    assert verify(tmp_path / "scan.zarr" / "labels" / "brain", against=scan).ok
    away = scan.replace(affine=scan.affine + 5 * np.eye(4, k=3))
    assert not verify(tmp_path / "scan.zarr" / "labels" / "brain", against=away).ok


def test_large_labels_are_never_whole_in_memory(tmp_path: Path) -> None:
    labels = np.zeros((256, 512, 512), np.uint8)
    labels[100:140, 50:90, 70:110] = 4
    volume = medai.from_array(da.from_array(labels, chunks=(8, 512, 512)), meta={"is_labels": True})
    medai.save(volume, tmp_path / "a.zarr", check=False)
    tracemalloc.start()
    try:
        check(volume, tmp_path / "a.zarr")
        assert verify(tmp_path / "a.zarr").ok
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < labels.nbytes / 4
