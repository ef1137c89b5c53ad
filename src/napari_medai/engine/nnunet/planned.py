"""What a prediction will take, from its first pass."""

from __future__ import annotations

import time
from math import prod
from typing import TYPE_CHECKING

import torch

from napari_medai.core.errors import DeviceError
from napari_medai.core.plan import Plan
from napari_medai.engine.device import release_host_memory
from napari_medai.engine.nnunet.prepare import Case
from napari_medai.engine.nnunet.sliding import SLAB, Network
from napari_medai.engine.nnunet.ways import Way
from napari_medai.engine.peak import Peak
from napari_medai.engine.planning import Made

if TYPE_CHECKING:
    from napari_medai.engine.run import Run

_MIB = 2**20


def planned(network: Network, case: Case, run: Run, way: Way, passes: int, made: Made) -> Network:
    """The network; its first pass is measured and the plan of the run told, unless it was.

    Parameters
    ----------
    network : callable
        Of the first fold.
    case : Case
        What is predicted.
    run : Run
        Told the plan.
    way : Way
        How logits are summed up.
    passes : int
        Of all networks over all tiles.
    made : Made
        What becomes of the logits.

    Raises
    ------
    DeviceError
        In the first pass: the run does not fit into memory.
    """

    def asked(image: torch.Tensor) -> torch.Tensor:
        if run.planned:
            return network(image)
        cuda = run.device.type == "cuda"
        release_host_memory()
        if cuda:
            torch.cuda.reset_peak_memory_stats(run.device)
        peak, began = Peak(), time.perf_counter()
        try:
            logits = network(image)
            if cuda:
                torch.cuda.synchronize(run.device)
        finally:
            host = peak.close() - peak.before
        seconds = time.perf_counter() - began
        plan = _plan(
            case, run, way, passes, seconds,
            host=max(peak.before + _more_mb(case, way, made, host), run.memory.host_mb()),
            # with the image and the sums, as far as they are there
            on_device=torch.cuda.max_memory_allocated(run.device) / _MIB if cuda else 0.0,
        )  # fmt: skip
        run.planned = True
        run.progress.planned(plan)
        if not plan.fits:
            raise DeviceError(f"This run does not fit into memory: {plan.advice}.")
        return logits

    return asked


def _more_mb(case: Case, way: Way, made: Made, pass_mb: float) -> float:
    """Memory of the machine that a run takes above what it holds before its first pass, MiB."""
    numbers = case.labels.heads * prod(case.grid)
    back = made.between_mb + made.taking_mb
    if case.how is None:  # all logits, and channels of them in double precision
        back = (2 * numbers * way.sums.itemsize + 20 * prod(case.cut)) / _MIB
    elif way.keep_on.type != "cpu":
        back += 2 * min(SLAB, numbers) * way.sums.itemsize / _MIB  # a copy that waits, and one that is put back
    sums = way.held_mb(case) if way.keep_on.type == "cpu" else 0.0
    return made.kept_mb + sums + max(pass_mb, back)


def _plan(case: Case, run: Run, way: Way, passes: int, seconds: float, host: float, on_device: float) -> Plan:
    """The plan, from the peaks of memory, MiB, and the seconds of a pass."""
    now = run.room()
    fits = host <= now.limit_mb and on_device <= now.limit_device_mb + 1e-6
    advice = (
        f"{max(host, on_device) / 1024:.1f} GiB would do; close other programs, cut the image, or take a "
        "configuration of larger voxels"
    )
    return Plan(
        device=str(run.device),
        tile=case.plan.patch,
        batch=1,
        tiles=passes * run.frames,
        precision=run.precision,
        accumulator="host" if way.keep_on.type == "cpu" else "device",
        sums="float16" if way.sums.itemsize == 2 else "float32",
        channels=case.labels.heads,
        host_mb=host,
        device_mb=on_device,
        free_host_mb=now.limit_mb,
        free_device_mb=now.limit_device_mb,
        seconds=seconds * passes * run.frames,
        fits=fits,
        advice="" if fits else advice,
    )
