"""Ways to ask a network: plane by plane, mirrored, for its decision alone, for the first of its outputs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import nn


def first(out: Any) -> torch.Tensor:
    """A network's output, or the first of several (deep supervision)."""
    found: torch.Tensor = out[0] if isinstance(out, list | tuple) else out
    return found


class First(nn.Module):
    """The first of a network's outputs where it has several."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Apply the network."""
        return first(self.network(image))


class Planes(nn.Module):
    """A 2-D network on tiles that are one plane thick.

    Parameters
    ----------
    network : module
        (B, C, y, x) -> (B, K, y, x).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, 1, y, x) -> (B, K, 1, y, x)."""
        return first(self.network(image[:, :, 0]))[:, :, None]


class Mirrored(nn.Module):
    """The mean of a network's activated output over the mirrored copies of its input.

    Parameters
    ----------
    network : module
        (B, C, \\*spatial) -> (B, K, \\*spatial).
    output : str
        One of `OUTPUTS`; logits are made probabilities before the mean, and logits again after it.
    check : callable
        Called before each copy; may raise to stop.
    """

    def __init__(self, network: nn.Module, output: str, check: Callable[[], None]) -> None:
        super().__init__()
        self.network, self.output, self.check = network, output, check

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The same as the network's."""
        axes = range(2, image.ndim)
        total: torch.Tensor | None = None
        kind = self.output
        for flips in product((False, True), repeat=image.ndim - 2):
            self.check()
            over = [axis for axis, flip in zip(axes, flips, strict=True) if flip]
            out = first(self.network(image.flip(over) if over else image)).float()
            if out.shape[1] == 1 and kind == "softmax":  # a single channel has no other to share with
                kind = "sigmoid"
            out = out.softmax(1) if kind == "softmax" else out.sigmoid() if kind == "sigmoid" else out
            out = out.flip(over) if over else out
            total = out if total is None else total + out
        assert total is not None
        mean = total / 2 ** len(axes)
        if kind == "softmax":
            logits: torch.Tensor = mean.clamp(1e-7).log()
            return logits
        return torch.logit(mean, eps=1e-7) if kind == "sigmoid" else mean


class Decided(nn.Module):
    """The number of the winning class as the only channel, of a network that finds it without keeping all scores.

    Parameters
    ----------
    network : module
        Has ``labels(image, tell)``.
    tell : callable
        Told how many of how many layers are done; may raise to stop.
    """

    def __init__(self, network: nn.Module, tell: Callable[[int, int], None]) -> None:
        super().__init__()
        self.network, self.tell = network, tell

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 1, \\*spatial) of whole numbers."""
        found: torch.Tensor = self.network.labels(image, self.tell)  # type: ignore[operator]
        return found
