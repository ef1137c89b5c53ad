"""The scan as MONAI gets it, and back: axes, affines, boxes."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import ResNet
from monai.transforms import LoadImage

import napari_medai as medai
from napari_medai.core.volume import Volume
from napari_medai.engine.monai.answers import boxes
from napari_medai.engine.monai.images import hand_over, on_grid
from napari_medai.models.spec import Label
from napari_medai.nets.retina import resnet_fpn_feature_extractor
from tests.engine.monai.reference import AFFINES, write_scan


@pytest.mark.parametrize("affine", sorted(AFFINES))
def test_as_monais_own_reader_gives_it(affine: str, tmp_path: Path) -> None:
    path = write_scan(tmp_path / "scan.nii.gz", (5, 6, 7), AFFINES[affine])
    volume = medai.open(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of readers of other formats
        theirs = LoadImage()(str(path))
    ours = hand_over(volume, False).tensor(slice(None), None, "image")
    assert torch.equal(ours.as_tensor(), theirs.as_tensor())
    assert ours.stride() == theirs.stride()
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours.affine, theirs.affine)
    assert ours.affine.dtype == theirs.affine.dtype
    for key in ("original_affine", "spatial_shape", "original_channel_dim"):
        np.testing.assert_array_equal(ours.meta[key], theirs.meta[key])
    assert str(tmp_path) not in str(ours.meta)


@pytest.mark.parametrize("affine", sorted(AFFINES))
def test_forth_and_back_is_the_same(affine: str, tmp_path: Path) -> None:
    volume = medai.open(write_scan(tmp_path / "scan.nii.gz", (5, 6, 7), AFFINES[affine]))
    handed = hand_over(volume, False)
    np.testing.assert_array_equal(handed.back(handed.array[0]), volume.numpy())
    index = np.argwhere(np.ones(handed.shape))[::11].astype(float)
    there = handed.index_back(index)
    world = index @ handed.affine[:3, :3].T + handed.affine[:3, 3]  # x, y, z in RAS
    expected = (world * [-1, -1, 1])[:, ::-1]
    np.testing.assert_allclose(there @ volume.affine[:3, :3].T + volume.affine[:3, 3], expected, atol=1e-9)


def test_a_scan_that_was_cut_since_it_was_read_runs_canonically(tmp_path: Path) -> None:
    volume = medai.open(write_scan(tmp_path / "scan.nii.gz", (5, 6, 7), AFFINES["exchanged"]))
    assert "stored_affine" in volume.meta
    shift = np.eye(4)
    shift[0, 3] = 1
    part = volume.replace(array=volume.numpy()[1:], affine=volume.affine @ shift)
    handed = hand_over(part, False)
    assert handed.turn.is_identity
    np.testing.assert_array_equal(handed.back(handed.array[0]), part.numpy())


def test_dicom_order_without_a_file() -> None:
    volume = Volume(np.arange(24, dtype=np.float32).reshape(2, 3, 4), "zyx", np.diag([5.0, 2.0, 1.0, 1.0]), units="mm")
    handed = hand_over(volume, False)
    assert handed.shape == (4, 3, 2)
    np.testing.assert_array_equal(handed.affine, np.diag([-1.0, -2.0, 5.0, 1.0]))
    assert not np.signbit(handed.affine[handed.affine == 0]).any()


def test_micrometres_become_millimetres_and_unknown_sizes_what_the_bundle_wants() -> None:
    volume = Volume(np.zeros((2, 3, 4), np.float32), "zyx", np.diag([5.0, 2.0, 1.0, 1.0]), units="um")
    np.testing.assert_allclose(np.diag(hand_over(volume, False).affine), [-1e-3, -2e-3, 5e-3, 1])
    unknown = volume.replace(units="pixel")
    np.testing.assert_allclose(np.diag(hand_over(unknown, False, (2.0, 1.5, 1.0)).affine), [-1, -1.5, 2, 1])


@pytest.mark.parametrize(("dim", "shape"), [(None, (3, 6, 5)), (-1, (6, 5, 3)), (2, (6, 5, 3)), (0, (3, 6, 5))])
def test_channels_lie_where_the_bundle_says(dim: int | None, shape: tuple[int, ...]) -> None:
    handed = hand_over(Volume(np.zeros((3, 5, 6), np.float32), "cyx"), False)
    tensor = handed.tensor(slice(None), dim, "image")
    assert tuple(tensor.shape) == shape
    assert tensor.meta["original_channel_dim"] == (0 if dim is None else dim)


def test_a_result_on_other_voxels_is_brought_back() -> None:
    volume = Volume(np.zeros((8, 8, 8), np.float32), "zyx", units="mm")
    handed = hand_over(volume, False)
    coarse = torch.zeros(1, 4, 4, 4)
    coarse[0, 2, 1, 3] = 5
    affine = handed.affine @ np.array([[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 2, 0.5], [0, 0, 0, 1]])
    result, note = on_grid(MetaTensor(coarse, affine=torch.as_tensor(affine)), handed)
    assert "4 x 4 x 4 to 8 x 8 x 8" in note
    labels = handed.back(result[0].numpy())
    np.testing.assert_array_equal(np.argwhere(labels == 5).min(axis=0), [6, 2, 4])
    np.testing.assert_array_equal(np.argwhere(labels == 5).max(axis=0), [7, 3, 5])


def test_boxes_of_a_turned_and_resampled_image_lie_on_the_scan(tmp_path: Path) -> None:
    volume = medai.open(write_scan(tmp_path / "scan.nii.gz", (20, 24, 12), AFFINES["anisotropic"]))
    handed = hand_over(volume, False)
    # the prepared image has half the voxels, from the same corner
    image = MetaTensor(torch.zeros(1, 10, 12, 6), affine=torch.as_tensor(handed.affine @ np.diag([2.0, 2, 2, 1])))
    found = {
        "box": torch.tensor([[1.0, 2, 3, 4, 6, 5], [0, 0, 0, 1, 1, 1]]),
        "label": torch.tensor([0, 0]),
        "label_scores": torch.tensor([0.9, 0.1]),
    }
    run = SimpleNamespace(
        spec=SimpleNamespace(title="x", gives=SimpleNamespace(labels=(Label(value=0, name="nodule"),)))
    )
    result = boxes(found, handed, image, run, threshold=0.5)
    assert result.labels == ["nodule"]
    # (x, y, z) from (2, 4, 6) to (8, 12, 10) in the file; x and y run the other way in the Volume
    np.testing.assert_allclose(result.centres, [[8, 23 - 8, 19 - 5]])
    np.testing.assert_allclose(result.sizes, [[4, 8, 6]])


def test_features_at_several_scales_without_torchvision() -> None:
    backbone = ResNet("basic", [1, 1, 1, 1], [8, 16, 32, 64], spatial_dims=3, n_input_channels=1)
    made = resnet_fpn_feature_extractor(backbone, 3, False, [1, 2], None).eval()
    with torch.inference_mode():
        maps = made(torch.zeros(1, 1, 32, 32, 32))
    assert list(maps) == ["0", "1", "pool"]
    assert [tuple(m.shape[2:]) for m in maps.values()] == [(16,) * 3, (8,) * 3, (4,) * 3]
    names = made.state_dict().keys()
    # as torchvision names them
    assert {"body.conv1.weight", "body.layer2.0.conv1.weight", "fpn.inner_blocks.0.weight"} <= names
    assert not any(name.startswith(("body.layer3", "body.fc")) for name in names)
    with pytest.raises(ValueError, match="there are 1 to 4"):
        resnet_fpn_feature_extractor(backbone, 3, False, [5])
