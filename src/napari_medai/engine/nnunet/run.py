"""Runner of nnU-Net's models: the folds of one configuration, or of the two stages of a cascade."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_medai.core.errors import DeviceError, ModelError
from napari_medai.core.stage import Params, Part
from napari_medai.core.volume import Volume
from napari_medai.engine.device import release_memory
from napari_medai.engine.memory import is_out_of_memory
from napari_medai.engine.nnunet.checkpoint import Fold, load_fold, sha256
from napari_medai.engine.nnunet.prepare import Case, Image, as_stored, prepare, put_back, read
from napari_medai.engine.nnunet.sliding import slide, tiles
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
    image = read(volume, stages[0].reader, str(run.spec.options.get("orientation", "")))
    found: NDArray[Any] | None = None
    whole = run.progress
    for n, plan in enumerate(stages):
        run.progress = Part(whole, n / len(stages), (n + 1) / len(stages), plan.configuration)
        found = _run_stage(image, plan, labels, found, run, float(getattr(params, "threshold", 0.0)) or 0.5)
    run.progress = whole
    return np.ascontiguousarray(image.undo(np.asarray(found)))


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
    image: Image, plan: StagePlan, labels: LabelSet, previous: NDArray[Any] | None, run: Run, threshold: float
) -> NDArray[Any]:
    """Labels (z, y, x) by one configuration."""
    check = run.progress.check
    run.progress.update(0, 1, f"{plan.configuration}: preparing")
    case = prepare(image, plan, labels, previous, check)
    logits = _ensemble(case, plan, labels, run)
    run.progress.update(0.95, 1, f"{plan.configuration}: back to the image's voxels")
    channels = [partial(_channel, logits, n) for n in range(labels.heads)]
    return put_back(channels, case, plan, labels, threshold, check)


def _channel(logits: torch.Tensor, number: int) -> NDArray[Any]:
    return np.asarray(logits[number].numpy())


def _ensemble(case: Case, plan: StagePlan, labels: LabelSet, run: Run) -> torch.Tensor:
    """Mean logits of the folds, (heads, k, j, i), in half precision as each of them."""
    folds = chosen_folds(plan, str(run.spec.options.get("folds", "all")))
    total: torch.Tensor | None = None
    for n, name in enumerate(folds):
        path = checkpoint_path(run.model.folder, plan, name)
        run.note(f"{plan.configuration}, fold {name}: {path.name}, sha256 {sha256(path)}")
        logits = _logits(case, plan, labels, path, run, (n, len(folds)))
        with torch.inference_mode():
            total = logits if total is None else total.to(logits.dtype).add_(logits)
    if total is None:
        raise ModelError(f"{plan.configuration} of {run.spec.id!r} has no fold to run.")
    with torch.inference_mode():
        return total.div_(len(folds)) if len(folds) > 1 else total


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


def _logits(
    case: Case, plan: StagePlan, labels: LabelSet, path: Path, run: Run, number: tuple[int, int]
) -> torch.Tensor:
    """One fold over the whole image, with less memory or more precision where the first try fails."""
    inputs = len(case.tensor)
    step = float(run.spec.options.get("step", 0.5))
    if not 0 < step <= 1:
        raise ModelError(f"The option step is {step:g}; it goes from above 0 to 1.")
    keep_on, precision = run.device, torch.half
    fold_number, folds = number
    count = tiles(case.tensor.shape[1:], plan.patch, step) * folds
    run.progress.check()

    def done(n: int, of: int) -> None:
        run.tile_done(1)
        run.progress.update(0.05 + 0.9 * (fold_number * of + n) / count, 1, f"tile {fold_number * of + n} of {count}")

    while True:
        fold = run.load(partial(_fold, path, plan, labels.heads, inputs))
        keep_on = keep_on if run.device.type != "cpu" else run.device
        assert isinstance(fold, Fold)
        axes = fold.mirroring if _mirrors(run) else ()
        try:
            with torch.inference_mode(), _autocast(run):
                logits = slide(
                    case.tensor, fold, plan.patch, labels.heads, axes=axes, step=step, device=run.device,
                    keep_on=keep_on, precision=precision, done=done, check=run.progress.check,
                )  # fmt: skip
        except (RuntimeError, MemoryError) as error:
            failed: BaseException = error
        else:
            if all(bool(torch.isfinite(channel).all()) for channel in logits):
                return logits
            if precision is torch.float32 and run.precision == "float32":
                raise ModelError("The network gave values that are not finite; its weights or its input do not fit it.")
            precision = torch.float32
            run.use_float32("half precision overflowed: running in float32 instead")
            continue
        if isinstance(failed, torch.AcceleratorError):
            raise failed
        if not is_out_of_memory(failed):
            reason = str(failed).partition("\n")[0][:300]
            raise ModelError(f"The network failed on a tile of {plan.patch}: {reason}.") from failed
        failed.__traceback__ = None  # it holds the tensors of the failed pass
        release_memory(run.device)
        if run.device.type == "cpu":
            raise DeviceError(
                f"There is not enough memory for {labels.heads} channels of "
                f"{' x '.join(map(str, case.tensor.shape[1:]))} voxels; close other programs, or cut the image."
            )
        if keep_on.type != "cpu":
            keep_on = torch.device("cpu")
            run.note(f"{run.device.type} has no memory for the sums: kept in the machine's memory")
        else:
            forget()
            release_memory(run.device)
            run.use_cpu(f"{run.device.type} has no memory for a tile of {plan.patch}: running on the CPU instead")


def _fold(path: Path, plan: StagePlan, heads: int, inputs: int, device: torch.device) -> Fold:
    return load_fold(path, plan, heads, inputs, device)


def _autocast(run: Run) -> AbstractContextManager[object]:
    half = run.device.type == "cuda" and run.precision != "float32"
    return torch.autocast("cuda", dtype=torch.float16) if half else nullcontext()
