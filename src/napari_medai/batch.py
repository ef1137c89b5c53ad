"""One stage over many cases, in this process or on a Dask cluster: resumed, and each failure kept to its case.

A case whose result is there already is skipped; results appear whole or not at all, so a batch that was
stopped or killed goes on where it was by running it again: inside of a case, too, where labels go to OME-Zarr.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from napari_medai.api import run_stage
from napari_medai.core.errors import DependencyError, MedaiError, ParamsError
from napari_medai.core.stage import Params, Progress
from napari_medai.core.volume import Volume
from napari_medai.io import find_format
from napari_medai.io import open as open_volume
from napari_medai.io.target import check_apart, check_target
from napari_medai.stages import STAGES
from napari_medai.writing import place_for, save_result

# what each stage's result is written as, unless another suffix is asked for
SUFFIXES = {"denoise": ".nii.gz", "segment": ".nii.gz", "classify": ".json", "detect": ".csv", "explain": ".nii.gz"}


@dataclass(frozen=True)
class Case:
    """One image of a batch: where it is, and where its result goes."""

    source: str
    target: str
    series_uid: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes
    ----------
    case : Case
        Which one.
    status : str
        ``"done"``, ``"skipped"`` (its result was there) or ``"failed"``.
    seconds : float
        Wall time.
    message : str
        Why it failed; never patient identity.
    """

    case: Case
    status: Literal["done", "skipped", "failed"]
    seconds: float = 0.0
    message: str = ""


def plan_cases(sources: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], suffix: str) -> list[Case]:
    """A case per source, its result named after the source.

    Parameters
    ----------
    sources : sequence of paths
        Files, or folders of one series each.
    out : path
        Folder of the results.
    suffix : str
        E.g. ``".nii.gz"``.

    Raises
    ------
    ParamsError
        Two sources would write the same file, or ``out`` is a file.
    """
    if Path(out).exists() and not Path(out).is_dir():
        raise ParamsError(f"{Path(out).name} is a file; give a folder for the results.")
    cases: dict[str, Case] = {}
    for source in sources:
        path = Path(source)
        stem = path.name.removesuffix(".gz").rpartition(".")[0] if path.is_file() and "." in path.name else path.name
        target = str(Path(out) / f"{stem or path.name}{suffix}")
        if target in cases:
            raise ParamsError(
                f"Two cases are called {stem!r} and would write one file; rename one, or run them into two folders."
            )
        cases[target] = Case(str(path), target)
    return list(cases.values())


def run_case(
    stage: str, case: Case, model: str = "", params: Params | None = None, opening: Mapping[str, Any] | None = None
) -> Outcome:
    """Run one case: open, run, save. Expected failures become an outcome; a bug still raises."""
    start, target = time.perf_counter(), Path(case.target)
    try:
        check_apart(target, Path(case.source))
        if target.exists():
            return Outcome(case, "skipped")
        target.parent.mkdir(parents=True, exist_ok=True)
        check_target(target, "" if "." in target.name else "images")
        volume, progress = _opened(case, opening or {}), Progress()
        progress.store = place_for(stage, volume, case.target)
        result = run_stage(stage, volume, model, params, progress)
        save_result(result, case.target, progress.store)
    except OSError as error:
        return Outcome(case, "failed", time.perf_counter() - start, f"the folder cannot be made: {error.strerror}")
    except MedaiError as error:
        return Outcome(case, "failed", time.perf_counter() - start, str(error))
    return Outcome(case, "done", time.perf_counter() - start)


def _opened(case: Case, opening: Mapping[str, Any]) -> Volume:
    if opening and find_format(case.source).name not in ("dicom", "archive"):
        raise ParamsError(f"{Path(case.source).name} is not DICOM, and has nothing to repair or to choose values of.")
    return open_volume(case.source, series_uid=case.series_uid, **opening)


def run_batch(
    stage: str,
    cases: Sequence[Case],
    *,
    model: str = "",
    params: Params | None = None,
    opening: Mapping[str, Any] | None = None,
    scheduler: str = "",
    workers: int = 1,
    tell: Callable[[Outcome, int, int], None] = lambda outcome, done, total: None,
) -> list[Outcome]:
    """Run a stage over many cases.

    Parameters
    ----------
    stage : str
        Key of `napari_medai.stages.STAGES`.
    cases : sequence of Case
        See `plan_cases`.
    model : str, optional
        Model id; default: the stage's default for each image.
    params : Params, optional
        Of the stage's own class.
    opening : mapping, optional
        Options of `napari_medai.open` for DICOM, e.g. ``{"repair": ("tilt",), "values": "suv"}``; a case that is not
        DICOM fails then.
    scheduler : str, optional
        Address of a Dask scheduler (``"tcp://host:8786"``), or ``"local"`` for one on this machine. Default: this
        process, one case after another.
    workers : int
        Processes of a ``"local"`` cluster. Default 1.
    tell : callable, optional
        ``f(outcome, done, total)`` after each case.

    Returns
    -------
    list of Outcome
        In the order of the cases.

    Raises
    ------
    ParamsError
        There is no such stage.
    DependencyError
        A cluster was asked for and Dask's ``distributed`` is not installed.
    """
    if stage not in STAGES:
        raise ParamsError(f"No stage is called {stage!r}; there are: {', '.join(STAGES)}.")
    found: dict[Case, Outcome] = {}
    for outcome in _outcomes(scheduler, workers, cases, partial(_run, stage, model, params, opening)):
        found[outcome.case] = outcome
        tell(outcome, len(found), len(cases))
    return [found[case] for case in cases]


def _run(stage: str, model: str, params: Params | None, opening: Mapping[str, Any] | None, case: Case) -> Outcome:
    return run_case(stage, case, model, params, opening)


def _outcomes(scheduler: str, workers: int, cases: Sequence[Case], run: Callable[[Case], Outcome]) -> Iterator[Outcome]:
    if not scheduler:
        yield from map(run, cases)
        return
    try:
        from distributed import as_completed
    except ModuleNotFoundError as error:
        raise DependencyError('A cluster needs Dask\'s distributed: pip install "napari-medai[batch]"') from error
    with _client(scheduler, workers) as client:
        futures = {client.submit(run, case, pure=False): case for case in cases}
        for future in as_completed(futures):
            if future.status == "error":
                # the worker died or met a bug: this case fails, the others go on
                reason = type(future.exception()).__name__
                yield Outcome(futures[future], "failed", 0.0, f"the worker failed with {reason}; see its log")
            else:
                yield future.result()


@contextlib.contextmanager
def _client(scheduler: str, workers: int) -> Iterator[Any]:
    from distributed import Client, LocalCluster

    if scheduler != "local":
        with Client(scheduler) as client:
            yield client
        return
    # one thread each: torch brings its own
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client
