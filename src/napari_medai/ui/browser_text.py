"""What the study browser says of patients, studies and series."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from napari_medai.io.study import Identity, Listing, Study, StudySeries

_TIMES = " × "


def title_of(series: StudySeries) -> str:
    """Number and description."""
    number = "" if series.info.number is None else str(series.info.number)
    return "  ".join(part for part in (number, series.info.description or "(no description)") if part)


def size_of(series: StudySeries) -> str:
    """Size along x, y, z and t, as radiologists say it, then channels and colour; of a structure set its regions."""
    if series.regions is not None:
        return counted(series.regions, "region")
    sizes = dict(zip(series.axes, series.info.shape, strict=False))
    text = _TIMES.join(str(sizes[axis]) for axis in "xyzt" if axis in sizes)
    if sizes.get("c", 1) > 1:
        text += f", {sizes['c']} channels"
    return text + (", colour" if "s" in sizes else "")


def spacing_of(series: StudySeries) -> str:
    """Spacing along x, y and z with its unit; of a structure set nothing."""
    if series.regions is not None:
        return ""
    if series.units == "pixel":
        return "spacing unknown"
    factor, unit = (1e3, "µm") if series.units == "um" else (1.0, "mm")
    return _TIMES.join(f"{step * factor:.3g}" for step in reversed(series.info.spacing_mm)) + f" {unit}"


def extent_of(series: StudySeries) -> str:
    """Size and spacing."""
    return " · ".join(part for part in (size_of(series), spacing_of(series)) if part)


def files_of(series: StudySeries) -> str:
    """Number of files."""
    return counted(series.info.files, "file")


def counted(n: int, what: str, many: str = "") -> str:
    """``"1 file"``, ``"3 files"``."""
    return f"{n} {what if n == 1 else many or what + 's'}"


def series_text(series: StudySeries) -> str:
    """All of it in one line, for screen readers and searching."""
    parts = [series.info.modality, title_of(series), size_of(series), spacing_of(series), files_of(series)]
    if series.findings:
        parts.append(counted(len(series.findings), "finding"))
    return ", ".join(part for part in parts if part)


def series_tip(series: StudySeries) -> str:
    """All of it with every finding, as a tooltip (HTML)."""
    lines = [
        f"<b>{escape(series.info.modality)} {escape(title_of(series))}</b>",
        f"{size_of(series)}{', ' if series.regions is not None else f' voxels, {escape(spacing_of(series))}, '}"
        f"{files_of(series)}",
        *(f"&#9888; {escape(finding)}" for finding in series.findings),
        "<i>Double-click, press Enter or drag onto the canvas to open.</i>",
    ]
    return "".join(f"<p style='margin:2px'>{line}</p>" for line in lines)


def patient_text(study: Study, who: Identity | None) -> str:
    """Pseudonym, and the identity if it is to be seen."""
    if who is None or not study.patient:
        return study.patient or study.name
    born = f"born {who.birth_date}" if who.birth_date else ""
    return " · ".join(part for part in (study.patient, who.name or "no name", who.patient_id, born) if part)


def study_text(study: Study, who: Identity | None) -> str:
    """Pseudonym, date if the identity is to be seen, and description."""
    date = "" if who is None else who.study_date or "no date"
    return " · ".join(part for part in (study.name, date, study.description) if part)


def study_note(series: Sequence[StudySeries]) -> str:
    """Modalities, and the number of series."""
    kinds = ", ".join(dict.fromkeys(one.info.modality for one in series if one.info.modality))
    return " · ".join(part for part in (kinds, counted(len(series), "series", "series")) if part)


def totals(listing: Listing) -> str:
    """The line below the list."""
    patients = len({study.patient for study in listing.studies if study.patient})
    studies = sum(1 for study in listing.studies if study.patient)
    parts = [
        *([counted(patients, "patient")] if patients else []),
        *([counted(studies, "study", "studies")] if studies else []),
        counted(len(listing.series), "series", "series"),
    ]
    unread = f"; {counted(listing.unread, 'file')} not read" if listing.unread else ""
    return ", ".join(parts) + unread


def matches(series: StudySeries, study: Study, wanted: str) -> bool:
    """Whether each word of a filter stands in the modality or a description, or is the number."""
    text = f"{series.info.modality} {series.info.description} {study.description}".casefold()
    return all(word in text or word == str(series.info.number) for word in wanted.casefold().split())
