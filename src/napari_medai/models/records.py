"""What was found when a model was checked on this machine, kept beside the added models."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from napari_medai.models import store
from napari_medai.models.catalogue.entry import Entry, safe_name


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what, whether it is as it should be, and what was found."""

    what: str
    ok: bool
    detail: str


class Checked(BaseModel):
    """The outcome of a check.

    Attributes
    ----------
    id : str
        Of the model.
    ok : bool
        Whether every finding is as it should be.
    findings : tuple of Finding
        What was looked at.
    sha256 : str
        Over the package that was checked.
    entry : str
        The catalogue's entry that it is; empty if of none.
    seconds : float
        How long it took.
    when : str
        ISO 8601.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    ok: bool
    findings: tuple[Finding, ...]
    sha256: str = ""
    entry: str = ""
    seconds: float = 0.0
    when: str = ""


def keep(checked: Checked) -> Checked:
    """Keep an outcome where it can be; a folder that cannot be written to makes it no worse."""
    kept = checked.model_copy(update={"when": datetime.now(UTC).isoformat(timespec="seconds")})
    for place in {_file(name) for name in (checked.id, checked.entry) if name} - {None}:
        assert place is not None
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            part = place.with_suffix(".part")
            part.write_text(kept.model_dump_json(indent=2), encoding="utf-8")
            part.replace(place)
        except OSError:
            return kept
    return kept


def last(id: str) -> Checked | None:
    """What the last check of a model, or of an entry, found; none if there was none."""
    place = _file(id)
    try:
        return Checked.model_validate_json(place.read_bytes()) if place is not None else None
    except (OSError, ValidationError):
        return None


def status(entry: Entry) -> Literal["verified", "verified here", "unverified"]:
    """Whether an entry of the catalogue is known to run: by whoever made the catalogue, or by a check here.

    A check counts for the bytes that were checked: of an added model that was changed since, it counts no more.
    """
    if entry.status == "verified":
        return "verified"
    found = last(entry.id)
    if found is None or not found.ok:
        return "unverified"
    item = store.added(entry.id)
    return "verified here" if item is None or item.sha256 == found.sha256 else "unverified"


def _file(id: str) -> Path | None:
    return store.folder() / ".checked" / f"{id}.json" if safe_name(id) else None
