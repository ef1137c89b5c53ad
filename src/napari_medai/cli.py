"""The command ``medai``: arguments in, exit code out (0 ok, 1 failed, 2 bad usage)."""

from __future__ import annotations

import inspect
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Column
from rich.table import Table as RichTable

from napari_medai.core.errors import MedaiError, ParamsError, ReadError, WriteError
from napari_medai.core.geometry import orientation_code
from napari_medai.core.result import Boxes, Mask, Result, Scores
from napari_medai.core.stage import Stage, fields_of
from napari_medai.core.volume import Volume
from napari_medai.stages import STAGES
from napari_medai.terminal import Shown, console, interrupt, print_json, say

app = typer.Typer(
    help="AI on medical and microscopy images, in true patient geometry. Research software, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="The models that can be run here.", no_args_is_help=True)
app.add_typer(models_app, name="models")

# What kind of file holds a stage's result; empty: an image or its table
WRITES = {"denoise": "images", "segment": "", "classify": "tables", "detect": "tables", "explain": "images"}
# What typer makes of Ctrl-C
INTERRUPTED = 130

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Series = Annotated[str, typer.Option("--series", help="Series UID, where a folder holds several.")]


def main() -> None:
    """Entry point: every expected error becomes one line on standard error and an exit code."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a job in the background is not to be interrupted
        signal.signal(signal.SIGINT, interrupt)
    logging.captureWarnings(True)  # third-party warnings are no part of the answer
    logging.getLogger("py.warnings").addHandler(logging.NullHandler())
    try:
        app(standalone_mode=True)
    except MedaiError as error:
        say(f"medai: {error}")
        sys.exit(2 if isinstance(error, ParamsError) else 1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            say("medai: stopped; no file was left half-written.")
            sys.exit(1)
        raise


def _open(source: Path, series: str) -> Volume:
    from napari_medai.io import open as open_volume

    return open_volume(source, series_uid=series)


@app.command()
def info(source: Path, as_json: Json = False) -> None:
    """List the series in a file or folder: size, spacing, orientation, findings."""
    from napari_medai.io import list_series

    rows = []
    for entry in list_series(source):
        row: dict[str, Any] = {
            "uid": entry.uid,
            "modality": entry.modality,
            "number": entry.number,
            "description": entry.description,
            "shape": list(entry.shape),
            "files": entry.files,
        }
        try:
            volume = _open(source, entry.uid)
            row |= {
                "axes": volume.axes,
                "shape": list(volume.shape),
                "dtype": str(volume.dtype),
                "spacing": [round(s, 6) for s in volume.spacing[3 - volume.ndim_spatial :]],
                "units": volume.units,
                "orientation": orientation_code(volume.affine) if volume.units == "mm" else "",
                "affine": volume.affine.tolist(),
                "findings": list(volume.meta.get("findings", ())),
            }
        except ReadError as error:
            row |= {"axes": "", "spacing": list(entry.spacing_mm), "findings": [str(error)]}
        rows.append(row)
    if as_json:
        print_json({"source": source.name, "series": rows})
        return
    table = RichTable(
        Column("series", overflow="fold"), "modality", "description", "size", "spacing", "orientation", "findings"
    )
    for row in rows:
        size = " x ".join(f"{a}{n}" for a, n in zip(row["axes"] or "?" * 9, row["shape"], strict=False))
        step = " x ".join(f"{s:.3g}" for s in row["spacing"])
        table.add_row(
            row["uid"],
            row["modality"] or "?",
            f"{'' if row['number'] is None else row['number']} {row['description']}".strip(),
            size,
            f"{step} {row.get('units', 'mm')}",
            row.get("orientation", ""),
            "\n".join(row["findings"]) or "-",
        )
    console().print(table)


@app.command()
def convert(source: Path, target: Path, series: Series = "") -> None:
    """Convert to the format of TARGET's suffix; into a folder, one NIfTI per series."""
    from napari_medai.io.convert import convert as convert_files

    for path in convert_files(source, target, series_uid=series):
        print(path)


def _stage_command(stage: Stage) -> Callable[..., None]:
    """A command whose options are the stage's parameters."""
    fields = fields_of(stage.params)

    def command(source: Path, model: str, out: Path | None, series: str, as_json: bool, **values: Any) -> None:
        from napari_medai.api import run_stage
        from napari_medai.io import save

        params = stage.params(**values)
        if out is not None:
            _check_target(stage, out)
        volume = _open(source, series)
        chosen = model or _default_model(stage, volume)
        with Shown(stage.name) as shown:
            result = run_stage(stage.name, volume, chosen, params, shown)
        written = save(result, out) if out is not None else None
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


def _check_target(stage: Stage, out: Path) -> None:
    """Refuse a file that cannot be written before anything is computed for it."""
    from napari_medai.io import find_writer

    try:
        find_writer(out, WRITES[stage.name])
    except WriteError as error:
        raise ParamsError(str(error)) from error
    if not out.absolute().parent.is_dir():
        raise ParamsError(f"The folder of {out.name} does not exist; make it first.")


def _default_model(stage: Stage, volume: Volume) -> str:
    from napari_medai.api import default_model

    return default_model(stage.name, volume)


for _stage in STAGES.values():
    app.command(_stage.name)(_stage_command(_stage))


@app.command()
def batch(
    stage: Annotated[str, typer.Argument(help=f"One of {', '.join(STAGES)}.")],
    sources: Annotated[list[Path], typer.Argument(help="Files, or folders of one series each.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Model id.")] = "",
    suffix: Annotated[str, typer.Option(help="Format of the results, e.g. .nii.gz, .tif, .csv, .json.")] = "",
    scheduler: Annotated[str, typer.Option(help="Address of a Dask scheduler, or 'local'.")] = "",
    workers: Annotated[int, typer.Option(help="Processes of a local cluster.", min=1)] = 1,
    as_json: Json = False,
) -> None:
    """Run a stage over many cases; what is done already is skipped, a failure stays with its case."""
    from dataclasses import asdict

    from napari_medai.batch import SUFFIXES, Outcome, plan_cases, run_batch

    def tell(outcome: Outcome, done: int, total: int) -> None:
        line = f"{done}/{total} {outcome.status} {Path(outcome.case.target).name}"
        say(f"{line}: {outcome.message}" if outcome.message else line)

    cases = plan_cases(sources, out, suffix or SUFFIXES.get(stage, ".nii.gz"))
    outcomes = run_batch(stage, cases, model=model, scheduler=scheduler, workers=workers, tell=tell)
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


@models_app.command("list")
def models_list(as_json: Json = False) -> None:
    """List the models that can be run now."""
    from napari_medai.models import find_models

    found = find_models()
    if as_json:
        print_json([m.spec.model_dump(mode="json") | {"source": m.source} for m in found])
        return
    table = RichTable("id", "stage", "for", "summary", "licence", "source")
    for m in found:
        space = " or ".join(f"{n}-D" for n in m.spec.accepts.ndim)
        table.add_row(
            m.id,
            m.spec.stage,
            f"{space} {', '.join(m.spec.accepts.modality)}".strip(),
            m.spec.summary,
            m.spec.licence,
            m.source,
        )
    console().print(table)


@models_app.command("show")
def models_show(model: str, as_json: Json = False) -> None:
    """Show a model's card."""
    from napari_medai.models import load_model

    found = load_model(model)
    if as_json:
        print_json(found.spec.model_dump(mode="json") | {"source": found.source, "card": found.card})
    else:
        print(found.card)


@app.command()
def samples(
    name: Annotated[str, typer.Argument(help="One sample; all if none is named.")] = "",
    as_json: Json = False,
) -> None:
    """Bring the sample images into the cache, once, while online; list where they are."""
    from napari_medai.samples import SAMPLES, fetch_all, sample_path

    if name:
        from napari_medai.samples.fetch import download_package

        print(sample_path(name, download_package))
        return
    failed = fetch_all(lambda line: None)
    missing = {line.partition(":")[0] for line in failed}
    if not as_json:
        for key in SAMPLES.keys() - missing:
            print(f"{sample_path(key)}  {SAMPLES[key].title}")
    else:
        print_json({k: None if k in missing else str(sample_path(k)) for k in SAMPLES})
    for line in failed:
        say(f"medai: {line}")
    if failed:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for screenshots and results.")] = Path("demo-output"),
    window: Annotated[bool, typer.Option(help="Keep the window open at the end.")] = True,
) -> None:
    """Run all five stages on the samples in a napari window and save what comes out."""
    from importlib import import_module
    from importlib.util import find_spec

    if find_spec("napari") is None:
        raise MedaiError('The demo needs napari; install it with: pip install "napari-medai[all]"')
    # the window belongs to ui, which the shell does not know otherwise
    import_module("napari_medai.ui.demo").run(out, keep_open=window)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Print versions, devices, codecs, graphics and what is missing."""
    from napari_medai.doctor import examine

    report = examine()
    if as_json:
        print_json(report)
        return
    for section, lines in report.items():
        print(f"{section}:")
        for key, value in lines.items():
            print(f"  {key}: {value}")


if __name__ == "__main__":
    main()
