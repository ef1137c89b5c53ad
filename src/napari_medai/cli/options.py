"""Options and helpers that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_medai.core.errors import ParamsError, SeriesChoiceError

if TYPE_CHECKING:
    from napari_medai.core.volume import Volume

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Series = Annotated[str, typer.Option("--series", help="Series UID or number, where there are several.")]


Repair = Annotated[
    str,
    typer.Option("--repair", help="DICOM: what to repair, e.g. tilt,missing (also spacing, duplicates, mosaic)."),
]
Values = Annotated[
    str, typer.Option("--values", help="DICOM: which values, e.g. rescale, real-world, display, stored, suv.")
]
AsDicom = Annotated[bool, typer.Option("--dicom", help="Into a folder: a derived DICOM series for each, no NIfTI.")]
Against = Annotated[
    Path | None,
    typer.Option("--against", help="The DICOM scan that a DICOM result lies on, where its own file does not say."),
]
Check = Annotated[
    bool, typer.Option("--verify/--no-verify", help="Read what was written back and refuse it if it differs.")
]


def reading(source: Path, repair: str, values: str) -> dict[str, Any]:
    """Options of `napari_medai.open` for what was asked for.

    Raises
    ------
    ParamsError
        A repair is not known, or the source is not DICOM and has nothing to repair or choose.
    """
    options = asked_for(repair, values)
    if not options:
        return {}
    from napari_medai.io import find_format

    if find_format(source).name not in ("dicom", "archive"):
        raise ParamsError(f"--repair and --values are for DICOM, and {source.name} is not; leave them out.")
    return options


def asked_for(repair: str, values: str) -> dict[str, Any]:
    """Options of `napari_medai.open` for DICOM, empty if nothing was asked for.

    Raises
    ------
    ParamsError
        A repair or a kind of values is not known.
    """
    if not repair and not values:
        return {}
    from napari_medai.io.dicom.repair import checked
    from napari_medai.io.dicom.values import VALUES

    if values and values not in VALUES:
        raise ParamsError(f"No values are called {values!r}; there are: {', '.join(VALUES)}.")
    return {"repair": checked([name.strip() for name in repair.split(",") if name.strip()]), "values": values}


def open_scan(source: Path, series: str, repair: str = "", values: str = "") -> Volume:
    """Open what a command was given."""
    from napari_medai.io import open as open_volume

    return open_volume(source, series_uid=chosen(source, series), **reading(source, repair, values))


def chosen(source: Path, series: str) -> str:
    """The UID of the series that was asked for by its UID or its number.

    Raises
    ------
    SeriesChoiceError
        Several images have that number.
    """
    if not (series.isascii() and series.isdecimal()):
        return series
    from napari_medai.io import list_series

    found = list_series(source)
    # the images of a microscope's file have numbers for UIDs
    alike = [one for one in found if one.number == int(series)]
    if not alike or any(one.uid == series for one in found):
        return series
    if len(alike) > 1:
        raise SeriesChoiceError(source.name, alike)
    return alike[0].uid
