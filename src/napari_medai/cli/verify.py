"""Whether a written file is what it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table as RichTable

from napari_medai.cli.options import Json, Series, chosen
from napari_medai.terminal import console, print_json

Against = Annotated[
    Path | None, typer.Option("--against", "-a", help="The scan it lies on, or another result on the same scan.")
]


def verify(result: Path, against: Against = None, series: Series = "", as_json: Json = False) -> None:
    """Read RESULT back by two readers and compare it with a scan or another result; exit code 1 if it differs."""
    from napari_medai.io.verify import as_dict
    from napari_medai.io.verify import verify as verify_file

    report = verify_file(result, against, series_uid=series if against is None else chosen(against, series))
    if as_json:
        print_json(as_dict(report))
    elif report.skipped:
        print(f"not compared: {report.skipped}")
    else:
        if report.labels:
            table = RichTable(
                "label", "name", "reader", "voxels", "ml", "centroid z, y, x (mm)", "off (mm)", "Dice", ""
            )
            for row in report.labels:
                size = row.found or row.expected
                if size is None:
                    continue
                table.add_row(
                    str(row.value),
                    row.name,
                    row.by,
                    str(row.found.count if row.found else 0),
                    f"{row.found.volume_mm3 / 1000 if row.found else 0:.3f}",
                    ", ".join(f"{v:.2f}" for v in size.centroid),
                    f"{row.distance_mm:.3f}",
                    f"{row.dice:.4f}",
                    ", ".join(row.faults) or "ok",
                )
            console().print(table)
        for check in report.checks:
            print(f"{'ok ' if check.ok else 'NO '} {check.what}{f': {check.detail}' if check.detail else ''}")
    if not report.ok:
        raise typer.Exit(1)
