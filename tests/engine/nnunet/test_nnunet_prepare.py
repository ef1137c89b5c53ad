"""Order of axes, cutting, normalisation and the way back, by numbers written by hand."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from napari_medai.core.errors import DeviceError, InputError, ModelError
from napari_medai.core.geometry import from_ras, scaling
from napari_medai.core.stage import Params, Progress
from napari_medai.core.volume import Volume
from napari_medai.engine.nnunet.back import put_back, sink_for
from napari_medai.engine.nnunet.prepare import Case, bounding_box, nonzero, normalise, prepare, read
from napari_medai.engine.prepare import turn
from napari_medai.engine.run import start
from napari_medai.models.nnunet_labels import LabelSet
from napari_medai.models.nnunet_stage import Channel, Resampling, StagePlan
from napari_medai.models.spec import Accepts, Gives, Model, ModelSpec

LABELS = LabelSet(heads=3, foreground=(1, 2))
NONE = Resampling(method="none")


def plan(**fields: Any) -> StagePlan:
    """One channel as it is, spacing 1."""
    values: dict[str, Any] = {
        "configuration": "3d_fullres", "checkpoints": {"0": "x"}, "patch": (4, 4, 4), "spacing": (1.0, 1.0, 1.0),
        "forward": (0, 1, 2), "backward": (0, 1, 2), "network": "plain_conv_unet", "arguments": {},
        "channels": (Channel(scheme="NoNormalization"),), "data": NONE, "probabilities": NONE, "labels": NONE,
    }  # fmt: skip
    return StagePlan(**{**values, **fields})


def scan(array: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Volume:
    """Pixels in mm."""
    return Volume(np.asarray(array, dtype=np.float32), "zyx", scaling(spacing), units="mm", modality="MR")


MODEL = Model(
    spec=ModelSpec(
        id="phantom", title="Phantom", summary="For tests.", stage="segment", accepts=Accepts(ndim=(3,)),
        gives=Gives(kind="labels"), runner="nnunet",
    ),
    folder=Path("nowhere"), source="test",
)  # fmt: skip


def labels_of(
    logits: Any, case: Case, volume: Volume, threshold: float = 0.5, progress: Progress | None = None
) -> np.ndarray:
    """Labels (z, y, x) of logits that come plane by plane."""
    planes = torch.as_tensor(np.asarray(logits)).float().split(1, dim=1)
    found = []
    for beside, watching in ((False, progress or Progress()), (True, Progress())):
        with start("segment", volume, MODEL, Params(device="cpu"), watching) as run:
            sink = sink_for(case, run, threshold, "", on_image=True)
            put_back(iter(planes), case, sink, threshold, lambda: None, beside)
            found.append(sink.labels())
    np.testing.assert_array_equal(*found)
    return found[0]


def test_the_box_of_what_is_not_zero_in_any_channel() -> None:
    shell = np.zeros((2, 5, 5, 6), dtype=np.float32)
    shell[0, 1:4, 1:4, 2:5] = 1
    shell[0, 2, 2, 3] = 0
    shell[1, 4, 0, 0] = -1
    inside = nonzero(shell)
    assert inside.sum() == 27
    assert bounding_box(inside) == (slice(1, 5), slice(0, 4), slice(0, 5))
    assert bounding_box(np.zeros((2, 3), dtype=bool)) == (slice(0, 2), slice(0, 3))


def test_holes_belong_to_what_is_not_zero() -> None:
    shell = np.zeros((5, 5, 6), dtype=np.float32)
    shell[1:4, 1:4, 2:5] = 27
    shell[2, 2, 3] = 0
    shell[1, 1, 2] = 0  # a corner of the box that is open to the outside
    masked = plan(channels=(Channel(scheme="ZScoreNormalization", masked=True),))
    tensor = prepare(read(scan(shell), "SimpleITKIO"), masked, LABELS, None, lambda: None).tensor[0]
    assert tensor.shape == (3, 3, 3)
    # 25 of the 26 inside are 27
    assert float(tensor[1, 1, 1]) == pytest.approx(-5)
    assert float(tensor[2, 2, 2]) == pytest.approx(0.2)
    assert tensor[0, 0, 0] == 0


@pytest.mark.parametrize(
    ("scheme", "values", "expected"),
    [
        (Channel(scheme="CTNormalization", mean=50, std=25, low=0, high=100), [-10, 50, 200], [-2, 0, 2]),
        (Channel(scheme="ZScoreNormalization"), [1, 3, 1, 3], [-1, 1, -1, 1]),
        (Channel(scheme="ZScoreNormalization", masked=True), [0, 1, 3], [0, -1, 1]),
        (Channel(scheme="RescaleTo01Normalization"), [2, 4, 6], [0, 0.5, 1]),
        (Channel(scheme="RGBTo01Normalization"), [0, 51, 255], [0, 0.2, 1]),
        (Channel(scheme="NoNormalization"), [7, -3], [7, -3]),
    ],
)
def test_normalisations(scheme: Channel, values: list[float], expected: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    np.testing.assert_allclose(normalise(array, scheme, array != 0), expected, atol=1e-6)


def test_colours_beyond_eight_bits_are_refused() -> None:
    with pytest.raises(InputError, match=r"0 to 255.*300"):
        normalise(np.array([0, 300], dtype=np.float32), Channel(scheme="RGBTo01Normalization"), np.ones(2, bool))


@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3))[::2])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_images_are_turned_as_nibabel_turns_them(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    angle = np.deg2rad(14)
    tilt = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = (tilt @ np.diag(signs))[:, order] * [0.5, 1.25, 3]
    values = np.random.default_rng(1).integers(0, 99, (3, 4, 5)).astype(np.float32)
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, affine))
    volume = Volume(values.T, "zyx", from_ras(affine), units="mm")
    image = read(volume, "NibabelIOWithReorient", "RAS")
    np.testing.assert_array_equal(image.array[0], expected.get_fdata().T)
    np.testing.assert_allclose(image.spacing, expected.header.get_zooms()[::-1], rtol=1e-6)
    np.testing.assert_array_equal(turn(image.array[0], image.turned.inverse()), values.T)
    # opened by this package, its axes are turned; models that turn nothing see it as it was stored
    opened = volume.canonical().replace(meta={"stored_affine": volume.affine.tolist()})
    stored = read(opened, "SimpleITKIO")
    np.testing.assert_array_equal(stored.array[0], values.T)
    np.testing.assert_array_equal(turn(stored.array[0], stored.turned.inverse()), opened.numpy())


def test_an_orientation_that_is_none_is_refused() -> None:
    with pytest.raises(ModelError, match="RRS"):
        read(scan(np.ones((2, 2, 2))), "SimpleITKIO", "RRS")


def test_single_slices_get_a_third_axis() -> None:
    volume = Volume(np.ones((4, 5), np.float32), "yx", scaling((1, 0.5, 0.25)), units="mm")
    assert read(volume, "SimpleITKIO").array.shape == (1, 1, 4, 5)
    assert read(volume, "SimpleITKIO").spacing == (0.5 * 999, 0.5, 0.25)
    assert read(volume, "NaturalImage2DIO").spacing == (999.0, 1.0, 1.0)
    in_um = volume.replace(units="um")
    assert read(in_um, "SimpleITKIO").spacing[1:] == pytest.approx((0.0005, 0.00025))


def test_prepared_and_put_back() -> None:
    pixels = np.zeros((4, 5, 6))
    pixels[1:3, 1:4, 2:6] = np.arange(1, 25).reshape(2, 3, 4)
    turned = plan(forward=(2, 0, 1), backward=(1, 2, 0))
    volume = scan(pixels, (3.0, 2.0, 1.0))
    case = prepare(read(volume, "SimpleITKIO"), turned, LABELS, None, lambda: None)
    assert case.spacing == (1.0, 3.0, 2.0)
    assert (case.whole, case.cut) == ((6, 4, 5), (4, 2, 3))
    np.testing.assert_array_equal(case.tensor[0], pixels[1:3, 1:4, 2:6].transpose(2, 0, 1))
    logits = [np.zeros(case.cut), case.tensor[0].numpy() - 12.5, case.tensor[0].numpy() - 12.5]
    seen: list[tuple[np.ndarray, tuple[slice, ...]]] = []

    class Watching(Progress):
        def partial(self, found: np.ndarray, where: tuple[slice, ...]) -> None:
            seen.append((found, where))

    found = labels_of(logits, case, volume, progress=Watching())
    # equal logits: the first of them
    np.testing.assert_array_equal(found, (pixels > 12.5).astype(np.uint8))
    assert found.dtype == np.uint8
    # planes of the network lie along x
    assert [where[2] for _, where in seen] == [slice(2, 6)] or [where[2].start for _, where in seen] == [2, 3, 4, 5]
    assert all(part is found for part, _ in seen)


def test_regions_are_painted_in_their_order() -> None:
    regions = LabelSet(heads=2, foreground=(1, 2), region_values=(2, 1))
    volume = scan(np.ones((1, 1, 3)))
    case = prepare(read(volume, "SimpleITKIO"), plan(), regions, None, lambda: None)
    logits = [np.array([[[1.0, 1.0, -1.0]]]), np.array([[[-1.0, 0.5, 0.5]]])]

    def paint(threshold: float) -> list[int]:
        return labels_of(logits, case, volume, threshold).ravel().tolist()

    assert paint(0.5) == [2, 1, 1]
    assert paint(0.7) == [2, 2, 0]  # a logit of 0.5 is a probability of 0.62, of 1 it is 0.73


def test_the_stage_before_adds_a_channel_for_each_label() -> None:
    pixels = np.zeros((1, 4, 4))
    pixels[0, 1:3, 1:4] = 5
    before = np.zeros((1, 4, 4), np.uint8)
    before[0, 1, 1], before[0, 2, 2:4] = 1, 2
    case = prepare(read(scan(pixels), "SimpleITKIO"), plan(), LABELS, before, lambda: None)
    assert case.tensor.shape == (3, 1, 2, 3)
    assert case.tensor[1, 0].tolist() == [[1, 0, 0], [0, 0, 0]]
    assert case.tensor[2, 0].tolist() == [[0, 0, 0], [0, 1, 1]]


def test_a_planar_network_keeps_the_distance_of_slices() -> None:
    flat = plan(patch=(4, 4), spacing=(2.0, 2.0), data=Resampling(order=1, separate_z=None))
    case = prepare(read(scan(np.ones((3, 8, 8)), (7.0, 1.0, 1.0)), "SimpleITKIO"), flat, LABELS, None, lambda: None)
    assert case.target == (7.0, 2.0, 2.0)
    assert case.tensor.shape == (1, 3, 4, 4)


def test_an_image_without_a_voxel_at_the_models_spacing_is_refused() -> None:
    coarse = plan(spacing=(50.0, 50.0, 50.0), data=Resampling())
    with pytest.raises(InputError, match="no voxel along an axis"):
        prepare(read(scan(np.ones((9, 9, 9))), "SimpleITKIO"), coarse, LABELS, None, lambda: None)


def test_a_spacing_that_no_memory_holds_is_refused_at_once() -> None:
    fine = plan(spacing=(1e-5, 1e-5, 1e-5), data=Resampling())
    with pytest.raises(DeviceError, match="900000 x 900000 x 900000 voxels"):
        prepare(read(scan(np.ones((9, 9, 9))), "SimpleITKIO"), fine, LABELS, None, lambda: None)


def test_more_than_254_labels_need_sixteen_bits() -> None:
    many = LabelSet(heads=300, foreground=tuple(range(1, 300)))
    volume = scan(np.ones((1, 1, 2)))
    case = prepare(read(volume, "SimpleITKIO"), plan(), many, None, lambda: None)
    found = labels_of([np.full((1, 1, 2), float(n)) for n in range(300)], case, volume)
    assert found.dtype == np.uint16
    assert found.ravel().tolist() == [299, 299]
