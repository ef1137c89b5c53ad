"""Runner of MONAI bundles: preprocessing, inferer and network, postprocessing, and back on the scan's voxels."""

from __future__ import annotations

import warnings
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose
from torch import nn

from napari_medai.core.errors import InputError, ModelError, UntrustedError
from napari_medai.core.volume import Volume
from napari_medai.engine.memory import is_out_of_memory
from napari_medai.engine.monai.answers import answer
from napari_medai.engine.monai.build import Builder, without_truth
from napari_medai.engine.monai.images import Handed, hand_over
from napari_medai.engine.monai.labels_first import brings_scores_back, labelled, same_windows, steps_for_labels
from napari_medai.engine.monai.weights import load_into
from napari_medai.engine.monai.windows import Counted, ScoresError, count_calls
from napari_medai.engine.weights import warm
from napari_medai.models.monai.plan import Named, Part, Plan
from napari_medai.models.monai.resolve import resolve
from napari_medai.models.monai.reviewed import READERS

if TYPE_CHECKING:
    from napari_medai.engine.run import Run

_IMAGE, _PRED = "image", "pred"


def run_bundle(volume: Volume, run: Run, params: Any) -> Any:
    """Run a bundle on an image: (c)zyx or (c)yx.

    Returns
    -------
    array, SliceScores or Found
        Labels on the image's voxels, scores, or boxes, by the model's stage.

    Raises
    ------
    UntrustedError
        The bundle needs what nobody allowed.
    ModelError, InputError
        It cannot be built, its weights do not fit, or the image does not suit it.
    """
    spec = run.spec
    folder = spec.path or run.model.folder
    plan, needs, _ = resolve(folder, cuda=run.device.type == "cuda")
    if plan is None:
        if run.model.grant is not None:
            from napari_medai.engine.monai.granted import run_granted

            return run_granted(volume, run, params, folder)
        listing = "; ".join(f"{need.where}: {need.why}" for need in needs)
        raise UntrustedError(f"{spec.title!r} carries what is not run: {listing}", needs)
    if not plan.amp:
        run.precision = "float32"
    network = run.load(partial(_network, plan, run, folder))
    with warnings.catch_warnings(), torch.no_grad():
        # what MONAI says of its own older arguments and torch of MONAI's calls is for their programmers
        warnings.simplefilter("ignore")
        result, handed, image = computed(volume, run, params, plan, network)
        return answer(result, plan, handed, image, run, params)


def _network(plan: Plan, run: Run, folder: Path, device: torch.device) -> nn.Module:
    def make() -> nn.Module:
        made: nn.Module = Builder(device).part(plan.network)
        for note in load_into(made, run.spec, folder):
            run.note(note)
        return made

    key = f"monai {run.spec.sha256} {plan.network.name} {sorted(plan.network.arguments.items(), key=str)}"
    return warm((key, str(device)), make, device)


def computed(volume: Volume, run: Run, params: Any, plan: Plan, network: nn.Module) -> tuple[Any, Handed, Any]:
    """What the bundle's postprocessing gives, the image as it was handed over, and as the network saw it."""
    handed = hand_over(volume, plan.inferer.name == "SliceInferer", run.spec.prepare.spacing_mm)
    builder = Builder(run.device, (plan.network, network))
    before, after = builder.part(plan.compose), builder.part(plan.compose_after)
    for name in without_truth(after):
        run.note(f"{name} of the bundle also looks at a ground truth; there is none, and it was left out")
    run.progress.update(0, 1, "preparing")
    data = _prepared(before, loaded(plan, handed, run), plan)
    image = data[_IMAGE] if _IMAGE in data else next(iter(data.values()))
    inferer = builder.part(plan.inferer)
    _as_asked(inferer, params, run)
    spare = steps_for_labels(after, _PRED) if run.stage == "segment" and same_windows(inferer) else None
    back = prod(handed.shape) if brings_scores_back(after, _PRED) else 0
    try:
        pred = _inferred(inferer, image, network, run, plan, back, spare is not None)
    except ScoresError:
        if spare is None:
            raise
        pred = None
    if pred is None and spare is not None:  # outside of the except block, whose traceback holds a pass
        run.note("the scores of the whole image do not fit into memory: labels are decided row of windows by row")
        resampled = sorted(image.shape[1:]) != sorted(handed.shape)
        pred = labelled(image, inferer, network, run, prod(handed.shape) if resampled else 0)
        if spare.back and resampled:
            run.note("the labels were resampled to the scan's voxels, to the nearest, where MONAI resamples scores")
        after = spare
    run.progress.update(1, 1, "finishing")
    if isinstance(pred, list):  # boxes of a detector
        data |= pred[0]
    else:
        data[_PRED] = pred
    return _called(after, data, plan.compose_after), handed, image


def loaded(plan: Plan, handed: Handed, run: Run) -> dict[str, Any]:
    """What the bundle's LoadImage would have read: an entry for each of its keys, with its share of the channels.

    Raises
    ------
    InputError
        The image has fewer channels than the bundle has images.
    """
    reader = next(part for part in plan.preprocessing if part.name in READERS)
    given = reader.arguments.get("keys", _IMAGE)
    keys = [given] if isinstance(given, str) else list(given)
    used = _mentioned(plan)
    keys = [key for key in keys if key in used] or keys[:1]
    channels = len(handed.array)
    if channels < len(keys):
        raise InputError(f"The bundle reads {', '.join(keys)}; the image has {channels} channel(s) for them.")
    # the first takes what the others, one channel each, leave
    first = channels - len(keys) + 1
    shares = [slice(0, first), *(slice(n, n + 1) for n in range(first, channels))]
    ensure = reader.arguments.get("ensure_channel_first", False) is True
    data = {}
    for key, share in zip(keys, shares, strict=True):
        tensor = handed.tensor(share, None if ensure else _channel_dim(plan, key), key)
        if ensure and tensor.ndim == len(handed.shape):
            tensor = tensor[None]
        data[key] = _as_read(tensor, reader.arguments.get("dtype"), run)
    return data


def _as_read(tensor: Any, dtype: Any, run: Run) -> Any:
    """The pixels in the type that the bundle reads them as."""
    name = dtype.name.partition(".")[2] if isinstance(dtype, Named) else dtype
    if name in (None, "float32", "float", "None"):
        return tensor
    wanted = getattr(torch, str(name), None)
    if not isinstance(wanted, torch.dtype):
        raise ModelError(f"The bundle reads pixels as {name!r}, which is no type of pixels.")
    read = tensor.to(wanted)
    if not torch.equal(read.to(tensor.dtype), tensor):
        run.note(f"the bundle reads pixels as {name}: what does not fit was cut, as MONAI does")
    return read


def _channel_dim(plan: Plan, key: str) -> int | str | None:
    """Where the bundle says that the axis of channels is in the file."""
    for part in plan.preprocessing:
        if part.name.startswith("EnsureChannelFirst"):
            keys = part.arguments.get("keys", key)
            if key in ([keys] if isinstance(keys, str) else keys):
                found = part.arguments.get("channel_dim")
                return found if isinstance(found, int | str) else None
    return None


def _mentioned(plan: Plan) -> set[str]:
    """Every text among the arguments of the transforms after the reader: the keys that are used."""
    todo: list[Any] = [part.arguments for part in plan.preprocessing if part.name not in READERS]
    found = set()
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            found.add(item)
        elif isinstance(item, dict):
            todo += item.values()
        elif isinstance(item, list | tuple):
            todo += item
    return found


def _prepared(before: Any, data: dict[str, Any], plan: Plan) -> dict[str, Any]:
    dictionary = any(part.name in READERS and part.name != "LoadImage" for part in plan.preprocessing)
    if dictionary:
        return dict(_called(before, data, plan.compose))
    return {_IMAGE: _called(before, next(iter(data.values())), plan.compose)}


def _called(transforms: Any, data: Any, part: Part) -> Any:
    """Apply a bundle's transforms; what they raise is told with the step that did.

    Raises
    ------
    InputError
        A step fails on this image.
    """
    try:
        return transforms(data) if not isinstance(transforms, Compose) or transforms.transforms else data
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        cause: BaseException = error.__cause__ or error
        first = str(cause).splitlines()[0][:300] if str(cause) else type(cause).__name__
        raise InputError(f"The bundle's {part.where} fails on this image: {first}.") from error


def _as_asked(inferer: Any, params: Any, run: Run) -> None:
    """Tile and batch as the person asked, instead of the bundle's."""
    if not isinstance(inferer, SlidingWindowInferer):
        return
    if params.tile:
        inferer.roi_size = (params.tile,) * len(inferer.roi_size) if np.ndim(inferer.roi_size) else params.tile
        run.note(f"tiles of {params.tile} voxels, as asked, instead of the bundle's")
    if params.batch:
        inferer.sw_batch_size = params.batch


def _inferred(
    inferer: Any, image: Any, network: nn.Module, run: Run, plan: Plan, back_voxels: int, other_way: bool
) -> Any:
    """The network's answer for one image, (k, x, y, z); by name if there are several; a list of boxes of a detector.

    Raises
    ------
    ScoresError
        The answer does not fit into memory; see `Counted`.
    """
    detector = "detector" in plan.inferer.arguments
    shape = tuple(image.shape[1:])
    half = run.precision.startswith("float16")
    while True:
        voxels = prod(shape) if isinstance(inferer, SlidingWindowInferer) else 0
        counted = Counted(network, run, count_calls(inferer, shape), half, voxels, back_voxels, other_way)
        inputs = image.to(run.device)
        try:
            out = inferer([inputs.as_tensor()] if detector else inputs[None], counted)
            break
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                if run.device.type == "cpu" or getattr(inferer, "device", None) is not None:
                    raise ScoresError(
                        "There is not enough memory for the scores of the whole image. Cut the image, lower its "
                        "resolution, or use a machine with more memory."
                    ) from error
            elif isinstance(error, RuntimeError) and "size" in str(error).lower():
                raise InputError(
                    f"The network of {run.spec.title!r} does not take an image of {' x '.join(map(str, shape))}: "
                    f"{str(error).splitlines()[0][:200]}. Give it the size that it was made for."
                ) from error
            else:
                raise
        # outside of the except block, whose traceback holds the tensors of the failed pass
        if not isinstance(inferer, SlidingWindowInferer):
            raise InputError(f"There is no memory on the {run.device.type} for an image of {shape}; use the CPU.")
        inferer.device, inferer.sw_batch_size = torch.device("cpu"), 1
        run.note(f"out of memory on the {run.device.type}: windows are put together on the CPU, one at a time")
    if detector:
        return out
    if isinstance(out, dict):
        return {str(getattr(key, "value", key)): value[0] for key, value in out.items()}
    if isinstance(out, list | tuple):  # the finest of several scales stands first
        out = out[0]
    return out[0]
