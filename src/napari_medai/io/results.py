"""Results -> files: what lies on a grid becomes an image, what is a list becomes a table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from napari_medai.core.errors import WriteError
from napari_medai.core.result import Boxes, Denoised, Heatmap, Mask, Result, Scores
from napari_medai.core.volume import Volume
from napari_medai.io import Format, find_writer
from napari_medai.io.atomic import checked
from napari_medai.io.tables import clean, provenance_record


def save_any(what: Volume | Result, path: Path, check: bool = True) -> Path:
    """Write a volume or a result; see `napari_medai.io.save`.

    Raises
    ------
    WriteError
        The suffix does not fit what is saved, the format cannot hold it, or the system refused.
    """
    writer = _writer(what, path)
    if writer.writes == "tables":
        if isinstance(what, Mask) and not what.table:
            raise WriteError(f"This mask has no table to put into {path.name}; save it as .nii.gz or .tif.")
        writer.load().save_table(what, path)
    else:
        volume, record = image_of(what)
        with verified(what, check):
            writer.load().save_volume(volume, path, record)
    return path


@contextmanager
def verified(what: Volume | Result, check: bool = True) -> Iterator[None]:
    """Files that are written inside the block take their name only if they are read back as what was saved.

    Raises
    ------
    WriteError
        They are not; see `napari_medai.io.verify.check`.
    """
    if not check:
        yield
        return
    from napari_medai.io.verify import check as look

    with checked(lambda path, name: look(what, path, name)):
        yield


def _writer(what: Volume | Result, path: Path) -> Format:
    """The writer of the suffix, if it takes what is to be saved."""
    if isinstance(what, Boxes | Scores):
        return find_writer(path, "tables")
    return find_writer(path, "" if isinstance(what, Mask) else "images")


def image_of(what: Volume | Result) -> tuple[Volume, dict[str, Any]]:
    """The pixels of a result and the record that goes into the file's header with them.

    Raises
    ------
    WriteError
        The result is a table and lies on no grid.
    """
    if isinstance(what, Volume):
        return what, {}
    if isinstance(what, Boxes | Scores):
        raise WriteError(f"{type(what).__name__} are a table; save them as .csv or .json.")
    record: dict[str, Any] = {"kind": type(what).__name__, "provenance": provenance_record(what.provenance)}
    if isinstance(what, Denoised):
        return what.image, record
    if isinstance(what, Heatmap):
        record |= {"target": what.target, "method": what.method}
        return what.heat.replace(meta={"findings": ()}), record
    record |= {"is_labels": True, "label_names": clean(what.names), "label_colors": clean(what.colors)}
    return what.labels.replace(meta=dict(what.labels.meta) | {"is_labels": True}), record
