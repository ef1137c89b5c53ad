"""An exported network, whatever runs it: its axes, tiles, and its output read as its description says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import ModelError
from napari_medai.core.volume import Volume
from napari_medai.engine.decode import decode_maps
from napari_medai.engine.passes import over_image
from napari_medai.engine.prepare import Prepared, prepare
from napari_medai.engine.resample import resample
from napari_medai.engine.results import SliceScores
from napari_medai.models.sizes import Size
from napari_medai.models.spec import ModelSpec

if TYPE_CHECKING:
    from napari_medai.engine.run import Run

# One array for each input in, with the network's own axes; every output out, by its name where it has one
Call = Callable[[list[NDArray[Any]]], list[tuple[str, NDArray[Any]]]]


def run_exported(
    volume: Volume, run: Run, params: Any, call: Call, shapes: Sequence[Sequence[int]] = (), whole: bool = False
) -> Any:
    """Run an exported network on an image (c)(z)yx of any size.

    Parameters
    ----------
    volume, run, params
        As every runner's.
    call : callable
        The network.
    shapes : sequence of sequences of int
        Size of each input along its axes, 0 where any will do; empty where the file does not say.
    whole : bool
        In one pass, because it gives labels, which cannot be put together from tiles.

    Returns
    -------
    (\\*spatial) int32 labels, (\\*spatial) float32 image, or SliceScores
        As the description's stage says.

    Raises
    ------
    ModelError
        The network gives something else than its description says.
    """
    spec = run.spec
    axes = str(spec.options.get("axes", ""))
    if not axes:
        raise ModelError(
            f"The axes of {spec.weights} are not known; say them once: medai models add {spec.weights} --axes bczyx "
            "--stage segment --labels NAMES"
        )
    letters = "zyx" if "z" in axes else "yx"
    if letters != volume.spatial_axes:
        raise ModelError(f"The model takes {letters}; the image has {volume.spatial_axes}.")
    run.progress.update(0, 1, "preparing")
    prepared = prepare(volume, spec.prepare, note=run.note)
    image = np.asarray(prepared.array)  # whole: so the network's own framework takes it, padded
    inputs = axes.split(",")
    counts = _counts(inputs, shapes, len(image))
    sizes = _sizes(spec, inputs, shapes, letters)
    seen: dict[str, Any] = {}

    def forward(tile: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = np.split(tile, np.cumsum(counts)[:-1])
        arrays = [_to_axes(part, own, letters) for part, own in zip(parts, inputs, strict=True)]
        values = _chosen(call(arrays), str(spec.options.get("output", "")))
        own = _output_axes(spec, values, inputs[0])
        if not set(letters) <= set(own):
            raise ModelError(
                f"The output of {values.shape} with the axes {own!r} is no map of the image; give output_axes, or the "
                "stage classify."
            )
        seen["labels"] = values.dtype.kind in "iub"
        return _from_axes(values, own, letters, tile.shape[1:])

    if spec.stage == "classify":
        return _scores(image, call, inputs, counts, sizes, letters, run)
    maps = over_image(image, forward, sizes, (spec.tiling.halo,) * len(letters), run, whole=whole)
    if seen.get("labels") and not whole and run.tiles > 1:
        raise ModelError(
            "The network gives labels, which cannot be put together from tiles; give it a tile as large as the image."
        )
    maps = _activated(maps, str(spec.options.get("activation", "none")))
    if spec.stage == "denoise":
        # in the scale of the first channel
        return replace(prepared, offset=prepared.offset[:1], scale=prepared.scale[:1]).undo_image(maps[0])
    return _labels(maps, bool(seen.get("labels")), prepared, run, params)


def _counts(inputs: Sequence[str], shapes: Sequence[Sequence[int]], found: int) -> list[int]:
    """Channels of each input."""
    counts = [1] * len(inputs)
    for n, own in enumerate(inputs):
        if "c" in own and n < len(shapes) and len(shapes[n]) == len(own):
            counts[n] = shapes[n][own.index("c")] or 1
    if len(inputs) == 1 and "c" in inputs[0] and not (shapes and shapes[0] and shapes[0][inputs[0].index("c")]):
        counts = [found]
    if sum(counts) != found:
        raise ModelError(f"The network takes {sum(counts)} channels; the image has {found}.")
    return counts


def _sizes(spec: ModelSpec, inputs: Sequence[str], shapes: Sequence[Sequence[int]], letters: str) -> list[Size]:
    """Which sizes the network takes along each axis of space."""
    said = str(spec.options.get("size", "")).replace("x", ",")
    fixed = dict(zip(letters, (int(n) for n in said.split(",")), strict=True)) if said else {}
    for own, shape in zip(inputs, shapes, strict=False):
        for letter, n in zip(own, shape, strict=False):
            if n and letter in letters:
                fixed.setdefault(letter, int(n))
    multiple = spec.tiling.multiple
    return [
        Size(kind="fixed", least=fixed[letter]) if letter in fixed else Size(kind="step", least=multiple, step=multiple)
        for letter in letters
    ]


def _to_axes(array: NDArray[np.float32], axes: str, letters: str) -> NDArray[np.float32]:
    """(C, \\*spatial) with a network's own axes."""
    if "c" not in axes:
        array, names = array[0], letters
    else:
        names = f"c{letters}"
    if "b" in axes:
        array, names = array[np.newaxis], f"b{names}"
    return np.ascontiguousarray(array.transpose([names.index(letter) for letter in axes]))


def _from_axes(values: NDArray[Any], axes: str, letters: str, tile: Sequence[int]) -> NDArray[np.float32]:
    """(K, \\*spatial) of a network's output."""
    if "b" in axes:
        values = np.take(values, 0, axis=axes.index("b"))
        axes = axes.replace("b", "")
    names = f"c{letters}" if "c" in axes else letters
    if set(axes) != set(names):
        raise ModelError(f"The output has the axes {axes!r}; those of the image are {letters!r}.")
    values = np.asarray(values.transpose([axes.index(letter) for letter in names]), dtype=np.float32)
    values = values if "c" in axes else values[np.newaxis]
    if values.shape[1:] != tuple(tile):
        raise ModelError(
            f"The network made {' x '.join(map(str, values.shape[1:]))} out of a tile of {' x '.join(map(str, tile))}; "
            "they must agree. Give the size that it takes: --answer size=…"
        )
    return values


def _output_axes(spec: ModelSpec, values: NDArray[Any], before: str) -> str:
    """Axes of an output: what was answered, or the input's where there are as many."""
    own = str(spec.options.get("output_axes", ""))
    if not own and values.ndim == len(before):
        own = before
    if not own and spec.stage == "classify":
        own = {1: "c", 2: "bc"}.get(values.ndim, "")
    if len(own) != values.ndim:
        raise ModelError(
            f"The output is {' x '.join(map(str, values.shape))}; its axes are not those of the input, {before!r}. "
            "Give them: --answer output_axes=…"
        )
    return own


def _chosen(found: list[tuple[str, NDArray[Any]]], name: str) -> NDArray[Any]:
    """The output with a name, or the first."""
    if not found:
        raise ModelError("The network gave nothing.")
    chosen = [values for own, values in found if own == name] if name else [found[0][1]]
    if not chosen and name.isdigit() and int(name) < len(found):
        chosen = [found[int(name)][1]]
    if not chosen:
        raise ModelError(f"The network gave no output {name!r}; it gave {', '.join(own for own, _ in found)}.")
    return chosen[0]


def _activated(maps: NDArray[np.float32], activation: str) -> NDArray[np.float32]:
    """In the place of the maps: those of a whole image may be most of what is held."""
    if activation == "sigmoid":
        np.negative(np.clip(maps, -60, 60, out=maps), out=maps)
        np.exp(maps, out=maps)
        maps += 1
        return np.reciprocal(maps, out=maps)
    if activation == "softmax":
        maps -= maps.max(axis=0)
        np.exp(maps, out=maps)
        maps /= maps.sum(axis=0)
    return maps


def _labels(maps: NDArray[np.float32], done: bool, prepared: Prepared, run: Run, params: Any) -> NDArray[Any]:
    """Labels on the image's grid; maps are resampled, labels only where the network gives them itself."""
    spec = run.spec
    level = float(params.threshold or spec.options.get("threshold", 0.5))
    smallest = int(params.min_size)
    named = len(spec.gives.labels)
    if done:
        return np.asarray(
            prepared.undo_labels(decode_maps(maps, {"kind": "labels"}, min_size=smallest)), dtype=np.int32
        )
    maps = prepared.undo(maps)
    if spec.gives.kind == "instances":
        if len(maps) == 2:
            how = {"kind": "boundary", "foreground": 0, "boundary": 1}
            return decode_maps(maps, how, threshold=level, min_size=smallest, note=run.note)
        how = {"kind": "pieces", "channel": 0}
        return decode_maps(maps, how, threshold=level, min_size=smallest, note=run.note)
    if len(maps) == 1:
        how = {"kind": "threshold", "channel": 0}
    elif named == len(maps) and spec.options.get("activation") != "softmax":
        how = {"kind": "argmax", "background": None}
    elif named in (0, len(maps) - 1):
        how = {"kind": "argmax", "background": 0}
    else:
        raise ModelError(
            f"The network gave {len(maps)} channels and {named} labels are named; name {len(maps) - 1}, without the "
            "background, which is the first channel; or, where there is none, all."
        )
    labels = decode_maps(maps, how, threshold=level, min_size=smallest, note=run.note)
    return _renamed(labels, spec)


def _renamed(labels: NDArray[np.int32], spec: ModelSpec) -> NDArray[np.int32]:
    """Labels counted from 1, with the values that the description gives them."""
    values = [item.value for item in spec.gives.labels]
    if not values or values == list(range(1, len(values) + 1)):
        return labels
    table = np.array([0, *values, *range(len(values) + 1, int(labels.max()) + 1)], dtype=np.int32)
    return np.asarray(table[labels], dtype=np.int32)


def _scores(
    image: NDArray[np.float32],
    call: Call,
    inputs: Sequence[str],
    counts: Sequence[int],
    sizes: Sequence[Size],
    letters: str,
    run: Run,
) -> SliceScores:
    """Probabilities of classes of a whole image, brought to a size that the network takes."""
    size = tuple(size.holds(n) for size, n in zip(sizes, image.shape[1:], strict=True))
    if size != image.shape[1:]:
        run.note(f"resampled to {' x '.join(map(str, size))} for the model")
        image = resample(image, size)
    parts = np.split(image, np.cumsum(counts)[:-1])
    run.progress.check()
    found = call([_to_axes(part, own, letters) for part, own in zip(parts, inputs, strict=True)])
    run.tile_done(1)
    values = np.asarray(_chosen(found, str(run.spec.options.get("output", ""))), dtype=np.float64).ravel()
    named = len(run.spec.gives.labels)
    if values.size != named:
        raise ModelError(f"The network gave {values.size} scores; its description names {named} classes in labels.")
    if not np.isfinite(values).all():
        raise ModelError("The network gave scores that are not finite.")
    activation = str(run.spec.options.get("activation", "none"))
    if activation == "none" and (values.min() < 0 or values.max() > 1):
        run.note("scores outside of 0..1 were made into probabilities by softmax")
        activation = "softmax"
    values = _activated(values.astype(np.float32), activation).astype(np.float64)
    return SliceScores(values, np.array([0]), values[np.newaxis], np.ones(1))
