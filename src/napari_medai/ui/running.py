"""A run under way: what it was started with, and what must end with the panel."""

from __future__ import annotations

import importlib
from typing import Any

from napari.layers import Layer

from napari_medai.api import run_stage
from napari_medai.core.result import Result
from napari_medai.core.stage import Params, Progress
from napari_medai.core.volume import Volume
from napari_medai.models.spec import Model
from napari_medai.ui.reports import Activity
from napari_medai.ui.worker import Job, State

# napari imports these for its first layer with a table or with labels: 0.3 s in which the window stands still,
# unless the thread was there before.
LATE_IMPORTS = ("pandas", "skimage.color", "skimage.exposure")
JOIN_SECONDS = 10.0  # how long closing waits for the current tile


class Run:
    """What a run was started with; the layer may leave the viewer meanwhile."""

    def __init__(self, job: Job[Result], layer: Layer, volume: Volume, model: Model) -> None:
        self.job, self.layer, self.volume, self.model = job, layer, volume, model


class Running:
    """What must be ended with the panel; outlives its widgets, so that their destruction can end it."""

    def __init__(self) -> None:
        self.job: Job[Result] | None = None
        self.activity: Activity | None = None

    def close(self) -> None:
        """Forget a job that is finished."""
        activity, self.activity, self.job = self.activity, None, None
        if activity is not None:
            activity.close()

    def stop(self, *_: Any) -> None:
        """Cancel the job and wait for its thread."""
        job = self.job
        self.close()
        if job is not None:
            job.cancel()
            job.join(JOIN_SECONDS)


def work(stage: str, volume: Volume, model: Model, params: Params, progress: Progress) -> Result:
    """What the thread does."""
    for module in LATE_IMPORTS:
        importlib.import_module(module)
    result = run_stage(stage, volume, model, params, progress)
    progress.check()  # cancelled after its last tile is cancelled too
    return result


def progress_text(state: State) -> str:
    """The line below the progress bar."""
    share = "" if state.fraction is None else f"{100 * state.fraction:.0f} %, "
    message = "Cancelling …" if state.cancelling else (state.message or "Working")
    notes = "".join(f"\n• {note}" for note in state.notes)
    return f"{message} ({share}{state.seconds:.0f} s){notes}"
