import pytest
import torch

from napari_medai.nets import build
from napari_medai.nets.quality import QualityNet


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return QualityNet(width=4, hidden=8).eval()


@pytest.mark.parametrize("slices", [1, 2, 24])
def test_shapes_and_attention(network, slices):
    with torch.inference_mode():
        out = network(torch.rand(2, slices, 6, 64, 64))
    assert out.logits.shape == (2, 7)
    assert out.slice_logits.shape == (2, slices, 7)
    assert out.attention.shape == (2, slices)
    torch.testing.assert_close(out.attention.sum(dim=1), torch.ones(2))


def test_none_is_one_minus_the_largest_defect(network):
    with torch.inference_mode():
        p = torch.sigmoid(network(torch.rand(3, 2, 6, 64, 64)).logits)
    torch.testing.assert_close(p[:, 0], 1 - p[:, 1:].amax(dim=1))


def test_an_image_is_a_series_of_one(network):
    with torch.inference_mode():
        out = network(torch.rand(1, 1, 6, 64, 64))
    assert out.attention.item() == 1
    torch.testing.assert_close(out.logits, out.slice_logits[:, 0])


def test_order_of_slices_matters_to_the_recurrent_layer(network):
    series = torch.rand(1, 3, 6, 64, 64)
    with torch.inference_mode():
        forward, turned = network(series).slice_logits, network(series[:, [1, 0, 2]]).slice_logits
    assert not torch.allclose(forward[0, 2], turned[0, 2])


def test_calibration_scales_and_shifts():
    torch.manual_seed(1)
    network = QualityNet(defects=2, width=4, hidden=8).eval()
    series = torch.rand(1, 1, 6, 32, 32)
    with torch.inference_mode():
        raw = network(series).logits[0, 1:]
        network.logit_scale.copy_(torch.tensor([2.0, 1.0]))
        network.logit_shift.copy_(torch.tensor([0.5, -1.0]))
        after = network(series).logits[0, 1:]
    torch.testing.assert_close(after, raw * torch.tensor([2.0, 1.0]) + torch.tensor([0.5, -1.0]))


def test_last_convolution_is_found_by_name_and_is_an_eighth_of_the_input(network):
    seen = []
    handle = network.get_submodule(QualityNet.cam_layer).register_forward_hook(lambda m, i, o: seen.append(o.shape))
    with torch.inference_mode():
        network(torch.rand(2, 3, 6, 128, 128))
    handle.remove()
    assert seen == [(6, 16, 16, 16)]


def test_gradient_reaches_the_last_convolution():
    network = QualityNet(width=4, hidden=8).eval()
    kept = []
    network.last_conv.register_forward_hook(lambda m, i, o: (o.retain_grad(), kept.append(o))[0])
    network(torch.rand(1, 2, 6, 64, 64)).logits[0, 3].backward()
    assert kept[0].grad.abs().sum() > 0


def test_built_by_name():
    assert isinstance(build("quality", width=4, hidden=8), QualityNet)
