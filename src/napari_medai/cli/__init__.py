"""The command ``medai``: arguments in, exit code out (0 ok, 1 failed, 2 bad usage)."""

from __future__ import annotations

import logging
import signal
import sys

import typer

from napari_medai.cli import models, models_change, pacs, run, scans, system, verify
from napari_medai.core.errors import MedaiError, ParamsError
from napari_medai.stages import STAGES
from napari_medai.terminal import interrupt, say

app = typer.Typer(
    help="AI on medical and microscopy images, in true patient geometry. Research software, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="The models that can be run here, and those that can be had.", no_args_is_help=True)
app.add_typer(models_app, name="models")

app.command()(scans.info)
app.command()(scans.convert)
app.command()(verify.verify)
for _stage in STAGES.values():
    app.command(_stage.name)(run.stage_command(_stage))
app.command()(run.batch)
app.command()(pacs.echo)
app.command()(pacs.pull)
app.command()(pacs.push)
app.command()(system.samples)
app.command()(system.demo)
app.command()(system.doctor)
models_app.command("list")(models.models_list)
models_app.command("show")(models.models_show)
models_app.command("probe")(models.models_probe)
models_app.command("add")(models_change.models_add)
models_app.command("remove")(models_change.models_remove)
models_app.command("check")(models_change.models_check)
models_app.command("trust")(models_change.models_trust)

# What typer makes of Ctrl-C
INTERRUPTED = 130


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
