"""Stages as commands, on one image or many."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table as RichTable

from napari_medai.cli.options import Against, Check, Json, Repair, Series, Values, asked_for, open_scan
from napari_medai.core.errors import MedaiError, ParamsError, WriteError
from napari_medai.core.result import Boxes, Mask, Result, Scores
from napari_medai.core.stage import Params, Stage, fields_of
from napari_medai.core.volume import Volume
from napari_medai.stages import STAGES
from napari_medai.terminal import Shown, console, print_json, say

# What kind of file holds a stage's result; empty: an image or its table
WRITES = {"denoise": "images", "segment": "", "classify": "tables", "detect": "tables", "explain": "images"}


def stage_command(stage: Stage) -> Callable[..., None]:
    """A command whose options are the stage's parameters."""
    fields = fields_of(stage.params)

    def command(
        source: Path,
        model: str,
        out: Path | None,
        series: str,
        repair: str,
        shown_values: str,
        against: Path | None,
        verify: bool,
        dry_run: bool,
        as_json: bool,
        **values: Any,
    ) -> None:
        from napari_medai.api import run_stage
        from napari_medai.writing import place_for, save_result

        params = stage.params(**values)
        if out is not None:
            _check_target(stage, out, *[path for path in (source, against) if path is not None])
        volume = open_scan(source, series, repair, shown_values)
        if out is not None:
            _check_scan(stage, volume, out, against)
            _check_memory(volume, out)
        chosen = model or _default_model(stage, volume)
        if dry_run:
            _plan(stage, volume, chosen, params, as_json)
            return
        place = place_for(stage.name, volume, out) if out is not None else None
        with Shown(stage.name) as shown:
            shown.store = place
            try:
                result = run_stage(stage.name, volume, chosen, params, shown)
            except (KeyboardInterrupt, MedaiError):
                from napari_medai.engine.zarr_store import finished_in

                if place is not None and finished_in(place):
                    say(f"{stage.name}: what is finished is kept in {place.name}; the same command goes on from there.")
                raise
        written = save_result(result, out, place, check=verify, against=against or volume) if out is not None else None
        if as_json:
            print_json(_as_json(result))
        else:
            _summary(stage, result, written)

    option = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("source", option, annotation=Path),
        inspect.Parameter(
            "model",
            option,
            default="",
            annotation=Annotated[str, typer.Option("--model", "-m", help="Model id (see `medai models list`).")],
        ),
        inspect.Parameter(
            "out",
            option,
            default=None,
            annotation=Annotated[Path | None, typer.Option("--out", "-o", help="Where to write the result.")],
        ),
        inspect.Parameter("series", option, default="", annotation=Series),
        inspect.Parameter("repair", option, default="", annotation=Repair),
        inspect.Parameter("shown_values", option, default="", annotation=Values),
        inspect.Parameter("against", option, default=None, annotation=Against),
        inspect.Parameter("verify", option, default=True, annotation=Check),
        inspect.Parameter(
            "dry_run",
            option,
            default=False,
            annotation=Annotated[
                bool,
                typer.Option("--dry-run", help="Say what memory and time a run would take; exit code 1 if too much."),
            ],
        ),
        inspect.Parameter("as_json", option, default=False, annotation=Json),
    ]
    for field in fields:
        kind: Any = Literal[field.choices] if field.choices else field.type
        flag = typer.Option(f"--{field.name.replace('_', '-')}", help=field.help, min=field.low, max=field.high)
        if kind not in (int, float):
            flag = typer.Option(f"--{field.name.replace('_', '-')}", help=field.help)
        parameters.append(
            inspect.Parameter(field.name, option, default=field.default, annotation=Annotated[kind, flag])
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = stage.summary
    return command


def _plan(stage: Stage, volume: Volume, model: str, params: Params, as_json: bool) -> None:
    """Print how a run would go over the image; one tile is run for it."""
    from napari_medai.api import plan_stage

    plan = plan_stage(stage.name, volume, model, params)
    if as_json:
        print_json({"stage": stage.name, "model": model, "plan": plan.as_dict() if plan else None})
    elif plan is None:
        print(f"{stage.name} with {model}: goes over the image at once")
    else:
        print(f"{stage.name} with {model}: {plan}")
        print("it fits" if plan.fits else f"it does not fit: {plan.advice}")
    if plan is not None and not plan.fits:
        raise typer.Exit(1)


def __getattr__(name: str) -> Any:
    if name in STAGES:
        return stage_command(STAGES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _check_target(stage: Stage, out: Path, *sources: Path) -> None:
    """Refuse a file that cannot be written, or would overwrite what is read, before anything is computed for it."""
    from napari_medai.io.target import check_target

    try:
        check_target(out, WRITES[stage.name], *sources)
    except WriteError as error:
        raise ParamsError(str(error)) from error


def _check_scan(stage: Stage, volume: Volume, out: Path, against: Path | None) -> None:
    """Refuse a DICOM object of a scan that is not DICOM, before anything is computed for it."""
    from napari_medai.io import find_writer
    from napari_medai.io.dicom.write.results import foresee

    if find_writer(out, WRITES[stage.name], folder=True).title.startswith("DICOM"):
        foresee(volume, out, against, series=stage.name == "denoise")


def _check_memory(volume: Volume, out: Path) -> None:
    """Refuse a format that could not hold the result at the end, before anything is computed for it."""
    from napari_medai.io.results import check_room

    check_room(out, [volume.size(axis) for axis in volume.axes if axis not in "cs"])


def _default_model(stage: Stage, volume: Volume) -> str:
    from napari_medai.api import default_model

    return default_model(stage.name, volume)


def batch(
    stage: Annotated[str, typer.Argument(help=f"One of {', '.join(STAGES)}.")],
    sources: Annotated[list[Path], typer.Argument(help="Files, or folders of one series each.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Model id.")] = "",
    suffix: Annotated[str, typer.Option(help="Format of the results, e.g. .nii.gz, .tif, .csv, .json.")] = "",
    scheduler: Annotated[str, typer.Option(help="Address of a Dask scheduler, or 'local'.")] = "",
    workers: Annotated[int, typer.Option(help="Processes of a local cluster.", min=1)] = 1,
    repair: Repair = "",
    values: Values = "",
    as_json: Json = False,
) -> None:
    """Run a stage over many cases; what is done already is skipped, a failure stays with its case."""
    from dataclasses import asdict

    from napari_medai.batch import SUFFIXES, Outcome, plan_cases, run_batch

    def tell(outcome: Outcome, done: int, total: int) -> None:
        line = f"{done}/{total} {outcome.status} {Path(outcome.case.target).name}"
        say(f"{line}: {outcome.message}" if outcome.message else line)

    cases = plan_cases(sources, out, suffix or SUFFIXES.get(stage, ".nii.gz"))
    opening = asked_for(repair, values)
    outcomes = run_batch(stage, cases, model=model, opening=opening, scheduler=scheduler, workers=workers, tell=tell)
    if as_json:
        print_json([asdict(outcome) for outcome in outcomes])
    if any(outcome.status == "failed" for outcome in outcomes):
        raise typer.Exit(1)


def _as_json(result: Result) -> dict[str, Any]:
    from napari_medai.io.tables import as_json, grid_record, provenance_record

    if isinstance(result, Mask | Boxes | Scores):
        return as_json(result)
    return {
        "kind": type(result).__name__,
        "model": result.provenance.model,
        "grid": grid_record(result.grid),
        "provenance": provenance_record(result.provenance),
    }


def _summary(stage: Stage, result: Result, written: Path | None) -> None:
    from napari_medai.io.tables import table_of

    record = result.provenance
    if isinstance(result, Mask | Boxes | Scores) and (table := table_of(result)):
        shown = RichTable(*table)
        rows = list(zip(*table.values(), strict=True))
        for row in rows[:20]:
            shown.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row))
        console().print(shown)
        if len(rows) > 20:
            print(f"… and {len(rows) - 20} more rows")
    print(f"{stage.name} with {record.model} on {record.device} in {record.seconds:.1f} s")
    for note in record.notes:
        print(f"note: {note}")
    if written is not None:
        print(f"written: {written}")
