"""Folders of nnU-Net: plans that name functions, checkpoints that are programs, names that lead elsewhere."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from napari_medai import nets
from napari_medai.models import nnunet
from napari_medai.models.nnunet_stage import StagePlan
from tests.attacks.corpus import attack, filled, table
from tests.attacks.weights import PICKLES, program
from tests.engine.nnunet.fabricate import Made, make, save

# built once: fabricating fits a network
_MADE: list[Path] = []


def _weighted(root: Path) -> Path:
    """With random weights; what they find does not matter."""
    path = trained(root)
    plan = StagePlan.model_validate(nnunet.probe(path).details["stages"][-1])
    network = nets.build(plan.network, input_channels=1, num_classes=4, **plan.arguments)
    save(path / "fold_0" / "checkpoint_final.pth", network.state_dict(), Made(), "3d_fullres")
    return root


def folder(place: Path) -> Path:
    if not _MADE:
        root = place.parent / "nnunet-original"
        root.mkdir()
        _MADE.append(_weighted(make(root, Made(), weights=False)))
    return shutil.copytree(_MADE[0], place / _MADE[0].name)


def trained(place: Path) -> Path:
    return next(path.parent for path in place.rglob("plans.json"))


@attack("nnunet/control", control=True)
def control(place: Path, marker: Path) -> Path:
    return folder(place)


Change = Callable[[dict[str, Any]], None]


def changed(place: Path, marker: Path, change: Change, name: str = "plans.json") -> Path:
    path = folder(place)
    file = trained(path) / name
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(filled(content, marker)))
    return path


def here(**values: Any) -> Change:
    """Change the configuration."""
    return lambda plans: next(iter(plans["configurations"].values())).update(copy.deepcopy(values))


def architecture(**values: Any) -> Change:
    return lambda plans: next(iter(plans["configurations"].values()))["architecture"].update(copy.deepcopy(values))


def arguments(**values: Any) -> Change:
    return lambda plans: next(iter(plans["configurations"].values()))["architecture"]["arch_kwargs"].update(
        copy.deepcopy(values)
    )


_SYSTEM = {"command": "touch MARKER"}
table(
    "nnunet/plans",
    changed,
    {
        "torch.hub.load": architecture(
            network_class_name="torch.hub.load",
            arch_kwargs={"repo_or_dir": "nobody/nothing", "model": "x", "trust_repo": True},
            _kw_requires_import=[],
        ),
        "os.system": architecture(network_class_name="os.system", arch_kwargs=_SYSTEM, _kw_requires_import=[]),
        "subprocess.run": architecture(
            network_class_name="subprocess.run", arch_kwargs={"args": ["touch", "MARKER"]}, _kw_requires_import=[]
        ),
        "builtins.exec": architecture(network_class_name="builtins.exec", arch_kwargs={"x": "open('MARKER', 'w')"}),
        "module beside it": architecture(network_class_name="plans.Net"),
        "a prefix of a known name": architecture(
            network_class_name="dynamic_network_architectures.architectures.unet.PlainConvUNet.__init__.__globals__"
        ),
        "no text": architecture(network_class_name=["os.system"]),
        "imported argument": arguments(conv_op="os.system"),
        "imported argument that is called": arguments(norm_op="os.system", norm_op_kwargs=_SYSTEM),
        "imported nonlinearity": arguments(nonlin="torch.hub.load", nonlin_kwargs={"repo_or_dir": "a/b", "model": "c"}),
        "more imports": architecture(_kw_requires_import=["conv_op", "n_stages", "strides", "features_per_stage"]),
        "unknown argument": arguments(__class__="os.system", nonlin_first="os.system"),
        "resampling": here(resampling_fn_data="os.system", resampling_fn_data_kwargs=_SYSTEM),
        "resampling of probabilities": here(
            resampling_fn_probabilities="os.system", resampling_fn_probabilities_kwargs=_SYSTEM
        ),
        "resampling of labels": here(resampling_fn_seg="../../evil", resampling_fn_seg_kwargs=_SYSTEM),
        "preprocessor": here(preprocessor_name="os.system"),
        "normalisation": here(normalization_schemes=["os.system"]),
        "normalisation dunder": here(normalization_schemes=["__class__"]),
        "label manager": lambda p: p.update(label_manager="os.system"),
        "reader": lambda p: p.update(image_reader_writer="os.system"),
        "planner": lambda p: p.update(experiment_planner_used="os.system"),
        "old network class": here(UNet_class_name="os.system", architecture=None),
        "inherits from itself": lambda p: p["configurations"].update(
            {name: {"inherits_from": name} for name in p["configurations"]}
        ),
        "inherits in a circle": lambda p: p["configurations"].update(
            {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}
            | {name: {"inherits_from": "a"} for name in p["configurations"]}
        ),
        "previous stage is itself": here(previous_stage="3d_fullres", next_stage="3d_fullres"),
        "previous stage elsewhere": here(previous_stage="../../../evil"),
        "patch of a giant": here(patch_size=[10**6, 10**6, 10**6]),
        "patch of nothing": here(patch_size=[0, -1, 16]),
        "spacing of nothing": here(spacing=[1e-9, 1e-9, 1e-9]),
        "spacing that is none": here(spacing=[float("nan"), -1.0, 0.0]),
        "features of a giant": arguments(features_per_stage=[10**9, 10**9, 10**9]),
        "a million stages": arguments(n_stages=10**6),
        "stages of a giant": arguments(n_conv_per_stage=[10**7, 1, 1]),
        "transposition": lambda p: p.update(transpose_forward=[0, 0, 0], transpose_backward=[9, 9, 9]),
        "intensities": lambda p: p.update(foreground_intensity_properties_per_channel={"0": {"mean": "os.system"}}),
        "configurations are a list": lambda p: p.update(configurations=["os.system"]),
        "name with a path": lambda p: p.update(plans_name="../../evil", dataset_name="../../evil"),
    },
)
table(
    "nnunet/dataset",
    lambda place, marker, change: changed(place, marker, change, "dataset.json"),
    {
        "reader": lambda d: d.update(overwrite_image_reader_writer="os.system"),
        "labels that are code": lambda d: d.update(
            labels={"background": 0, "__import__('os').system('touch MARKER')": 1}
        ),
        "regions of a giant": lambda d: d.update(
            labels={"background": 0, "a": list(range(1, 10**5))}, regions_class_order=[1]
        ),
        "labels below 0": lambda d: d.update(labels={"background": 0, "a": -5, "b": 2**70}),
        "labels of wrong kinds": lambda d: d.update(labels={"background": 0, "a": {"b": 1}, "c": [[1]]}),
        "channels of wrong kinds": lambda d: d.update(channel_names=[["os.system"]]),
        "a million channels": lambda d: d.update(channel_names={str(n): "CT" for n in range(10**5)}),
        "escapes in names": lambda d: d.update(labels={"background": 0, "\x1b]0;evil\x07\n": 1, "b": 2, "c": 3}),
    },
)


@attack("nnunet/plans/deep")
def deep(place: Path, marker: Path) -> Path:
    path = folder(place)
    (trained(path) / "plans.json").write_text('{"configurations": ' + "[" * 100_000)
    return path


for _trainer in ("os.system", "nnUNetTrainerEvil", "nnUNetTrainer.__init__", "nnUNetTrainer$(touch MARKER)"):

    @attack(f"nnunet/trainer/{_trainer}")
    def trainer(place: Path, marker: Path, trainer: str = _trainer) -> Path:
        path = folder(place)
        old = trained(path)
        old.rename(old.with_name(f"{trainer}__nnUNetPlans__3d_fullres"))
        (path / "nnUNetTrainerEvil.py").write_text(f"open({str(marker)!r}, 'w')\n")
        return path


def replaced(place: Path, content: bytes) -> Path:
    path = folder(place)
    for file in path.rglob("checkpoint_*.pth"):
        file.write_bytes(content)
    return path


def _state() -> dict[str, torch.Tensor]:
    return {"weight": torch.zeros(2, 2)}


for _name, _pickle in PICKLES.items():
    attack(f"nnunet/checkpoint/{_name}", refused=True)(
        lambda place, marker, make=_pickle: replaced(place, make(_state(), marker))
    )


@attack("nnunet/checkpoint/with an argument of a trainer")
def init_arguments(place: Path, marker: Path) -> Path:
    """A checkpoint that loads, and names things."""
    path = folder(place)
    for file in path.rglob("checkpoint_*.pth"):
        found = torch.load(file, weights_only=False)
        found |= {"trainer_name": "os.system", "inference_allowed_mirroring_axes": [0, 1, 2, 99, "os"]}
        found["init_args"] = {"configuration": f"$(touch {marker})", "fold": "../../../evil"}
        torch.save(found, file)
    return path


@attack("nnunet/checkpoint/mirroring without end")
def mirroring(place: Path, marker: Path) -> Path:
    path = folder(place)
    for file in path.rglob("checkpoint_*.pth"):
        found = torch.load(file, weights_only=False)
        torch.save(found | {"inference_allowed_mirroring_axes": list(range(10**5))}, file)
    return path


@attack("nnunet/links/checkpoint", refused=True)
def linked(place: Path, marker: Path) -> Path:
    path = folder(place)
    file = next(path.rglob("checkpoint_*.pth"))
    file.rename(place / "secret")
    file.symlink_to(place / "secret")
    return path


@attack("nnunet/links/fold", refused=True)
def linked_fold(place: Path, marker: Path) -> Path:
    path = folder(place)
    fold = next(path.rglob("fold_*"))
    shutil.move(fold, place / "elsewhere")
    fold.symlink_to(place / "elsewhere")
    return path


@attack("nnunet/links/pipe", refused=True)
def piped(place: Path, marker: Path) -> Path:
    path = folder(place)
    for file in path.rglob("checkpoint_*.pth"):
        file.unlink()
        os.mkfifo(file)
    return path


@attack("nnunet/links/round")
def round_and_round(place: Path, marker: Path) -> Path:
    path = folder(place)
    (trained(path) / "again").symlink_to(path)
    return path


def _swap(path: Path, marker: Path) -> None:
    for file in path.rglob("checkpoint_*.pth"):
        file.write_bytes(PICKLES["reduce"](_state(), marker))


def _swap_plans(path: Path, marker: Path) -> None:
    file = trained(path) / "plans.json"
    plans = json.loads(file.read_text())
    architecture(network_class_name="os.system", arch_kwargs=filled(_SYSTEM, marker))(plans)
    file.write_text(json.dumps(plans))


attack("nnunet/later/checkpoint", later=_swap, refused=True)(control)
attack("nnunet/later/plans", later=_swap_plans)(control)
attack("nnunet/checkpoint/a program", refused=True)(lambda place, marker: replaced(place, program(marker)))
