"""Runner of nnU-Net's models: the folds of one configuration, or of the two stages of a cascade."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from napari_medai.core.errors import ModelError
from napari_medai.core.stage import Params, Part
from napari_medai.core.volume import Volume
from napari_medai.engine.device import release_memory
from napari_medai.engine.faster import faster
from napari_medai.engine.memory import is_out_of_memory
from napari_medai.engine.nnunet.back import put_back, sink_for
from napari_medai.engine.nnunet.checkpoint import Fold, load_fold, sha256
from napari_medai.engine.nnunet.planned import planned
from napari_medai.engine.nnunet.prepare import Case, as_stored, prepare, read
from napari_medai.engine.nnunet.sliding import Network, mirrored, slide, tiles
from napari_medai.engine.nnunet.spool import Spool
from napari_medai.engine.nnunet.ways import Way, first_way, leaner
from napari_medai.engine.run import Run
from napari_medai.engine.sink import LabelSink
from napari_medai.models.nnunet_labels import LabelSet
from napari_medai.models.nnunet_stage import StagePlan


def segment(volume: Volume, run: Run, params: Params) -> Any:
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
        Labels on the volume's voxels; lazy where they do not lie in memory.

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
    threshold = float(getattr(params, "threshold", 0.0)) or 0.5
    folds = [_folds(plan, run) for plan in stages]
    weights = " ".join(known for stage in folds for known in stage.values())
    orientation = str(run.spec.options.get("orientation", ""))
    found: Any = None
    whole = run.progress
    for n, plan in enumerate(stages):
        run.progress = Part(whole, n / len(stages), (n + 1) / len(stages), plan.configuration)
        run.progress.update(0, 1, f"{plan.configuration}: preparing")
        # read again for each stage, so that no stage holds the pixels while its network runs
        case = prepare(read(volume, stages[0].reader, orientation), plan, labels, found, run.progress.check)
        on_image = plan is stages[-1] and "z" in volume.axes
        sink = sink_for(case, run, threshold, weights, on_image)
        try:
            _fill(sink, case, list(folds[n]), run, threshold)
        except BaseException:
            sink.abandon()
            raise
        del case  # before the next is prepared
        # an earlier stage's are wanted as the reader gave the image
        found = sink.labels() if on_image else np.asarray(sink.labels()).transpose(plan.backward)
    run.progress = whole
    return found if "z" in volume.axes else np.ascontiguousarray(found[0])


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


def _fill(sink: LabelSink, case: Case, folds: Sequence[Path], run: Run, threshold: float) -> None:
    """The labels that are missing, in one way after the other until one comes to the end."""
    way: Way | None = first_way(case, len(folds), run)
    while way is not None and not sink.complete:
        way = _attempt(sink, case, folds, run, way, threshold)
        if way is not None:
            sink.rewind()


def _attempt(sink: LabelSink, case: Case, folds: Sequence[Path], run: Run, way: Way, threshold: float) -> Way | None:
    """The labels from where the sink begins on; or, after a failure, the next way."""
    logits = _logits(sink, case, folds, run, way)
    try:
        with torch.inference_mode(), _autocast(run):
            # sums on an accelerator come as copies, which are put back while it runs the next tiles
            put_back(logits, case, sink, threshold, run.progress.check, beside=way.keep_on.type != "cpu")
        return None
    except Overflow:
        if way.sums is torch.float32 and run.precision == "float32":
            raise ModelError(
                "The network gave values that are not finite; its weights or its input do not fit it."
            ) from None
        run.use_float32("half precision overflowed: running in float32 instead")
        return replace(way, sums=torch.float32)
    except torch.AcceleratorError:
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            reason = str(error).partition("\n")[0][:300]
            raise ModelError(f"The network failed on a tile of {case.plan.patch}: {reason}.") from error
    # outside of the except block, whose traceback holds the tensors of the failed pass
    del logits
    release_memory(run.device)
    return leaner(way, case, run)


class Overflow(Exception):
    """Sums that are not finite."""


def _folds(plan: StagePlan, run: Run) -> dict[Path, str]:
    """The checkpoints to run, and their hashes."""
    found = {}
    for name in chosen_folds(plan, str(run.spec.options.get("folds", "all"))):
        path = checkpoint_path(run.model.folder, plan, name)
        found[path] = sha256(path)
        run.note(f"{plan.configuration}, fold {name}: {path.name}, sha256 {found[path]}")
    if not found:
        raise ModelError(f"{plan.configuration} of {run.spec.id!r} has no fold to run.")
    return found


def _logits(sink: LabelSink, case: Case, folds: Sequence[Path], run: Run, way: Way) -> Iterator[torch.Tensor]:
    """Mean logits of the folds, slab by slab from where the sink begins, in half precision as each of them."""
    step = float(run.spec.options.get("step", 0.5))
    if not 0 < step <= 1:
        raise ModelError(f"The option step is {step:g}; it goes from above 0 to 1.")
    plan, begin = case.plan, sink.begin
    count = tiles(case.grid, plan.patch, step, begin) * len(folds)
    run.progress.check()
    ran = 0

    def done() -> None:
        nonlocal ran
        ran += 1
        run.tile_done(1)
        run.progress.update(0.05 + 0.95 * ran / count, 1, f"tile {ran} of {count}")

    def over(paths: Sequence[Path]) -> Iterator[torch.Tensor]:
        networks = [_network(path, case, run) for path in paths]
        if not run.planned:
            networks[0] = planned(networks[0], case, run, way, count, sink.made(case.labels.heads))
        # a network that found no memory on the accelerator has moved the run to the CPU
        keep_on = way.keep_on if run.device.type != "cpu" else run.device
        for slab in slide(
            case.tensor, networks, plan.patch, case.labels.heads, step=step, begin=begin, device=run.device,
            keep_on=keep_on, precision=way.sums, done=done, check=run.progress.check,
        ):  # fmt: skip
            if not bool(torch.isfinite(slab).all()):
                raise Overflow
            # what is put back beside the next tiles must not be written over
            yield slab if keep_on == way.keep_on else slab.clone()

    if way.together == len(folds):
        yield from over(folds)
        return
    with tempfile.TemporaryFile(prefix="medai-logits-") as file:
        spool = Spool(file)
        spool.keep(over(folds[:1]))
        for path in folds[1:-1]:
            spool.add(over([path]))
        yield from spool.mean(over(folds[-1:]), len(folds))


def _network(path: Path, case: Case, run: Run) -> Network:
    """One fold with its mirror images."""
    fold = run.load(partial(load_fold, path, case.plan, case.labels.heads, len(case.tensor)))
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


def _autocast(run: Run) -> AbstractContextManager[object]:
    half = run.device.type == "cuda" and run.precision != "float32"
    return torch.autocast("cuda", dtype=torch.float16) if half else nullcontext()
