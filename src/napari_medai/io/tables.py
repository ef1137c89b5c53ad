"""Tables of objects and scores as CSV, and as JSON with the record of how they were made."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from napari_medai import __version__
from napari_medai.core.geometry import Grid
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Boxes, Mask, Scores, Table
from napari_medai.io.atomic import write_bytes

Content = Mask | Boxes | Scores


def save_table(content: Content, path: Path) -> None:
    """Write the table of a result; the suffix says whether CSV or JSON.

    Parameters
    ----------
    content : Mask, Boxes or Scores
        CSV: one row per object with a header line (``index,label,score,…``), or for `Scores` one row for the whole
        image (``slice`` is ``all``) and one per slice. JSON: see `as_json`.
    path : Path
        Ends in ``.csv`` or ``.json``.

    Raises
    ------
    WriteError
        The system refused.
    """
    text = dump_json(as_json(content)) if path.suffix.lower() == ".json" else as_csv(content)
    write_bytes(path, text.encode("utf-8"))


def as_csv(content: Content | Table) -> str:
    """CSV (RFC 4180, but lines end in a line feed): shortest digits that give the same float back, empty for NaN."""
    table = content if isinstance(content, dict) else table_of(content)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*[["" if v is None else v for v in plain(column)] for column in table.values()], strict=True))
    return text.getvalue()


def as_json(content: Content) -> dict[str, Any]:
    """Plain values: ``kind``, the table as ``rows`` or the scores, ``grid`` and ``provenance``.

    `Scores` give ``model``, ``scores``, ``present``, ``slices`` (as `Scores.as_dict`) and ``thresholds``.
    """
    start: dict[str, Any] = {"kind": type(content).__name__, "software": f"napari-medai {__version__}"}
    if isinstance(content, Scores):
        body = content.as_dict() | {"thresholds": dict(zip(content.classes, plain(content.thresholds), strict=True))}
    else:
        table = table_of(content)
        body = {"model": content.provenance.model, "columns": list(table), "rows": rows_of(table)}
        if isinstance(content, Mask):
            body["label_names"] = {str(value): name for value, name in content.names.items()}
    return start | body | {"grid": grid_record(content.grid), "provenance": provenance_record(content.provenance)}


def table_of(content: Content) -> Table:
    """The columns that CSV holds."""
    if not isinstance(content, Scores):
        return content.table
    table: Table = {
        "slice": np.array(["all", *content.slice_index.tolist()], dtype=object),
        "attention": np.array([1.0, *content.attention]),
    }
    for n, name in enumerate(content.classes):
        table[name] = np.array([content.probabilities[n], *content.slice_probabilities[:, n]])
    return table


def rows_of(table: Table) -> list[dict[str, Any]]:
    """One mapping per row, plain values."""
    columns = [plain(column) for column in table.values()]
    return [dict(zip(table, row, strict=True)) for row in zip(*columns, strict=True)]


def grid_record(grid: Grid) -> dict[str, Any]:
    """Shape and affine; the world is (z, y, x), DICOM's LPS read backwards."""
    return {"shape_zyx": list(grid.shape), "affine_zyx_lps": grid.affine.tolist(), "units": grid.units}


def provenance_record(provenance: Provenance) -> dict[str, Any]:
    """Plain values of a provenance."""
    record = clean(provenance.as_dict())
    return dict(record)


def dump_json(content: Mapping[str, Any]) -> str:
    """Indented JSON that every parser takes: NaN and infinity become null."""
    return json.dumps(clean(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain(column: Iterable[Any]) -> list[Any]:
    """Python values of a column; None for what is no finite number."""
    values: Sequence[Any] = column.tolist() if hasattr(column, "tolist") else list(column)
    return [clean(v) for v in values]


def clean(value: Any) -> Any:
    """The value with Python's own types inside, ready for JSON."""
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return clean(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Iterable):
        return [clean(item) for item in value]
    return str(value)
