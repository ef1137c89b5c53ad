"""Measurements that tell motion, ghosts and shading from anatomy, taken inside the quality network.

They have no weights of their own. A small network needs very many examples to find that an image repeats itself at a
distance, or that its brightness follows a smooth surface; here both are computed.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

LONGEST_LAG = 48
"""Lags in cells, half of the grid's side: the farthest a ghost can lie from its origin, which is cyclic."""

OFFSETS = 3
"""Neighbouring lines, 0 to 2 cells aside, along which lags are measured."""

LAG_CUES = 64
"""Length of what `LagReader` gives."""

BLOCKS = 12
"""Side of the coarse grid on which surfaces are fitted."""

OBJECT_LEVEL = 0.12
"""Brightness above which a cell belongs to the object rather than the background."""

SURFACE_CUES = 30
"""Length of what `shading` returns."""


def repeats(faint: torch.Tensor) -> torch.Tensor:
    """How much a slice looks like itself shifted along y or x.

    The autocorrelation of the slice's fine structure, compressed so that faint copies in the background count as
    much as bright edges. Ghosts give a peak at their distance; motion between k-space lines widens or doubles the
    peak at zero along one axis only.

    Parameters
    ----------
    faint : torch.Tensor (slice, rows, columns)
        Brightness on a logarithmic scale.

    Returns
    -------
    torch.Tensor (slice, 2, OFFSETS, LONGEST_LAG)
        Axis y then x; 1 at lag 0 and offset 0.
    """
    with torch.autocast(faint.device.type, enabled=False):
        maps = faint.float()[:, None]
        structure = maps - functional.avg_pool2d(functional.pad(maps, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
        structure = structure[:, 0]
        scale = 1.5 * structure.abs().mean(dim=(1, 2), keepdim=True) + 1e-4
        structure = torch.tanh(structure / scale)
        rows, columns = structure.shape[1:]
        size = (rows + LONGEST_LAG, columns + LONGEST_LAG)  # room for every lag, so that nothing wraps around
        power = torch.fft.fft2(structure, s=size).abs().square()
        total = power.mean(dim=(1, 2)).clamp(min=1e-6)
        lines = []
        for axis, other in ((1, 2), (2, 1)):
            turn = 2 * torch.pi * torch.arange(size[other - 1], device=faint.device) / size[other - 1]
            for offset in range(OFFSETS):
                waves = torch.cos(turn * offset)  # the mean over both signs of the offset
                weighted = power * (waves[None, None, :] if other == 2 else waves[None, :, None])
                profile = weighted.mean(dim=other)
                correlation = torch.fft.ifft(profile, dim=1).real[:, :LONGEST_LAG] / total[:, None]
                side = structure.shape[axis]
                overlap = 1 - torch.arange(LONGEST_LAG, device=faint.device) / side
                lines.append(correlation / overlap.clamp(min=0.25))
    return torch.stack(lines, dim=1).reshape(-1, 2, OFFSETS, LONGEST_LAG)


def shading(maps: torch.Tensor) -> torch.Tensor:
    """How well surfaces of second order explain where a slice is bright and rich in detail.

    A bias field multiplies brightness and detail alike, so that both follow one smooth surface over the object.
    Surfaces are fitted by least squares, weighted with the share of the object in each of 12 x 12 blocks, to four
    maps: the mean and the largest logarithm of brightness, fine detail, coarse detail.

    Parameters
    ----------
    maps : torch.Tensor (slice, channel, rows, columns)
        The network's input.

    Returns
    -------
    torch.Tensor (slice, SURFACE_CUES)
        Independent of how the slice is turned: spread of the surfaces, of the rest, their ratio, steepness,
        curvature, saddle, agreement between surfaces, size of the object.
    """
    with torch.autocast(maps.device.type, enabled=False):
        maps = maps.float()
        bright = maps[:, :1].clamp(min=0)
        inside = torch.sigmoid((bright - OBJECT_LEVEL) * 40)

        def blocks(values: torch.Tensor) -> torch.Tensor:
            return functional.adaptive_avg_pool2d(values, BLOCKS)

        share = blocks(inside)
        mean = blocks(torch.log10(bright + 0.03) * inside) / (share + 0.02)
        peak = functional.adaptive_max_pool2d(functional.avg_pool2d(bright, 3, stride=1, padding=1), BLOCKS)
        detail = blocks(maps[:, 2:5] * inside) / (share + 0.02)
        coarse = detail[:, 1:3].mean(dim=1, keepdim=True)
        values = torch.cat([mean, torch.log10(peak + 0.03), detail[:, :1], coarse], dim=1).flatten(2)
        weights = share.flatten(1) + 1e-3

        steps = torch.linspace(-1, 1, BLOCKS, device=maps.device)
        y, x = (axis.flatten() for axis in torch.meshgrid(steps, steps, indexing="ij"))
        basis = torch.stack([torch.ones_like(x), y, x, y * x, y * y, x * x], dim=1)
        normal = torch.einsum("ni,ia,ib->nab", weights, basis, basis)
        normal = normal + 0.01 * torch.eye(basis.shape[1], device=maps.device)
        moments = torch.einsum("ni,nci,ia->nac", weights, values, basis)
        terms = torch.linalg.solve(normal, moments).mT  # (slice, map, term)

        surface = torch.einsum("nca,ia->nci", terms, basis)
        part = (weights / weights.sum(dim=1, keepdim=True))[:, None]
        lift = surface - (surface * part).sum(dim=2, keepdim=True)
        spread = torch.sqrt((lift.square() * part).sum(dim=2) + 1e-8)
        rest = torch.sqrt(((values - surface).square() * part).sum(dim=2) + 1e-8)
        steepness = torch.sqrt(terms[..., 1].square() + terms[..., 2].square() + 1e-8)
        curvature = terms[..., 4] + terms[..., 5]
        saddle = torch.sqrt((terms[..., 4] - terms[..., 5]).square() + terms[..., 3].square() + 1e-8)
        agreement = [
            (lift[:, a] * lift[:, b] * part[:, 0]).sum(dim=1) / (spread[:, a] * spread[:, b] + 1e-4)
            for a, b in ((0, 1), (0, 2), (0, 3), (1, 3))
        ]
        size = [weights.mean(dim=1), (weights > 0.5).float().mean(dim=1)]
        cues = [spread, rest, spread / (rest + 0.02), steepness, curvature, saddle]
    return torch.cat([*cues, torch.stack([*agreement, *size], dim=1)], dim=1)


class LagReader(nn.Module):
    """Reads `repeats` into a description that does not care which of the axes is which.

    Parameters
    ----------
    outputs : int
        Length of the description.
    width : int, default 24
        Channels of the convolutions along the lags.
    """

    NEAR = 13

    def __init__(self, outputs: int, width: int = 24) -> None:
        super().__init__()
        self.along = nn.Sequential(
            nn.Conv1d(OFFSETS, width, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(width, width, 5, padding=2),
            nn.ReLU(),
        )
        self.describe = nn.Sequential(nn.Linear(4 * width + 2 * OFFSETS * self.NEAR, outputs), nn.ReLU())

    def forward(self, lags: torch.Tensor) -> torch.Tensor:
        """From (slice, 2, OFFSETS, LONGEST_LAG) to (slice, outputs)."""
        read = self.along(3 * lags.flatten(0, 1))
        found = torch.cat([read.amax(dim=2), read.mean(dim=2)], dim=1)
        found = found.reshape(len(lags), 2, -1)
        near = lags[..., : self.NEAR].flatten(2)
        described: torch.Tensor = self.describe(
            torch.cat(
                [
                    found.amax(dim=1),
                    (found[:, 0] - found[:, 1]).abs(),
                    near.sum(dim=1),
                    (near[:, 0] - near[:, 1]).abs(),
                ],
                dim=1,
            )
        )
        return described
