"""A network and what is run in its place give the same."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from napari_medai import nets
from napari_medai.engine import LARGE_PAGES, kernels
from napari_medai.engine.faster import Faster, compiled, faster
from napari_medai.engine.recorded import NotRecordable, record
from napari_medai.engine.weights import forget, warm, warm_bytes

CPU = torch.device("cpu")
# Largest difference as a share of the largest output
TOLERANCE = 1e-5

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch is without oneDNN")

PLAIN = {
    "input_channels": 1, "num_classes": 3, "features_per_stage": [4, 8, 12], "n_conv_per_stage_decoder": [2, 2],
    "bias": True, "norm_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": "LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}  # fmt: skip


def stages(ndim):
    return {"kernel_sizes": [[3] * ndim] * 3, "strides": [[1] * ndim, [2] * ndim, [2] * ndim]}


def unet(ndim, **more):
    common = {"spatial_dims": ndim, "in_channels": 1, "out_channels": 2, "channels": [4, 8, 16], "strides": [2, 2]}
    return "UNet", {**common, **more}


# name -> (network, arguments, shape of an image)
NETWORKS = {}
for dim in (2, 3):
    image = (1, *(16,) * dim)
    plain = {**PLAIN, **stages(dim), "norm": f"InstanceNorm{dim}d"}
    residual = {**plain, "n_blocks_per_stage": [1, 2, 1]}
    NETWORKS |= {
        f"plain {dim}": ("plain_conv_unet", {**plain, "n_conv_per_stage": [2, 2, 2]}, image),
        f"plain {dim}, dropout, batch": (
            "plain_conv_unet",
            {
                **plain, "n_conv_per_stage": [2, 2, 2], "norm": f"BatchNorm{dim}d", "nonlin_first": True,
                "dropout": f"Dropout{dim}d", "dropout_kwargs": {"p": 0.2},
            },
            image,
        ),
        f"residual encoder {dim}": ("residual_encoder_unet", residual, image),
        f"residual encoder {dim}, narrow": (
            "residual_encoder_unet", {**residual, "bottleneck_channels": [2, 4, 4], "nonlin": "GELU",
                                      "nonlin_kwargs": {}},
            image,
        ),
        f"UNet {dim}, residual, prelu, dropout": (*unet(dim, num_res_units=2, dropout=0.1), image),
        f"UNet {dim}, relu, batch": (*unet(dim, act="RELU", norm="BATCH"), image),
        f"UNet {dim}, leaky in place": (
            *unet(dim, act=("leakyrelu", {"inplace": True}), num_res_units=1, dropout=0.1), image
        ),
        f"UNet {dim}, prelu for each channel": (
            *unet(dim, act=("prelu", {"num_parameters": 1, "init": 0.3}), norm=("group", {"num_groups": 2}), bias=False,
                  out_channels=4),
            image,
        ),
        f"BasicUNet {dim}": (
            "BasicUNet", {"spatial_dims": dim, "features": [4, 4, 8, 8, 8, 4]}, (1, *(n + 16 for n in image[1:]))
        ),
        f"DynUNet {dim}": (
            "DynUNet",
            {
                "spatial_dims": dim, "in_channels": 1, "out_channels": 2, "kernel_size": [3, 3, 3],
                "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 8], "res_block": True,
            },
            image,
        ),
        f"SegResNet {dim}": ("SegResNet", {"spatial_dims": dim, "init_filters": 8, "in_channels": 1}, image),
        f"AttentionUnet {dim}": ("AttentionUnet", unet(dim)[1], image),
    }  # fmt: skip
NETWORKS |= {
    "SwinUNETR 2": (
        "SwinUNETR", {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "feature_size": 12}, (1, 64, 64)
    ),
    "SwinUNETR 3": (
        "SwinUNETR", {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "feature_size": 12}, (1, 32, 32, 64)
    ),
    "nuclei": ("nuclei_unet", {"features": [4, 8, 8, 8, 8, 4]}, (1, 32, 48)),
    "micronuclei": ("micronuclei_centres", {"features": [4, 8, 8, 8, 8, 4]}, (1, 32, 32)),
    "blobs": ("blob_centres", {"features": [8, 8]}, (1, 15, 18, 20)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """Images are so small that threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(name, **arguments):
    """A network with random weights and, in batch normalisation, random statistics."""
    torch.manual_seed(0)
    network = nets.build(name, **arguments).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


def quicker(network, notes=None):
    return faster(network, CPU, ([] if notes is None else notes).append)


def difference(found, expected):
    assert found.shape == expected.shape
    assert found.stride() == expected.stride()
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_comes_out(name):
    network_name, arguments, shape = NETWORKS[name]
    network = made(network_name, **arguments)
    quick = quicker(network)
    assert isinstance(quick, Faster)
    for batch in (1,) if name == "SwinUNETR 3" else (1, 2):
        image = torch.randn(batch, *shape) + 1
        kept = image.clone()
        with torch.inference_mode():
            expected = network(image)
            assert quick.recorded(image)
            found = quick(image)
            again = quick(image)
        assert difference(found, expected) <= TOLERANCE
        assert torch.equal(found, again)
        assert torch.equal(image, kept)


def test_hdbet_is_as_near_to_exact_numbers_as_before():
    network, image = made("hdbet"), torch.randn(1, 1, 32, 32, 16)
    with torch.inference_mode():
        plain, quick = network.logits(image).softmax(1), quicker(network)(image)
        exact = network.double()(image.double())
    assert difference(quick.double(), exact) <= max(TOLERANCE, 2 * difference(plain.double(), exact))


def test_quality_gives_a_tuple_and_linknet_does_as_it_did():
    from napari_medai.nets.linknet import LinkNet3d
    from napari_medai.nets.selfdenoise import NoiseUNet

    torch.manual_seed(0)
    noise = NoiseUNet(3, 1, (4, 8))
    nn.init.normal_(noise.head.weight)
    for network, image in ((LinkNet3d(8), torch.randn(1, 1, 64, 32, 32)), (noise, torch.randn(2, 1, 8, 8, 8))):
        with torch.inference_mode():
            expected = network.eval().requires_grad_(False)(image)
            found = quicker(network)(image)
        assert difference(found, expected) <= TOLERANCE
    network = made("quality")
    series = torch.rand(1, 3, 6, 64, 64)
    with torch.inference_mode():
        expected, found = network(series), quicker(network)(series)
    assert type(found) is type(expected)
    assert difference(found.logits, expected.logits) <= TOLERANCE


def test_large_images_go_through_one_after_the_other(monkeypatch):
    network = made("UNet", **unet(2)[1])
    quick, images = quicker(network), torch.randn(3, 1, 32, 24)
    with torch.inference_mode():
        expected = torch.cat([quick(images[n : n + 1]) for n in range(3)])
        monkeypatch.setattr("napari_medai.engine.faster.ALONE", 32 * 24)
        found = quick(images)
        assert torch.equal(found, expected)
        assert difference(found, network(images)) <= TOLERANCE
        tricky = Tricky().eval().requires_grad_(False)  # several outputs: all images at once
        images = torch.randn(2, 2, 32, 24)
        assert difference(quicker(tricky)(images)["out"], tricky(images)["out"]) <= TOLERANCE


def test_what_does_nothing_is_not_in_the_record():
    network = made("UNet", **unet(3, num_res_units=2)[1])  # with dropout of nothing, which gives what it is given
    steps = record(network, torch.randn(1, 1, 16, 16, 16)).steps
    assert not [step.operator.name() for step in steps if "dropout" in step.operator.name()]


class Sums(nn.Module):
    """All ways in which a convolution's output is added to something."""

    __module__ = "napari_medai.nets.sums"

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=2, dilation=2), nn.Conv2d(3, 3, 1)
        self.wide, self.norm = nn.Conv2d(3, 3, (3, 1), padding=(1, 0), groups=3), nn.InstanceNorm2d(3)
        self.shrink, self.grow = nn.Conv2d(6, 3, 2, stride=2), nn.ConvTranspose2d(6, 3, 3, 2, 1, 1)

    def forward(self, image):
        x = self.one(image) + image  # the image is not written into
        x = self.two(x) + self.one(x)  # two convolutions
        x = x + self.two(x)  # itself
        x = self.wide(x) + x  # itself, of groups
        y = self.norm(x) + self.one(x)  # x is wanted below
        z = torch.add(self.norm(y), self.two(x), alpha=2)
        w = self.shrink(torch.cat([x, y], 1)) + self.shrink(torch.cat([y, z], 1))
        v = self.grow(torch.cat([w, self.norm(w)], 1)) + self.one(z)
        return self.two(v) + v.mean((2, 3), keepdim=True), self.two(v) + self.two(v)


def test_convolutions_that_are_added_to_something():
    torch.manual_seed(0)
    network, image = Sums().eval().requires_grad_(False), torch.randn(2, 3, 8, 6)
    kept = image.clone()
    with torch.inference_mode():
        quick = quicker(network)
        assert quick.recorded(image)
        for found, expected in zip(quick(image), network(image), strict=True):
            assert difference(found, expected) <= TOLERANCE
    assert torch.equal(image, kept)


class Tricky(nn.Module):
    """All that goes wrong when something is written into that is still wanted."""

    __module__ = "napari_medai.nets.tricky"

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.norm = nn.InstanceNorm2d(4, affine=True)
        self.scale = nn.Parameter(torch.randn(1, 4, 1, 1))
        self.drop = nn.Dropout(0.5)

    def forward(self, image):
        x = self.one(image)
        kept = self.norm(x)  # x is wanted below
        y = functional.leaky_relu(kept, 0.2)  # kept, too
        view = x[:, :2]
        view += 1  # changes x
        z = functional.relu(self.drop(x), inplace=True)  # and again: a dropout that is off copies
        z = z + self.scale.expand_as(z).relu()
        flat = self.norm(z).reshape(len(z), -1)
        back = flat.view_as(z).mul_(2)
        out = self.two(torch.cat([y, kept], 1)) + x + back
        return {"out": out.sigmoid_(), "parts": out.chunk(2, 1), "flat": flat, "input": image, "number": 3}


def test_nothing_is_written_into_that_is_still_wanted():
    torch.manual_seed(0)
    network = Tricky().eval().requires_grad_(False)
    parameters = {name: value.clone() for name, value in network.state_dict().items()}
    image = torch.randn(2, 2, 7, 6)
    with torch.inference_mode():
        quick = quicker(network)
        assert quick.recorded(image)
        found, expected = quick(image), network(image)
        again = quick(image)
    assert found["number"] == 3
    assert found["input"] is image
    for name in ("out", "flat"):
        assert difference(found[name], expected[name]) <= TOLERANCE
        assert torch.equal(found[name], again[name])
    for a, b in zip(found["parts"], expected["parts"], strict=True):
        assert difference(a, b) <= TOLERANCE
    assert all(torch.equal(value, parameters[name]) for name, value in network.state_dict().items())


class Looking(nn.Module):
    """Does what depends on values, or draws."""

    __module__ = "napari_medai.nets.looking"

    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Conv2d(1, 1, 1), kind

    def forward(self, image):
        if self.kind == "values" and image.mean() > 0:
            return self.layer(-image)
        if self.kind == "random":
            return self.layer(image) + torch.rand_like(image)
        return self.layer(image.type(torch.float64).float()) if self.kind == "type" else self.layer(image)


def test_what_depends_on_values_or_is_random_is_run_as_it_is():
    image = torch.ones(1, 1, 4, 4)
    with torch.inference_mode():
        for kind in ("values", "random"):
            network = Looking(kind).eval()
            with pytest.raises(NotRecordable):
                record(network, image)
            assert not quicker(network).recorded(image)
        network = Looking("values").eval()
        assert torch.equal(quicker(network)(image), network(image))
        assert torch.equal(quicker(network)(-image), network(-image))


def test_what_nobody_looked_at_is_left_alone():
    class Strange(nn.Conv2d):
        pass

    for network in (Strange(1, 1, 1).eval(), nn.Linear(2, 2).eval(), nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1).half()):
        assert quicker(network) is network
    meshnet = made("meshnet", layers=[{"in_channels": 1, "out_channels": 2, "kernel_size": 3, "dilation": 1}] * 1 + [
        {"in_channels": 2, "out_channels": 2, "kernel_size": 1, "dilation": 1}])  # fmt: skip
    assert quicker(meshnet) is meshnet
    assert faster(nn.Conv2d(1, 1, 1).eval(), torch.device("cuda"), print).__class__ is nn.Conv2d


def test_hooks_gradients_and_other_inputs_meet_the_network_itself():
    network = made("UNet", **unet(2)[1])
    quick, image = quicker(network), torch.randn(1, 1, 16, 16)
    seen = []
    handle = network.model[0].register_forward_hook(lambda *given: seen.append(given))
    quick(image)
    assert seen
    handle.remove()
    wanted = image.clone().requires_grad_()
    quick(wanted).sum().backward()
    assert wanted.grad is not None
    assert quick.double()(image.double()).dtype == torch.float64
    with torch.inference_mode():
        assert difference(quick.float()(image), network(image)) <= TOLERANCE


@pytest.mark.parametrize("assign", [False, True])
def test_parameters_that_change_are_seen(assign):
    network, other = made("UNet", **unet(2, norm="BATCH")[1]), nets.build("UNet", **unet(2, norm="BATCH")[1])
    quick, image = quicker(network), torch.randn(1, 1, 16, 16)
    with torch.inference_mode():
        before = quick(image)
    network.load_state_dict(other.state_dict(), assign=assign)
    network.requires_grad_(False)
    with torch.inference_mode():
        assert difference(quick(image), network(image)) <= TOLERANCE
        assert quick.recorded(image)
        assert not torch.allclose(quick(image), before, atol=1e-3)


def test_a_kernel_that_fails_leaves_it_to_the_network_and_every_run_says_so(monkeypatch):
    network, notes, later = made("UNet", **unet(2)[1]), [], []
    quick, image = quicker(network, notes), torch.randn(1, 1, 16, 16)

    def refuses(kernel, image):
        raise RuntimeError("no primitive\nhere")

    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(kernels.Normalisation, "__call__", refuses)
        expected = network(image)
        assert torch.equal(quick(image), expected)
    with torch.inference_mode():
        assert not quick.recorded(image)
        assert torch.equal(quicker(network, later)(image), expected)
    assert notes == later == ["a faster way to run the network failed, it runs as it is: no primitive"]


@pytest.mark.parametrize("absent", ["_convolution_pointwise_", "_convolution_transpose_pointwise"])
def test_a_torch_with_other_private_operators_runs_the_network_itself(absent, monkeypatch):
    kernels.work.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, absent, lambda *_: None)
    network = made("UNet", **unet(2)[1])
    assert quicker(network) is network
    kernels.work.cache_clear()


def test_programs_are_kept_as_long_as_the_network():
    forget()
    network = warm(("unet", "cpu"), lambda: made("UNet", **unet(2)[1]), CPU)
    quick, before = quicker(network), warm_bytes(CPU)
    assert quicker(quick) is quick
    for size in (16, 24, 32):
        quick(torch.randn(1, 1, size, size))
    held = warm_bytes(CPU)
    assert before < held < 4 * before  # of two sizes
    quicker(network)(torch.randn(1, 1, 32, 32))
    assert warm_bytes(CPU) == held
    forget()
    assert warm_bytes(CPU) == 0
    gone = weakref.ref(network)
    del network, quick
    gc.collect()
    assert gone() is None


C = ctypes.CDLL(None) if os.name == "posix" else None


def peak_mb(run, image):
    """MiB of memory that a call takes at its highest."""
    if hasattr(C, "malloc_trim"):
        C.malloc_trim(0)  # what earlier tests left free would be taken without being seen
    with open("/proc/self/clear_refs", "w") as mark:
        mark.write("5")
    before = status("VmRSS")
    run(image)
    return (status("VmHWM") - before) / 1024


def status(name):
    """KiB of memory that the system tells of this process."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system does not tell peak memory")
def test_memory_is_about_half():
    network = made("plain_conv_unet", **{**PLAIN, **stages(3), "norm": "InstanceNorm3d", "n_conv_per_stage": [2, 2, 2],
                                         "features_per_stage": [16, 24, 24]})  # fmt: skip
    quick, image = quicker(network), torch.randn(1, 1, 72, 72, 72)
    with torch.inference_mode():
        expected = network(image)
        difference(quick(image), expected)
        plain, lean = (min(peak_mb(run, image) for _ in range(2)) for run in (network, quick))
    assert lean <= 0.65 * plain


def test_torch_compile_is_for_long_runs_on_cuda(monkeypatch):
    network, notes = nn.Conv2d(1, 1, 1).eval(), []
    assert compiled(network, CPU, 10**6, 10.0, notes.append) is network
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    cuda = torch.device("cuda")
    assert compiled(network, cuda, 10, 0.1, notes.append) is network
    image = torch.ones(1, 1, 2, 2)

    def refuses(network, dynamic):
        def run(image):
            raise RuntimeError("no compiler\nhere")

        return run

    monkeypatch.setattr(torch, "compile", refuses)
    slow = compiled(network, cuda, 10**6, 1.0, notes.append)
    assert torch.equal(slow(image), network(image))
    assert torch.equal(slow(image), network(image))
    assert notes == ["the network could not be compiled and runs as it is: no compiler"]


def test_on_cuda_convolutions_alone_are_laid_out_channels_last():
    network = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.ConvTranspose3d(3, 4, 3), nn.Linear(2, 2)]).eval()
    network.register_parameter("scale", nn.Parameter(torch.rand(2, 3, 4, 4)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert faster(network, torch.device("cuda"), print) is network
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert network.scale.is_contiguous()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_large_pages_are_asked_for_before_torch_takes_memory():
    code = (
        "import os, sys, napari_medai.engine as e; sys.exit('torch' in sys.modules or os.environ[e.LARGE_PAGES] != '1')"
    )
    clean = {name: value for name, value in os.environ.items() if name != LARGE_PAGES}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=clean).returncode == 0
