"""The reviewed table of networks of MONAI: what it lets through, what it refuses, that it fits the MONAI installed."""

from __future__ import annotations

import inspect
import socket
import subprocess
import sys
from importlib import import_module

import pytest
import torch

from napari_medai.core.errors import ModelError
from napari_medai.nets.registry import ARGUMENTS, OBSOLETE, REVIEWED, check_arguments, known, make

SMALL = {
    "UNet": {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]},
    "SegResNet": {"spatial_dims": 2, "init_filters": 8, "out_channels": 2},
    "SegResNetDS": {"spatial_dims": 2, "init_filters": 8, "out_channels": 2},
    "DynUNet": {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 8],
        "norm_name": "instance",
    },
    "BasicUNet": {"spatial_dims": 2, "out_channels": 2, "features": [4, 4, 8, 8, 8, 4]},
    "AttentionUnet": {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]},
    "VNet": {"spatial_dims": 2, "out_channels": 2, "dropout_prob_up": [0.5, 0.5], "dropout_dim": 2},
    "DenseNet121": {"spatial_dims": 2, "in_channels": 1, "out_channels": 2},
    "SEResNet50": {"spatial_dims": 2, "in_channels": 3, "num_classes": 2},
    "EfficientNetBN": {"model_name": "efficientnet-b0", "in_channels": 1, "num_classes": 2},
    "resnet18": {"spatial_dims": 2, "n_input_channels": 1, "num_classes": 2},
    "SwinUNETR": {"spatial_dims": 2, "img_size": 96, "in_channels": 1, "out_channels": 2, "feature_size": 12},
    "UNETR": {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "img_size": 64,
        "hidden_size": 48,
        "mlp_dim": 64,
        "num_heads": 4,
    },
}


@pytest.mark.parametrize("name", sorted(REVIEWED))
def test_each_row_fits_the_monai_installed(name: str) -> None:
    module, _, attribute = REVIEWED[name].partition(":")
    made = getattr(import_module(module), attribute)
    parameters = dict(inspect.signature(made).parameters)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):  # what it passes on to the class below it
        base = made.__mro__[1] if inspect.isclass(made) else import_module(module).ResNet
        parameters |= inspect.signature(base).parameters
    assert ARGUMENTS[name] <= parameters.keys()
    assert not OBSOLETE.get(name, frozenset()) & parameters.keys()
    # whatever names a file or an address is not among the reviewed arguments
    assert not {
        a for a in ARGUMENTS[name] if a != "dropout_path_rate" and any(word in a for word in ("path", "url", "file"))
    }


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_network_is_made_and_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    network = make(name, **SMALL[name]).eval()
    channels = 3 if name == "SEResNet50" else 1
    with torch.inference_mode():
        out = network(torch.zeros(1, channels, 64, 64))
    assert out.shape[:2] == (1, 2)


@pytest.mark.parametrize(
    "target", ["UNet", "Unet", "monai.networks.nets.UNet", "monai.networks.nets.Unet", "monai.networks.nets.unet.UNet"]
)
def test_whole_names_are_known(target: str) -> None:
    assert known(target) in ("UNet", "Unet")


@pytest.mark.parametrize(
    "target",
    ["", "unet", "monai", "monai.networks.nets", "UNet.forward", "monai.networks.nets.unet.UNet.forward", "os.system",
     "monai.utils.run_cmd", "xmonai.networks.nets.UNet", "monai.networks.nets.TorchVisionFCModel", "Transchex"],
)  # fmt: skip
def test_prefixes_and_others_are_not(target: str) -> None:
    assert known(target) == ""
    assert check_arguments(target, {})
    with pytest.raises(ModelError, match="not in the list of reviewed networks"):
        make(target)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("DenseNet121", {"pretrained": True}, "pretrained: weights from the internet"),
        ("resnet50", {"pretrained": "/tmp/weights.pt"}, "pretrained: weights from the internet"),
        ("HoVerNet", {"pretrained_url": "x"}, "pretrained_url: is not among the reviewed arguments"),
        ("UNet", {"act": "../../x.py"}, "act: the text is no plain word"),
        ("UNet", {"act": ["os.system", {"command": "id"}]}, "act: the text is no plain word"),
        ("UNet", {"channels": [10**9]}, "channels: 1000000000 is out of all proportion"),
        ("UNet", {"norm": print}, "norm: a value of type"),
        ("SwinUNETR", {"use_hyena": True}, "use_hyena: is not among the reviewed arguments"),
    ],
)
def test_what_is_not_reviewed_is_refused(name: str, arguments: dict[str, object], said: str) -> None:
    (problem,) = check_arguments(name, arguments)
    assert problem.startswith(said)
    with pytest.raises(ModelError, match="is not made"):
        make(name, **arguments)


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(ModelError, match="MONAI cannot make the network 'UNet' with these arguments"):
        make("UNet", spatial_dims=2, in_channels=1, out_channels=1, channels=[4], strides=[])


def test_looking_at_the_table_leaves_torch_alone() -> None:
    code = (
        "import sys; from napari_medai.nets.registry import check_arguments; check_arguments('UNet', {'act': 'relu'}); "
        "assert not {'torch', 'monai'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
