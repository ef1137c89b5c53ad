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
from napari_medai.core.result import Result
from napari_medai.core.stage import Params, Progress, Stage
from napari_medai.core.volume import Volume
from napari_medai.engine.scratch import Scratch, gib
from napari_medai.models.spec import Model
from napari_medai.ui.job import Job, State
from napari_medai.ui.layers import result_to_layers
from napari_medai.ui.reports import Activity
from napari_medai.worker import Worker

# napari imports these for its first layer with a table or with labels: 0.3 s in which the window stands still,
# unless they were there before.
_LATE_IMPORTS = ("pandas", "skimage.color.colorconv", "skimage.exposure.exposure")
JOIN_SECONDS = 10.0  # how long closing waits for the current tile
_LOOK_SECONDS = 0.05
_NEVER = 2**31 - 1

# Labels of more bytes, at so many a voxel, or of more than this share of free memory lie in a folder; compressed they
# take less than this share of their size
_LABEL_BYTES, _MOST_BYTES, _MEMORY_SHARE, _LEAST_SHARE = 4, 2**30, 0.15, 0.25
# Of all docks of all windows; its process is started when the first panel opens
WORKER = Worker()


class Line:
    """Who waits for the worker, first come first served."""

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._moved = threading.Condition()

    def join(self, title: str) -> Place:
        """A place at the end, until `leave`; the title is what those behind wait for."""
        place = Place(self, title)
        with self._moved:
            self._places.append(place)
        return place

    def leave(self, place: Place) -> None:
        """Give up a place."""
        with self._moved:
            self._places.remove(place)
            self._moved.notify_all()

    @property
    def in_use(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._places)

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
            with _no_full_collection():
                yield
        finally:
            self.leave(place)


@contextmanager
def _no_full_collection() -> Iterator[None]:
    """Python looks through all objects of napari in 0.2 s now and then, and the window stands still: not meanwhile."""
    before = gc.get_threshold()
    gc.set_threshold(*before[:2], _NEVER)
    try:
        yield
    finally:
        gc.set_threshold(*before)


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


@dataclass(frozen=True, eq=False)
class Found:
    """What a run gave.

    Attributes
    ----------
    result : Result
        Of the stage.
    layers : list of napari Layer
        That show it; not in the viewer yet.
    """

    result: Result
    layers: list[Layer]


class Run:
    """What a run was started with; it begins, or waits for its turn, as soon as it is made.

    Parameters
    ----------
    stage : Stage
        What is run.
    layer : napari Layer
        On which; it may leave the viewer meanwhile.
    volume : Volume
        What the layer holds now.
    model : Model
        By which model.
    params : Params
        Of the stage.
    only_plan : bool
        Find out what it would take, and leave it at that. Default False.

    Attributes
    ----------
    job : Job
        Gives `Found`; a `Plan` or None if only that was asked for.
    place : Place
        In the line of all runs.
    """

    def __init__(
        self, stage: Stage, layer: Layer, volume: Volume, model: Model, params: Params, *, only_plan: bool = False
    ) -> None:
        self.stage, self.layer, self.volume, self.model, self.params = stage.name, layer, volume, model, params
        self.only_plan = only_plan
        self.place = LINE.join(f"{stage.title} {layer.name}")
        try:
            self.job: Job[Any] = Job(self._planned if only_plan else self._found, name=f"medai-{self.stage}")
        except RuntimeError:  # the system gives no thread
            LINE.leave(self.place)
            raise

    def changed(self, now: Volume | None) -> bool:
        """Whether the layer, as the volume it gives now, holds another array than was sent; writing is not seen."""
        return now is None or now.array is not self.volume.array

    def _found(self, job: Job[Any]) -> Found:
        with LINE.turn(self.place, job):
            job.begin()
            # the labels hold on to it, and with the last of them it goes
            scratch = _folder_for(self.stage, self.volume)
            job.store = scratch.path / "labels" if scratch is not None else None
            result = WORKER.run(self.stage, self.volume, self.model, self.params, job)
        # copies and looks at every voxel: not in the thread of the window
        return Found(result, [Layer.create(*data) for data in result_to_layers(result, self.layer)])

    def _planned(self, job: Job[Any]) -> Plan | None:
        with LINE.turn(self.place, job):
            job.begin()
            return WORKER.plan(self.stage, self.volume, self.model, self.params, job)


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


class Running:
    """The runs of a panel and their bars; outlives its widgets, so that their destruction can end them."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.activities: dict[Run, Activity] = {}

    def activity(self, run: Run, title: str) -> Activity:
        """The bar of a run in napari's activity dock."""
        if run not in self.activities:
            self.activities[run] = Activity(title)
        return self.activities[run]

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
    # kept by vispy from now on: every layer of labels has a line to draw polygons with
    importlib.import_module("vispy.visuals.line.dash_atlas").DashAtlas()


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
