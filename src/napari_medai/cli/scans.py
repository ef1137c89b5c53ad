"""What lies in a file or folder, and converting it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_medai.cli.options import Against, AsDicom, Check, Json, Repair, Series, Values, chosen, reading
from napari_medai.core.errors import MedaiError, ReadError, SeriesInfo
from napari_medai.terminal import print_json, say

if TYPE_CHECKING:
    from napari_medai.core.volume import Volume


def info(source: Path, repair: Repair = "", values: Values = "", as_json: Json = False) -> None:
    """List the series in a file or folder: size, spacing, orientation, findings; and what was not read."""
    rows = []
    images, findings, shared = _images(source, repair, values)
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
                "orientation": _orientation(volume),
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
    for line in _lines(rows, shared):
        print(line)
    for finding in findings:
        print(f"{source.name}: {finding}")


def _orientation(volume: Volume) -> str:
    """The code of the axes' directions; empty where the header does not give them."""
    from napari_medai.core.geometry import orientation_code

    known = volume.units == "mm" and volume.meta.get("oriented", True)
    return orientation_code(volume.affine) if known else ""


def _lines(rows: Sequence[dict[str, Any]], shared: Collection[str]) -> Iterator[str]:
    """The table of images; below each, its UID and its findings, which a narrow terminal would break to pieces."""
    table = [("no.", "modality", "description", "size", "spacing", "orientation", "files")]
    for row in rows:
        size = " x ".join(f"{a}{n}" for a, n in zip(row["axes"] or "?" * 9, row["shape"], strict=False))
        step = " x ".join(f"{s:.3g}" for s in row["spacing"])
        number = "-" if row["number"] is None else str(row["number"])
        orientation, units = row.get("orientation", "") or "-", row.get("units", "mm")
        cells = (number, row["modality"] or "?", row["description"] or "-", size, f"{step} {units}")
        table.append((*cells, orientation, str(row["files"])))
    widths = [max(len(line[n]) for line in table) for n in range(len(table[0]))]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table]
    yield text[0]
    for line, row in zip(text[1:], rows, strict=True):
        yield line
        yield f"  {row['uid']}"
        yield from (f"  - {finding}" for finding in row["findings"] if finding not in shared)


Openable = tuple[SeriesInfo, Callable[[], "Volume"]]


def _images(source: Path, repair: str, values: str) -> tuple[list[Openable], list[str], set[str]]:
    """What a source holds and how to open it, what of it was not read, and which findings repeat that for each image.

    A large folder is read once.
    """
    from napari_medai.io import find_format, list_series
    from napari_medai.io import open as open_volume

    options = reading(source, repair, values)
    kind = find_format(source).name
    found: list[Openable] = []
    left_out: list[str] = []
    shared: set[str] = set()
    if kind in ("dicom", "archive"):
        # whatever cannot be read as a whole is told by whoever lists it
        with suppress(MedaiError):
            found, left_out, shared = _surveyed(source, options.get("repair", ()), values)
    if kind == "archive":
        packed, others = _packed(source, left_out)
        found, left_out = [*found, *packed], others
    if not found:
        opened = partial(open_volume, source, **options)
        found = [(entry, partial(opened, series_uid=entry.uid)) for entry in list_series(source)]
    return found, left_out, shared


def _surveyed(source: Path, repair: Sequence[str], values: str) -> tuple[list[Openable], list[str], set[str]]:
    """The images and structure sets of DICOM files, what was not read, and what each image says of that."""
    from napari_medai.io.dicom.rtstruct import is_structure_set, open_structures, structure_info
    from napari_medai.io.dicom.series import survey

    found = survey(source)
    images: list[Openable] = [
        (image.info(), partial(image.opened, str(source), values)) for image in found.images(repair)
    ]
    structures = [header for header in found.series[0].beside if is_structure_set(header)]
    listed = [(structure_info(h), partial(open_structures, h.path)) for h in structures]
    shared = {finding for series in found.series for finding in series.findings}
    return [*images, *listed], list(found.findings), shared


def _packed(source: Path, findings: Sequence[str]) -> tuple[list[Openable], list[str]]:
    """The NIfTI images of an archive, and what of it was left out, by the archive's name."""
    from napari_medai.io import open as open_volume
    from napari_medai.io.archive import unpacked
    from napari_medai.io.single import series_of

    content = unpacked(source)
    found: list[Openable] = []
    for uid in content.nifti:
        with suppress(MedaiError):
            volume = open_volume(source, series_uid=uid)
            found.append((series_of(volume, uid), partial(_same, volume)))
    folder = str(content.dicom.parent)
    return found, [*(text.replace(folder, source.name) for text in findings), *content.findings]


def _same(volume: Volume) -> Volume:
    return volume


def convert(
    source: Path,
    target: Path,
    series: Series = "",
    repair: Repair = "",
    values: Values = "",
    against: Against = None,
    verify: Check = True,
    dicom: AsDicom = False,
) -> None:
    """Convert to the format of TARGET's suffix; into a folder, one NIfTI per series."""
    from napari_medai.io.convert import convert as convert_files

    options = reading(source, repair, values)
    options |= {"series_uid": chosen(source, series), "against": against, "check": verify, "dicom": dicom}
    for path in convert_files(source, target, tell=_tell, **options):
        print(path)


def _tell(path: Path, volume: Volume) -> None:
    """What was left out of a file that was written, or made up in it."""
    for finding in volume.meta.get("findings", ()):
        say(f"{path.name}: {finding}")
