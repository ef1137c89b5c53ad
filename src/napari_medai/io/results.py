"""Results -> files: what lies on a grid becomes an image, what is a list becomes a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from napari_medai.core.contours import Contours
from napari_medai.core.errors import WriteError
from napari_medai.core.result import Boxes, Denoised, Heatmap, Mask, Result, Scores
from napari_medai.core.volume import Volume
from napari_medai.io import Format, find_writer
from napari_medai.io.atomic import checked
from napari_medai.io.tables import clean, provenance_record

# Formats whose writers and whose verification never hold the whole image; how often the others do
_IN_PIECES = ("nifti", "tiff", "omezarr")
_COPIES = 3


def save_any(
    what: Volume | Result | Contours,
    path: Path,
    check: bool = True,
    against: Any = None,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Write a volume or a result; see `napari_medai.io.save`.

    Raises
    ------
    WriteError
        The suffix does not fit what is saved, the format cannot hold it, or the system refused.
    """
    writer = _writer(what, path)
    if isinstance(what, Contours) or writer.name == "sr":
        # both lie in the patient and on no grid of their own
        with verified(what, check):
            module = writer.load()
            (module.save_table if writer.name == "sr" else module.save_volume)(
                what, path, against=against, **(options or {})
            )
    elif writer.writes == "tables":
        if isinstance(what, Mask) and not what.table:
            raise WriteError(f"This mask has no table to put into {path.name}; save it as .nii.gz or .tif.")
        writer.load().save_table(what, path)
    else:
        volume, record = image_of(what)
        if volume.is_lazy:
            check_room(path, volume.shape, volume.dtype.itemsize)
        extra = {"against": against, **(options or {})} if writer.title.startswith("DICOM") else {}
        if options and not extra:
            raise WriteError(f"{writer.title} is written without options; {', '.join(options)} was given.")
        if writer.name == "dicom" and volume.meta.get("is_labels"):
            from napari_medai.io.dicom.write.seg import consecutive, is_binary

            if is_binary(volume, extra.get("kind", "")):
                volume, record = consecutive(volume, record)
                what = volume
        if writer.name == "dicom":
            extra["check"] = check
        with verified(what, check):
            writer.load().save_volume(volume, path, record, **extra)
    return path


def check_room(path: Path, shape: Sequence[int], itemsize: int = 1) -> None:
    """Refuse a format that is written from memory for an image that does not fit there.

    Parameters
    ----------
    path : Path
        Where it is to be written.
    shape : sequence of int
        Of the image.
    itemsize : int
        Bytes of a voxel, at least.

    Raises
    ------
    WriteError
        It needs more memory than is free; the message says how much, and which formats do not.
    """
    import psutil

    writer = find_writer(path, "" if "." in path.name else "images", folder=True)
    if writer.name in _IN_PIECES or writer.writes != "images":
        return
    needed, free = _COPIES * prod(shape) * itemsize, psutil.virtual_memory().available
    if needed > free:
        raise WriteError(
            f"{writer.title} is written from memory: {path.name} would take about {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free. Written in pieces are .ome.zarr, .ome.tif and .nii; end the name so."
        )


@contextmanager
def verified(what: Volume | Result | Contours, check: bool = True) -> Iterator[None]:
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


def _writer(what: Volume | Result | Contours, path: Path) -> Format:
    """The writer of the suffix, if it takes what is to be saved."""
    if isinstance(what, Boxes | Scores):
        return find_writer(path, "tables")
    if isinstance(what, Contours):
        if (writer := find_writer(path)).name != "rtstruct":
            raise WriteError(f"{path.name} cannot hold contours; end the name in .rtstruct.dcm.")
        return writer
    return find_writer(path, "" if isinstance(what, Mask) else "images", folder=True)


def image_of(what: Volume | Result | Contours) -> tuple[Volume, dict[str, Any]]:
    """The pixels of a result and the record that goes into the file's header with them.

    Raises
    ------
    WriteError
        The result is a table and lies on no grid.
    """
    if isinstance(what, Volume):
        return what, {}
    if isinstance(what, Boxes | Scores | Contours):
        raise WriteError(f"{type(what).__name__} are a table; save them as .csv or .json.")
    record: dict[str, Any] = {"kind": type(what).__name__, "provenance": provenance_record(what.provenance)}
    if isinstance(what, Denoised):
        return what.image, record
    if isinstance(what, Heatmap):
        record |= {"target": what.target, "method": what.method}
        # the window, the findings and the quantity of the scan say nothing about heat
        kept = ("series_uid", "frame_of_reference_uid", "slice_thickness_mm", "body_part", "repaired")
        return what.heat.replace(meta={k: what.heat.meta[k] for k in kept if k in what.heat.meta}), record
    record |= {"is_labels": True, "label_names": clean(what.names), "label_colors": clean(what.colors)}
    return what.labels.replace(meta=dict(what.labels.meta) | {"is_labels": True}), record
