"""Runner of packages that are a description and weights: prepare, a network in tiles, decode, and exactly back.

What a description may say in ``options``:

==============  =========  =============================================================================================
option          default    meaning
==============  =========  =============================================================================================
``output``      by kind    ``"softmax"``: classes exclude each other, the largest wins; ``"sigmoid"``: each channel is a
                           region of its own, later ones lie on earlier ones; ``"probabilities"``: as softmax, of a
                           network that ends with one; ``"values"``: an image
``slicewise``   false      a 2-D network goes through a volume plane by plane along its first axis
``whole``       false      the image goes through at once: for networks that normalise by the whole image
``mirror``      false      mean over mirrored copies of the image
``largest``     false      of each label only the largest connected piece is kept; ``"foreground"``: of all together
``residual``    false      a denoiser gives what is to be taken away
``crop``        -1         voxels around what is not empty ground that are looked at; below 0 everything
==============  =========  =============================================================================================

Labels stand in the order of the network's channels; where there is one label fewer than channels, channel 0 is
background.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from napari_medai.core.errors import DeviceError, ModelError
from napari_medai.core.volume import Volume
from napari_medai.engine.asking import Decided, First, Mirrored, Planes, first
from napari_medai.engine.labelling import activated, decided, decision, kept_mb, largest_piece, pieces
from napari_medai.engine.memory import is_out_of_memory
from napari_medai.engine.planes import Planes as Lazy
from napari_medai.engine.planes import occupied
from napari_medai.engine.planning import Made
from napari_medai.engine.prepare import Prepared, prepare
from napari_medai.engine.results import SliceScores
from napari_medai.engine.sink import LabelSink
from napari_medai.engine.slabs import Decide
from napari_medai.engine.sweep import PIECE_BYTES
from napari_medai.models.spec import Label

if TYPE_CHECKING:
    from napari_medai.engine.run import Run

# Scores of a cube at another angle are resampled as labels instead where they would need more than this
MOST_SCORE_BYTES = 2**31
# Another axis than the first is swept along where it is so much longer: less is held
_LONGER = 1.3
_MIB = 2**20
# Logit of what is not looked at; planes of it that are made at once
_SURE, _FILLED = 20.0, 8
OUTPUTS = ("softmax", "sigmoid", "probabilities", "values")


def run_network(volume: Volume, run: Run, params: Any) -> Any:
    """Run a described network on one image.

    Parameters
    ----------
    volume : Volume
        Axes ``"yx"`` or ``"zyx"``, with ``c`` before them where the model takes several channels.
    run : Run
        Device, progress, record; its description says what the network takes and gives.
    params : Params
        Of the stage; ``threshold`` and ``min_size`` of Segment.

    Returns
    -------
    array or SliceScores
        By the stage: labels, an image, or scores.

    Raises
    ------
    ModelError
        What the network gives does not fit its description.
    """
    stage = run.spec.stage
    if stage == "segment":
        return segment(volume, run, params)
    if stage == "classify":
        return classify(volume, run)
    if stage == "denoise":
        return denoise(volume, run)
    raise ModelError(f"Model {run.spec.id!r} is for {stage!r}, which no described network does; it needs a runner.")


def segment(volume: Volume, run: Run, params: Any) -> Any:
    """Labels on the image's grid; see `run_network`."""
    ready, network = _ready(volume, run)
    box = occupied(ready.array, int(run.spec.options.get("crop", -1)))
    output = _output(run, "softmax")
    if output == "values":
        raise ModelError(f"options.output of {run.spec.id!r} is 'values', which are no labels; say 'softmax'.")
    threshold = float(getattr(params, "threshold", 0.0))
    labels = run.spec.gives.labels
    # images that are not held go through piece by piece
    plain = isinstance(ready.array, np.ndarray) and output != "sigmoid" and not threshold
    if plain and hasattr(network, "labels") and _classes(network) and not ready_scores(ready, run):
        tell = partial(_tell, run)
        pixels = np.asarray(ready.array)[(slice(None), *box)]
        tiling = run.spec.tiling
        # with a reach each voxel is taken from one tile: the mean of two classes' numbers is a third class
        found = run.predict(
            pixels, Decided(network, tell), overlap=0.0, halo=max(1, tiling.halo), batch=1, empty=tiling.empty
        )
        index = np.rint(found[0]).astype(np.int32)
        return _finish(_values(index, _classes(network), labels, run), ready, box, run, params)
    if ready.through is not None and ready_scores(ready, run):
        return _through_cube(ready, box, network, run, threshold)
    return _streamed(ready, box, network, run, params)


def _streamed(ready: Prepared, box: tuple[slice, ...], network: nn.Module, run: Run, params: Any) -> Any:
    """Labels slab by slab: scores of the whole image never are in memory."""
    output, labels = _output(run, "softmax"), run.spec.gives.labels
    threshold = float(getattr(params, "threshold", 0.0))
    shape, scores_back = ready.array.shape[1:], ready_scores(ready, run)
    turned = ready.reorientation if scores_back or ready.same_voxels else None
    if scores_back:
        run.note("the network's scores were resampled to the image's grid, linearly")
    back = ready.through is None and (scores_back or ready.same_voxels)
    oriented = ready.oriented_shape if back else shape
    ground = -_SURE if output == "sigmoid" else 0.0

    def decide(channels: int) -> Decide:
        return decision(_channel_values(channels, labels, run, output), labels, output, threshold)

    network, how = _way(network, run, len(shape), tuple(p.stop - p.start for p in box))
    axis = 0 if "tile" in how else int(np.argmax(shape)) if max(shape) > _LONGER * shape[0] else 0
    kind = np.result_type(np.uint8, *(np.min_scalar_type(label.value) for label in labels))
    sink = LabelSink(run, decide, kind, shape, oriented, turned if back else None, axis=axis, on_image=back)
    cropped = any(place != slice(0, n) for place, n in zip(box, shape, strict=True))
    pixels: Any = ready.array
    if cropped:
        pixels = pixels.box(box) if isinstance(pixels, Lazy) else pixels[(slice(None), *box)]
    low, high = box[axis].start, box[axis].stop
    rest = tuple(place for n, place in enumerate(box) if n != axis)
    around = tuple(n for m, n in enumerate(shape) if m != axis)

    def take(first: int, scores: NDArray[np.floating]) -> None:
        if not cropped:
            sink.take(first, scores)
            return
        fill(len(scores), low + first)
        known = max(0, sink.next - low - first)  # of an earlier run that had come beyond the box
        if known < scores.shape[1]:
            whole = np.full((len(scores), scores.shape[1] - known, *around), ground, np.float32)
            whole[(slice(None), slice(None), *rest)] = scores[:, known:]
            sink.take(sink.next, whole)
        if low + first + scores.shape[1] == high:
            fill(len(scores), shape[axis])

    def fill(channels: int, stop: int) -> None:
        while sink.next < stop:
            count = min(_FILLED, stop - sink.next)
            sink.take(sink.next, np.full((channels, count, *around), ground, np.float32))

    def made(channels: int) -> Made:
        whole, voxels, size = sink.made(channels), prod(run.volume.spatial_shape), kind.itemsize
        finishing = kept_mb(voxels, size, *_wanted(run, params)) + (0 if back else 2 * voxels * size / _MIB)
        part = channels * prod(n.stop - n.start for m, n in enumerate(box) if m != axis) * 4
        # of a slab in a box, which is made as large as the image
        planes = max(1, PIECE_BYTES // part) if cropped else 0
        taking = whole.taking_mb + planes * channels * prod(around) * 4 / _MIB
        return replace(whole, taking_mb=taking, finishing_mb=finishing)

    def begin() -> int:
        return int(min(max(0, sink.begin - low), high - low - 1))

    def again() -> int:
        sink.rewind()
        return begin()

    def winners(scores: torch.Tensor) -> torch.Tensor:
        return decide(len(scores)).winners(scores)

    run.decided = winners
    how["empty"] = run.spec.tiling.empty
    try:
        if not sink.complete:
            run.stream(pixels, take, network, axis=axis, begin=begin(), again=again, made=made, **how)
    except BaseException:
        sink.abandon()
        raise
    found = sink.labels()
    if back:
        return _kept(found, run, params)
    return _resampled(np.asarray(found), ready, run, params)


def _through_cube(ready: Prepared, box: tuple[slice, ...], network: nn.Module, run: Run, threshold: float) -> Any:
    """Labels by way of a cube at another angle: its scores are looked up, linearly, in one piece."""
    output, labels = _output(run, "softmax"), run.spec.gives.labels
    scores = _predict(ready.array[(slice(None), *box)], network, run)
    values = _channel_values(len(scores), labels, run, output)
    scores = activated(scores, output)
    if scores[0].nbytes * len(scores) > MOST_SCORE_BYTES:
        return _finish(decided(scores, values, labels, output, threshold), ready, box, run, run.params)
    run.note("the network's scores were resampled to the image's grid, linearly")
    whole = np.zeros((len(scores), *ready.array.shape[1:]), np.float32)
    whole[(slice(None), *box)] = scores
    return _kept(decided(ready.undo(whole), values, labels, output, threshold), run, run.params)


def classify(volume: Volume, run: Run) -> SliceScores:
    """Probabilities of an image; of each plane and their mean where the network is 2-D and the image a volume."""
    ready, network = _ready(volume, run)
    output = _output(run, "softmax")
    planes = bool(run.spec.options.get("slicewise", False)) and volume.ndim_spatial == 3
    pixels = np.asarray(ready.array)
    views = [pixels[:, n] for n in range(pixels.shape[1])] if planes else [pixels]
    rows = []
    for number, view in enumerate(views):
        rows.append(_logits(view, network, run))
        run.tile_done(1)
        run.progress.update(number + 1, len(views), f"image {number + 1} of {len(views)}")
    logits = np.stack(rows)
    wanted = len(run.spec.gives.labels)
    if logits.shape[1] != wanted:
        raise ModelError(f"The network gave {logits.shape[1]} classes; {run.spec.id!r} names {wanted} labels.")
    probabilities = activated(logits.T, output).T.astype(np.float64)
    index = _plane_index(ready, len(views)) if planes else np.zeros(1, np.int64)
    if index is None:
        run.note("the network's planes run along another axis than the slices: one score for the image")
        index, probabilities = np.zeros(1, np.int64), probabilities.mean(axis=0, keepdims=True)
    order = np.argsort(index, kind="stable")
    share = np.full(len(index), 1 / len(index))
    return SliceScores(probabilities.mean(axis=0), index[order], probabilities[order], share)


def denoise(volume: Volume, run: Run) -> NDArray[np.float32]:
    """The image that the network makes, on the image's grid and in its scale of values."""
    extra = volume.axes.strip("zyx")
    if extra and run.spec.accepts.channels == 1:  # each channel or colour for itself
        at = volume.axes.index(extra)
        rest = volume.axes.replace(extra, "")
        parts = np.moveaxis(np.asarray(volume.array), at, 0)
        return np.stack([denoise(volume.replace(array=part, axes=rest), run) for part in parts], axis=at)
    ready, network = _ready(volume, run)
    if run.spec.prepare.nonzero and run.spec.prepare.normalise == "zscore":
        raise ModelError(f"prepare.nonzero of {run.spec.id!r} cannot be undone on an image; leave it out.")
    pixels = np.asarray(ready.array)
    made = _predict(pixels, network, run)
    if len(made) != len(pixels):
        raise ModelError(f"The network gave {len(made)} channels for {len(pixels)}; an image keeps them.")
    if run.spec.options.get("residual", False):
        made = pixels - made
    found = ready.undo_image(made)
    return found if "c" in volume.axes else found[0]


def ready_scores(ready: Prepared, run: Run) -> bool:
    """Whether scores are to be resampled to the image's grid, and labels not."""
    return run.spec.prepare.back == "scores" and not ready.same_voxels


def _ready(volume: Volume, run: Run) -> tuple[Prepared, nn.Module]:
    spec, free = run.spec, run.room().free_mb
    ready = prepare(volume, spec.prepare, note=run.note, orientation=spec.accepts.orientation, free_mb=free)
    return ready, run.network(fast=True)


def _output(run: Run, default: str) -> str:
    output = str(run.spec.options.get("output", default))
    if output not in OUTPUTS:
        raise ModelError(f"options.output of {run.spec.id!r} is {output!r}; use one of {', '.join(OUTPUTS)}.")
    return output


def _predict(array: NDArray[np.float32], network: nn.Module, run: Run) -> NDArray[np.float32]:
    """The network over the image, as its description says."""
    network, how = _way(network, run, array.ndim - 1, array.shape[1:])
    return run.predict(array, network, **how)


def _way(network: nn.Module, run: Run, ndim: int, shape: tuple[int, ...]) -> tuple[nn.Module, dict[str, Any]]:
    """The network as its description asks for it, and how `Run.predict` is to cut an image of a shape for it."""
    options, tiling = run.spec.options, run.spec.tiling
    output = _output(run, "values" if run.spec.stage == "denoise" else "softmax")
    step, size = tiling.multiple, tiling.size
    if options.get("slicewise", False) and ndim == 3:
        edges = tuple(size[-2:]) or (run.params.tile or 512,) * 2
        inner = Planes(network)
        asked = Mirrored(inner, output, run.progress.check) if options.get("mirror") else inner
        return asked, {"tile": (1, *edges), "multiple": (1, step, step), "halo": (0, tiling.halo, tiling.halo)}
    whole = Mirrored(network, output, run.progress.check) if options.get("mirror", False) else First(network)
    if options.get("whole", False):
        # of the smallest multiple that holds it: one tile
        return whole, {"tile": tuple(n + step for n in shape), "overlap": 0.0, "batch": 1}
    return whole, {}


def _logits(view: NDArray[np.float32], network: nn.Module, run: Run) -> NDArray[np.float32]:
    """(K,) of an image (C, \\*spatial)."""
    run.progress.check()
    try:
        with torch.inference_mode():
            out = first(network(torch.from_numpy(np.ascontiguousarray(view))[None].to(run.device)))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise DeviceError(
                f"The {run.device.type} has no memory for an image of {' x '.join(map(str, view.shape[1:]))}; "
                "choose the CPU."
            ) from error
        reason = str(error).partition("\n")[0]
        raise ModelError(f"The network failed on an input of {(1, *view.shape)}: {reason}.") from error
    found = out.float().cpu().numpy()
    if found.ndim != 2 or len(found) != 1 or not np.isfinite(found).all():
        raise ModelError(f"The network gave {found.shape} for one image; (1, classes) finite numbers are needed.")
    return np.asarray(found[0])


def _channel_values(channels: int, labels: tuple[Label, ...], run: Run, output: str) -> list[int]:
    """The label of each channel."""
    values = [label.value for label in labels]
    if len(values) == channels:
        return values
    if len(values) == channels - 1 and output != "sigmoid" and channels > 1:
        return [0, *values]
    raise ModelError(
        f"The network gave {channels} channels; {run.spec.id!r} names {len(values)} labels. Name one for each channel"
        + ("" if output == "sigmoid" else ", or all but the background, which is the first")
        + "."
    )


def _values(index: NDArray[np.int32], channels: int, labels: tuple[Label, ...], run: Run) -> NDArray[np.int32]:
    return np.asarray(_channel_values(channels, labels, run, "softmax"), dtype=np.int32)[index]


def _plane_index(ready: Prepared, count: int) -> NDArray[np.int64] | None:
    """The image's slice of each plane along the network's first axis; none where that is another axis."""
    if ready.reorientation is None or ready.reorientation.order[0] != 0:
        return None
    at = ready.undo_points(np.column_stack([np.arange(count), np.zeros((count, 2))]))[:, 0]
    return np.clip(np.rint(at), 0, ready.shape[0] - 1).astype(np.int64)


def _tell(run: Run, done: int, total: int) -> None:
    run.progress.update(done, total, f"layer {done + 1} of {total}")


def _classes(network: nn.Module) -> int:
    """How many classes a network with ``labels`` tells apart; 0 of any other."""
    return int(getattr(network, "classes", 0))


def _finish(labels: NDArray[np.int32], ready: Prepared, box: tuple[slice, ...], run: Run, params: Any) -> Any:
    """Labels of a box of the prepared image, on the image's grid."""
    whole = np.zeros(ready.array.shape[1:], np.int32)
    whole[box] = labels
    return _resampled(whole, ready, run, params)


def _resampled(labels: NDArray[Any], ready: Prepared, run: Run, params: Any) -> Any:
    """Labels of the prepared image, on the image's grid."""
    if not ready.same_voxels:
        run.note("the labels were resampled to the image's grid, to the nearest voxel")
    return _kept(ready.undo_labels(labels), run, params)


def _kept(labels: Any, run: Run, params: Any) -> Any:
    """What is wanted of the labels; lazy ones stay lazy where all is wanted."""
    largest, apart = _wanted(run, params)
    if not largest and not apart:
        return labels
    found, instances = np.asarray(labels), run.spec.gives.kind == "instances"
    if instances:
        found = found.astype(np.int32, copy=False)  # as many as there are pieces
    if run.spec.options.get("largest") == "foreground":
        found = np.where(largest_piece((found != 0).astype(np.uint8)) != 0, found, 0)
    elif largest:
        found = largest_piece(found)
    return pieces(found, _smallest(run, params), instances)


def _wanted(run: Run, params: Any) -> tuple[bool, bool]:
    """Whether only the largest piece of a label is wanted; and whether pieces are looked at one by one."""
    instances = run.spec.gives.kind == "instances"
    return bool(run.spec.options.get("largest", False)), instances or _smallest(run, params) > 1


def _smallest(run: Run, params: Any) -> int:
    return int(getattr(params, "min_size", 0) or run.spec.options.get("min_size", 0))
