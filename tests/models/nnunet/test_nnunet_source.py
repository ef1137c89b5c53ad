"""Folders of nnU-Net are described from their JSON; what is not known ends in a need that names its place."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from napari_medai.core.errors import ModelError
from napari_medai.models import load, nnunet, probe
from napari_medai.models.nnunet_labels import LabelSet, label_names, read_labels
from napari_medai.models.nnunet_stage import StagePlan
from tests.engine.nnunet.fabricate import REGIONS, Made, folder_of, make

FLAT = Made(
    patch=(8, 24, 20), spacing=(4.5, 1.2, 1.1), forward=(2, 0, 1), kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
)  # fmt: skip


def described(root: Path, made: Made = Made()) -> Any:  # noqa: B008  # frozen
    """What is said of a model without weights."""
    return probe(make(root, made, weights=False))


def changed(root: Path, change: Callable[[dict[str, Any]], None], name: str = "plans.json") -> Path:
    """A model whose JSON was changed."""
    data = make(root, Made(), weights=False)
    file = folder_of(root, Made(), "3d_fullres") / name
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return data


def test_what_is_told_of_a_model(tmp_path: Path) -> None:
    spec = described(tmp_path, replace(FLAT, channel_names=("CT",), schemes=("CTNormalization",)))
    assert (spec.id, spec.source, spec.stage, spec.runner) == (
        "Dataset777_Phantom-3d_fullres", "nnunet", "segment", "nnunet"
    )  # fmt: skip
    assert (spec.title, spec.safety, spec.needs) == ("Phantom (3d_fullres)", "config", ())
    assert spec.accepts.modality == ("CT",)
    assert spec.accepts.intensity_units == "HU"
    assert spec.accepts.ndim == (3,)
    assert spec.prepare.spacing_mm == (1.2, 1.1, 4.5)  # in the order of the image's axes
    assert spec.tiling.size == (8, 24, 20)  # in the network's
    assert [(label.value, label.name) for label in spec.gives.labels] == [(1, "shell"), (2, "core"), (3, "rod")]
    assert spec.licence == "not stated"
    plan = StagePlan.model_validate(spec.details["stages"][0])
    assert (plan.channels[0].low, plan.channels[0].high, plan.channels[0].mean) == (20, 340, 180)
    assert plan.checkpoints == {"0": "fold_0/checkpoint_final.pth"}
    assert (plan.network, plan.arguments["norm"]) == ("plain_conv_unet", "InstanceNorm3d")
    assert (plan.probabilities.order, plan.data.order, plan.labels.labels) == (1, 3, True)


def test_describing_opens_no_checkpoint_and_is_quick(tmp_path: Path) -> None:
    made = Made(folds=("0", "1", "2", "3", "4"))
    data = make(tmp_path, made, weights=False)
    for file in data.rglob("*.pth"):
        file.chmod(0)
        assert file.stat().st_size == 0
    begun = time.perf_counter()
    spec = probe(data)
    assert time.perf_counter() - begun < 2  # the specification's limit
    assert list(spec.details["stages"][0]["checkpoints"]) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("residual", [False, True])
def test_old_and_new_plans_say_the_same(tmp_path: Path, residual: bool) -> None:
    new = Made(residual=residual, features=(8, 16, 20))
    stages = []
    for name, made in (("new", new), ("old", replace(new, old=True))):
        stage = described(tmp_path / name, made).details["stages"][0]
        # the blocks' numbers differ by the test's own making
        for key in ("n_blocks_per_stage", "n_conv_per_stage_decoder"):
            stage["arguments"].pop(key, None)
        stages.append(stage)
    assert stages[0] == stages[1]
    assert stages[0]["arguments"]["features_per_stage"] == [8, 16, 20]


@pytest.mark.parametrize(
    ("names", "modality"),
    [
        (("T1", "FLAIR"), ("MR",)), (("CT", "PET"), ("CT", "PT")), (("noNorm",), ()), (("t2w",), ("MR",)),
        (("CBCT",), ("CT",)),
    ],
)  # fmt: skip
def test_modalities_are_read_from_the_names_of_channels(tmp_path: Path, names: Any, modality: Any) -> None:
    count = len(names)
    made = Made(channel_names=names, schemes=("ZScoreNormalization",) * count, masked=(False,) * count)
    spec = described(tmp_path, made)
    assert spec.accepts.modality == modality
    assert (spec.accepts.channels, spec.accepts.channel_names) == (count, names)


def test_pictures_in_colour(tmp_path: Path) -> None:
    made = Made(
        configurations=("2d",), patch=(32, 32), spacing=(1.0, 1.0), kernels=((3, 3),) * 3,
        strides=((1, 1), (2, 2), (2, 2)), channel_names=("R", "G", "B"), schemes=("RGBTo01Normalization",) * 3,
        masked=(False,) * 3, reader="NaturalImage2DIO",
    )  # fmt: skip
    spec = described(tmp_path, made)
    assert (spec.accepts.ndim, spec.accepts.rgb, spec.accepts.channels) == ((2,), True, 3)


def test_readers_that_turn_images(tmp_path: Path) -> None:
    spec = described(tmp_path / "a", Made(reader="NibabelIOWithReorient"))
    assert (spec.options["orientation"], spec.accepts.orientation) == ("RAS", "RAS")
    assert described(tmp_path / "b").options["orientation"] == ""
    # TotalSegmentator's own program turns every scan before it calls nnU-Net
    total = Made(
        dataset="Dataset297_TotalSegmentator_total_3mm_1559subj", trainer="nnUNetTrainer_4000epochs_NoMirroring"
    )
    spec = described(tmp_path / "c", total)
    assert spec.options["orientation"] == "RAS"
    assert spec.details["remarks"] == []
    assert spec.title == "TotalSegmentator total 3mm 1559subj (3d_fullres)"


def test_one_of_several_configurations_is_taken_and_the_others_listed(tmp_path: Path) -> None:
    flat = Made(
        configurations=("2d",), patch=(32, 32), spacing=(1.0, 1.0), kernels=((3, 3),) * 3,
        strides=((1, 1), (2, 2), (2, 2)),
    )  # fmt: skip
    make(tmp_path, flat, weights=False)
    data = make(tmp_path, Made(configurations=("3d_lowres", "3d_fullres", "3d_cascade_fullres")), weights=False)
    spec = probe(data)
    assert spec.id.endswith("-3d_fullres")
    assert spec.details["configurations"] == ["2d", "3d_cascade_fullres", "3d_fullres", "3d_lowres"]
    assert "3d_lowres: open one of these" in spec.details["remarks"][0]
    planar = nnunet.describe(data, configuration="2d")
    assert planar.id.endswith("-2d")
    assert planar.accepts.ndim == (2, 3)
    with pytest.raises(ModelError, match=r"no trained configuration '4d'; there are: 2d, 3d_casc"):
        nnunet.describe(data, configuration="4d")
    with pytest.raises(ModelError, match="colour: a model of nnU-Net says that itself"):
        nnunet.describe(data, colour=3)
    # what nnU-Net itself found best
    best = {"selected_model_or_models": [{"configuration": "2d", "trainer": "nnUNetTrainer"}]}
    (data / "inference_information.json").write_text(json.dumps({"best_model_or_ensemble": best}))
    assert probe(data).id.endswith("-2d")


def test_a_cascade_has_two_stages(tmp_path: Path) -> None:
    made = Made(configurations=("3d_lowres", "3d_cascade_fullres"))
    data = make(tmp_path, made, weights=False)
    inner = folder_of(tmp_path, made, "3d_cascade_fullres")
    for spec in (probe(data), probe(inner)):
        assert [stage["configuration"] for stage in spec.details["stages"]] == ["3d_lowres", "3d_cascade_fullres"]
        assert spec.details["stages"][1]["previous"] == "3d_lowres"
        assert spec.path == data  # the whole of what is run
        assert spec.needs == ()
    shutil.rmtree(folder_of(tmp_path, made, "3d_lowres"))
    spec = probe(inner)
    assert "configurations::3d_cascade_fullres::previous_stage" in spec.needs[0].where
    with pytest.raises(ModelError, match="cannot be run here"):
        load(spec)


def test_folders_around_it_are_looked_through(tmp_path: Path) -> None:
    make(tmp_path / "results", Made(), weights=False)
    assert probe(tmp_path / "results").id == "Dataset777_Phantom-3d_fullres"
    make(tmp_path / "results", Made(dataset="Dataset778_Other"), weights=False)
    with pytest.raises(ModelError, match="2 data sets: Dataset777_Phantom, Dataset778_Other; open one"):
        probe(tmp_path / "results")


def test_the_best_checkpoint_where_there_is_no_final_one(tmp_path: Path) -> None:
    data = make(tmp_path, Made(trainer="nnUNetTrainerOfOurs"), weights=False)
    for file in data.rglob("checkpoint_final.pth"):
        file.rename(file.with_name("checkpoint_best.pth"))
    remarks = probe(data).details["remarks"]
    assert any("checkpoint_best" in remark for remark in remarks)
    assert any("'nnUNetTrainerOfOurs' is not known" in remark for remark in remarks)


@pytest.mark.parametrize(
    "name",
    [
        "nnUNetTrainer", "nnUNetTrainer_250epochs", "nnUNetTrainer_4000epochs_NoMirroring", "nnUNetTrainerNoMirroring",
        "nnUNetTrainerDA5", "nnUNetTrainer_onlyMirror01_1500ep", "nnUNetTrainer_DASegOrd0_NoMirroring",
        "nnUNetTrainerDiceTopK10Loss_2000epochs", "nnUNetTrainerBN", "nnUNetTrainerSkeletonRecall",
    ],
)  # fmt: skip
def test_trainers_that_change_nothing_here_are_known(name: str) -> None:
    assert nnunet.KNOWN_TRAINERS.fullmatch(name)


def test_what_is_no_model_is_not_taken_for_one(tmp_path: Path) -> None:
    assert not nnunet.recognise(tmp_path)
    assert not nnunet.recognise(tmp_path / "nothing")
    data = make(tmp_path, Made(), weights=False)
    assert nnunet.recognise(data)
    for file in data.rglob("*.pth"):
        file.unlink()
    assert not nnunet.recognise(data)


def in_plan(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda plans: plans["configurations"]["3d_fullres"].update(values)


def in_network(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda plans: plans["configurations"]["3d_fullres"]["architecture"].update(values)


def in_arguments(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda plans: plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(values)


HERE = "configurations::3d_fullres"
UNKNOWN: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "network": (in_network(network_class_name="torch.hub.load"), f"{HERE}::architecture::network_class_name"),
    "network by its bare name": (
        in_network(network_class_name="PlainConvUNet"), f"{HERE}::architecture::network_class_name"
    ),
    "more to import": (
        in_network(_kw_requires_import=["conv_op", "norm_op_kwargs"]), f"{HERE}::architecture::_kw_requires_import"
    ),
    "convolution": (in_arguments(conv_op="os.system"), f"{HERE}::architecture::arch_kwargs::conv_op"),
    "convolution of two axes": (
        in_arguments(conv_op="torch.nn.modules.conv.Conv2d"), f"{HERE}::architecture::arch_kwargs::conv_op"
    ),
    "norm": (in_arguments(norm_op="subprocess.run"), f"{HERE}::architecture::arch_kwargs::norm_op"),
    "norm of two axes": (
        in_arguments(norm_op="torch.nn.modules.instancenorm.InstanceNorm2d"),
        f"{HERE}::architecture::arch_kwargs::norm_op",
    ),
    "keyword of the norm": (
        in_arguments(norm_op_kwargs={"device": "x"}), f"{HERE}::architecture::arch_kwargs::norm_op_kwargs::device"
    ),
    "nonlinearity": (in_arguments(nonlin=["torch.nn.ReLU"]), f"{HERE}::architecture::arch_kwargs::nonlin"),
    "argument": (in_arguments(stochastic_depth_p=0.1), f"{HERE}::architecture::arch_kwargs::stochastic_depth_p"),
    "resampling": (in_plan(resampling_fn_data="os.system"), f"{HERE}::resampling_fn_data"),
    "its argument": (
        in_plan(resampling_fn_seg_kwargs={"device": "cuda"}), f"{HERE}::resampling_fn_seg_kwargs::device"
    ),
    "preprocessor": (in_plan(preprocessor_name="MyPreprocessor"), f"{HERE}::preprocessor_name"),
    "normalisation": (in_plan(normalization_schemes=["MyNorm"]), f"{HERE}::normalization_schemes::0"),
    "reader": (lambda plans: plans.update(image_reader_writer="MyIO"), "image_reader_writer"),
    "label manager": (lambda plans: plans.update(label_manager="MyLabels"), "label_manager"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_not_known_is_a_need_with_its_place(tmp_path: Path, what: str) -> None:
    change, where = UNKNOWN[what]
    spec = probe(changed(tmp_path, change))
    assert [need.where for need in spec.needs] == [f"nnUNetTrainer__nnUNetPlans__3d_fullres/plans.json#{where}"]
    assert spec.needs[0].capability == ""
    assert "neither imported nor run" in spec.needs[0].why
    with pytest.raises(ModelError, match="cannot be run here"):
        load(spec)


def test_a_bottleneck_and_a_stem_are_known(tmp_path: Path) -> None:
    data = make(tmp_path, Made(residual=True), weights=False)
    file = next(data.rglob("plans.json"))
    plans = json.loads(file.read_text())
    block = "dynamic_network_architectures.building_blocks.residual.BottleneckD"
    in_arguments(block=block, bottleneck_channels=4, stem_channels=6)(plans)
    file.write_text(json.dumps(plans))
    arguments = probe(data).details["stages"][0]["arguments"]
    assert (arguments["bottleneck_channels"], arguments["stem_channels"]) == ([4, 4, 4], 6)
    in_arguments(block="os.system")(plans)
    file.write_text(json.dumps(plans))
    assert probe(data).needs[0].where.endswith("arch_kwargs::block")


def test_trainers_with_a_network_of_their_own_are_named(tmp_path: Path) -> None:
    spec = described(tmp_path, Made(trainer="nnUNet_Primus_M_Trainer"))
    assert "builds a network of its own" in spec.needs[0].why


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_plan(patch_size=[10**6, 10**6, 10**6]), "patch_size"),
        (in_plan(patch_size=[16]), "patch_size"),
        (in_plan(spacing=[1.0, float("nan"), 1.0]), "spacing"),
        (in_plan(spacing=[1.0, 10**400, 1.0]), "spacing"),
        (in_plan(spacing=[1.0, 1.0]), "spacing"),
        (in_plan(inherits_from="3d_fullres"), "inherits_from: a circle"),
        (in_plan(normalization_schemes=["ZScoreNormalization"] * 2), "normalization_schemes"),
        (in_plan(normalization_schemes=["CTNormalization"], use_mask_for_norm=[3]), None),
        (in_arguments(n_stages=10**6), "n_stages"),
        (in_arguments(features_per_stage=[8, 8]), "features_per_stage"),
        (in_arguments(strides=[[1, 1, 1], [2, 2], [2, 2, 2]]), "strides::1"),
        (in_arguments(kernel_sizes="3"), "kernel_sizes"),
        (in_network(network_class_name=3), "network_class_name"),
        (in_network(arch_kwargs=[]), "arch_kwargs"),
        (lambda plans: plans.update(transpose_forward=[0, 0, 1]), "transpose_forward"),
        (lambda plans: plans.update(transpose_forward=[1, 2, 0]), "transpose_backward"),
        (lambda plans: plans.update(configurations=[]), "configurations"),
        (lambda plans: plans["configurations"].pop("3d_fullres"), "no configuration '3d_fullres'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: Any, message: str | None) -> None:
    data = changed(tmp_path, change)
    if message is None:
        assert probe(data).details["stages"][0]["channels"][0]["masked"] is True
        return
    with pytest.raises(ModelError, match=message):
        probe(data)


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000, '{"a": ' * 50_000])
def test_json_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    data = make(tmp_path, Made(), weights=False)
    next(data.rglob("plans.json")).write_text(content)
    with pytest.raises(ModelError, match=r"plans\.json"):
        probe(data)


def test_regions_are_named_by_what_is_left_of_them() -> None:
    dataset = {"labels": {**REGIONS, "ignore": 4}, "regions_class_order": [1, 2, 3]}
    labels = read_labels(dataset, "dataset.json")
    assert labels == LabelSet(heads=3, foreground=(1, 2, 3), region_values=(1, 2, 3))
    assert [(label.value, label.name) for label in label_names(dataset, labels)] == [
        (1, "all without inner"), (2, "inner without rod"), (3, "rod")
    ]  # fmt: skip


def test_an_ignored_label_is_no_output() -> None:
    labels = read_labels({"labels": {"background": 0, "a": 1, "b": [2], "ignore": 3}}, "dataset.json")
    assert labels == LabelSet(heads=3, foreground=(1, 2))


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        ({"a": 1}, None, "labels::background"),
        ({"background": 1, "a": 0}, None, "labels::background"),
        ({"background": 0, "a": 2}, None, "without gaps"),
        ({"background": 0, "a": -1}, None, "labels::a"),
        ({"background": 0, "a": [1, 2], "b": 2}, None, "regions_class_order"),
        ({"background": 0, "a": [1, 2], "b": 2}, [1], "regions_class_order"),
        ({"background": 0, "a": [1, 2], "b": 2}, [1, "x"], "regions_class_order"),
        ([0, 1], None, "labels"),
    ],
)
def test_labels_that_are_wrong_are_named(labels: Any, order: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_labels({"labels": labels, "regions_class_order": order}, "dataset.json")
