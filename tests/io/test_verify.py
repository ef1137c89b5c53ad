"""What is written is what was saved, and a file that is not is refused."""

from __future__ import annotations

from collections.abc import Callable

import nibabel
import numpy as np
import pytest

import napari_medai as medai
from napari_medai.core.errors import ReadError, WriteError
from napari_medai.core.result import Mask
from napari_medai.core.volume import Volume
from napari_medai.io import nifti_write
from napari_medai.io.agreement import compare, sizes
from napari_medai.io.readback import Labels, Patch, of_volume
from napari_medai.io.verify import as_dict, check, verify


def test_sizes_by_hand():
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (10, 20, 30)
    array = np.zeros((2, 3, 4), np.uint8)
    array[1, 2, 1:3] = 7
    found = sizes(Labels("hand", lambda: iter([Patch(array, affine)])))
    assert list(found) == [7]
    assert (found[7].count, found[7].volume_mm3) == (2, pytest.approx(48))
    # voxels (1, 2, 1) and (1, 2, 2): (10 + 2, 20 + 6, 30 + 4 and 30 + 8)
    assert found[7].centroid == pytest.approx((12, 26, 36))


def test_dice_by_hand(mask):
    moved = mask.labels.replace(array=np.roll(mask.labels.numpy(), 1, axis=2))
    heart, lung = compare(of_volume(mask.labels), of_volume(moved))
    assert heart.dice == pytest.approx(2 * 18 / 48)  # 3 of 4 columns still there
    assert lung.dice == pytest.approx(0.5)
    assert heart.distance_mm == pytest.approx(2.0)
    assert heart.faults == ("its centroid lies 2.00 mm away", "Dice 0.7500")


def test_the_same_voxels_in_other_axes_agree(mask):
    from napari_medai.core.geometry import Reorientation

    turned = mask.labels.reoriented(Reorientation((2, 0, 1), (True, False, True)))
    assert all(row.dice == 1 and not row.faults for row in compare(of_volume(mask.labels), of_volume(turned)))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_is_what_was_saved(mask, tmp_path, suffix):
    path = medai.save(mask, tmp_path / f"mask{suffix}")
    report = verify(path, expected=mask)
    assert report.ok
    assert {row.by for row in report.labels} == {"nibabel", "napari-medai"}
    assert [(row.value, row.found.count, row.dice) for row in report.labels] == [(1, 24, 1), (2, 4, 1)] * 2
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert as_dict(report)["labels"][0]["count"] == 24


def shifted(header: bytearray, body: np.ndarray) -> np.ndarray:
    """The origin 3 mm further to the left: srow_x, fourth value (byte 280 + 12), in RAS."""
    at = np.frombuffer(header, "<f4", 1, 292).copy()
    header[292:296] = (at - 3).astype("<f4").tobytes()
    header[252:254] = b"\0\0"  # no qform, that both readers take the sform
    return body


def flipped(header: bytearray, body: np.ndarray) -> np.ndarray:
    return body[:, :, ::-1]


def swapped(header: bytearray, body: np.ndarray) -> np.ndarray:
    return np.array([0, 2, 1], np.uint8)[body]


def lost(header: bytearray, body: np.ndarray) -> np.ndarray:
    return np.where(body == 2, 0, body).astype(np.uint8)


def one_voxel(header: bytearray, body: np.ndarray) -> np.ndarray:
    body = body.copy()
    body[4, 10, 1] = 0
    return body


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shifted, "label 1 (heart) as read by nibabel: its centroid lies 3.00 mm away"),
        (flipped, "label 1 (heart)"),
        (swapped, "label 2 (lung) as read by nibabel: 24 voxels instead of 4"),
        (lost, "label 2 (lung) as read by nibabel: it is not in the file"),
        (one_voxel, "label 2 (lung) as read by napari-medai: 3 voxels instead of 4"),
    ],
)
def test_a_writer_that_is_wrong_leaves_no_file(
    mask, tmp_path, monkeypatch, damage: Callable[[bytearray, np.ndarray], np.ndarray], says
):
    older = medai.save(mask, tmp_path / "mask.nii").read_bytes()

    def wrong(volume, path, record=None):
        start = int(np.frombuffer(older, "<f4", 1, 108)[0])
        header = bytearray(older[:start])
        body = damage(header, np.frombuffer(older[start:], np.uint8).reshape(volume.shape))
        with nifti_write.written(path) as file:
            file.write(bytes(header) + body.tobytes())

    monkeypatch.setattr("napari_medai.io.nifti.save_volume", wrong)
    with pytest.raises(WriteError) as error:
        medai.save(mask, tmp_path / "mask.nii")
    assert says in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["mask.nii"]
    assert (tmp_path / "mask.nii").read_bytes() == older


def test_switched_off_it_is_not_looked_at(mask, tmp_path, monkeypatch):
    monkeypatch.setattr("napari_medai.io.verify.check", lambda *_: pytest.fail("looked at"))
    medai.save(mask, tmp_path / "mask.nii.gz", check=False)


def test_an_image_is_compared_by_its_values(oblique_scan, tmp_path):
    path = medai.save(oblique_scan, tmp_path / "scan.nii.gz")
    check(oblique_scan, path)
    with pytest.raises(WriteError, match="values are other ones"):
        check(oblique_scan.replace(array=oblique_scan.array + 1), path)
    with pytest.raises(WriteError, match="voxels lie elsewhere"):
        check(oblique_scan.replace(affine=oblique_scan.affine + np.eye(4, k=3)), path)


def test_time_points_are_compared_one_by_one(mask, tmp_path):
    frames = np.stack([mask.labels.numpy(), mask.labels.numpy() * 0, mask.labels.numpy()])
    frames[2][frames[2] == 1] = 0
    series = Mask(mask.labels.replace(array=frames, axes="tzyx"), mask.provenance, mask.names)
    path = medai.save(series, tmp_path / "series.nii")
    backwards = Mask(series.labels.replace(array=frames[::-1]), mask.provenance, mask.names)
    with pytest.raises(WriteError, match=r"heart.*Dice 0\.0000"):
        check(backwards, path)


def test_tables_and_pictures_are_skipped_with_the_reason(tmp_path):
    image = Volume(np.zeros((4, 4), np.uint8), "yx")
    report = verify(medai.save(image, tmp_path / "a.png"), expected=image)
    assert report.ok
    assert "does not say where" in report.skipped


def test_another_result_and_the_scan(mask, oblique_scan, tmp_path):
    path = medai.save(mask, tmp_path / "mask.nii.gz")
    other = medai.save(mask.labels.replace(array=mask.labels.array.clip(0, 1)), tmp_path / "other_labels.nii.gz")
    assert verify(path, path).ok
    faults = verify(path, other).faults
    assert any("label 1" in f and "24 voxels instead of 28" in f for f in faults)
    scan = medai.save(oblique_scan, tmp_path / "scan.nii.gz")
    report = verify(path, scan)
    assert report.ok
    assert report.checks[0].detail == "100.0% of the voxels"
    small = medai.save(oblique_scan.replace(array=oblique_scan.array[:4]), tmp_path / "small.nii.gz")
    report = verify(path, small)
    assert report.checks[0].detail == "85.7% of the voxels"  # 24 of 28
    assert not report.ok


def test_what_is_no_file(tmp_path):
    with pytest.raises(ReadError, match="does not exist"):
        verify(tmp_path / "none.nii")
    with pytest.raises(ReadError, match="neither a file"):
        verify(tmp_path)


def test_command(mask, tmp_path, command):
    path = medai.save(mask, tmp_path / "mask.nii.gz")
    image = nibabel.load(path)
    wrong = tmp_path / "wrong_labels.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine, image.header), wrong)
    done = command("verify", path, "--against", path)
    assert (done.returncode, "1.0000" in done.stdout) == (0, True)
    done = command("verify", wrong, "--against", path, "--json")
    assert (done.returncode, '"ok": false' in done.stdout) == (1, True)


@pytest.mark.parametrize("axes", ["cyx", "czyx", "tczyx", "yxs", "zyxs"])
def test_channels_and_colours_of_nifti(tmp_path, axes):
    shape = tuple({"t": 2, "c": 3, "z": 4, "y": 5, "x": 6, "s": 3}[axis] for axis in axes)
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    image = Volume(pixels, axes, np.diag([3.0, 2.0, 1.0, 1.0]), "mm")
    path = medai.save(image, tmp_path / "a.nii.gz")
    report = verify(path, expected=image)
    assert [(c.what, c.ok) for c in report.checks] == [
        ("image as read by nibabel", True),
        ("image as read by napari-medai", True),
    ]
    assert [c.ok for c in verify(path).checks] == [True]
    last = pixels.copy()
    last[(-1,) * pixels.ndim] += 1
    with pytest.raises(WriteError, match="values are other ones"):
        check(image.replace(array=last), path)
    if "c" in axes:
        with pytest.raises(WriteError, match="channels instead of"):
            check(image.replace(array=pixels[..., :2, :, :, :] if "z" in axes else pixels[:2]), path)
