"""Shape, strides and type of what operators give, for tensors without data.

torch knows these itself, of some operators by way of its compiler, whose import takes two seconds and leaves a folder
among the temporary files. Those that networks are made of are known here; of all others torch is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

aten = torch.ops.aten

# What these give is like their first argument, if that lies in memory in its own order
_LIKE_FIRST = {
    *(aten.instance_norm.default, aten.batch_norm.default, aten.group_norm.default),
    *(aten.roll.default, aten.masked_fill.Scalar),
}
# Operators on each number for itself; and those that compare, and give truth
_EACH = {
    *(aten.leaky_relu.default, aten.relu.default, aten.elu.default, aten.silu.default, aten.gelu.default),
    *(aten.sigmoid.default, aten.prelu.default, aten.clamp.default, aten.exp.default),
    *(aten.sqrt.default, aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor),
}
_TRUTH = {aten.eq.Scalar, aten.ne.Scalar}
_IN_PLACE = {aten.leaky_relu_.default, aten.relu_.default, aten.elu_.default}
_UPSAMPLED = {aten.upsample_bilinear2d.vec, aten.upsample_trilinear3d.vec}
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_POOLED = {aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default}


def shaped(func: Any, args: Sequence[Any]) -> torch.Tensor | None:
    """What an operator gives, without its numbers; none where torch is to be asked.

    Parameters
    ----------
    func : callable
        An overload of an operator of torch.
    args : sequence
        Its positional arguments; tensors without data.
    """
    first: Any = args[0] if args else None
    if func in _LIKE_FIRST and _ordered(first):
        return torch.empty_like(first)
    if func in _EACH or func in _TRUTH:
        return _each(args[:1] if func is aten.prelu.default else args, func in _TRUTH)
    if func in _IN_PLACE:
        return cast(torch.Tensor, first)
    if func in _UPSAMPLED and _ordered(first):
        sizes = args[1] or [int(n * scale) for n, scale in zip(first.shape[2:], args[3], strict=True)]
        return torch.empty((*first.shape[:2], *sizes), dtype=first.dtype, device=first.device)
    if func in _POOLED and _ordered(first):
        return torch.empty((*first.shape[:2], *args[1]), dtype=first.dtype, device=first.device)
    if func is aten.linear.default:
        return torch.empty((*first.shape[:-1], len(args[1])), dtype=first.dtype, device=first.device)
    if func is aten.layer_norm.default:
        return torch.empty(first.shape, dtype=first.dtype, device=first.device)
    return _joined(first, args[1] if len(args) > 1 else 0) if func is aten.cat.default else None


def _joined(parts: Sequence[torch.Tensor], axis: int) -> torch.Tensor | None:
    """Of images put together: channels last where all are so, else in torch's own order."""
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    if len({part.dtype for part in parts}) != 1:
        return None
    order = _LAST[len(shape)] if all(map(_channels_last, parts)) else torch.contiguous_format
    return torch.empty(shape, dtype=parts[0].dtype, device=parts[0].device, memory_format=order)


def _channels_last(image: torch.Tensor) -> bool:
    """Whether torch takes an image's channels to be last in memory, by its strides."""
    if image.ndim not in _LAST or image.stride(1) == 0:
        return False
    step = 0
    for axis in (1, *range(image.ndim - 1, 1, -1), 0):
        # of a single voxel the order is not seen: torch's own
        if image.stride(axis) < step or (axis == 0 and step == image.stride(1)):
            return False
        step = image.stride(axis) * image.shape[axis]
    return True


def _ordered(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies in memory as a new one would, along axes of one number, too."""
    return tensor.stride() == torch.empty(tensor.shape, device="meta").stride()


def _each(args: Sequence[Any], truth: bool) -> torch.Tensor | None:
    """Of an operator on each number: ordered as the first argument of full size, where that is plain to see."""
    tensors = [item for item in args if isinstance(item, torch.Tensor)]
    numbers = [t for t in tensors if t.dtype != torch.bool]
    if len({t.dtype for t in numbers}) != 1 or not numbers[0].is_floating_point():
        return None
    shape: torch.Size = torch.broadcast_shapes(*(t.shape for t in tensors))  # type: ignore[no-untyped-call]
    full = [t for t in tensors if t.shape == shape]
    kind = torch.bool if truth else numbers[0].dtype
    # not with numbers that stand for several
    if full and all(step or n == 1 for n, step in zip(shape, full[0].stride(), strict=True)):
        return torch.empty_like(full[0], dtype=kind)
    if not full and all(_ordered(t) for t in tensors):
        return torch.empty(shape, dtype=kind, device=numbers[0].device)
    return None
