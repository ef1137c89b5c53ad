"""Runs of all docks: one at a time, in the worker, in the order in which they were asked for."""

from __future__ import annotations

import gc
import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import psutil
from napari.layers import Layer

from napari_medai.core.plan import Plan
from napari_medai.core.result import Mask, Result
from napari_medai.core.stage import Params, Progress, Stage
from napari_medai.core.volume import Volume
from napari_medai.engine.scratch import Scratch, gib
from napari_medai.models.spec import Model
from napari_medai.ui.job import Job, State
from napari_medai.ui.reports import Activity
from napari_medai.worker import Worker

# napari imports these for its first layer with a table or with labels: 0.3 s in which the window stands still,
# unless they were there before.
_LATE_IMPORTS = ("pandas", "skimage.color", "skimage.exposure")
JOIN_SECONDS = 10.0  # how long closing waits for the current tile
_LOOK_SECONDS = 0.05
_NEVER = 2**31 - 1

# Labels of more bytes, at so many a voxel, or of more than this share of free memory lie in a folder until napari ends;
# compressed they take less than this share of their size
_LABEL_BYTES, _MOST_BYTES, _MEMORY_SHARE, _LEAST_SHARE = 4, 2**30, 0.15, 0.25
_FOLDERS: list[Scratch] = []
# Of all docks of all windows; its process is started when the first panel opens
WORKER = Worker()


class Line:
    """Who waits for the worker, first come first served."""

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._moved = threading.Condition()
        self._thresholds: tuple[int, ...] = ()

    def join(self, title: str) -> Place:
        """A place at the end; the title is what those behind wait for."""
        place = Place(self, title)
        with self._moved:
            if not self._places:
                # Python looks through all objects of napari in 0.2 s now and then, and the window stands still:
                # that is put off while something runs
                self._thresholds = gc.get_threshold()
                gc.set_threshold(*self._thresholds[:2], _NEVER)
            self._places.append(place)
        return place

    def ahead(self, place: Place) -> tuple[str, ...]:
        """Titles of those ahead of a place, the one that runs first."""
        with self._moved:
            places = self._places
            return tuple(other.title for other in places[: places.index(place)]) if place in places else ()

    @contextmanager
    def turn(self, place: Place, progress: Progress) -> Iterator[None]:
        """Wait until a place is the first, and leave it at the end.

        Raises
        ------
        Cancelled
            It does not want to wait any longer.
        """
        try:
            with self._moved:
                while self._places[0] is not place:
                    self._moved.wait(_LOOK_SECONDS)
                    progress.check()
            yield
        finally:
            with self._moved:
                self._places.remove(place)
                if not self._places:
                    gc.set_threshold(*self._thresholds)
                self._moved.notify_all()


@dataclass(frozen=True, eq=False)
class Place:
    """A place in a line."""

    line: Line
    title: str

    @property
    def waiting_for(self) -> str:
        """What is ahead; empty once it is its turn."""
        first, *others = self.line.ahead(self) or ("",)
        return f"{len(others) + 1} runs, first {first}" if others else first


LINE = Line()


class Run:
    """What a run was started with; the layer may leave the viewer meanwhile.

    Attributes
    ----------
    job : Job
        Gives the result, or the plan if only that was asked for.
    place : Place
        In the line of all runs.
    """

    def __init__(self, stage: Stage, layer: Layer, volume: Volume, model: Model, params: Params) -> None:
        self.stage, self.layer, self.volume, self.model, self.params = stage.name, layer, volume, model, params
        self.place = LINE.join(f"{stage.title} {layer.name}")
        self.only_plan = False
        self.job: Job[Any]

    def begin(self) -> Run:
        """Run it when it is its turn."""
        self.job = Job(self._result, name=f"medai-{self.stage}")
        return self

    def estimate(self) -> Run:
        """Only plan it when it is its turn."""
        self.only_plan = True
        self.job = Job(self._plan, name=f"medai-{self.stage}")
        return self

    def _result(self, progress: Progress) -> Result:
        with LINE.turn(self.place, progress):
            _begin(progress)
            scratch = _folder_for(self.stage, self.volume)
            if scratch is not None:
                progress.store = scratch.path / "labels"
            result = WORKER.run(self.stage, self.volume, self.model, self.params, progress)
            if scratch is not None and isinstance(result, Mask) and result.labels.is_lazy:
                _FOLDERS.append(scratch)
            return result

    def _plan(self, progress: Progress) -> Plan | None:
        with LINE.turn(self.place, progress):
            _begin(progress)
            return WORKER.plan(self.stage, self.volume, self.model, self.params, progress)


def _folder_for(stage: str, volume: Volume) -> Scratch | None:
    """A folder for labels that may be too large for memory: this program's, for the worker's goes with its process.

    Raises
    ------
    WriteError
        No disk has room.
    """
    size = prod(volume.spatial_shape) * _LABEL_BYTES
    if stage != "segment" or "t" in volume.axes:
        return None
    if size <= min(_MOST_BYTES, _MEMORY_SHARE * psutil.virtual_memory().available):
        return None
    return Scratch(size * _LEAST_SHARE, f"The labels take up to {gib(size)}")


def _begin(progress: Progress) -> None:
    if isinstance(progress, Job):
        progress.begin()


class Running:
    """The runs of a panel and their bars; outlives its widgets, so that their destruction can end them."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.activities: dict[Run, Activity] = {}

    def show(self, run: Run, title: str) -> None:
        """Give a run a bar in napari's activity dock."""
        self.activities[run] = Activity(title)

    def forget(self, run: Run) -> None:
        """A run is over."""
        self.runs.remove(run)
        activity = self.activities.pop(run, None)
        if activity is not None:
            activity.close()

    def stop(self, *_: Any) -> None:
        """Cancel all and wait for their threads."""
        runs = list(self.runs)
        for run in runs:
            self.forget(run)
            run.job.cancel()
        for run in runs:
            run.job.join(JOIN_SECONDS)


def warm_up() -> None:
    """Start the worker and import what napari imports late, in the background."""
    if WORKER.pid is None or any(module not in sys.modules for module in _LATE_IMPORTS):
        Job(_warm_up, name="medai-warm")


def _warm_up(_: Progress) -> None:
    WORKER.start()
    for module in _LATE_IMPORTS:
        importlib.import_module(module)


def progress_text(state: State) -> str:
    """What is said of a run or task under way."""
    share = "" if state.fraction is None else f"{100 * state.fraction:.0f} %, "
    message = "Cancelling …" if state.cancelling else (state.message or "Working")
    notes = "".join(f"\n• {note}" for note in state.notes)
    plan = f"\n{state.plan}" if state.plan is not None else ""
    return f"{message} ({share}{state.seconds:.0f} s){plan}{notes}"


def plan_text(plan: Plan | None) -> str:
    """What is said of an estimate."""
    if plan is None:
        return "This model does not go over the image in tiles."
    return f"{plan}." + (f"\n{plan.advice}" if plan.advice else "")
