from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import napari_medai as medai
from napari_medai.core.errors import ModelError
from napari_medai.core.geometry import Reorientation, scaling
from napari_medai.core.stage import Cancelled, Progress
from napari_medai.core.volume import Volume
from napari_medai.engine.labelling import activated, decided, largest_piece, pieces
from napari_medai.engine.store import MemoryStore
from napari_medai.models import load, probe
from napari_medai.models.manifest import write_manifest
from napari_medai.models.spec import Accepts, Gives, Label, Model, ModelSpec, Prepare, Tiling
from napari_medai.nets import build

ONE_LAYER = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [2, 2], "strides": [1]}
BRIGHT = (Label(value=7, name="bright", color=(1.0, 0.0, 0.0)),)


def threshold_layers(channels: int = 1) -> list[dict[str, int]]:
    return [
        {"in_channels": channels, "out_channels": 1, "kernel_size": 3, "dilation": 1},
        {"in_channels": 1, "out_channels": 2, "kernel_size": 1, "dilation": 1},
    ]


def package(folder: Path, state: dict[str, torch.Tensor], **fields: Any) -> Model:
    """A package on disk, opened through the door."""
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "weights.safetensors")
    described: dict[str, Any] = {
        "id": "test",
        "title": "Test",
        "summary": "A test.",
        "stage": "segment",
        "accepts": Accepts(ndim=(3,)),
        "prepare": Prepare(normalise="none"),
        "gives": Gives(kind="labels", labels=BRIGHT),
        "tiling": Tiling(size=(16, 16, 16), multiple=1, halo=1, overlap=0.0),
        "runner": "network",
        "network": "meshnet",
        "arguments": {"layers": threshold_layers()},
        "weights": "weights.safetensors",
    }
    write_manifest(ModelSpec(**{**described, **fields}), folder)
    return load(probe(folder))


def brighter_than(value: float) -> dict[str, torch.Tensor]:
    """A MeshNet that says which voxels are brighter: the middle of its kernel alone counts."""
    kernel = torch.zeros(1, 1, 3, 3, 3)
    kernel[0, 0, 1, 1, 1] = 1
    return {
        "convolutions.0.weight": kernel,
        "convolutions.0.bias": torch.zeros(1),
        "convolutions.1.weight": torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1),
        "convolutions.1.bias": torch.tensor([value, 0.0]),
    }


def scan(shape: tuple[int, ...] = (20, 24, 18), spacing: tuple[float, float, float] = (1, 1, 1)) -> Volume:
    rng = np.random.default_rng(3)
    return Volume(rng.uniform(1, 10, shape).astype(np.float32), "zyx", scaling(spacing), units="mm")


def test_labels_lie_on_the_scan_with_names_and_colours(tmp_path: Path) -> None:
    volume = scan()
    found = medai.segment(volume, package(tmp_path / "p", brighter_than(5)), device="cpu")
    np.testing.assert_array_equal(found.labels.numpy(), np.where(volume.numpy() > 5, 7, 0))
    assert (found.names, found.colors) == ({7: "bright"}, {7: (1.0, 0.0, 0.0)})
    assert found.provenance.tiles == 8
    assert len(found.provenance.model_sha256) == 64


@pytest.mark.parametrize("orientation", ["RAS", "LIA", ""])
def test_the_network_sees_its_own_orientation_and_the_scan_gets_its_own_back(tmp_path: Path, orientation: str) -> None:
    volume = scan()
    state = brighter_than(5)
    # the neighbour before along the network's first axis counts, so that the axes show
    state["convolutions.0.weight"] = state["convolutions.0.weight"].roll(-1, dims=2)
    model = package(tmp_path / "p", state, accepts=Accepts(ndim=(3,), orientation=orientation))
    shift = {"RAS": (2, -1), "LIA": (2, 1), "": (0, 1)}[orientation]  # R grows against x, L with it, S with z
    expected = np.zeros(volume.shape, np.int32)
    moved = np.roll(volume.numpy(), shift[1], axis=shift[0]) > 5
    inside = [slice(None)] * 3
    inside[shift[0]] = slice(1, None) if shift[1] > 0 else slice(None, -1)
    expected[tuple(inside)] = np.where(moved, 7, 0)[tuple(inside)]
    for turn in (Reorientation((0, 1, 2), (False,) * 3), Reorientation((2, 0, 1), (True, False, True))):
        found = medai.segment(volume.reoriented(turn), model, device="cpu").labels
        np.testing.assert_array_equal(found.canonical().numpy(), expected)


@pytest.mark.parametrize("back", ["scores", "labels"])
def test_other_spacing_there_and_back(tmp_path: Path, back: Any) -> None:
    volume = scan((10, 20, 20), (2, 1, 1))
    block = np.ones(volume.shape, np.float32)
    block[3:7, 5:15, 5:15] = 9
    prepare = Prepare(normalise="none", spacing_mm=(1, 1, 1), back=back)
    model = package(tmp_path / "p", brighter_than(5), prepare=prepare)
    found = medai.segment(volume.replace(array=block), model, device="cpu")
    np.testing.assert_array_equal(found.labels.numpy(), np.where(block > 5, 7, 0))
    assert any(("scores" if back == "scores" else "nearest voxel") in note for note in found.provenance.notes)
    assert found.table["volume_ml"] == [pytest.approx(0.8)]


def test_tiles_with_a_halo_equal_the_whole(tmp_path: Path) -> None:
    layers = [
        {"in_channels": 1, "out_channels": 4, "kernel_size": 3, "dilation": 1},
        {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "dilation": 4},
        {"in_channels": 4, "out_channels": 5, "kernel_size": 1, "dilation": 1},
    ]
    torch.manual_seed(1)
    state = build("meshnet", layers=layers).state_dict()
    labels = tuple(Label(value=n, name=str(n)) for n in range(1, 5))
    found = []
    for number, size in enumerate((14, 17, 64)):
        model = package(
            tmp_path / str(number),
            state,
            arguments={"layers": layers},
            gives=Gives(kind="labels", labels=labels),
            tiling=Tiling(size=(size,) * 3, multiple=1, halo=5, overlap=0.0),
        )
        result = medai.segment(scan((30, 26, 19)), model, device="cpu")
        found.append((result.labels.numpy(), result.provenance.tiles))
    assert [tiles for _, tiles in found] == [5 * 4 * 3, 3 * 3 * 2, 1]
    assert len(np.unique(found[2][0])) > 2
    for tiled, _ in found[:2]:
        assert np.mean(tiled != found[2][0]) < 1e-4  # equal but for ties


def test_several_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volume = Volume(rng.uniform(0, 10, (2, 6, 9, 8)).astype(np.float32), "czyx", np.eye(4), units="mm")
    kernel = torch.zeros(1, 2, 3, 3, 3)
    kernel[0, :, 1, 1, 1] = torch.tensor([1.0, -1.0])
    state = {**brighter_than(2.0), "convolutions.0.weight": kernel}
    model = package(
        tmp_path / "p", state, accepts=Accepts(ndim=(3,), channels=2), arguments={"layers": threshold_layers(2)}
    )
    found = medai.segment(volume, model, device="cpu").labels.numpy()
    np.testing.assert_array_equal(found, np.where(volume.numpy()[0] - volume.numpy()[1] > 2, 7, 0))


def unet(folder: Path, dimensions: int = 3, out_channels: int = 2, **fields: Any) -> Model:
    arguments = {
        "spatial_dims": dimensions, "in_channels": 1, "out_channels": out_channels, "channels": [4, 8], "strides": [2],
    }  # fmt: skip
    torch.manual_seed(2)
    state = build("UNet", **arguments).state_dict()
    given = {"network": "UNet", "arguments": arguments, "tiling": Tiling(size=(16,) * dimensions, multiple=2)}
    return package(folder, state, **{**given, **fields})


@pytest.mark.parametrize("mirror", [False, True])
def test_a_network_of_monai_as_it_is_called_by_hand(tmp_path: Path, mirror: bool) -> None:
    volume = scan((12, 14, 10))
    options = {"whole": True, "mirror": mirror}
    model = unet(tmp_path / "p", prepare=Prepare(normalise="zscore"), options=options)
    found = medai.segment(volume, model, device="cpu").labels.numpy()
    torch.manual_seed(2)
    network = build("UNet", **model.spec.arguments).eval()
    image = torch.from_numpy((volume.numpy() - volume.numpy().mean()) / volume.numpy().std())[None, None]
    flips = [[]] if not mirror else [[a for a in (2, 3, 4) if n >> (a - 2) & 1] for n in range(8)]
    with torch.no_grad():
        mean = sum(network(image.flip(f)).softmax(1).flip(f) for f in flips) / len(flips)
    expected = mean.argmax(1)[0].numpy() * 7
    assert 0.01 < (expected == 7).mean() < 0.99
    assert np.mean(found != expected) < 1e-3


def test_regions_lie_on_each_other(tmp_path: Path) -> None:
    labels = (Label(value=1, name="whole"), Label(value=4, name="core"))
    options = {"whole": True, "output": "sigmoid"}
    model = unet(tmp_path / "p", gives=Gives(kind="labels", labels=labels), options=options)
    volume = scan((12, 12, 12))
    found = medai.segment(volume, model, device="cpu").labels.numpy()
    torch.manual_seed(2)
    with torch.no_grad():
        out = build("UNet", **model.spec.arguments).eval()(torch.from_numpy(volume.numpy())[None, None])[0].numpy()
    np.testing.assert_array_equal(found, np.where(out[1] > 0, 4, np.where(out[0] > 0, 1, 0)))


@pytest.mark.parametrize("mirror", [False, True])
def test_a_single_channel_is_a_probability_of_its_own(tmp_path: Path, mirror: bool) -> None:
    model = unet(tmp_path / "p", out_channels=1, options={"whole": True, "mirror": mirror})
    volume = scan((12, 12, 12))
    found = medai.segment(volume, model, device="cpu").labels.numpy()
    image = torch.from_numpy(volume.numpy())[None, None]
    torch.manual_seed(2)
    network = build("UNet", **model.spec.arguments).eval()
    flips = [[]] if not mirror else [[a for a in (2, 3, 4) if n >> (a - 2) & 1] for n in range(8)]
    with torch.no_grad():
        mean = sum(network(image.flip(f)).sigmoid().flip(f) for f in flips) / len(flips)
    expected = (mean[0, 0] > 0.5).numpy()
    assert 0.01 < expected.mean() < 0.99
    assert np.mean((found == 7) != expected) < 1e-3


def test_numbers_of_classes_are_never_averaged(tmp_path: Path) -> None:
    """Between tiles that disagree, classes 0 and 3 do not make class 1 or 2."""
    state = brighter_than(0.0)
    state["convolutions.0.weight"].fill_(1)  # tiles see different surroundings at their edges
    state["convolutions.1.weight"] = torch.tensor([0.0, 0.0, 0.0, 2.0]).reshape(4, 1, 1, 1, 1)
    state["convolutions.1.bias"] = torch.tensor([130.0, -1000.0, -1000.0, -160.0])
    layers = [
        {**threshold_layers()[0], "dilation": 2},
        {"in_channels": 1, "out_channels": 4, "kernel_size": 1, "dilation": 1},
    ]
    named = tuple(Label(value=n, name=str(n)) for n in range(4))
    model = package(
        tmp_path / "p", state, arguments={"layers": layers}, gives=Gives(kind="labels", labels=named),
        tiling=Tiling(size=(8, 8, 8), multiple=1),
    )  # fmt: skip
    found = medai.segment(scan((12, 12, 12)), model, device="cpu").labels.numpy()
    assert set(np.unique(found).tolist()) == {0, 3}


def test_an_image_that_is_not_held_is_cropped_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.zeros((20, 24, 18), np.float32)
    array[6:13, 9:20, 4:9] = np.random.default_rng(5).uniform(1, 10, (7, 11, 5))
    volume = scan().replace(array=array)
    options = {"crop": 2}
    model = unet(tmp_path / "p", options=options, prepare=Prepare(normalise="none", spacing_mm=(1.3, 1.0, 0.8)))
    held = medai.segment(volume, model, device="cpu").labels.numpy()
    monkeypatch.setattr("napari_medai.engine.prepare.LAZY_SHARE", 0.0)
    monkeypatch.setattr("napari_medai.engine.planes.Planes.__array__", None)  # nobody asks for all of it
    np.testing.assert_array_equal(medai.segment(volume, model, device="cpu").labels.numpy(), held)
    assert held.any()


def test_a_flat_network_goes_through_a_volume_plane_by_plane(tmp_path: Path) -> None:
    accepts = Accepts(ndim=(2, 3))
    model = unet(
        tmp_path / "p", 2, accepts=accepts, options={"slicewise": True}, tiling=Tiling(size=(32, 32), multiple=2)
    )
    volume = scan((5, 16, 18))
    found = medai.segment(volume, model, device="cpu").labels.numpy()
    planes = [medai.segment(volume.take("z", n), model, device="cpu").labels.numpy() for n in range(5)]
    np.testing.assert_array_equal(found, np.stack(planes))


def classifier(folder: Path, dimensions: int, **fields: Any) -> Model:
    arguments = {
        "spatial_dims": dimensions, "in_channels": 1, "out_channels": 3, "init_features": 4, "growth_rate": 2,
        "block_config": [1, 1],
    }  # fmt: skip
    torch.manual_seed(4)
    labels = tuple(Label(value=n, name=name) for n, name in enumerate(("T1", "T2", "FLAIR")))
    return package(
        folder,
        build("DenseNet", **arguments).state_dict(),
        stage="classify",
        network="DenseNet",
        arguments=arguments,
        gives=Gives(kind="classes", labels=labels),
        **fields,
    )


def test_a_classifier_of_volumes_gives_one_row(tmp_path: Path) -> None:
    model = classifier(tmp_path / "p", 3, prepare=Prepare(normalise="zscore", size=(32, 32, 32)))
    found = medai.classify(scan(), model, device="cpu")
    assert found.classes == ("T1", "T2", "FLAIR")
    assert found.slice_probabilities.shape == (1, 3)
    assert found.probabilities.sum() == pytest.approx(1)
    turned = scan().reoriented(Reorientation((1, 2, 0), (True, False, False)))
    np.testing.assert_allclose(
        medai.classify(turned, model, device="cpu").probabilities, found.probabilities, atol=1e-5
    )


def test_a_classifier_of_planes_scores_each_slice(tmp_path: Path) -> None:
    model = classifier(tmp_path / "p", 2, accepts=Accepts(ndim=(2, 3)), options={"slicewise": True})
    volume = scan((4, 32, 32))
    found = medai.classify(volume, model, device="cpu")
    assert found.slice_index.tolist() == [0, 1, 2, 3]
    one = medai.classify(volume.take("z", 2), model, device="cpu")
    np.testing.assert_allclose(one.probabilities, found.slice_probabilities[2], atol=1e-6)
    np.testing.assert_allclose(found.probabilities, found.slice_probabilities.mean(axis=0), atol=1e-9)
    upside_down = medai.classify(volume.reoriented(Reorientation((0, 1, 2), (True, False, False))), model, device="cpu")
    np.testing.assert_allclose(upside_down.slice_probabilities, found.slice_probabilities[::-1], atol=1e-6)


@pytest.mark.parametrize("residual", [False, True])
def test_an_image_comes_back_in_its_own_scale(tmp_path: Path, residual: bool) -> None:
    identity = {
        "convolutions.0.weight": brighter_than(0)["convolutions.0.weight"],
        "convolutions.0.bias": torch.full((1,), 5.0),  # away from where the activation cuts
        "convolutions.1.weight": torch.full((1, 1, 1, 1, 1), 1.0),
        "convolutions.1.bias": torch.full((1,), -5.0),
    }
    layers = threshold_layers()
    layers[1]["out_channels"] = 1
    model = package(
        tmp_path / "p", identity, stage="denoise", arguments={"layers": layers}, gives=Gives(kind="image"),
        prepare=Prepare(normalise="zscore"), options={"residual": residual, "output": "values"},
    )  # fmt: skip
    volume = scan()
    found = medai.denoise(volume, model, device="cpu").image.numpy()
    expected = np.full(volume.shape, volume.numpy().mean()) if residual else volume.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_wrong_numbers_of_channels_are_said(tmp_path: Path) -> None:
    many = Gives(kind="labels", labels=tuple(Label(value=n, name=str(n)) for n in range(1, 6)))
    with pytest.raises(ModelError, match="gave 2 channels; 'test' names 5 labels"):
        medai.segment(scan(), unet(tmp_path / "a", gives=many), device="cpu")
    with pytest.raises(ModelError, match=r"options\.output of 'test' is 'logits'"):
        medai.segment(scan(), unet(tmp_path / "b", options={"output": "logits"}), device="cpu")
    with pytest.raises(ModelError, match="do not fit the network"):
        medai.segment(scan(), package(tmp_path / "c", {"other": torch.zeros(1)}), device="cpu")


def test_a_run_stops_within_a_tile(tmp_path: Path) -> None:
    class Impatient(Progress):
        calls = 0

        def check(self) -> None:
            self.calls += 1
            if self.calls > 2:
                raise Cancelled

    progress = Impatient()
    with pytest.raises(Cancelled):
        medai.segment(scan(), package(tmp_path / "p", brighter_than(5)), device="cpu", progress=progress)


def test_tensors_of_another_name(tmp_path: Path) -> None:
    state = {f"net.{name}": tensor for name, tensor in brighter_than(5).items()}
    names = {name: name.removeprefix("net.") for name in state}
    model = package(tmp_path / "p", state, details={"tensors": names})
    assert set(np.unique(medai.segment(scan(), model, device="cpu").labels.numpy())) == {0, 7}


def test_scores_become_labels() -> None:
    scores = np.array([[0.2, 0.6], [0.8, 0.4]], np.float32)
    labels = (Label(value=3, name="a"), Label(value=5, name="b", threshold=0.3))
    assert decided(scores, [0, 3], labels, "softmax", 0).tolist() == [3, 0]
    assert decided(scores, [0, 3], labels, "softmax", 0.3).tolist() == [3, 3]
    assert decided(scores, [3, 5], labels, "sigmoid", 0).tolist() == [5, 5]
    assert decided(scores, [3, 5], labels, "sigmoid", 0.7).tolist() == [5, 0]
    np.testing.assert_allclose(activated(np.array([[0.0], [np.log(3)]], np.float32), "softmax"), [[0.25], [0.75]])
    np.testing.assert_allclose(activated(np.zeros((1, 2), np.float32), "softmax"), [[0.5, 0.5]])


def test_pieces() -> None:
    labels = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [2, 0, 2, 2]], np.int32)
    assert largest_piece(labels).tolist() == [[1, 1, 0, 0], [0] * 4, [0, 0, 2, 2]]
    assert pieces(labels, 2).tolist() == [[1, 1, 0, 0], [0] * 4, [0, 0, 2, 2]]
    assert pieces(labels, 0, instances=True).tolist() == [[1, 1, 0, 2], [0] * 4, [3, 0, 4, 4]]
    assert pieces(labels, 2, instances=True).max() == 2


def dark_scan() -> Volume:
    """Noise between 0 and 1, and a cube of 9 in one corner."""
    image = np.random.default_rng(5).uniform(0, 1, (40, 40, 40)).astype(np.float32)
    image[4:10, 4:10, 4:10] = 9
    return Volume(image, "zyx", units="mm")


def test_tiles_of_background_alone_are_not_asked_for_and_nothing_changes(tmp_path: Path) -> None:
    tiling = Tiling(size=(16, 16, 16), multiple=1, halo=1, overlap=0.0)
    state = brighter_than(5)
    every = medai.segment(dark_scan(), package(tmp_path / "a", state, tiling=tiling), device="cpu")
    skipping = tiling.model_copy(update={"empty": 2.0})
    some = medai.segment(dark_scan(), package(tmp_path / "b", state, tiling=skipping), device="cpu")
    np.testing.assert_array_equal(some.labels.numpy(), every.labels.numpy())
    # of 27 tiles one is bright; of the dark ones those that were the darkest so far are asked for, and the ground
    assert every.provenance.tiles == 27
    assert 2 < some.provenance.tiles < 16


def test_a_card_that_calls_background_what_is_none_is_found_out(tmp_path: Path) -> None:
    tiling = Tiling(size=(16, 16, 16), multiple=1, halo=1, overlap=0.0, empty=2.0)
    found = medai.segment(dark_scan(), package(tmp_path / "p", brighter_than(0.5), tiling=tiling), device="cpu")
    np.testing.assert_array_equal(found.labels.numpy() > 0, dark_scan().numpy() > 0.5)
    assert any("not all background" in note for note in found.provenance.notes)


@pytest.mark.parametrize("above", [5.0, 0.5])
def test_background_of_regions_is_told_by_their_thresholds(tmp_path: Path, above: float) -> None:
    """The channel of what is darker is always the larger one: only the threshold tells the cube."""
    labels = (Label(value=1, name="all", threshold=0.999), Label(value=2, name="cube"))
    state = brighter_than(above)
    state["convolutions.1.bias"] = torch.tensor([20.0, -above])  # nothing, and how much brighter
    state["convolutions.1.weight"] = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1)
    tiling = Tiling(size=(16, 16, 16), multiple=1, halo=1, overlap=0.0, empty=2.0)
    more: dict[str, Any] = {"gives": Gives(kind="labels", labels=labels), "options": {"output": "sigmoid"}}
    model = package(tmp_path / "p", state, tiling=tiling, **more)
    found = medai.segment(dark_scan(), model, device="cpu")
    np.testing.assert_array_equal(found.labels.numpy() == 2, dark_scan().numpy() > above)
    told = any("not all background" in note for note in found.provenance.notes)
    assert told == (above < 2)
    assert (found.provenance.tiles < 16) == (above > 2)


def test_a_threshold_moves_the_border_of_a_network_that_decides_itself(tmp_path: Path) -> None:
    model, volume = package(tmp_path / "p", brighter_than(5)), scan()
    found = medai.segment(volume, model, device="cpu", threshold=0.9).labels.numpy()
    np.testing.assert_array_equal(found == 7, volume.numpy() - 5 > np.log(9))


def test_memory_that_runs_out_while_labels_are_made_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, volume = package(tmp_path / "p", brighter_than(5)), scan((40, 40, 40))
    calm = medai.segment(volume, model, device="cpu", threshold=0.5).labels.numpy()
    calls = 0
    write = MemoryStore.write

    def full(store: MemoryStore, where: Any, labels: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError
        write(store, where, labels)

    monkeypatch.setattr(MemoryStore, "write", full)
    found = medai.segment(volume, model, device="cpu", threshold=0.5)
    assert calls > 2
    assert any("voxels" in note for note in found.provenance.notes)
    np.testing.assert_array_equal(found.labels.numpy(), calm)


def test_tiles_of_one_value_are_asked_for_once(tmp_path: Path) -> None:
    image = np.zeros((40, 40, 40), np.float32)
    image[4:10, 4:10, 4:10] = 9
    tiling = Tiling(size=(16, 16, 16), multiple=1, halo=1, overlap=0.0)
    model = package(tmp_path / "p", brighter_than(5), tiling=tiling)
    found = medai.segment(Volume(image, "zyx", units="mm"), model, device="cpu")
    np.testing.assert_array_equal(found.labels.numpy() > 0, image > 5)
    assert found.provenance.tiles == 2
