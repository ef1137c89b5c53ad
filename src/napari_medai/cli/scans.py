"""What lies in a file or folder, and converting it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Column
from rich.table import Table as RichTable

from napari_medai.cli.options import Json, Series, open_scan
from napari_medai.core.errors import ReadError
from napari_medai.core.geometry import orientation_code
from napari_medai.terminal import console, print_json


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
            volume = open_scan(source, entry.uid)
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


def convert(source: Path, target: Path, series: Series = "") -> None:
    """Convert to the format of TARGET's suffix; into a folder, one NIfTI per series."""
    from napari_medai.io.convert import convert as convert_files

    for path in convert_files(source, target, series_uid=series):
        print(path)
