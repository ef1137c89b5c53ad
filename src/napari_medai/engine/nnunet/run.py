"""Runner of nnU-Net's models: the folds of one configuration, or of the two stages of a cascade."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_medai.core.errors import DeviceError, ModelError
from napari_medai.core.stage import Params, Part
from napari_medai.core.volume import Volume
from napari_medai.engine.device import free_memory_mb, release_memory
from napari_medai.engine.faster import faster
from napari_medai.engine.memory import is_out_of_memory
from napari_medai.engine.nnunet.back import Found, put_back
from napari_medai.engine.nnunet.checkpoint import Fold, load_fold, sha256
from napari_medai.engine.nnunet.planned import FirstTile
from napari_medai.engine.nnunet.prepare import Case, Image, as_stored, prepare, read
from napari_medai.engine.nnunet.sliding import Network, held_bytes, mirrored, slide, tiles
from napari_medai.engine.nnunet.spool import Spool
from napari_medai.engine.run import Run
from napari_medai.engine.weights import forget
from napari_medai.models.nnunet_labels import LabelSet
from napari_medai.models.nnunet_stage import StagePlan


def segment(volume: Volume, run: Run, params: Params) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Labels by a trained model of nnU-Net v2, as its own predictor gives them.

    Parameters
    ----------
    volume : Volume
        Axes ``(c)zyx``, or ``(c)yx`` for a 2-D model.
    run : Run
        Device, progress, record. The model's options: ``folds`` ("all", or numbers such as "0,2"), ``mirroring``
        (whether images are mirrored as the checkpoint allows: 2 to 8 times as long, as nnU-Net's default),
        ``step`` (of the tiles, as a share of their edge), ``orientation`` ("RAS"; empty: as the file stores it).
    params : Params
        ``threshold`` is the probability of a region; 0 takes 0.5. ``mirror`` switches mirroring off.

    Returns
    -------
    (z, y, x) or (y, x) array
        Labels on the volume's voxels.

    Raises
    ------
    ModelError
        A checkpoint is damaged, holds more than data, or does not fit the plans; an option has a wrong value.
    """
    try:
        stages = [StagePlan.model_validate(stage) for stage in run.spec.details.get("stages", ())]
        labels = LabelSet.model_validate(run.spec.details.get("labels"))
    except ValueError as error:
        raise ModelError(f"The description of {run.spec.id!r} is not nnU-Net's: {str(error)[:300]}") from error
    if not stages:
        raise ModelError(f"The description of {run.spec.id!r} holds no stage to run; open its folder again.")
    _tell(volume, run, params)
    found: NDArray[Any] | None = None
    whole = run.progress
    for n, plan in enumerate(stages):
        run.progress = Part(whole, n / len(stages), (n + 1) / len(stages), plan.configuration)
        # read again for each stage, so that no stage holds the pixels while its network runs
        image = partial(read, volume, stages[0].reader, str(run.spec.options.get("orientation", "")))
        result = _run_stage(image, plan, labels, found, run, float(getattr(params, "threshold", 0.0)) or 0.5)
        found = result.whole.transpose(plan.backward)
    run.progress = whole
    return np.ascontiguousarray(result.labels)


def _tell(volume: Volume, run: Run, params: Params) -> None:
    """Notes on what was decided in the user's place."""
    for remark in run.spec.details.get("remarks", ()):
        run.note(str(remark))
    if volume.units == "pixel" and "z" in volume.axes:
        run.note("the image has no size of voxels: taken as 1 mm")
    wanted = str(run.spec.options.get("orientation", ""))
    if "z" in volume.axes and (wanted or as_stored(volume)):
        why = "as the file stores it: nnU-Net turns no image" if not wanted else "as the model wants it"
        run.note(f"turned for the network to x, y, z towards {wanted or as_stored(volume)}, {why}; and back")
    if params.tile or params.batch > 1:
        run.note("tile and batch are the plans': another tile would change the result of this network")
    for name in ("min_size", "diameter"):
        if getattr(params, name, 0):
            run.note(f"{name} is of no effect for this model")
    if not _mirrors(run):
        run.note("mirroring was switched off")


def _mirrors(run: Run) -> bool:
    """Whether mirrored images are looked at too: unless the model's options or the person say otherwise."""
    return run.spec.options.get("mirroring", True) is not False and bool(getattr(run.params, "mirror", True))


def _run_stage(
    read_image: Callable[[], Image],
    plan: StagePlan,
    labels: LabelSet,
    previous: NDArray[Any] | None,
    run: Run,
    threshold: float,
) -> Found:
    """Labels by one configuration."""
    check = run.progress.check
    run.progress.update(0, 1, f"{plan.configuration}: preparing")
    image = read_image()
    undo = image.undo
    case = prepare(image, plan, labels, previous, check)
    del image
    found = Found(case, plan, labels, undo, run.progress)
    folds = _folds(plan, run)
    sums = held_bytes(labels.heads, case.tensor.shape[1:], plan.patch) / 2**20
    together = 1 < len(folds) <= free_memory_mb(run.device) / 2 // sums
    way = Way(run.device, torch.half, together)
    while True:
        logits = _logits(case, plan, labels, folds, run, way)
        try:
            with torch.inference_mode(), _autocast(run):
                # sums on an accelerator come as copies, which are put back while it runs the next tiles
                ahead = 2 if way.keep_on.type != "cpu" and run.device.type != "cpu" else 0
                put_back(logits, case, plan, labels, threshold, found, check, ahead)
            return found
        except Overflow:
            if way.sums is torch.float32 and run.precision == "float32":
                raise ModelError(
                    "The network gave values that are not finite; its weights or its input do not fit it."
                ) from None
            way = replace(way, sums=torch.float32)
            run.use_float32("half precision overflowed: running in float32 instead")
            continue
        except (RuntimeError, MemoryError) as error:
            failed: BaseException = error
        if isinstance(failed, torch.AcceleratorError):
            raise failed
        if not is_out_of_memory(failed):
            reason = str(failed).partition("\n")[0][:300]
            raise ModelError(f"The network failed on a tile of {plan.patch}: {reason}.") from failed
        failed.__traceback__ = None  # it holds the tensors of the failed pass
        del logits
        release_memory(run.device)
        way = _leaner(way, case, plan, labels, run)


class Overflow(Exception):
    """Sums that are not finite."""


@dataclass(frozen=True)
class Way:
    """How logits are summed up.

    Attributes
    ----------
    keep_on : torch.device
        Where the sums are.
    sums : torch.dtype
        Their type.
    together : bool
        Whether all folds see a tile at once; else one goes over the whole image after the other.
    """

    keep_on: torch.device
    sums: torch.dtype
    together: bool


def _leaner(way: Way, case: Case, plan: StagePlan, labels: LabelSet, run: Run) -> Way:
    """The next way after memory ran out: one fold after the other, sums in the machine's memory, the CPU."""
    if way.together:
        run.note(f"{run.device.type} ran out of memory: one fold after the other")
        return replace(way, together=False)
    if run.device.type == "cpu":
        raise DeviceError(
            f"There is not enough memory for {labels.heads} channels of a tile of {' x '.join(map(str, plan.patch))} "
            f"in {' x '.join(map(str, case.tensor.shape[1:]))} voxels; close other programs, or cut the image."
        )
    if way.keep_on.type != "cpu":
        run.note(f"{run.device.type} has no memory for the sums: kept in the machine's memory")
        return replace(way, keep_on=torch.device("cpu"))
    forget()
    release_memory(run.device)
    run.use_cpu(f"{run.device.type} has no memory for a tile of {plan.patch}: running on the CPU instead")
    return way


def _folds(plan: StagePlan, run: Run) -> list[Path]:
    """The checkpoints to run."""
    paths = []
    for name in chosen_folds(plan, str(run.spec.options.get("folds", "all"))):
        paths.append(checkpoint_path(run.model.folder, plan, name))
        run.note(f"{plan.configuration}, fold {name}: {paths[-1].name}, sha256 {sha256(paths[-1])}")
    if not paths:
        raise ModelError(f"{plan.configuration} of {run.spec.id!r} has no fold to run.")
    return paths


def _logits(
    case: Case, plan: StagePlan, labels: LabelSet, folds: Sequence[Path], run: Run, way: Way
) -> Iterator[torch.Tensor]:
    """Mean logits of the folds, slab by slab, in half precision as each of them."""
    step = float(run.spec.options.get("step", 0.5))
    if not 0 < step <= 1:
        raise ModelError(f"The option step is {step:g}; it goes from above 0 to 1.")
    count = tiles(case.tensor.shape[1:], plan.patch, step) * len(folds)
    run.progress.check()
    ran = 0
    first: FirstTile | None = None

    def done(_n: int, _of: int) -> None:
        nonlocal ran
        ran += 1
        if first and not run.planned:
            run.planned = True
            together = len(folds) if way.together else 1
            told = first.plan(case, plan, labels, count, together, way.keep_on, way.sums.itemsize)
            run.progress.planned(told)
            if not told.fits:
                raise DeviceError(f"This run does not fit into memory: {told.advice}.")
        run.tile_done(1)
        run.progress.update(0.05 + 0.95 * ran / count, 1, f"tile {ran} of {count}")

    def over(paths: Sequence[Path]) -> Iterator[torch.Tensor]:
        nonlocal first
        networks = [_network(path, case, plan, labels, run) for path in paths]
        if not run.planned:
            first = FirstTile(run)
        # a network that found no memory on the accelerator has moved the run to the CPU
        keep_on = way.keep_on if run.device.type != "cpu" else run.device
        for slab in slide(
            case.tensor, networks, plan.patch, labels.heads, step=step, device=run.device, keep_on=keep_on,
            precision=way.sums, done=done, check=run.progress.check,
        ):  # fmt: skip
            if not bool(torch.isfinite(slab).all()):
                raise Overflow
            yield slab

    if len(folds) == 1 or way.together:
        yield from over(folds)
        return
    with tempfile.TemporaryFile(prefix="medai-logits-") as file:
        spool = Spool(file)
        spool.keep(over(folds[:1]))
        for path in folds[1:-1]:
            spool.add(over([path]))
        yield from spool.mean(over(folds[-1:]), len(folds))


def _network(path: Path, case: Case, plan: StagePlan, labels: LabelSet, run: Run) -> Network:
    """One fold with its mirror images."""
    fold = run.load(partial(_fold, path, plan, labels.heads, len(case.tensor)))
    assert isinstance(fold, Fold)
    axes = fold.mirroring if _mirrors(run) else ()
    return partial(mirrored, faster(fold, run.device, run.note), axes=axes, check=run.progress.check)


def chosen_folds(plan: StagePlan, wish: str) -> list[str]:
    """The folds to run.

    Parameters
    ----------
    plan : StagePlan
        Which folds there are.
    wish : str
        ``"all"``: those of the cross-validation, or the one that was trained on everything if there is no other.
        Else their numbers, ``"0,3"``; ``"fold_all"`` is the one trained on everything.

    Raises
    ------
    ModelError
        There is no such fold; the message lists those that exist.
    """
    there = sorted((name for name in plan.checkpoints if name != "all"), key=int)
    if wish.strip() == "all":
        return there or list(plan.checkpoints)
    asked = [part.strip().removeprefix("fold_") for part in wish.split(",") if part.strip()]
    missing = [name for name in asked if name not in plan.checkpoints]
    if missing or not asked:
        raise ModelError(
            f"The folds {wish!r} were asked for; {plan.configuration} has {', '.join(sorted(plan.checkpoints))}."
        )
    return list(dict.fromkeys(asked))


def checkpoint_path(package: Path, plan: StagePlan, fold: str) -> Path:
    """Where a fold's checkpoint lies.

    Raises
    ------
    ModelError
        It would lie outside of the package.
    """
    path = package / plan.folder / plan.checkpoints[fold]
    if not path.resolve().is_relative_to(package.resolve()):
        raise ModelError(f"The checkpoint of fold {fold!r} lies outside of the package; copy it into its folder.")
    return path


def _fold(path: Path, plan: StagePlan, heads: int, inputs: int, device: torch.device) -> Fold:
    return load_fold(path, plan, heads, inputs, device)


def _autocast(run: Run) -> AbstractContextManager[object]:
    half = run.device.type == "cuda" and run.precision != "float32"
    return torch.autocast("cuda", dtype=torch.float16) if half else nullcontext()
