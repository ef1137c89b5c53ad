"""Options and helpers that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from napari_medai.core.volume import Volume

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Series = Annotated[str, typer.Option("--series", help="Series UID, where a folder holds several.")]


def open_scan(source: Path, series: str) -> Volume:
    """Open what a command was given."""
    from napari_medai.io import open as open_volume

    return open_volume(source, series_uid=series)
