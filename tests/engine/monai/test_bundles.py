"""Bundles through the door and the stages: what comes out, what is said, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from napari_medai.api import plan_stage
from napari_medai.core.errors import DeviceError, InputError, ModelError, UntrustedError
from napari_medai.core.stage import Cancelled, Progress
from napari_medai.core.volume import Volume
from napari_medai.engine.monai.tensors import function
from napari_medai.engine.weights import forget
from napari_medai.models import load, probe
from napari_medai.models.spec import Model
from napari_medai.stages import classify, segment
from tests.models.monai.bundles import BUNDLES, compose, spleen, template, write

CPU = segment.SegmentParams(device="cpu")


class Told(Progress):
    """Keeps what it is told; stops after a number of updates."""

    def __init__(self, stop: int = 0) -> None:
        self.notes: list[str] = []
        self.updates: list[tuple[float, float, str]] = []
        self.stop = stop

    def note(self, message: str) -> None:
        self.notes.append(message)

    def update(self, done: float, total: float, message: str = "") -> None:
        self.updates.append((done, total, message))
        if self.stop and len([u for u in self.updates if u[2] == "looking"]) >= self.stop:
            raise Cancelled


def scan(shape: tuple[int, ...] = (8, 16, 16), axes: str = "zyx", modality: str = "CT", seed: int = 0) -> Volume:
    rng = np.random.default_rng(seed)
    affine = np.diag([2.5, 1.0, 1.0, 1.0])
    return Volume(rng.normal(50, 60, shape).astype(np.float32), axes, affine, units="mm", modality=modality)


def test_a_label_map_with_names_and_a_record(tmp_path: Path) -> None:
    model = load(probe(write(tmp_path, "spleen")))
    told = Told()
    mask = segment.run(scan((8, 40, 40)), model, CPU, told)
    assert mask.labels.shape == (8, 40, 40)
    assert mask.labels.dtype == np.uint8
    assert mask.names == {1: "spleen"}
    looked = [update[0] for update in told.updates if update[2] == "looking"]
    assert len(looked) > 2
    # one for each batch of windows, as many as were announced
    assert looked == pytest.approx(np.arange(len(looked)) / len(looked))
    assert mask.provenance.tiles >= len(looked)
    assert mask.provenance.model_sha256 == model.spec.sha256 != ""


def test_it_stops_between_two_batches_of_windows(tmp_path: Path) -> None:
    model = load(probe(write(tmp_path, "spleen")))
    told = Told(stop=2)
    with pytest.raises(Cancelled):
        segment.run(scan((12, 40, 40)), model, CPU, told)
    assert told.updates[-1][0] < 0.5


def test_a_bundle_is_planned_and_refused_where_its_scores_do_not_fit(tmp_path: Path) -> None:
    model = load(probe(write(tmp_path, "spleen")))
    plan = plan_stage("segment", scan((8, 40, 40)), model, CPU)
    assert plan is not None
    assert plan.channels == 2
    assert plan.tiles > 2
    assert plan.fits
    with pytest.raises(DeviceError, match=r"does not fit into memory: .* of memory would do, 1 MiB are allowed"):
        segment.run(scan((8, 40, 40)), model, segment.SegmentParams(device="cpu", memory=1), Progress())


def test_tile_and_batch_as_asked(tmp_path: Path) -> None:
    model = load(probe(write(tmp_path, "spleen")))
    told = Told()
    segment.run(scan(), model, segment.SegmentParams(device="cpu", tile=32, batch=1), told)
    assert "tiles of 32 voxels, as asked, instead of the bundle's" in told.notes
    assert len([update for update in told.updates if update[2] == "looking"]) == 1


def test_channels_and_labels_that_a_function_of_the_bundle_makes(tmp_path: Path) -> None:
    model = load(probe(write(tmp_path, "tumour")))
    assert model.spec.accepts.channels == 4
    assert model.spec.accepts.channel_names == ("T0", "T1", "T2", "T3")
    mask = segment.run(scan((4, 8, 16, 16), "czyx", "MR"), model, CPU, Told())
    assert set(np.unique(mask.labels.numpy())) <= {0, 1, 2, 4}
    assert mask.names == {1: "core", 2: "whole", 4: "enhancing"}


def test_labels_that_overlap_become_one_map_the_smaller_on_top(tmp_path: Path) -> None:
    config = BUNDLES["tumour"][0]()
    config["postprocessing"]["transforms"] = config["postprocessing"]["transforms"][:3]
    told = Told()
    mask = segment.run(scan((4, 8, 16, 16), "czyx", "MR"), load(probe(write(tmp_path, "tumour", config))), CPU, told)
    assert mask.names == {1: "core", 2: "whole", 3: "enhancing"}
    assert any(note.startswith("labels of the bundle overlap: larger ones were drawn first") for note in told.notes)


def test_one_image_is_classified_and_the_missing_truth_is_said(tmp_path: Path) -> None:
    model = load(probe(write(tmp_path, "classification")))
    told = Told()
    image = scan((24, 20), "yx", "")
    scores = classify.run(image, model, classify.ClassifyParams(device="cpu"), told)
    assert scores.classes == ("none", "round", "square")
    assert scores.probabilities.sum() == pytest.approx(1)
    assert "ToTensord of the bundle also looks at a ground truth; there is none, and it was left out" in told.notes


def test_a_single_image_for_a_bundle_of_slices(tmp_path: Path) -> None:
    model = load(probe(write(tmp_path, "ventricular")))
    assert model.spec.accepts.ndim == (2, 3)
    volume = scan((1, 16, 16), modality="MR")
    flat = segment.run(volume.take("z", 0), model, CPU, Told()).labels.numpy()
    np.testing.assert_array_equal(flat, segment.run(volume, model, CPU, Told()).labels.numpy()[0])


def test_turned_scans_give_turned_labels(tmp_path: Path) -> None:
    model = load(probe(write(tmp_path, "spleen")))
    volume = scan()
    mirrored = volume.replace(array=volume.numpy()[:, :, ::-1], affine=volume.affine @ _flip(2, 16))
    a = segment.run(volume, model, CPU, Told()).labels.numpy()
    b = segment.run(mirrored, model, CPU, Told()).labels.numpy()[:, :, ::-1]
    assert (a == b).mean() > 0.999


def _flip(axis: int, size: int) -> np.ndarray:
    flip = np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1, size - 1
    return flip


def test_voxels_of_unknown_size_are_not_resampled(tmp_path: Path) -> None:
    model = load(probe(write(tmp_path, "spleen")))
    volume = Volume(scan().numpy(), "zyx", modality="CT")
    assert volume.units == "pixel"
    assert segment.run(volume, model, CPU, Told()).labels.shape == (8, 16, 16)


def test_a_size_that_the_network_does_not_take_is_told(tmp_path: Path) -> None:
    model = load(probe(write(tmp_path, "template")))
    with pytest.raises(InputError, match="does not take an image of 15 x 13 x 9"):
        segment.run(scan((9, 13, 15)), model, CPU, Told())


def test_a_step_that_fails_is_named(tmp_path: Path) -> None:
    config = template()
    config["transforms"].append({"_target_": "CenterSpatialCropd", "keys": "@image", "roi_size": [1, 2, 3, 4]})
    with pytest.raises(InputError, match="The bundle's preprocessing fails on this image"):
        segment.run(scan(), load(probe(write(tmp_path, "template", config))), CPU, Told())


def _with_weights(bundle: Path, content: Any) -> Model:
    torch.save(content, bundle / "models" / "model.pt")
    return load(probe(bundle))


@pytest.mark.parametrize("key", ["model", "state_dict", "network"])
def test_weights_inside_a_checkpoint(key: str, tmp_path: Path) -> None:
    bundle = write(tmp_path, "spleen")
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    plain = segment.run(scan(), load(probe(bundle)), CPU, Told()).labels.numpy()
    model = _with_weights(bundle, {key: state, "epoch": 3})
    np.testing.assert_array_equal(segment.run(scan(), model, CPU, Told()).labels.numpy(), plain)


def test_safetensors_beside_take_the_place_of_a_pickle(tmp_path: Path) -> None:
    bundle = write(tmp_path, "spleen")
    plain = segment.run(scan(), load(probe(bundle)), CPU, Told()).labels.numpy()
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    safetensors.torch.save_file(state, bundle / "models" / "model.safetensors")
    spec = probe(bundle)
    assert spec.weights == "models/model.safetensors"
    np.testing.assert_array_equal(segment.run(scan(), load(spec), CPU, Told()).labels.numpy(), plain)


def test_weights_that_do_not_fit_name_what_differs(tmp_path: Path) -> None:
    bundle = write(tmp_path, "spleen")
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    name = next(iter(state))
    state["other.weight"] = state.pop(name)
    with pytest.raises(ModelError, match=rf"1 missing \({name}\); 1 unexpected \(other.weight\)"):
        segment.run(scan(), _with_weights(bundle, state), CPU, Told())


def test_weights_changed_after_the_description_are_refused(tmp_path: Path) -> None:
    model = load(probe(write(tmp_path, "spleen")))
    path = tmp_path / "spleen" / "models" / "model.pt"
    path.write_bytes(path.read_bytes() + b"\0")
    forget()  # a network with the weights that were described may be warm
    with pytest.raises(ModelError, match="sha256"):
        segment.run(scan(), model, CPU, Told())


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (os.environ["MEDAI_TEST_MARKER"],))


def test_weights_that_are_a_program_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    monkeypatch.setenv("MEDAI_TEST_MARKER", str(marker))
    bundle = write(tmp_path, "spleen")
    with pytest.raises(ModelError, match="they hold more than tensors"):
        segment.run(scan(), _with_weights(bundle, {"model": _Harm()}), CPU, Told())
    (bundle / "models" / "model.pt").write_bytes(pickle.dumps(_Harm()))
    with pytest.raises(ModelError, match="they hold more than tensors"):
        segment.run(scan(), load(probe(bundle)), CPU, Told())
    assert not marker.exists()
    pickle.loads(pickle.dumps(_Harm()))  # the same bytes do harm where they are trusted
    assert marker.exists()


def test_no_socket_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    segment.run(scan(), load(probe(write(tmp_path, "spleen"))), CPU, Told())


def test_a_bundle_changed_into_a_program_is_refused_when_it_runs(tmp_path: Path) -> None:
    model = load(probe(write(tmp_path, "spleen")))
    config = spleen()
    config["preprocessing"] = compose({"_target_": "monai.utils.run_cmd", "cmd_list": ["id"]})
    path = tmp_path / "spleen" / "configs" / "inference.json"
    path.write_text(json.dumps(config))
    with pytest.raises(UntrustedError, match=r"'monai\.utils\.run_cmd' is not in the list of reviewed classes"):
        segment.run(scan(), model, CPU, Told())


@pytest.mark.parametrize(
    ("source", "given", "expected"),
    [
        ("lambda x: x[1:]", [[1, 2], [3, 4]], [[3, 4]]),
        ("lambda x: torch.where(x[[0]] > 1, 4, 0)", [[1, 2]], [[0, 4]]),
        ("lambda y: (y > 2).long() * 3", [[1, 3]], [[0, 3]]),
        ("lambda x: torch.nan_to_num(x, nan=255)", [[float("nan")]], [[255.0]]),
    ],
)
def test_functions_of_a_tensor(source: str, given: Any, expected: Any) -> None:
    torch.testing.assert_close(function(source)(torch.tensor(given)), torch.tensor(expected))


@pytest.mark.parametrize(
    "source",
    [
        "lambda x: x.numpy()", "lambda x: torch.load('a')", "lambda x: x.__class__", "lambda x: open('a')",
        "lambda x, y: x", "lambda *x: x", "lambda x: (lambda y: y)(x)", "lambda x: torch.where(x, out=x)", "1",
        "lambda torch: torch.load", "lambda x: torch.hub", "lambda x: [y for y in x]", "lambda x: x.tofile('a')",
    ],
)  # fmt: skip
def test_other_functions_are_refused(source: str) -> None:
    with pytest.raises(ModelError, match="not in the list of reviewed operations"):
        function(source)


def test_a_reader_where_none_belongs_is_refused(tmp_path: Path) -> None:
    config = spleen()
    config["postprocessing"]["transforms"][1]["transform"] = {"_target_": "LoadImaged", "keys": "image"}
    path = write(tmp_path, "spleen") / "configs" / "inference.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="where nothing is read or written"):
        segment.run(scan(), load(probe(path.parent.parent)), CPU, Told())
