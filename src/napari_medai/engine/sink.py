"""From planes of scores to labels on the image: resampling undone, decided, turned back, written, and shown.

What a network says is on the axes that it wants, at its spacing; what is kept is labels on the image's own voxels.
Between the two there is never more than a slab.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from napari_medai.core.geometry import Reorientation
from napari_medai.engine.fingerprint import fingerprint
from napari_medai.engine.planning import Made
from napari_medai.engine.prepare import turn
from napari_medai.engine.slabs import Decide, How, Undo
from napari_medai.engine.store import Store, choose_store
from napari_medai.engine.sweep import PIECE_BYTES

if TYPE_CHECKING:
    from napari_medai.engine.run import Run

# Parameters that change how fast a run is, and not what it finds
_NOT_OF_THE_RESULT = ("device", "batch", "memory", "tile", "override")
# Of what is free so much may be labels
_LABELS_SHARE = 0.25
_MIB = 2**20


class LabelSink:
    """Takes a network's scores slab by slab and leaves labels on the image's grid.

    Parameters
    ----------
    run : Run
        Its progress is shown what is found; its progress's ``store`` is where labels go.
    decide : callable
        How labels come out of scores of so many channels: ``decide(channels) -> Decide``; asked once.
    dtype : dtype
        Of the labels.
    shape : sequence of int
        Of the network's grid, (\\*spatial).
    oriented : sequence of int
        Of the image with its axes in the network's order: what the scores are resampled to.
    turned : Reorientation or None
        How the image's axes were brought into that order; none if they were not.
    axis : int
        Of the network's grid, along which the slabs follow each other.
    on_image : bool
        Whether ``oriented`` is the image's own grid; if not, labels stay on the network's and nobody sees them yet.
    how : str or sequence of str
        See `slabs.Undo`.
    box : sequence of slice
        Which part of ``oriented`` the scores lie on; labels around it are 0. Default: all.
    half : bool
        Whether scores that come in half precision are compared in it, see `slabs.Undo`.
    weights : str
        What tells the weights from others, where the description has no sha256 of them.

    Attributes
    ----------
    begin : int
        First plane of scores that is needed; above 0 where an earlier run is gone on with, or after `rewind`.
    store : Store
        Where the labels are.
    """

    def __init__(
        self,
        run: Run,
        decide: Callable[[int], Decide],
        dtype: DTypeLike,
        shape: Sequence[int],
        oriented: Sequence[int],
        turned: Reorientation | None,
        *,
        axis: int = 0,
        on_image: bool = True,
        how: How | Sequence[How] = "linear",
        box: Sequence[slice] = (),
        half: bool = False,
        weights: str = "",
    ) -> None:
        self._run, self._axis, self._turned, self._decide = run, axis, turned, decide
        self._on_image, self._half = on_image, half
        self._oriented = tuple(oriented)
        self._box = tuple(box) or tuple(slice(0, n) for n in oriented)
        ways: tuple[How, ...] = (how,) * len(shape) if isinstance(how, str) else tuple(how)
        self._store_axis = turned.order[axis] if turned is not None else axis
        image = run.volume.spatial_shape if on_image else tuple(oriented)
        # a folder holds the labels of one image, not of a series
        path = run.progress.store if on_image and "t" not in run.volume.axes else None
        # what is finished is counted along the sweep, and means something on these grids alone
        grids = f"{tuple(shape)} {self._oriented} {self._box} {turned} {axis} {ways}"
        self.store: Store = choose_store(
            image,
            dtype,
            path,
            identity(run) | {"weights": weights, "grids": grids} if path is not None else None,
            _LABELS_SHARE * run.room().free_mb,
            run.note,
            sweep=self._store_axis,
        )
        boxed = [place.stop - place.start for place in self._box]
        old, new, along = (_first(list(part), axis) for part in (shape, boxed, ways))
        self._make_undo = partial(Undo, old, new, how=along)
        self.rewind()
        if done := self.store.finished:
            run.note(f"went on from plane {done} of {oriented[axis]}, which an earlier run had finished")

    @property
    def next(self) -> int:
        """Plane of scores that is to come next."""
        return self.begin if self._undo is None else self._undo.next

    def made(self, channels: int) -> Made:
        """What it takes of memory for so many channels of scores."""
        between, taking = self._make_undo(self._decide(channels)).memory()
        if channels == 2:  # the difference is looked at
            taking += min(PIECE_BYTES, 8 * prod(self._oriented)) // 2
        return Made(self.store.held_bytes / _MIB, between / _MIB, taking / _MIB)

    @property
    def complete(self) -> bool:
        """Whether an earlier run had finished everything."""
        return self.store.finished >= self._oriented[self._axis]

    def rewind(self) -> None:
        """Forget scores of which the labels are not finished, after a failure on the way; they come again."""
        self._undo: Undo | None = None
        self.begin = self._make_undo(Decide((0,)), begin=self._finished).next

    @property
    def _finished(self) -> int:
        """Planes of the box that are done."""
        place = self._box[self._axis]
        return len(range(place.start, min(self.store.finished, place.stop)))

    def take(self, first: int, scores: NDArray[np.floating]) -> None:
        """The next planes of scores, (K, planes, \\*rest); see `sweep.Take`."""
        if self._undo is None:
            half = self._half and scores.dtype == np.float16
            self._undo = self._make_undo(self._decide(len(scores)), begin=self._finished, half=half)
        for start, labels in self._undo.add(scores):
            self.put(start, labels)

    def put(self, first: int, labels: NDArray[Any]) -> None:
        """Final labels (planes, \\*rest), from plane ``first`` of the box on; those before it are there already."""
        where = list(self._box)
        low, end = where[self._axis].start + first, where[self._axis].stop
        stop = low + len(labels)
        where[self._axis] = slice(low, stop)
        there = self._write(where, np.moveaxis(labels, 0, self._axis))
        self.store.mark(stop if stop < end else self._oriented[self._axis])  # after the box nothing comes
        if self._on_image:
            self._run.progress.partial(self.store.array, there)

    def _write(self, where: list[slice], labels: NDArray[Any]) -> tuple[slice, ...]:
        """Write labels on oriented axes; where that is on the image's."""
        if self._turned is not None:
            back = self._turned.inverse()
            labels = turn(labels, back)
            there = []
            for old in range(3):
                new = self._turned.order.index(old)
                low, high = where[new].start, where[new].stop
                if self._turned.flips[new]:
                    low, high = self._oriented[new] - high, self._oriented[new] - low
                there.append(slice(low, high))
            where = there
        self.store.write(tuple(where), labels)
        return tuple(where)

    def labels(self) -> Any:
        """The labels on the image's grid, once every plane was taken: numpy, or lazy where they are not in memory."""
        if self._undo is not None:
            self._undo.finish()
        self.store.close()
        return self.store.labels()

    def abandon(self) -> None:
        """Keep what is finished for a later run; called when this one ends early."""
        self.store.close()


def identity(run: Run) -> dict[str, str]:
    """What makes a run: the same image, model and parameters give the same labels."""
    values = {k: v for k, v in run.params.as_dict().items() if k not in _NOT_OF_THE_RESULT}
    return {
        "image": fingerprint(run.volume),
        "stage": run.stage,
        "model": f"{run.spec.id} {run.spec.version} {run.spec.sha256}",
        # how it is prepared and what its channels mean, which an edited description changes with the same weights
        "description": hashlib.sha256(run.spec.model_dump_json(exclude={"path"}).encode()).hexdigest(),
        "params": str(sorted(values.items())),
    }


def _first(values: list[Any], axis: int) -> list[Any]:
    """The values with that of one axis first."""
    return [values[axis], *values[:axis], *values[axis + 1 :]]
