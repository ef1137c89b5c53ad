"""Trained models from end to end, through the stage; parity with nnU-Net itself is in test_nnunet_parity."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import napari_medai as medai
from napari_medai import nets
from napari_medai.api import plan_stage
from napari_medai.core.errors import DeviceError, ModelError
from napari_medai.core.geometry import Reorientation, scaling
from napari_medai.core.stage import Cancelled, Progress
from napari_medai.core.volume import Volume
from napari_medai.engine.nnunet import run, sliding
from napari_medai.engine.nnunet.run import checkpoint_path, chosen_folds
from napari_medai.engine.nnunet.sliding import mirrored
from napari_medai.engine.nnunet.spool import Spool
from napari_medai.engine.nnunet.ways import first_way
from napari_medai.engine.peak import Peak
from napari_medai.engine.zarr_store import folder_of as folder_of_labels
from napari_medai.models import load, nnunet
from napari_medai.models.nnunet_stage import StagePlan
from tests.engine.nnunet.fabricate import LABELS, Made, folder_of, make, phantom, save


def scan(seed: int = 3) -> tuple[Volume, np.ndarray]:
    """The phantom as a head MR, and its labels."""
    pixels, truth = phantom((20, 28, 28), seed=seed)
    return Volume(pixels[0], "zyx", scaling((1.5, 1.5, 1.5)), units="mm", modality="MR", name="head"), truth


def dice(found: np.ndarray, truth: np.ndarray, label: int) -> float:
    """Of one label."""
    return float(2 * ((found == label) & (truth == label)).sum() / ((found == label).sum() + (truth == label).sum()))


def test_a_trained_model_segments_what_it_was_trained_for(trained: Path) -> None:
    volume, truth = scan()
    mask = medai.segment(volume, medai.load_model(trained))
    found = mask.labels.numpy()
    assert found.shape == truth.shape
    assert mask.names == {1: "shell", 2: "core", 3: "rod"}
    # random features tell the phantom's labels fairly; a wrong spacing, order of axes or normalisation does not
    assert dice(found, truth, 1) > 0.45
    assert dice(found, truth, 0) > 0.85
    assert mask.provenance.tiles == 2 * 2**3  # two folds, two tiles along each axis of what is not zero
    notes = mask.provenance.notes
    assert sum("sha256" in note for note in notes) == 2
    assert any(note.startswith("3d_fullres, fold 1: checkpoint_final.pth") for note in notes)


class Impatient(Progress):
    """Stops a run after so many reports."""

    def __init__(self, patience: int) -> None:
        self.patience, self.told = patience, 0

    def update(self, done: float, total: float, message: str = "") -> None:
        self.told += "tile" in message
        self.check()

    def check(self) -> None:
        if self.told >= self.patience:
            raise Cancelled


def test_a_run_is_cancelled_within_a_tile(trained: Path) -> None:
    progress = Impatient(2)
    with pytest.raises(Cancelled):
        medai.segment(scan()[0], medai.load_model(trained), progress=progress)
    assert progress.told == 2


def test_folds_and_mirroring_are_options(trained: Path) -> None:
    volume, _ = scan()
    both = medai.segment(volume, load(nnunet.probe(trained)))
    one = medai.segment(volume, load(nnunet.describe(trained, folds="1", mirroring=False, step=1.0)))
    assert (one.provenance.tiles, both.provenance.tiles) == (8, 16)
    assert (one.labels.numpy() != both.labels.numpy()).any()
    assert any("mirroring was switched off" in note for note in one.provenance.notes)
    off = medai.segment(volume, load(nnunet.describe(trained, folds="1", step=1.0)), mirror=False)
    np.testing.assert_array_equal(off.labels.numpy(), one.labels.numpy())
    with pytest.raises(ModelError, match=r"'7' were asked for; 3d_fullres has 0, 1"):
        medai.segment(volume, load(nnunet.describe(trained, folds="7")))
    with pytest.raises(ModelError, match="step"):
        medai.segment(volume, load(nnunet.describe(trained, step=0)))


def test_folds_by_their_names(trained: Path) -> None:
    plan = StagePlan.model_validate(nnunet.probe(trained).details["stages"][0])
    plan = plan.model_copy(update={"checkpoints": {"10": "x", "2": "x", "all": "x"}})
    assert chosen_folds(plan, "all") == ["2", "10"]
    assert chosen_folds(plan, "fold_all, 2") == ["all", "2"]
    only = plan.model_copy(update={"checkpoints": {"all": "x"}})
    assert chosen_folds(only, "all") == ["all"]


def test_checkpoints_outside_of_the_package_are_refused(trained: Path) -> None:
    plan = StagePlan.model_validate(nnunet.probe(trained).details["stages"][0])
    for elsewhere in ("../../../x.pth", "/etc/passwd"):
        with pytest.raises(ModelError, match="outside of the package"):
            checkpoint_path(trained, plan.model_copy(update={"checkpoints": {"0": elsewhere}}), "0")


def test_sums_beyond_half_precision_are_kept_in_float32(tmp_path: Path) -> None:
    made = Made(features=(4, 4, 6))
    make(tmp_path, made, weights=False)
    spec = nnunet.probe(folder_of(tmp_path, made, "3d_fullres"))
    plan = StagePlan.model_validate(spec.details["stages"][0])
    state = nets.build(plan.network, input_channels=1, num_classes=4, **plan.arguments).state_dict()
    state["decoder.seg_layers.1.bias"] = torch.tensor([0.0, 0.0, 1e6, 0.0])
    save(folder_of(tmp_path, made, "3d_fullres") / "fold_0" / "checkpoint_final.pth", state, made, "3d_fullres")
    mask = medai.segment(scan()[0], load(spec))
    found = mask.labels.numpy()
    assert (found[found > 0] == 2).all()  # outside of the box of what is not zero there is background
    assert any("half precision overflowed" in note for note in mask.provenance.notes)
    state["decoder.seg_layers.1.bias"] = torch.full((4,), torch.nan)
    save(folder_of(tmp_path, made, "3d_fullres") / "fold_0" / "checkpoint_final.pth", state, made, "3d_fullres")
    with pytest.raises(ModelError, match="not finite"):
        medai.segment(scan()[0], load(spec))


def test_a_patch_that_the_network_cannot_take_is_said(tmp_path: Path) -> None:
    made = Made(patch=(15, 20, 20))  # 15 is no multiple of the strides
    make(tmp_path, made, weights=False)
    spec = nnunet.probe(tmp_path / made.dataset)
    plan = StagePlan.model_validate(spec.details["stages"][0])
    state = nets.build(plan.network, input_channels=1, num_classes=4, **plan.arguments).state_dict()
    save(folder_of(tmp_path, made, "3d_fullres") / "fold_0" / "checkpoint_final.pth", state, made, "3d_fullres")
    with pytest.raises(ModelError, match=r"failed on a tile of \(15, 20, 20\)"):
        medai.segment(scan()[0], load(spec))


def test_what_a_person_cannot_change_is_said(trained: Path) -> None:
    volume = scan()[0].replace(units="pixel")
    mask = medai.segment(volume, load(nnunet.describe(trained, folds="0", step=1.0)), tile=64, min_size=5)
    notes = " ".join(mask.provenance.notes)
    for said in ("taken as 1 mm", "tile and batch are the plans'", "min_size is of no effect"):
        assert said in notes


@pytest.mark.parametrize("residual", [False, True])
def test_names_of_parameters_are_nnunets(residual: bool, tmp_path: Path) -> None:
    made = replace(Made(features=(4, 4, 6)), residual=residual, labels=dict(LABELS))
    make(tmp_path, made, weights=False)
    plan: Any = StagePlan.model_validate(nnunet.probe(tmp_path / made.dataset).details["stages"][0])
    names = set(nets.build(plan.network, input_channels=1, num_classes=4, **plan.arguments).state_dict())
    expected = {
        "decoder.seg_layers.0.weight", "decoder.transpconvs.1.bias", "decoder.stages.1.convs.0.conv.weight",
        "decoder.stages.1.convs.0.all_modules.1.bias", "decoder.stages.0.convs.0.norm.weight",
    }  # fmt: skip
    first = "stages.0.blocks.0.conv1" if residual else "stages.0.0.convs.0"
    expected |= {f"{side}encoder.{first}.{part}" for side in ("", "decoder.") for part in ("conv.weight", "norm.bias")}
    if residual:
        expected |= {"encoder.stem.convs.0.conv.weight", "encoder.stages.2.blocks.0.skip.1.norm.weight"}
    assert expected <= names


def test_folds_that_do_not_fit_in_memory_together_meet_in_a_file(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, model = scan()[0], load(nnunet.describe(trained, mirroring=False))
    together = medai.segment(volume, model)
    monkeypatch.setattr(run, "first_way", lambda *given: replace(first_way(*given), together=1))
    apart = medai.segment(volume, model)
    np.testing.assert_array_equal(apart.labels.numpy(), together.labels.numpy())
    assert apart.provenance.tiles == together.provenance.tiles


def test_three_folds_in_a_file() -> None:
    folds = [[torch.full((2, 3), float(n * fold)).half() for n in (1, 10)] for fold in (1, 2, 6)]
    with tempfile.TemporaryFile() as file:
        spool = Spool(file)
        spool.keep(folds[0])
        spool.add(folds[1])
        assert [mean[0, 0].item() for mean in spool.mean(folds[2], 3)] == [3, 30]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_is_said() -> None:
    with Path("/dev/full").open("r+b", buffering=0) as file, pytest.raises(DeviceError, match="TMPDIR"):
        Spool(file).keep([torch.zeros(2, 3)])


def test_labels_are_shown_as_they_are_found(trained: Path) -> None:
    seen: list[tuple[int, int]] = []

    class Watching(Progress):
        tiles = 0

        def update(self, done: float, total: float, message: str = "") -> None:
            self.tiles += message.startswith("tile")

        def partial(self, found: np.ndarray, where: tuple[slice, ...]) -> None:
            assert found.shape == (20, 28, 28)
            assert where[1:] == (slice(1, 27), slice(1, 27))  # the box of what is not zero
            seen.append((self.tiles, where[0].stop))

    model = load(nnunet.describe(trained, folds="0", mirroring=False))
    medai.segment(scan()[0], model, progress=Watching())
    stops = [stop for _, stop in seen]
    assert stops == sorted(stops)
    # the first planes were there before the last tile
    assert seen[0][0] < seen[-1][0]


def test_a_run_is_planned_after_its_first_tile(trained: Path) -> None:
    model = load(nnunet.describe(trained, mirroring=False))
    plan = plan_stage("segment", scan()[0], model)
    assert plan is not None
    assert (plan.tiles, plan.tile, plan.channels, plan.sums, plan.accumulator) == (
        16,
        (16, 20, 20),
        4,
        "float16",
        "host",
    )
    assert plan.fits
    assert 50 < plan.host_mb < plan.free_host_mb
    assert 0 < plan.seconds < 600


class Keeping(Progress):
    """Writes labels into a folder, and stops after so many slabs of them."""

    def __init__(self, store: Path, stop: int = 10**6) -> None:
        self.store, self.left, self.notes = store, stop, list[str]()

    def partial(self, found: np.ndarray, where: tuple[slice, ...]) -> None:
        self.left -= 1
        if self.left <= 0:
            raise Cancelled

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def slabs_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits come three planes at a time."""
    monkeypatch.setattr(sliding, "SLAB", 3 * 4 * 20 * 28)


def long(turned: bool, shape: tuple[int, int, int] = (48, 24, 24)) -> Volume:
    """A phantom at another spacing than the model's; in a file whose axes run otherwise, if asked for."""
    volume = Volume(phantom(shape, seed=3)[0][0], "zyx", scaling((1.9, 1.3, 1.6)), units="mm", modality="MR")
    there = volume.reoriented(Reorientation((2, 0, 1), (True, False, True)))
    return volume.replace(meta={"stored_affine": there.affine.tolist()}) if turned else volume


@pytest.mark.usefixtures("slabs_of_three")
@pytest.mark.parametrize("turned", [False, True])
def test_a_run_that_was_stopped_goes_on_from_what_is_finished(trained: Path, tmp_path: Path, turned: bool) -> None:
    volume = long(turned, (24, 24, 48) if turned else (48, 24, 24))
    model = load(nnunet.describe(trained, folds="0", mirroring=False))
    whole = medai.segment(volume, model)
    place = tmp_path / "labels"
    with pytest.raises(Cancelled):
        medai.segment(volume, model, progress=Keeping(place, 14))
    second = Keeping(place)
    resumed = medai.segment(volume, model, progress=second)
    assert folder_of_labels(resumed.labels.array) == place
    np.testing.assert_array_equal(resumed.labels.numpy(), whole.labels.numpy())
    assert any("earlier run had finished" in note for note in second.notes)
    assert 0 < resumed.provenance.tiles < 0.8 * whole.provenance.tiles
    again = medai.segment(volume, model, progress=Keeping(place))
    assert again.provenance.tiles == 0
    np.testing.assert_array_equal(again.labels.numpy(), whole.labels.numpy())


def test_other_weights_and_other_axes_are_begun_anew(trained: Path, tmp_path: Path) -> None:
    package = shutil.copytree(trained, tmp_path / "package")
    model = load(nnunet.describe(package, folds="0", mirroring=False, step=1.0))
    place = tmp_path / "labels"
    medai.segment(long(False), model, progress=Keeping(place))
    turned = Keeping(place)
    medai.segment(long(True), model, progress=turned)
    (one,), (other,) = (package.rglob(f"fold_{n}/checkpoint_final.pth") for n in (0, 1))
    other.replace(one)
    later = Keeping(place)
    found = medai.segment(long(True), model, progress=later)
    assert not any("earlier run" in note for note in (*turned.notes, *later.notes))
    np.testing.assert_array_equal(found.labels.numpy(), medai.segment(long(True), model).labels.numpy())


@pytest.mark.usefixtures("slabs_of_three")
def test_lack_of_memory_goes_on_from_what_is_finished(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, model = long(False), load(nnunet.describe(trained, mirroring=False))
    expected = medai.segment(volume, model)
    calls: list[int] = []

    def short(network: Any, image: torch.Tensor, *given: Any, **others: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == expected.provenance.tiles - 3:
            raise torch.OutOfMemoryError("out of memory")
        return mirrored(network, image, *given, **others)

    monkeypatch.setattr(run, "mirrored", short)
    found = medai.segment(volume, model, progress=Keeping(tmp_path / "labels"))
    np.testing.assert_array_equal(found.labels.numpy(), expected.labels.numpy())
    assert any("one fold after the other" in note for note in found.provenance.notes)
    assert expected.provenance.tiles < len(calls) < 1.5 * expected.provenance.tiles


def test_a_second_stage_goes_on_and_the_first_stays_in_memory(tmp_path: Path) -> None:
    made = Made(configurations=("3d_lowres", "3d_cascade_fullres"), features=(4, 4, 6))
    model, place = load(nnunet.probe(make(tmp_path / "model", made))), tmp_path / "labels"
    whole = medai.segment(scan()[0], model)
    with pytest.raises(Cancelled):
        medai.segment(scan()[0], model, progress=Keeping(place, 2))
    resumed = medai.segment(scan()[0], model, progress=Keeping(place))
    np.testing.assert_array_equal(resumed.labels.numpy(), whole.labels.numpy())
    assert any("earlier run had finished" in note for note in resumed.provenance.notes)


def test_memory_is_watched_no_longer_after_a_first_pass_that_fails(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(network: Any, image: torch.Tensor, *given: Any, **others: Any) -> torch.Tensor:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(run, "mirrored", fails)
    watched = set(Peak._open)
    with pytest.raises(ModelError, match="no kernel") as caught:
        medai.segment(scan()[0], load(nnunet.describe(trained, folds="0")))
    assert caught.tb is not None  # it holds the frames, and what they opened
    assert set(Peak._open) == watched
