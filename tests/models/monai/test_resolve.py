"""What a bundle's configuration may say, and what becomes a need: found by path, explained, and never run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import import_module
from inspect import isclass, signature
from pathlib import Path
from typing import Any

import pytest
from monai.inferers import Inferer
from monai.transforms import Transform
from torch import nn

from napari_medai.core.errors import ModelError, UntrustedError
from napari_medai.models import load, probe
from napari_medai.models.monai import recognise, reviewed
from napari_medai.models.monai.expressions import RefusedError, evaluate
from napari_medai.models.monai.plan import Mark, Named, Part
from napari_medai.models.monai.resolve import resolve
from tests.models.monai.bundles import BUNDLES, SAVE, compose, spleen, write
from tests.models.monai.bundles import load as load_image

FILE = "configs/inference.json#"


def needs_of(tmp_path: Path, config: dict[str, Any]) -> dict[str, tuple[str, str]]:
    bundle = write(tmp_path, "spleen", config, weights=False)
    started = time.perf_counter()
    _, needs, _ = resolve(bundle)
    assert time.perf_counter() - started < 2
    return {need.where.removeprefix(FILE): (need.capability, need.why) for need in needs}


@pytest.mark.parametrize("name", sorted(BUNDLES))
def test_bundles_of_common_shapes_need_nothing(name: str, tmp_path: Path) -> None:
    bundle = write(tmp_path, name)
    assert recognise(bundle)
    spec = probe(bundle)
    assert spec.needs == ()
    assert spec.safety == "config"
    assert spec.source == "monai"
    assert load(spec).grant is None


def test_what_a_bundle_says_of_itself(tmp_path: Path) -> None:
    spec = probe(write(tmp_path, "spleen"))
    assert (spec.id, spec.title, spec.version, spec.stage) == ("spleen", "Spleen", "0.1.0", "segment")
    assert (spec.licence, spec.training_data, spec.intended_use) == ("MIT", "random numbers", "Tests only")
    assert (spec.metrics, spec.citation) == ("mean_dice 0.5", "Someone. Something. Somewhere, 2020.")
    assert (spec.accepts.modality, spec.accepts.ndim, spec.accepts.channels) == (("CT",), (3,), 1)
    assert (spec.accepts.orientation, spec.accepts.intensity) == ("RAS", (-57.0, 164.0))
    assert spec.accepts.intensity_units == "HU"
    assert spec.prepare.spacing_mm == (2.0, 1.5, 1.5)  # z, y, x
    assert spec.tiling.size == (16, 16, 16)
    assert [(label.value, label.name) for label in spec.gives.labels] == [(1, "spleen")]
    assert spec.weights == "models/model.pt"
    assert len(spec.sha256) == 64


def test_missing_weights_are_a_need_that_no_permission_helps(tmp_path: Path) -> None:
    (need,) = probe(write(tmp_path, "spleen", weights=False)).needs
    assert (need.capability, need.where) == ("", "models/model.pt")


def _changed(section: str, step: int, **changes: Any) -> dict[str, Any]:
    config = spleen()
    config[section]["transforms"][step] |= changes
    return config


@pytest.mark.parametrize(
    ("config", "where", "why"),
    [
        (spleen() | {"network_def": {"_target_": "monai.utils.run_cmd", "cmd_list": ["touch", "x"]}},
         "network_def", "'monai.utils.run_cmd' is not in the list of reviewed classes."),
        (spleen() | {"network_def": {"_target_": "os.system", "command": "touch x"}},
         "network_def", "'os.system' is not in the list of reviewed classes."),
        (spleen() | {"network_def": {"_target_": "DenseNet121", "pretrained": True, "spatial_dims": 3}},
         "network_def::pretrained", "Weights from the internet or another file are not loaded."),
        (spleen() | {"network_def": {"_target_": "torch.hub.load", "repo_or_dir": "x"}},
         "network_def", "'torch.hub.load' is not in the list of reviewed classes."),
        (spleen() | {"network_def": "$torch.load('models/model.pt', weights_only=False)"},
         "network_def", "A call of torch.load in the expression"),
        (spleen() | {"inferer": spleen()["inferer"] | {"_requires_": ["$__import__('os').mkdir('x')"]}},
         "inferer::_requires_", "What it requires is code that would run first."),
        (spleen() | {"inferer": spleen()["inferer"] | {"_mode_": "debug"}},
         "inferer::_mode_", "The mode 'debug' makes no object of a class."),
        (_changed("preprocessing", 2, _disabled_="$__import__('os').mkdir('x')"),
         "preprocessing::transforms::2::_disabled_", "A call of __import__ in the expression"),
        (_changed("preprocessing", 2, _target_="scripts.mine.Step"),
         "preprocessing::transforms::2", "'scripts.mine.Step' is not in the list of reviewed classes."),
        (_changed("preprocessing", 4, a_min="$open('/etc/passwd').read()"),
         "preprocessing::transforms::4::a_min", "A call of open in the expression"),
        (_changed("postprocessing", 2, filename="/etc/passwd"),
         "postprocessing::transforms::2::filename",
         "Filename is not among the reviewed arguments of AsDiscreted."),
        (_changed("preprocessing", 3, mode="../../etc"),
         "preprocessing::transforms::3::mode", "The text is no plain word."),
        (_changed("preprocessing", 3, pixdim="$@nowhere"),
         "preprocessing::transforms::3::pixdim", "A reference to 'nowhere', which is not there, is not evaluated."),
        (spleen() | {"network_def": "%../../outside.json::network_def"},
         "network_def", "'../../outside.json' is included from outside of the bundle, or is not there."),
        (spleen() | {"a": "@b", "b": "@a", "network_def": "@a"},
         "b", "Entries that refer to each other"),
        (spleen() | {"network_def": "$import os"}, "network_def", "An import, 'import os'"),
        (spleen() | {"inferer": "$'a' * 10 ** 9"}, "inferer", "A repetition in the expression"),
        (spleen() | {"inferer": "$9 ** 9 ** 9"}, "inferer", "A power in the expression"),
    ],
)  # fmt: skip
def test_what_is_refused_names_its_place(config: dict[str, Any], where: str, why: str, tmp_path: Path) -> None:
    needs = needs_of(tmp_path, config)
    assert where in needs
    assert needs[where][1].startswith(why)
    assert not (tmp_path / "x").exists()
    assert not Path("x").exists()


def test_python_is_asked_for_and_load_refuses_without(tmp_path: Path) -> None:
    bundle = write(tmp_path, "spleen", _changed("preprocessing", 2, _target_="scripts.mine.Step"), weights=False)
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "mine.py").write_text("raise SystemExit('it was imported')\n")
    (bundle / "models" / "model.pt").write_bytes(b"")
    spec = probe(bundle)
    (need,) = spec.needs
    assert (need.capability, need.where) == ("python", f"{FILE}preprocessing::transforms::2")
    assert need.why == "'scripts.mine.Step' is a program that the bundle brings along."
    assert spec.safety == "code"
    with pytest.raises(UntrustedError, match="--allow python"):
        load(spec)


def test_interactive_bundles_cannot_be_allowed(tmp_path: Path) -> None:
    needs = needs_of(tmp_path, _changed("preprocessing", 2, _target_="AddClickSignalsd"))
    assert needs == {"preprocessing::transforms::2": ("", "'AddClickSignalsd' needs what a person clicks or draws.")}


def test_handlers_imports_and_runs_are_not_looked_at(tmp_path: Path) -> None:
    config = spleen() | {
        "imports": ["$import os", "$__import__('os').mkdir('x')"],
        "initialize": ["$os.mkdir('x')"],
        "handlers": {"_target_": "os.mkdir", "path": "x"},
        "run": "$os.mkdir('x')",
    }
    assert needs_of(tmp_path, config) == {}


def test_readers_and_writers_are_replaced_whatever_they_say(tmp_path: Path) -> None:
    config = spleen()
    config["preprocessing"]["transforms"][:2] = load_image(reader="$__import__('os').mkdir('x')", converter="$1/0")
    config["postprocessing"]["transforms"][-1] = SAVE | {"writer": "os.system", "output_dir": "$open('x', 'w')"}
    assert needs_of(tmp_path, config) == {}
    assert not Path("x").exists()


def test_includes_within_the_bundle(tmp_path: Path) -> None:
    bundle = write(tmp_path, "spleen")
    parts = {"net": spleen()["network_def"], "steps": compose(*load_image())}
    (bundle / "configs" / "parts.json").write_text(json.dumps(parts))
    config = spleen() | {"network_def": "%configs/parts.json::net", "preprocessing": "%parts.json#steps"}
    (bundle / "configs" / "inference.json").write_text(json.dumps(config))
    plan, needs, _ = resolve(bundle)
    assert needs == ()
    assert plan is not None
    assert plan.network.name == "UNet"
    assert [part.name for part in plan.preprocessing] == ["LoadImaged", "EnsureChannelFirstd"]


def test_one_part_is_one_object_however_it_is_referred_to(tmp_path: Path) -> None:
    plan, _, _ = resolve(write(tmp_path, "spleen"))
    assert plan is not None
    inverting = next(part for part in plan.postprocessing if part.name == "Invertd")
    assert inverting.arguments["transform"] is plan.compose


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not well formed"),
        ("[1]", "holds no mapping"),
        ("[" * 100_000, "is not well formed"),
        ('{"a": ' * 100 + "1" + "}" * 100, "nested more than 60 deep"),
        (" " * (9 << 20), "has more than 8 MiB"),
        ('{"a": [' + "1," * 300_000 + "1]}", "more than 200000 values"),
    ],
    ids=["cut", "list", "deep", "nested", "long", "many"],
)
def test_configurations_out_of_all_proportion(content: str, said: str, tmp_path: Path) -> None:
    bundle = write(tmp_path, "spleen")
    (bundle / "configs" / "inference.json").write_text(content)
    with pytest.raises(ModelError, match=said):
        probe(bundle)


def test_yaml_that_would_blow_up_or_make_objects(tmp_path: Path) -> None:
    bundle = write(tmp_path, "template")
    path = bundle / "configs" / "inference.yaml"
    bomb = "a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    path.write_text(bomb)
    started = time.perf_counter()
    with pytest.raises(ModelError, match="more than 200000 values"):
        probe(bundle)
    assert time.perf_counter() - started < 2
    path.write_text("a: !!python/object/apply:os.mkdir [x]\n")
    with pytest.raises(ModelError, match=r"configs/inference\.yaml, line 1: the tag"):
        probe(bundle)
    assert not Path("x").exists()


def _value(expression: str, **entries: Any) -> Any:
    return evaluate(expression, entries.__getitem__, lambda name, given: Part(name, given, ""))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')", Mark.DEVICE),
        ("torch.float32", Named("torch.float32")),
        ("np.uint8", Named("numpy.uint8")),
        ("monai.utils.CommonKeys.IMAGE", "image"),
        ("@steps + @more", [1, 2, 3]),
        ("len(@steps) + @n", 5),
        ("[1.5, 1.5] if @flag else [3.0]", [1.5, 1.5]),
        ("(not @flag)", False),
        ("1.0 - float(@n) / float(4)", 0.25),
        ("((@n - 1) // 2,) * 4", (1, 1, 1, 1)),
        ("@name + '_meta_dict'", "image_meta_dict"),
        ("None", None),
        ("@steps[0]", 1),
    ],
)
def test_expressions_of_bundles(expression: str, expected: Any) -> None:
    assert _value(expression, steps=[1, 2], more=[3], n=3, flag=True, name="image") == expected


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os')", "().__class__", "[x for x in (1,)]", "open('a')", "f'{1}'", "lambda: 0", "(y := 1)",
        "eval('1')", "getattr(torch, 'load')", "torch.load", "monai.utils.run_cmd", "torch.device.__class__",
        "@n.__class__", "@n.to(1)", "'%s' % @n", "{**@n}", "[*@n]", "len(*@n)", "1 if open else 2", "_reference_0_",
        "np.load('a')", "exec", "'a' * -1", "list(range(10**9))", "int('1' * 5000)", "print(1)", "UNet.__init__",
        "UNet(1)", "torch.Tensor", "await x",
    ],
)  # fmt: skip
def test_other_expressions_are_refused(expression: str) -> None:
    with pytest.raises(RefusedError):
        _value(expression, n=3)


@pytest.mark.parametrize("name", sorted(reviewed.ROWS))
def test_each_reviewed_row_fits_the_monai_installed(name: str) -> None:
    row = reviewed.ROWS[name]
    if row.kind == "network":
        return  # tests of the registry of networks
    module, _, attribute = row.target.partition(":")
    found = getattr(import_module(module), attribute)
    assert isclass(found)
    assert issubclass(found, {"transform": Transform, "inferer": Inferer, "helper": nn.Module}[row.kind])
    parameters = signature(found).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        passed_on = {"value", "constant_values", "dim", "keepdim", "keys", "allow_missing_keys"}
        passed_on |= set(signature(found.__mro__[1]).parameters) | reviewed.ROWS["SlidingWindowInferer"].arguments
    else:
        passed_on = set()
    assert row.arguments - passed_on <= parameters.keys()
    words = ("path", "file", "reader", "writer", "url", "dir")
    assert not {argument for argument in row.arguments if any(word in argument for word in words)}


@pytest.mark.parametrize(
    "target", ["monai.transforms", "monai.transforms.Spacingd.x", "Spacing.d", "RetinaNetInferer", "Randd"]
)
def test_only_whole_names_are_found(target: str) -> None:
    assert reviewed.find(target) == ""


def test_whole_names_are_found() -> None:
    for target in ("Spacingd", "monai.transforms.Spacingd", "monai.transforms.spatial.dictionary.Spacingd"):
        assert reviewed.find(target) == "Spacingd"


def test_probing_imports_neither_torch_nor_monai(tmp_path: Path) -> None:
    bundle = write(tmp_path, "whole_body")
    code = (
        "import sys; from napari_medai.models import probe; spec = probe(sys.argv[1]); assert not spec.needs; "
        "assert not {'torch', 'monai', 'onnxruntime'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(bundle)], check=True, timeout=120)
