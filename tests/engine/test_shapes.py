"""Shapes that are known without torch's compiler are those of what the operators give."""

from __future__ import annotations

import subprocess
import sys

import torch

from napari_medai.engine.shapes import aten, shaped

PAIRS = [
    ((2, 3, 4, 5), (2, 3, 4, 5)), ((2, 3, 4, 5), (1, 3, 1, 1)), ((1, 3, 1, 1), (2, 3, 4, 5)),
    ((2, 3, 1, 5), (2, 1, 4, 1)), ((2, 3, 4, 5), (5,)), ((2, 3, 4, 5, 2), (2, 3, 4, 5, 2)),
    ((1, 3, 4, 5), (1, 3, 4, 5)), ((2, 1, 4, 4), (2, 1, 4, 4)), ((1, 3, 1, 1), (1, 3, 1, 1)), ((6, 4), (6, 4)),
]  # fmt: skip
EACH = [
    aten.leaky_relu.default, aten.relu.default, aten.elu.default, aten.silu.default, aten.gelu.default,
    aten.sigmoid.default, aten.exp.default, aten.sqrt.default,
]  # fmt: skip
TWO = [aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor]


def layouts(shape):
    """Ways in which numbers of a shape may lie in memory."""
    axes = range(len(shape))
    yield torch.rand(shape)
    for order in ([*axes][::-1], [*axes[1:], 0], [0, *axes[2:], *axes[1:2]], [*axes[1:2], 0, *axes[2:]]):
        yield torch.rand([shape[n] for n in order]).permute([order.index(n) for n in axes])
    yield torch.rand([n + 1 for n in shape])[tuple(slice(0, n) for n in shape)]
    yield torch.rand([n if k else 1 for k, n in enumerate(shape)]).expand(shape)


def cases():
    """Operators and what they are given."""
    for shape, other in PAIRS:
        for a in layouts(shape):
            yield from ((f, [a]) for f in EACH)
            yield from ((f, [a, b]) for f in TWO for b in layouts(other))
            yield from ((f, [a, 0]) for f in (aten.clamp.default, aten.eq.Scalar, aten.ne.Scalar))
            # of other types than float32, and of two
            yield from [(aten.mul.Tensor, [a.double(), 2.0]), (aten.add.Tensor, [(9 * a).int(), 2.5])]
            yield aten.add.Tensor, [a, a.double()]
            yield from ((aten.prelu.default, [a, torch.rand(n)]) for n in (1, shape[1]))
            yield aten.linear.default, [a, torch.rand(7, shape[-1])]
            yield aten.roll.default, [a, [1], [1]]
            yield aten.layer_norm.default, [a, [shape[-1]], None, None, 1e-5, False]
            yield aten.masked_fill.Scalar, [a, a > 0.5, 1.0]
            yield from ((aten.cat.default, [[a, b], n]) for n in (0, 1, -1) for b in layouts(shape))
            yield aten.group_norm.default, [a, 1, None, None, 1e-5]
            kept = torch.zeros(shape[1]), torch.ones(shape[1])
            yield aten.batch_norm.default, [a, None, None, *kept, False, 0.1, 1e-5, False]
            if a[0, 0].numel() > 1 and a.ndim > 2:
                yield aten.instance_norm.default, [a, None, None, None, None, True, 0.1, 1e-5, False]
            up, pool = {
                4: (aten.upsample_bilinear2d.vec, aten.adaptive_avg_pool2d.default),
                5: (aten.upsample_trilinear3d.vec, aten.adaptive_avg_pool3d.default),
            }.get(a.ndim, (None, None))
            if up is not None:
                yield up, [a, None, False, [2.0, 1.5, 1.3][: a.ndim - 2]]
                yield up, [a, [3, 7, 5][: a.ndim - 2], True, None]
                yield from ((pool, [a, [n] * (a.ndim - 2)]) for n in (1, 2))


def empty(item):
    """The same without numbers."""
    if isinstance(item, torch.Tensor):
        return torch.empty_strided(item.shape, item.stride(), dtype=item.dtype, device="meta")
    return [empty(part) for part in item] if isinstance(item, list) else item


def kind(tensor):
    """What is to agree; the stride of an axis of one number means nothing."""
    steps = tuple(step for n, step in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)
    return tensor.shape, steps, tensor.dtype


def test_shapes_strides_and_types_are_those_of_what_is_computed():
    known = {}
    for func, args in cases():
        found = shaped(func, empty(args))
        known.setdefault(func, []).append(found is not None)
        if found is not None:
            assert kind(found) == kind(func(*args)), (func, [kind(a) for a in args if isinstance(a, torch.Tensor)])
    assert {func for func, seen in known.items() if not any(seen)} == set()
    assert shaped(aten.bmm.default, [torch.empty(1, 2, 2, device="meta")] * 2) is None


CODE = """
import sys, torch
from napari_medai import nets
from napari_medai.engine.recorded import record
for name, arguments, shape in {networks!r}:
    record(nets.build(name, **arguments).eval(), torch.zeros(1, *shape))
    assert "torch._dynamo" not in sys.modules, name
"""
NETWORKS = [
    ("micronuclei_centres", {"features": [4, 8, 8, 8, 8, 4]}, (1, 32, 32)),
    ("SegResNet", {"spatial_dims": 3, "init_filters": 8, "in_channels": 1}, (1, 16, 16, 16)),
    (
        "AttentionUnet",
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}, (1, 16, 16),
    ),
    ("SwinUNETR", {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "feature_size": 12}, (1, 64, 64)),
]  # fmt: skip


def test_networks_are_recorded_without_torchs_compiler():
    done = subprocess.run([sys.executable, "-c", CODE.format(networks=NETWORKS)], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
