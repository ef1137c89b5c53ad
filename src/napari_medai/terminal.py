"""What the command shows on a terminal, and how it is stopped there."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from napari_medai.core.plan import Plan
from napari_medai.core.stage import Progress

_interrupted = threading.Event()


def interrupt(_number: int, _frame: object) -> None:
    """Ctrl-C: an exception now; and, should it be lost in a destructor, at the next sign of progress."""
    _interrupted.set()
    raise KeyboardInterrupt


def say(message: str) -> None:
    """One plain line on standard error."""
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(message)


def print_json(value: Any) -> None:
    """JSON on standard output; NaN, which JSON does not know, is an error."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


class Shown(Progress):
    """A bar on a terminal; elsewhere one plain line for each tenth of the way."""

    def __init__(self, title: str) -> None:
        self.title, self.tenth, self.bar, self.task = title, -1, None, None
        self.plan: Plan | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self.bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task(title, total=1.0)

    def __enter__(self) -> Shown:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, done: float, total: float, message: str = "") -> None:
        """See `Progress.update`."""
        self.check()
        share = done / total if total else 1.0
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=share, description=f"{self.title} {message}".strip())
        elif int(share * 10) > self.tenth:
            self.tenth = int(share * 10)
            print(f"{self.title}: {self.tenth * 10} % {message}".rstrip(), file=sys.stderr)

    def check(self) -> None:
        """See `Progress.check`."""
        if _interrupted.is_set():
            raise KeyboardInterrupt

    def planned(self, plan: Plan) -> None:
        """See `Progress.planned`; shown on a terminal, once for what is the same but for the memory in use."""
        before = self.plan
        self.plan = plan
        same = before is not None and (before.device, before.tile, before.batch) == (plan.device, plan.tile, plan.batch)
        if self.bar is not None and not same:
            say(f"{self.title}: {plan}")

    def note(self, message: str) -> None:
        """See `Progress.note`."""
        say(f"{self.title}: note: {message}")


def console() -> Console:
    """Standard output; a pipe or a file gets every column in full."""
    return Console(width=None if sys.stdout.isatty() else 1000, highlight=False, markup=False)
