"""What a prediction will take, from its first tile."""

from __future__ import annotations

import time
from math import prod

import torch

from napari_medai.core.plan import Plan
from napari_medai.engine.nnunet.prepare import Case
from napari_medai.engine.nnunet.resampling import streamed
from napari_medai.engine.nnunet.sliding import SLAB, held_bytes, slab
from napari_medai.engine.peak import Peak
from napari_medai.engine.planning import room
from napari_medai.engine.run import Run
from napari_medai.models.nnunet_labels import LabelSet
from napari_medai.models.nnunet_stage import StagePlan

_MIB = 2**20


class FirstTile:
    """Measures one pass, from where it was made to `plan`.

    Parameters
    ----------
    run : Run
        Told the plan, unless it was told one.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._now = run, room(run.device, float(run.params.memory))
        self._peak = Peak()
        self._device_before = self._on_device()
        self._begun = time.perf_counter()

    def plan(
        self, case: Case, stage: StagePlan, labels: LabelSet, tiles: int, folds: int, keep_on: torch.device, size: int
    ) -> Plan:
        """The plan of the run.

        Parameters
        ----------
        case : Case
            What is predicted.
        stage, labels
            The configuration.
        tiles : int
            Passes in all.
        folds : int
            How many have sums of their own at a time.
        keep_on : torch.device
            Where these are.
        size : int
            Bytes of each of their numbers.
        """
        run, now = self._run, self._now
        seconds = time.perf_counter() - self._begun
        grid = tuple(case.tensor.shape[1:])
        sums = folds * held_bytes(labels.heads, grid, stage.patch, size) / _MIB
        # planes of scores that are handed on, those that are waited with, and what is interpolated
        planes = labels.heads * prod(grid[1:]) * (slab(labels.heads, grid[1:]) + 2)
        back = min(planes, labels.heads * prod(grid)) * size / _MIB + 2 * SLAB / _MIB
        if streamed(grid, case.cut, case.target, case.spacing, stage.probabilities) is None:
            back += (2 * labels.heads * prod(grid) * size + 20 * prod(case.cut)) / _MIB
        host = now.held_mb + 2 * prod(case.whole) * (1 if len(labels.foreground) < 255 else 2) / _MIB
        host += max(self._peak.close() - now.held_mb, back)
        device = 0.0
        if run.device.type == "cuda":
            device = now.held_device_mb + self._on_device() - self._device_before
        if keep_on.type == "cuda":
            device += sums
        else:
            host += sums
        host = max(host, run.memory.host_mb())
        fits = host <= now.limit_mb and device <= now.limit_device_mb + 1e-6
        return Plan(
            device=str(run.device),
            tile=stage.patch,
            batch=1,
            tiles=tiles * run.frames,
            precision=run.precision,
            accumulator="host" if keep_on.type == "cpu" else "device",
            sums="float16" if size == 2 else "float32",
            channels=labels.heads,
            host_mb=host,
            device_mb=device,
            free_host_mb=now.limit_mb,
            free_device_mb=now.limit_device_mb,
            seconds=seconds * tiles * run.frames,
            fits=fits,
            advice=""
            if fits
            else f"{max(host, device) / 1024:.1f} GiB would do; close other programs, cut the image, or take a "
            "configuration of larger voxels",
        )

    def _on_device(self) -> float:
        if self._run.device.type != "cuda":
            return 0.0
        return float(torch.cuda.max_memory_allocated(self._run.device) / _MIB)
