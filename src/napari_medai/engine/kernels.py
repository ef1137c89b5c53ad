"""What a U-Net is made of, on a CPU, in half the time and memory: convolutions and normalisations, channels last.

Why (torch 2.13, AVX2): above all, convolutions by oneDNN on arrays whose channels lie together need no copies of the
image, where torch gathers patches for a single image. Instance normalisation comes with torch only for the other
order; here it is made of statistics that torch keeps for batch normalisation, and of one pass over pieces that stay in
the processor's cache, in place, with the activation. Memory that is new costs a millisecond for a megabyte, so that
what is written into is what is needed no more.

All functions take float32 on the CPU, and none keeps anything for gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch.nn import functional

# Numbers that are normalised at a time: a megabyte
PIECE = 2**18
# Numbers that statistics take for one row: rows side by side are added up separately, which keeps float32 exact
WIDE = 2**13
# Numbers that are scaled as one row
ROW = 2**10
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def last(image: torch.Tensor) -> torch.Tensor:
    """A tensor (B, C, y, x) or (B, C, z, y, x) with its channels last in memory; itself if they are."""
    image = image.contiguous(memory_format=_LAST[image.ndim])
    # where there is one channel, or one voxel, torch cannot tell the order by the strides that it keeps
    strides, step = [0] * image.ndim, 1
    for axis in (1, *range(image.ndim - 1, 1, -1), 0):
        strides[axis], step = step, step * image.shape[axis]
    return image if image.stride() == tuple(strides) else image.as_strided(image.shape, strides)


def rows(image: torch.Tensor) -> torch.Tensor:
    """The voxels (n, C) of one image (C, \\*space) whose channels are last in memory; shares its memory."""
    return image.movedim(0, -1).reshape(-1, image.shape[0])


@dataclass
class Convolution:
    """A convolution by oneDNN, with the activation that follows it.

    Attributes
    ----------
    weight, bias : tensor
        As torch's convolution takes them; (in, out, \\*space) of a transposed one.
    stride, padding, dilation, more : sequence of int
        Along the axes; ``more`` is the padding of a transposed convolution's output.
    groups : int
    transposed : bool
    slope : float, optional
        Of a leaky rectifier after it; 0 for a plain one. Default: none.
    parts : sequence of int
        Channels of the images that are convolved as if they were one; they are never put together.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int = 1
    transposed: bool = False
    more: Sequence[int] = ()
    slope: float | None = None
    parts: Sequence[int] = ()
    _packed: list[torch.Tensor] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Memory of the weights as oneDNN wants them."""
        return self.weight.numel() * self.weight.element_size() * bool(self._packed)

    def __call__(self, *images: torch.Tensor) -> torch.Tensor:
        """Apply it to an image (B, C, \\*space), or to several of which the channels belong together."""
        given = self._given(images)
        if self.transposed:
            return self._transposed(given[0])
        name, numbers = self._activation
        ends = len(given) == 1
        out: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            given[0], self._packed[0], self.bias, *self._options, name if ends else "none", numbers if ends else [], ""
        )
        for image, weight in zip(given[1:], self._packed[1:], strict=True):
            self._add(out, image, weight, None)
        return out if ends or self.slope is None else functional.leaky_relu_(out, self.slope)

    def added(self, out: torch.Tensor, *images: torch.Tensor) -> torch.Tensor:
        """Add what it makes of images to another, in its place, and give that back with its channels last."""
        out, given = last(out), self._given(images)
        for n, (image, weight) in enumerate(zip(given, self._packed, strict=True)):
            self._add(out, image, weight, None if n else self.bias)
        return out

    def _given(self, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        given = [last(image) for image in images]
        if not self._packed:
            self._pack([image.shape for image in given])
        return given

    def _add(self, out: torch.Tensor, image: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        torch.ops.mkldnn._convolution_pointwise_.binary(
            out, image, weight, bias, *self._options, "add", 1.0, None, [], None
        )

    @property
    def _options(self) -> tuple[Sequence[int], Sequence[int], Sequence[int], int]:
        return self.padding, self.stride, self.dilation, self.groups

    def _transposed(self, image: torch.Tensor) -> torch.Tensor:
        name, numbers = self._activation
        out: torch.Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            image, self._packed[0], self.bias, self.padding, self.more, self.stride, self.dilation, self.groups,
            name, numbers, "",
        )  # fmt: skip
        return out

    @property
    def _activation(self) -> tuple[str, list[float]]:
        if self.slope is None:
            return "none", []
        return ("leaky_relu", [self.slope]) if self.slope else ("relu", [])

    def _pack(self, shapes: Sequence[torch.Size]) -> None:
        """Weights as oneDNN wants them: else it would put them in order for every image."""
        if self.transposed:
            self._packed = [
                torch.ops.mkldnn._reorder_convolution_transpose_weight(
                    self.weight, self.padding, self.more, self.stride, self.dilation, self.groups, list(shapes[0])
                )
            ]
            return
        pieces = torch.split(self.weight, list(self.parts), 1) if self.parts else [self.weight]
        self._packed = [
            torch.ops.mkldnn._reorder_convolution_weight(last(piece), *self._options, list(shape))
            for piece, shape in zip(pieces, shapes, strict=True)
        ]


class Doubling:
    """A transposed convolution of 3 voxels that doubles the size, for few channels: a convolution of 2 voxels.

    Each voxel of the input gives the 2 x 2 (x 2) voxels of the output around it as channels of their own, which then
    take their places. oneDNN computes channels by the eight: with two it is busy with nothing for the most part.

    Parameters
    ----------
    weight, bias : tensor
        Of the transposed convolution, (in, out, 3, 3) or (in, out, 3, 3, 3).
    slope : float, optional
        Of a leaky rectifier after it.
    parts : sequence of int
        Channels of the images that are convolved as if they were one; they are never put together.
    """

    # the output at 2 i + phase is the sum over taps t of input[i + t] with the weight at: [phase][t]
    _TAPS = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]])

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, slope: float | None = None, parts: Sequence[int] = ()
    ) -> None:
        space, taps = weight.ndim - 2, self._TAPS
        equation = "coxy,pax,qby->pqocab" if space == 2 else "coxyz,pax,qby,rdz->pqrocabd"
        phases = torch.einsum(equation, weight, *(taps,) * space)
        self.channels = weight.shape[1]
        self.convolution = Convolution(
            phases.flatten(0, space).contiguous(),
            None if bias is None else bias.repeat(2**space),
            [1] * space, [1] * space, [1] * space, slope=slope, parts=parts,
        )  # fmt: skip

    def __call__(self, *images: torch.Tensor) -> torch.Tensor:
        """(B, C, \\*space) -> (B, K, \\*doubled) with channels last."""
        batch, space = len(images[0]), images[0].shape[2:]
        axes = range(len(space))
        # zeros stand at both ends of each axis, where only those at the far end are wanted: oneDNN knows no others
        out = self.convolution(*images).movedim(1, -1)[(slice(None), *(slice(1, None) for _ in axes))]
        # (B, \\*space, \\*phases, K), then each phase beside its axis
        out = out.view(*out.shape[:-1], *(2 for _ in axes), self.channels)
        out = out.permute(0, *(axis for n in axes for axis in (1 + n, 1 + len(space) + n)), out.ndim - 1)
        return out.reshape(batch, *(2 * n for n in space), self.channels).movedim(-1, 1)


@dataclass(frozen=True)
class Normalisation:
    """Each image's channels, or groups of them, to mean 0 and variance 1; then scaled, shifted and activated.

    Attributes
    ----------
    weight, bias : tensor, optional
        (C,) scale and shift.
    eps : float
        Added to the variance.
    groups : int
        Groups of channels that are normalised together. Default 0: each for itself.
    slope : float, optional
        Of a leaky rectifier after it; 0 for a plain one. Default: none.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float
    groups: int = 0
    slope: float | None = None

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Change an image (B, C, \\*space) in its place, and give it back with its channels last."""
        image = last(image)
        for one in image:
            voxels = rows(one)
            mean, variance = statistics(voxels)
            if self.groups:
                mean, variance = _together(mean, variance, self.groups)
            scale = (variance + self.eps).rsqrt()
            if self.weight is not None:
                scale = scale * self.weight.double()
            shift = -mean * scale
            if self.bias is not None:
                shift = shift + self.bias.double()
            scaled(voxels, scale.float(), shift.float(), self.slope)
        return image


def statistics(voxels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (C,) in float64 of voxels (n, C).

    Many rows are taken for one wide row, whose columns torch adds up in float32 one by one, and are then put together
    in float64 (Chan, Golub and LeVeque, The American Statistician 37, 1983): float32 alone is off by 2e-4 in a million.
    """
    count, channels = voxels.shape
    side = max(1, min(WIDE // channels, count // 64))
    even = count // side * side
    wide = voxels[:even].reshape(even // side, side * channels, 1)
    mean, variance = torch.batch_norm_update_stats(wide, None, None, 0.0)
    mean, variance = mean.double().view(side, channels), variance.double().view(side, channels)
    if even == count:
        middle = mean.mean(0)
        return middle, (variance + (mean - middle) ** 2).mean(0)
    # and fewer than `side` rows
    mean = torch.cat([mean, voxels[even:].double()])
    variance = torch.cat([variance, torch.zeros_like(mean[side:])])
    weight = torch.ones(len(mean), 1, dtype=torch.float64)
    weight[:side] = even // side
    weight /= count
    middle = (weight * mean).sum(0)
    return middle, (weight * (variance + (mean - middle) ** 2)).sum(0)


def _together(mean: torch.Tensor, variance: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (C,) of the group that each channel belongs to."""
    means, variances = mean.view(groups, -1), variance.view(groups, -1)
    middle = means.mean(1, keepdim=True)
    spread = (variances + (means - middle) ** 2).mean(1, keepdim=True)
    return middle.expand_as(means).reshape(-1), spread.expand_as(means).reshape(-1)


def scaled(voxels: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, slope: float | None = None) -> None:
    """Voxels (n, C) times a scale and plus a shift (C,), then a leaky rectifier if a slope is given; in their place."""
    count, channels = voxels.shape
    # several voxels are one row: torch takes its time for each row
    side = max(1, min(ROW // channels, count))
    even = count // side * side
    for many, times in ((voxels[:even].view(-1, side * channels), side), (voxels[even:], 1)):
        if not len(many):
            continue
        wide_scale, wide_shift = (item.expand(times, channels).reshape(-1) for item in (scale, shift))
        for piece in torch.split(many, max(1, PIECE // many.shape[1])):
            torch.addcmul(wide_shift, piece, wide_scale, out=piece)
            if slope is not None:
                functional.leaky_relu_(piece, slope)


def pointwise(weight: torch.Tensor, bias: torch.Tensor | None, image: torch.Tensor) -> torch.Tensor:
    """A convolution by one voxel, (B, C, \\*space) with channels last -> (B, K, \\*space) with channels first.

    The output is made in the order in which it is used: the logits of many classes are not copied.
    """
    matrix = weight.flatten(1)
    out = torch.empty((len(image), len(matrix), image[0, 0].numel()))
    for one, made in zip(last(image), out, strict=True):
        torch.mm(matrix, rows(one).T, out=made)
        if bias is not None:
            made += bias[:, None]
    return out.view(len(image), len(matrix), *image.shape[2:])


@lru_cache(maxsize=1)
def work() -> bool:
    """Whether oneDNN's convolutions, of which the names are private to torch, are in this torch and right."""
    try:
        with torch.inference_mode():
            return _agree(2) and _agree(3)
    except (AttributeError, TypeError, RuntimeError):
        return False


def _agree(space: int) -> bool:
    """Whether convolutions give what torch's give for the few numbers of a small image."""
    numbers = torch.Generator().manual_seed(0)
    image, weight = (torch.randn((8, 8, *(3,) * space), generator=numbers) for _ in range(2))
    bias, ones, parts = weight.flatten()[:8].clone(), [1] * space, [3, 5]
    plain = getattr(functional, f"conv{space}d")(image, weight, bias, padding=1)
    doubled = getattr(functional, f"conv_transpose{space}d")(image, weight, bias, 2, 1, 1)
    leaky = Convolution(weight, bias, ones, ones, ones, slope=0.1)
    apart = Convolution(weight, bias, ones, ones, ones, parts=parts)
    up = Convolution(weight, bias, [2] * space, ones, ones, transposed=True, more=ones)
    pairs = (
        (leaky(image), functional.leaky_relu(plain, 0.1)),
        (apart.added(image.clone(), *torch.split(image, parts, 1)), plain + image),
        (up(image), doubled),
    )
    return all(found.shape == right.shape and torch.allclose(found, right, atol=1e-4) for found, right in pairs)
