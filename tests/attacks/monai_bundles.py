"""MONAI bundles: code in the configuration, in what it includes, beside it, and in the weights."""

from __future__ import annotations

import copy
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml

from tests.attacks.corpus import YAML_LINES, attack, filled, table
from tests.attacks.weights import LIES, PICKLES

NETWORK = {
    "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2],
    "num_res_units": 0,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "imports": ["$import glob", "$import os"],
    "bundle_root": ".",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": NETWORK,
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "ScaleIntensityd", "keys": "image"},
        ],
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 1, "overlap": 0.25},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        ],
    },
}
METADATA: dict[str, Any] = {
    "version": "0.1.0", "monai_version": "1.6.1", "name": "Bundle", "task": "segmentation", "description": "",
    "network_data_format": {
        "inputs": {"image": {"type": "image", "format": "magnitude", "modality": "CT", "num_channels": 1,
                             "spatial_shape": [16, 16, 16], "dtype": "float32", "value_range": [0, 1],
                             "is_patch_data": True, "channel_def": {"0": "image"}}},
        "outputs": {"pred": {"type": "image", "format": "segmentation", "num_channels": 2, "dtype": "float32",
                             "spatial_shape": [16, 16, 16], "value_range": [0, 1], "is_patch_data": True,
                             "channel_def": {"0": "background", "1": "spleen"}}},
    },
}  # fmt: skip


def state() -> dict[str, torch.Tensor]:
    from napari_medai.nets import build

    arguments = {key: value for key, value in NETWORK.items() if key != "_target_"}
    return build("UNet", **arguments).state_dict()


_STATE: list[dict[str, torch.Tensor]] = []


def bundle(place: Path, config: Any = None, metadata: Any = None, weights: bytes | None = None) -> Path:
    folder = place / "bundle"
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata or METADATA))
    if config is None or isinstance(config, dict):
        (folder / "configs" / "inference.json").write_text(json.dumps(config or CONFIG))
    if not _STATE:
        _STATE.append(state())
    if weights is None:
        torch.save(_STATE[0], folder / "models" / "model.pt")
    else:
        (folder / "models" / "model.pt").write_bytes(weights)
    return folder


@attack("monai/control", control=True)
def control(place: Path, marker: Path) -> Path:
    return bundle(place)


Change = Callable[[dict[str, Any]], None]


def changed(place: Path, marker: Path, change: Change) -> Path:
    config = copy.deepcopy(CONFIG)
    change(config)
    return bundle(place, filled(config, marker))


def step(value: Any, where: str = "preprocessing") -> Change:
    return lambda config: config[where]["transforms"].append(value)


def put(key: str, value: Any) -> Change:
    def change(config: dict[str, Any]) -> None:
        *path, last = key.split("::")
        at: Any = config
        for part in path:
            at = at[int(part)] if isinstance(at, list) else at[part]
        at[int(last) if isinstance(at, list) else last] = value

    return change


_RUN = {"_target_": "monai.utils.run_cmd", "cmd_list": ["touch", "MARKER"]}
_SYSTEM = {"_target_": "os.system", "command": "touch MARKER"}

table(
    "monai/target",
    changed,
    {
        "run_cmd as network": put("network_def", _RUN),
        "os.system": step(_SYSTEM),
        "os.system after": step(_SYSTEM, "postprocessing"),
        "os.system as inferer": put("inferer", _SYSTEM),
        "subprocess.Popen": step({"_target_": "subprocess.Popen", "args": ["touch", "MARKER"]}),
        "posix.system": step({"_target_": "posix.system", "command": "touch MARKER"}),
        "builtins.eval": step({"_target_": "builtins.eval", "_args_": ["open('MARKER', 'w')"]}),
        "builtins.exec": step({"_target_": "exec", "_args_": ["open('MARKER', 'w')"]}),
        "builtins.open": step({"_target_": "builtins.open", "file": "MARKER", "mode": "w"}),
        "monai.bundle.run": step({"_target_": "monai.bundle.run", "run_id": "$open('MARKER','w')"}),
        "monai.bundle.download": step({"_target_": "monai.bundle.download", "name": "x", "bundle_dir": "MARKER"}),
        "monai.apps.download_url": step(
            {"_target_": "monai.apps.download_url", "url": "http://127.0.0.1:9/x", "filepath": "MARKER"}
        ),
        "GHSA-89gg-p5r5-q6r4 algo_from_pickle": step(
            {"_target_": "monai.auto3dseg.algo_from_pickle", "pkl_filename": "MARKER.pkl"}
        ),
        "CVE-2025-58757 pickle_operations": step(
            {"_target_": "monai.data.utils.pickle_operations", "data": {"x_transforms": "x"}, "is_encode": False}
        ),
        "torch.hub.load": put("network_def", {"_target_": "torch.hub.load", "repo_or_dir": "a/b", "model": "c"}),
        "torch.load": put("network_def", {"_target_": "torch.load", "f": "models/evil.pt", "weights_only": False}),
        "torch.jit.load": put("network_def", {"_target_": "torch.jit.load", "f": "models/model.pt"}),
        "torch.save": step({"_target_": "torch.save", "obj": [1], "f": "MARKER"}),
        "torch.ops.load_library": step({"_target_": "torch.ops.load_library", "path": "evil.so"}),
        "numpy.save": step({"_target_": "numpy.save", "file": "MARKER", "arr": [1]}),
        "module of the module": step({"_target_": "monai.transforms.compose.os.system", "command": "touch MARKER"}),
        "torch's os": step({"_target_": "torch.serialization.os.system", "command": "touch MARKER"}),
        "globals of a class": step({"_target_": "monai.networks.nets.UNet.__init__.__globals__", "x": 1}),
        "a prefix of a reviewed name": step({"_target_": "monai.transforms.Compose.__class__", "x": 1}),
        "the bundle's own module": put("network_def", {"_target_": "scripts.net.Net"}),
        "a name that looks alike": put("network_def", NETWORK | {"_target_": "monai.networks.nets.UΝet"}),
        "no text": put("network_def", {"_target_": ["os.system"], "command": "touch MARKER"}),
        "through a reference": lambda c: (c.update(evil=_RUN), c["network_def"].update(channels="@evil")),
        "nested in an argument": put("network_def::channels", [_RUN, 8]),
        "as the mode of a transform": step({"_target_": "Spacingd", "keys": "image", "pixdim": 1, "mode": _RUN}),
    },
)
attack("monai/target/run_cmd in a transform", proof="monai_bundle")(
    lambda place, marker: changed(place, marker, step(_RUN))
)
table(
    "monai/keyword",
    changed,
    {
        "_mode_ callable": step(_RUN | {"_mode_": "callable"}),
        "_mode_ debug": step(_RUN | {"_mode_": "debug"}),
        "_mode_ partial": step(_RUN | {"_mode_": "partial"}),
        "_mode_ debug of a network": put("network_def::_mode_", "debug"),
        "_requires_ expression": put("network_def::_requires_", "$__import__('os').system('touch MARKER')"),
        "_requires_ component": put("network_def::_requires_", [_RUN]),
        "_disabled_ expression": step(
            {"_target_": "EnsureTyped", "keys": "image", "_disabled_": "$__import__('os').system('touch MARKER') == 0"}
        ),
        "_desc_ expression": put("network_def::_desc_", "$__import__('os').system('touch MARKER')"),
        "_args_": put("network_def::_args_", ["$open('MARKER', 'w')"]),
        "_kwargs_": put("network_def::_kwargs_", _RUN),
        "_imports_": put("_imports_", "$import os; os.system('touch MARKER')"),
        "_code_": put("network_def::_code_", "open('MARKER', 'w')"),
    },
)
_EXPRESSIONS = {
    "__import__": "$__import__('os').system('touch MARKER')",
    "import": "$import os; os.system('touch MARKER')",
    "an imported os": "$os.system('touch MARKER')",
    "exec": '$exec(\'open("MARKER", "w")\')',
    "open": "$open('MARKER', 'w')",
    "write_text": "$pathlib.Path('MARKER').write_text('x')",
    "subclasses": "$[c for c in ().__class__.__base__.__subclasses__() if 'Popen' in c.__name__][0]('touch MARKER')",
    "class of a reference": "$@device.__class__.__init__.__globals__",
    "lambda called": "$(lambda: __import__('os').system('touch MARKER'))()",
    "default of a lambda": "$lambda x, y=__import__('os').system('touch MARKER'): x",
    "comprehension": "$[__import__('os').system('touch MARKER') for _ in range(1)]",
    "f-string": '$f\'{__import__("os").system("touch MARKER")}\'',
    "format": "$'{0.__class__.__init__.__globals__}'.format(@device)",
    "walrus": "$(x := __import__('os')).system('touch MARKER')",
    "getattr": "$getattr(__import__('o' + 's'), 'sys' + 'tem')('touch MARKER')",
    "torch.save": "$torch.save(torch.zeros(1), 'MARKER')",
    "torch.from_file": "$torch.from_file('MARKER', shared=True, size=1)",
    "torch.hub": "$torch.hub.load('a/b', 'c')",
    "torch.load": "$torch.load('models/model.pt', weights_only=False)",
    "torch.serialization.os": "$torch.serialization.os.system('touch MARKER')",
    "torch.ops": "$torch.ops.aten.save(torch.zeros(1), 'MARKER')",
    "torch.utils": "$torch.utils.cpp_extension.load(name='x', sources=['MARKER.cpp'])",
    "torch._C": "$torch._C._jit_script_compile",
    "monai.utils": "$monai.utils.run_cmd(['touch', 'MARKER'])",
    "numpy": "$np.save('MARKER', 1)",
    "dunder of torch": "$torch.__builtins__['open']('MARKER', 'w')",
    "subscript": "$torch.__dict__['os'].system('touch MARKER')",
    "reference to code": "$@evil('touch MARKER')",
    "method of a network": "$@network_def.register_forward_hook(print)",
    "apply": "$@network_def.apply(lambda m: __import__('os').system('touch MARKER'))",
    "tower of powers": "$9 ** 9 ** 9 ** 9",
    "repetition": "$'a' * 10 ** 12",
    "shift": "$1 << 10 ** 12",
    "deep": "$" + "(" * 500 + "1" + ")" * 500,
    "long": "$" + "+".join(["1"] * 50_000),
    "many not": "$" + "not " * 20_000 + "1",
    "starred": "$[*@evil]",
    "await": "$(yield __import__('os').system('touch MARKER'))",
    "NUL": "$1\x00",
    "macro": "%__import__('os').system('touch MARKER')",
}


def _as_channels(text: str) -> Change:
    def change(config: dict[str, Any]) -> None:
        config["evil"] = "$os.system"
        config["network_def"]["out_channels"] = text

    return change


table("monai/expression", changed, {name: _as_channels(text) for name, text in _EXPRESSIONS.items()})
table(
    "monai/lambda",
    changed,
    {
        name: step({"_target_": "Lambdad", "keys": "image", "func": text})
        for name, text in {
            "system": "$lambda x: __import__('os').system('touch MARKER')",
            "tofile": "$lambda x: x.numpy().tofile('MARKER')",
            "numpy dump": "$lambda x: x.numpy().dump('MARKER')",
            "torch.save": "$lambda x: torch.save(x, 'MARKER')",
            "a name": "os.system",
            "nested": "$lambda x: (lambda y: open('MARKER', 'w'))(x)",
            "share_memory": "$lambda x: x.share_memory_()",
            "apply_": "$lambda x: x.cpu().apply_(lambda v: open('MARKER', 'w'))",
            "reference": "$@preprocessing",
            "growth": "$lambda x: x.repeat(10**6, 10**6, 10**6)",
            "power": "$lambda x: x.sum() ** (9 ** 9 ** 9)",
            "huge tensor": "$lambda x: torch.zeros(10**15)",
            "dunder": "$lambda x: x.__class__.__reduce_ex__(x, 2)",
            "hook": "$lambda x: x.register_hook(print)",
            "map_": "$lambda x: x.map_(x, print)",
        }.items()
    },
)
table(
    "monai/section",
    changed,
    {
        "initialize": put("initialize", ["$__import__('os').system('touch MARKER')"]),
        "run": put("run", ["$__import__('os').system('touch MARKER')"]),
        "finalize": put("finalize", ["$__import__('os').system('touch MARKER')"]),
        "imports": put("imports", ["$import os", "$os.system('touch MARKER')", "$open('MARKER', 'w')"]),
        "handlers": put("handlers", [{"_target_": "CheckpointLoader", "load_path": "../../MARKER"}, _RUN]),
        "evaluator": put(
            "evaluator", {"_target_": "SupervisedEvaluator", "prepare_batch": _RUN, "device": "$os.abort()"}
        ),
        "dataset": put("dataset", {"_target_": "Dataset", "data": "$open('MARKER', 'w')"}),
        "dataloader": put("dataloader", {"_target_": "DataLoader", "worker_init_fn": _RUN}),
        "device": put("device", "$__import__('os').system('touch MARKER')"),
        "network": put("network", "$__import__('os').system('touch MARKER')"),
        "bundle_root": put("bundle_root", "$__import__('os').system('touch MARKER')"),
        "logging_file": put("logging_file", "configs/logging.conf"),
        "checkpoint": put("checkpoint", "$torch.load('models/model.pt', weights_only=False)"),
        "load_pretrain": lambda c: c.update(load_pretrain=True, checkpointloader=_RUN),
    },
)
table(
    "monai/argument",
    changed,
    {
        "pretrained": put("network_def", {"_target_": "EfficientNetBN", "model_name": "efficientnet-b0",
                                          "pretrained": True, "spatial_dims": 2}),
        "pretrained resnet": put("network_def", {"_target_": "monai.networks.nets.resnet18", "pretrained": True}),
        "pretrained path": put("network_def", {"_target_": "SegResNet", "pretrained": "../../x.pt"}),
        "pretrained DenseNet": put("network_def", {"_target_": "DenseNet121", "spatial_dims": 2, "in_channels": 3,
                                                   "out_channels": 2, "pretrained": True}),
        "reader": put("preprocessing::transforms::0::reader", "os.system"),
        "reader expression": put("preprocessing::transforms::0::reader", "$__import__('os').system('touch MARKER')"),
        "reader component": put("preprocessing::transforms::0::reader", _RUN),
        "writer": step({"_target_": "SaveImaged", "keys": "pred", "output_dir": "MARKER", "writer": "os.system"},
                       "postprocessing"),
        "output folder": step({"_target_": "SaveImaged", "keys": "pred", "output_dir": "MARKER"}, "postprocessing"),
        "output format": step({"_target_": "SaveImaged", "keys": "pred", "folder_layout": _RUN}, "postprocessing"),
        "SaveClassificationd": step({"_target_": "SaveClassificationd", "keys": "pred", "output_dir": "MARKER",
                                     "saver": _RUN}, "postprocessing"),
        "activation by name": put("network_def::act", "os.system"),
        "activation by expression": put("network_def::act", ["$__import__('os').system('touch MARKER')", {}]),
        "norm by dotted name": put("network_def::norm", ["torch.hub.load", {"repo_or_dir": "a/b"}]),
        "TorchVisiond": step({"_target_": "TorchVisiond", "keys": "image", "name": "../../evil"}),
        "ImageFilterd": step({"_target_": "ImageFilterd", "keys": "image", "kernel": "$open('MARKER','w')"}),
        "torch.compile": put("network_def", {"_target_": "torch.compile", "model": "@x", "backend": "evil"}),
        "trainable checkpoint": put("network_def", {"_target_": "torch.utils.checkpoint.checkpoint", "function": _RUN}),
        "channels of a giant": put("network_def::channels", [10**9, 10**9]),
        "negative channels": put("network_def::channels", [-1, 0]),
        "a million levels": put("network_def::channels", [4] * 10**6),
        "window of a giant": put("inferer::roi_size", [10**6, 10**6, 10**6]),
        "pixels of nothing": step({"_target_": "Spacingd", "keys": "image", "pixdim": [1e-9, 1e-9, 1e-9]}),
        "resize to a giant": step({"_target_": "Resized", "keys": "image", "spatial_size": [10**5, 10**5, 10**5]}),
        "pad to a giant": step({"_target_": "SpatialPadd", "keys": "image", "spatial_size": [10**5, 10**5, 10**5]}),
    },
)  # fmt: skip


def _bomb(config: dict[str, Any]) -> None:
    config["a0"] = [1] * 9
    for n in range(1, 20):
        config[f"a{n}"] = [f"@a{n - 1}"] * 9
    config["network_def"]["channels"] = "@a19"


def _deep(config: dict[str, Any]) -> None:
    value: Any = 1
    for _ in range(300):
        value = [value]
    config["network_def"]["channels"] = value


table(
    "monai/reference",
    changed,
    {
        "to itself": put("network_def::channels", "@network_def::channels"),
        "in a circle": lambda c: c.update(a="@b", b="@a") or c["network_def"].update(channels="@a"),
        "to what is not": put("network_def::channels", "@nothing::0"),
        "that doubles": _bomb,
        "deep": _deep,
        "into a transform's class": put("network_def::channels", "@preprocessing::__class__"),
        "include of itself": put("network_def", "%inference.json::network_def"),
        "keys with separators": lambda c: c.update({"network_def::channels": _RUN, "a#b": _RUN}),
    },
)


def outside(place: Path, marker: Path, name: str) -> Path:
    """A part that lies outside of the bundle."""
    evil = json.dumps({"network_def": filled(_RUN, marker)})
    for folder in (place, place.parent):
        (folder / "evil.json").write_text(evil)
    folder = changed(place, marker, put("network_def", name.replace("PLACE", str(place)) + "::network_def"))
    (folder / "configs" / "link.json").symlink_to(place / "evil.json")
    (folder / "linked").symlink_to(place)
    return folder


table(
    "monai/include",
    outside,
    {
        "above": "%../../evil.json",
        "absolute": "%PLACE/evil.json",
        "address": "%http://127.0.0.1:9/evil.json",
        "file address": "%file://PLACE/evil.json",
        "link": "%link.json",
        "linked folder": "%../linked/evil.json",
        "home": "%~/evil.json",
        "percent": "%configs/%../../evil.json",
    },
    refused=True,
)


@attack("monai/include/inside")
def include_inside(place: Path, marker: Path) -> Path:
    folder = changed(place, marker, put("network_def", "%configs/other.json::network_def"))
    (folder / "configs" / "other.json").write_text(json.dumps({"network_def": filled(_RUN, marker)}))
    return folder


@attack("monai/beside/logging.conf")
def logging_conf(place: Path, marker: Path) -> Path:
    folder = bundle(place)
    call = f"__import__('os').system('touch {marker}')"
    (folder / "configs" / "logging.conf").write_text(
        "[loggers]\nkeys=root\n[handlers]\nkeys=evil\n[formatters]\nkeys=\n[logger_root]\nhandlers=evil\n"
        f"[handler_evil]\nclass=StreamHandler\nargs=({call},)\n"
    )
    return folder


@attack("monai/beside/modules that take other modules' places")
def shadows(place: Path, marker: Path) -> Path:
    folder = bundle(place)
    for name in ("scripts/__init__.py", "monai.py", "torch.py", "sitecustomize.py", "conftest.py",
                 "configs/__init__.py", "hubconf.py", "setup.py"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"open({str(marker)!r}, 'w')\n")
    (folder / "evil.pth").write_text(f"import os; os.system('touch {marker}')\n")
    return folder


@attack("monai/yaml/tags")
def yaml_tags(place: Path, marker: Path) -> Path:
    folder = bundle(place, "yaml")
    (folder / "configs" / "inference.yaml").write_text(
        f"network_def: !!python/object/apply:os.system ['touch {marker}']\ninferer: !!python/name:os.system\n"
    )
    return folder


def yaml_line(place: Path, marker: Path, line: str) -> Path:
    folder = bundle(place, "yaml")
    (folder / "configs" / "inference.yaml").write_text(f"{yaml.safe_dump(CONFIG)}{line}\n")
    return folder


table("monai/yaml", yaml_line, YAML_LINES, refused=True)


@attack("monai/yaml/laughs")
def yaml_laughs(place: Path, marker: Path) -> Path:
    folder = bundle(place, "yaml")
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (folder / "configs" / "inference.yaml").write_text("\n".join([*lines, "network_def: *a11"]))
    return folder


def metadata(place: Path, marker: Path, content: Any) -> Path:
    folder = bundle(place)
    text = content if isinstance(content, str) else json.dumps(filled(content, marker))
    (folder / "configs" / "metadata.json").write_text(filled(text, marker))
    return folder


table(
    "monai/metadata",
    metadata,
    {
        "tags of YAML": "!!python/object/apply:os.system ['touch MARKER']",
        "expressions": METADATA | {"name": "$__import__('os').system('touch MARKER')",
                                   "required_packages_version": _RUN},
        "deep": "[" * 100_000,
        "a list": [1],
        "numbers of Infinity": json.dumps(METADATA).replace("[16, 16, 16]", "[Infinity, 1e999, -1]"),
        "giant numbers": json.dumps(METADATA).replace("[16, 16, 16]", "[" + "9" * 5000 + ", 16, 16]"),
        "texts of wrong kinds": METADATA | {"name": {"a": 1}, "task": [1], "eval_metrics": 3, "references": "x",
                                            "network_data_format": {"inputs": 3, "outputs": []}},
        "no UTF-8": "\udcff".encode("utf-8", "surrogatepass").decode("latin-1"),
    },
)  # fmt: skip


@attack("monai/weights/no UTF-8 in the configuration")
def no_utf8(place: Path, marker: Path) -> Path:
    folder = bundle(place)
    (folder / "configs" / "inference.json").write_bytes(b'{"network_def": "\xff\xfe"}')
    return folder


def pickled(place: Path, marker: Path, make: Any) -> Path:
    if not _STATE:
        _STATE.append(state())
    return bundle(place, weights=make(dict(_STATE[0]), marker))


for _name, _make in PICKLES.items():
    attack(f"monai/weights/{_name}", proof="torch_load" if _name == "reduce" else "")(
        lambda place, marker, make=_make: pickled(place, marker, make)
    )


def lying(place: Path, marker: Path, content: bytes) -> Path:
    folder = bundle(place)
    (folder / "models" / "model.pt").unlink()
    (folder / "models" / "model.safetensors").write_bytes(content)
    return folder


table("monai/safetensors", lying, LIES)


@attack("monai/weights/safetensors in name only")
def renamed(place: Path, marker: Path) -> Path:
    return lying(place, marker, PICKLES["reduce"](dict(_STATE[0] if _STATE else state()), marker))


@attack("monai/weights/link to another file", refused=True)
def linked_weights(place: Path, marker: Path) -> Path:
    folder = bundle(place)
    secret = place / "secret.pt"
    (folder / "models" / "model.pt").rename(secret)
    (folder / "models" / "model.pt").symlink_to(secret)
    return folder


@attack("monai/weights/pipe", refused=True)
def piped_weights(place: Path, marker: Path) -> Path:
    folder = bundle(place)
    (folder / "models" / "model.pt").unlink()
    os.mkfifo(folder / "models" / "model.pt")
    return folder


def _swap_config(path: Path, marker: Path) -> None:
    config = copy.deepcopy(CONFIG)
    config["network_def"] = filled(_RUN, marker)
    config["preprocessing"]["transforms"].append(filled(_RUN, marker))
    (path / "configs" / "inference.json").write_text(json.dumps(config))


def _swap_weights(path: Path, marker: Path) -> None:
    (path / "models" / "model.pt").write_bytes(PICKLES["reduce"](dict(_STATE[0] if _STATE else state()), marker))


attack("monai/later/configuration", later=_swap_config)(control)
attack("monai/later/weights", later=_swap_weights)(control)


@attack("monai/zip/CVE-2025-58755 CVE-2026-21851 slip", refused=True)
def slip(place: Path, marker: Path) -> Path:
    folder = bundle(place)
    path = place / "bundle.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(place))
        archive.writestr("../" * 20 + str(marker).lstrip("/"), "slipped")
        archive.writestr(str(marker), "slipped")
    return path


@attack("monai/zip/control", control=True)
def zipped(place: Path, marker: Path) -> Path:
    folder = bundle(place)
    path = place / "bundle.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(place))
    return path


assert safetensors
