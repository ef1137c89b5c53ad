"""Checkpoints are read as arrays and numbers, whatever else they would like to be."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_medai import nets
from napari_medai.core.errors import ModelError
from napari_medai.engine.nnunet.checkpoint import _load, load_fold, read_checkpoint
from napari_medai.models import nnunet
from napari_medai.models.nnunet_stage import StagePlan
from tests.engine.nnunet.fabricate import Made, folder_of, make, save

CPU = torch.device("cpu")
MADE = Made(mirroring=(0, 2))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return {"encoder.weight": torch.arange(6.0).reshape(2, 3)}


@pytest.mark.parametrize("old_numpy", [False, True])
def test_checkpoints_with_scalars_of_numpy_open(
    tmp_path: Path, state: dict[str, torch.Tensor], old_numpy: bool
) -> None:
    path = tmp_path / "fold_0" / "checkpoint_final.pth"
    save(path, state, MADE, "3d_fullres", old_numpy)
    found = read_checkpoint(path)
    assert (found.trainer, found.configuration, found.mirroring) == ("nnUNetTrainer", "3d_fullres", (0, 2))
    torch.testing.assert_close(found.weights["encoder.weight"], state["encoder.weight"])
    log = _load(path)["logging"]
    assert log["mean_fg_dice"] == [0.7]
    assert log["dice_per_class_or_region"][0] == pytest.approx([0.6, 0.8])
    assert all(type(value) is float for value in log["train_losses"])
    # what was allowed for this file is not allowed for others
    assert not any("scalar" in str(known) or "numpy" in str(known) for known in torch.serialization.get_safe_globals())


def test_names_that_compiling_put_there_are_taken_off(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "fold_0" / "checkpoint_final.pth"
    save(path, {"module._orig_mod.encoder.weight": state["encoder.weight"]}, MADE, "2d")
    assert list(read_checkpoint(path).weights) == ["encoder.weight"]


def test_arrays_and_odd_numbers_of_numpy_do_no_harm(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "checkpoint.pth"
    log = {
        "a": np.arange(3),
        "b": np.bool_(True),
        "c": np.int64(-5),
        "d": np.float16(0.5),
        "e": np.array([1], ">i4")[0],
    }
    torch.save({"network_weights": state, "logging": log}, path)
    found = _load(path)["logging"]
    assert [found[key] for key in "bcde"] == [True, -5, 0.5, 1]
    assert not isinstance(found["a"], np.ndarray)


class Program:
    """A pickle that calls."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def test_a_program_in_a_checkpoint_is_named_and_not_run(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path, marker = tmp_path / "checkpoint_final.pth", tmp_path / "marker"
    torch.save({"network_weights": state, "optimizer_state": Program(marker)}, path)
    with pytest.raises(ModelError, match=r"posix\.system.*nothing of it ran"):
        read_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 and nothing", b"\x80\x02}q\x00.", os.urandom(64)],
    ids=["empty", "cut", "pickle", "noise"],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint_final.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"checkpoint_final\.pth is (damaged|not in the form)"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": {}}, "no network_weights"),
        ({"network_weights": {"a": 3}}, "no network_weights"),
        ([1, 2], "no network_weights"),
        ({"network_weights": {"a": torch.zeros(1)}, "inference_allowed_mirroring_axes": [0, 7]}, "mirroring along"),
        ({"network_weights": {"a": torch.zeros(1)}, "inference_allowed_mirroring_axes": "xyz"}, "mirroring along"),
    ],
)
def test_what_is_not_nnunets_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "checkpoint_final.pth")
    with pytest.raises(ModelError, match=message):
        read_checkpoint(tmp_path / "checkpoint_final.pth")


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StagePlan]:
    """A folder of a tiny model without weights, and its plan."""
    root = tmp_path_factory.mktemp("described")
    made = replace(MADE, features=(4, 4, 6))
    make(root, made, weights=False)
    spec = nnunet.probe(folder_of(root, made, "3d_fullres"))
    return folder_of(root, made, "3d_fullres") / "fold_0" / "checkpoint_final.pth", StagePlan.model_validate(
        spec.details["stages"][0]
    )


def untrained(plan: StagePlan, **changes: Any) -> dict[str, torch.Tensor]:
    """State of a network of the plan."""
    return nets.build(plan.network, **{**plan.arguments, "input_channels": 1, "num_classes": 4, **changes}).state_dict()


def test_a_fold_is_loaded_strictly_and_kept(described: tuple[Path, StagePlan]) -> None:
    path, plan = described
    save(path, untrained(plan), MADE, "3d_fullres")
    fold = load_fold(path, plan, 4, 1, CPU)
    assert fold.mirroring == (0, 2)
    assert load_fold(path, plan, 4, 1, CPU) is fold
    save(path, untrained(plan), MADE, "3d_fullres")
    assert load_fold(path, plan, 4, 1, CPU) is not fold  # other weights


def test_weights_that_do_not_fit_are_refused_before_memory_is_taken(described: tuple[Path, StagePlan]) -> None:
    path, plan = described
    save(path, untrained(plan), MADE, "3d_fullres")
    with pytest.raises(ModelError, match=r"do not fit the network of the plans: 4 differ"):
        load_fold(path, plan, 7, 1, CPU)
    giant = {**plan.arguments, "features_per_stage": [8192, 8192, 8192]}
    with pytest.raises(ModelError, match="do not fit"):
        load_fold(path, plan.model_copy(update={"arguments": giant}), 4, 1, CPU)


def test_the_trainer_of_batch_normalisation_has_another_network(described: tuple[Path, StagePlan]) -> None:
    path, plan = described
    made = replace(MADE, trainer="nnUNetTrainerBN")
    save(path, untrained(plan, norm="BatchNorm3d"), made, "3d_fullres")
    names = dict(load_fold(path, plan, 4, 1, CPU).named_modules())
    assert isinstance(names["network.encoder.stages.0.0.convs.0.norm"], torch.nn.BatchNorm3d)


def test_a_checkpoint_of_another_configuration_is_refused(described: tuple[Path, StagePlan]) -> None:
    path, plan = described
    save(path, untrained(plan), MADE, "3d_lowres")
    with pytest.raises(ModelError, match="trained for '3d_lowres'"):
        load_fold(path, plan, 4, 1, CPU)
