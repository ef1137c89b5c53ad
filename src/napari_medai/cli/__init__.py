"""The command ``medai``: arguments in, exit code out (0 ok, 1 failed, 2 bad usage)."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Container
from typing import Any

import typer

from napari_medai.cli.commands import COMMANDS
from napari_medai.core.errors import MedaiError, ParamsError
from napari_medai.terminal import interrupt, say


def application(words: Container[str]) -> typer.Typer:
    """The command, with those of its subcommands that are among the words; the others are listed only.

    Parameters
    ----------
    words : container of str
        What was typed. Importing every subcommand takes a second, and its help a fraction of that.
    """
    app = typer.Typer(
        help="AI on medical and microscopy images, in true patient geometry. Research software, not a medical device.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    models = typer.Typer(help="The models that can be run here, and those that can be had.", no_args_is_help=True)
    app.add_typer(models, name="models")
    for row in COMMANDS:
        used = row.name in words and (not row.group or row.group in words)
        command = (models if row.group else app).command
        if used:
            command(row.name)(row.load())
        else:  # listed only: nobody calls it, and what would load it takes no arguments either
            command(row.name, help=row.summary)(row.load)
    return app


def __getattr__(name: str) -> Any:
    if name == "app":  # with everything
        return application({word for row in COMMANDS for word in (row.name, row.group)})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# What typer makes of Ctrl-C
INTERRUPTED = 130


def main() -> None:
    """Entry point: every expected error becomes one line on standard error and an exit code."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a job in the background is not to be interrupted
        signal.signal(signal.SIGINT, interrupt)
    logging.captureWarnings(True)  # third-party warnings are no part of the answer
    logging.getLogger("py.warnings").addHandler(logging.NullHandler())
    try:
        application(set(sys.argv[1:]))(standalone_mode=True)
    except MedaiError as error:
        say(f"medai: {error}")
        sys.exit(2 if isinstance(error, ParamsError) else 1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            say("medai: stopped; no file was left half-written.")
            sys.exit(1)
        raise
