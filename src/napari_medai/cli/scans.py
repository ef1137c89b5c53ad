"""What lies in a file or folder, and converting it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Column
from rich.table import Table as RichTable

from napari_medai.cli.options import Against, Check, Json, Repair, Series, Values, open_scan, reading
from napari_medai.core.errors import ReadError, SeriesInfo, UnsupportedFormatError
from napari_medai.core.geometry import orientation_code
from napari_medai.core.volume import Volume
from napari_medai.terminal import console, print_json


def info(source: Path, repair: Repair = "", values: Values = "", as_json: Json = False) -> None:
    """List the series in a file or folder: size, spacing, orientation, findings; and what was not read."""
    rows = []
    images, findings = _images(source, repair, values)
    for entry, opened in images:
        row: dict[str, Any] = {
            "uid": entry.uid,
            "modality": entry.modality,
            "number": entry.number,
            "description": entry.description,
            "shape": list(entry.shape),
            "files": entry.files,
        }
        try:
            volume = opened()
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
            if "axis_t" in volume.meta:
                row["axis_t"] = volume.meta["axis_t"]
        except ReadError as error:
            row |= {"axes": "", "spacing": list(entry.spacing_mm), "findings": [str(error)]}
        rows.append(row)
    if as_json:
        print_json({"source": source.name, "series": rows, "findings": findings})
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
    for finding in findings:
        console().print(f"{source.name}: {finding}", markup=False)


def _images(source: Path, repair: str, values: str) -> tuple[list[tuple[SeriesInfo, Callable[[], Volume]]], list[str]]:
    """What a source holds and how to open it, and what of it was not read."""
    from napari_medai.io import find_format, list_series

    options = reading(source, repair, values)
    found = None
    if find_format(source).name == "dicom":
        from napari_medai.io.dicom.series import survey

        # a large folder is read once, and not again for each of its series
        with suppress(UnsupportedFormatError):
            found = survey(source)
    if found is None:
        infos = list_series(source)
        left_out: list[str] = []
        if find_format(source).name == "archive":
            from napari_medai.io.archive import unpacked

            left_out = list(unpacked(source).findings)
        return [(entry, partial(open_scan, source, entry.uid, repair, values)) for entry in infos], left_out
    images = [
        (image.info(), partial(image.opened, str(source), values)) for image in found.images(options.get("repair", ()))
    ]
    known = {entry.uid for entry, _ in images}
    others = [entry for entry in list_series(source) if not repair and entry.uid not in known]
    return [*images, *((entry, partial(open_scan, source, entry.uid)) for entry in others)], list(found.findings)


def convert(
    source: Path,
    target: Path,
    series: Series = "",
    repair: Repair = "",
    values: Values = "",
    against: Against = None,
    verify: Check = True,
) -> None:
    """Convert to the format of TARGET's suffix; into a folder, one NIfTI per series."""
    from napari_medai.io.convert import convert as convert_files

    options = reading(source, repair, values)
    for path in convert_files(source, target, series_uid=series, against=against, check=verify, **options):
        print(path)
