"""Models that people added: copies of packages in one folder, each under its id.

::

    <folder>/<id>/added.json      what was added, when, and the answers that it needed
    <folder>/<id>/<package>       the package as it was given: a folder or a file

What a package is and what it needs is read from its bytes whenever it is looked for, never from ``added.json``: a
folder that others can write to must not be able to say that a program is data.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from napari_medai.core.errors import MedaiError, ModelError, UntrustedError
from napari_medai.core.stage import Part, Progress
from napari_medai.models.catalogue.entry import Entry, safe_name
from napari_medai.models.catalogue.matching import match
from napari_medai.models.copies import copy_package, is_unpacked, own_files
from napari_medai.models.package import package_sha256, unpacked
from napari_medai.models.spec import Model, ModelSpec

if TYPE_CHECKING:
    from napari_medai.models.trust import Grant

RECORD = "added.json"
# Words of the catalogue that are modalities of images
_MODALITIES = ("CT", "MR", "MG", "CR", "fluorescence")


class Record(BaseModel):
    """What ``added.json`` holds.

    Attributes
    ----------
    id : str
        What people type.
    package : str
        Name of the package in this folder.
    sha256 : str
        Over the package when it was added (see `napari_medai.models.package.package_sha256`).
    entry : str
        The entry of the catalogue whose bytes these are; empty if of none.
    answers : dict
        What the package does not say itself and was asked: axes, stage, labels.
    added : str
        When, ISO 8601.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    package: str
    sha256: str
    entry: str = ""
    answers: dict[str, Any] = Field(default_factory=dict)
    added: str = ""


@dataclass(frozen=True)
class Added:
    """A model in the folder, whether it can be run or not.

    Attributes
    ----------
    id : str
        What people type.
    package : Path
        Where it is.
    spec : ModelSpec, optional
        Its description; none if it is damaged.
    model : Model, optional
        What can be run; none if it is damaged or needs what nobody allowed.
    problem : str
        Why there is no model, and what to do; empty if there is one.
    entry : Entry, optional
        The entry of the catalogue whose bytes these were when they were added.
    sha256 : str
        Over the package when it was added.
    answers : dict
        What it was asked when it was added.
    """

    id: str
    package: Path
    spec: ModelSpec | None = None
    model: Model | None = None
    problem: str = ""
    entry: Entry | None = None
    sha256: str = ""
    answers: Mapping[str, Any] = field(default_factory=dict)


def folder() -> Path:
    """Where added models live: ``MEDAI_MODELS``, or ``models`` in the user's folder for data. It may not exist yet."""
    named = os.environ.get("MEDAI_MODELS", "")
    return Path(named).expanduser() if named else Path(platformdirs.user_data_dir("napari-medai", False)) / "models"


def downloads() -> Path:
    """Where downloads are kept until they are whole."""
    return folder() / ".downloads"


def add(
    path: str | Path,
    id: str = "",
    *,
    entry: Entry | None = None,
    move: bool = False,
    progress: Progress | None = None,
    **answers: Any,
) -> Added:
    """Copy a package into the folder of models, where it is found from now on.

    It is described first, and nothing is copied that no source recognises. Nothing in it is executed, and adding it
    allows nothing: a package with programs is added and cannot be run until ``medai models trust``.

    Parameters
    ----------
    path : str or Path
        A file, a folder or a ZIP archive.
    id : str, optional
        What people will type. Default: the id of the catalogue's entry whose bytes it has, else of its description.
    entry : Entry, optional
        The entry that it was downloaded for; else it is looked for by the hashes.
    move : bool
        Take the package itself instead of a copy.
    progress : Progress, optional
        Told how far the copy is; it can cancel, which leaves nothing.
    **answers
        What the package does not say itself: ``axes``, ``stage``, ``labels``; as its source's ``describe`` takes them.

    Raises
    ------
    ModelError
        There is nothing, it is no model, the id is taken or cannot be a name, or it cannot be copied; the message says
        what to do.
    """
    place, progress = Path(path).expanduser(), progress or Progress()
    given = {name: value for name, value in answers.items() if value not in (None, "", ())}
    if not place.exists():
        raise ModelError(f"There is no model at {place.name!r}; pass a file, a folder or a ZIP archive.")
    if entry is None:
        entry = match(place)
    archive = place
    place = unpacked(place)
    if entry is None and place != archive:
        entry = match(place)
    if entry is not None and place.is_file() and len(entry.files) > 1:
        place = place.parent
    spec = _describe(place, given, entry)
    if asked := [need for need in spec.needs if need.where.endswith("#axes") and not need.capability]:
        raise ModelError(f"{place.name!r} does not say all that is needed: {asked[0].why}")
    only = own_files(place, spec, entry)
    # a file was named, and the folder around it is the package
    place = spec.path if spec.path is not None and spec.path in (place, place.parent) else place
    chosen = id or (entry.id if entry else "") or _slug(spec.id or spec.title or place.stem)
    _check_id(chosen, given_id=bool(id), entry=entry)
    root = folder()
    new = root / f".new-{secrets.token_hex(6)}"
    try:
        new.mkdir(parents=True)
        target = new / _slug(place.name, keep=True)
        if move or (place != archive and is_unpacked(place)):
            shutil.move(place, target)
        else:
            copy_package(place, target, only, Part(progress, 0.0, 0.9, "copying"))
        record = Record(
            id=chosen,
            package=target.name,
            sha256=package_sha256(target),
            entry=entry.id if entry else "",
            answers=given,
            added=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        (new / RECORD).write_text(record.model_dump_json(indent=2), encoding="utf-8")
        new.rename(root / chosen)
    except OSError as error:
        raise ModelError(
            f"{place.name!r} cannot be copied into the folder of models ({error.strerror or error}). Make room or "
            "permission there, or name another folder by MEDAI_MODELS."
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    progress.update(1, 1)
    result = added(chosen)
    assert result is not None  # it was just put there
    return result


def remove(id: str) -> None:
    """Delete an added model with its files.

    Raises
    ------
    ModelError
        No added model has the id, or it cannot be deleted.
    """
    place = _place(id)
    if place is None:
        here = ", ".join(item.id for item in survey()) or "none"
        raise ModelError(f"No added model is called {id!r}; added are: {here}.")
    gone = place.with_name(f".gone-{secrets.token_hex(6)}")
    try:
        place.rename(gone)  # in one step, so that none sees half of it
        shutil.rmtree(gone)
    except OSError as error:
        raise ModelError(f"{id!r} cannot be deleted: {error.strerror or error}.") from error


def survey() -> list[Added]:
    """Every added model, by id; those that are damaged or not allowed say why."""
    root = folder()
    if not root.is_dir():
        return []
    return [_look(place) for place in sorted(root.iterdir()) if place.is_dir() and not place.name.startswith(".")]


def added(id: str) -> Added | None:
    """The added model with an id, or none."""
    place = _place(id)
    return _look(place) if place is not None else None


def find() -> list[Model]:
    """Every added model that can be run; see `survey` for the others."""
    return [item.model for item in survey() if item.model is not None]


def named(id: str) -> Model | None:
    """The added model with an id; none if there is none.

    Raises
    ------
    UntrustedError
        It needs what nobody allowed.
    ModelError
        It is damaged.
    """
    item = added(id)
    if item is None or item.model is not None:
        return item.model if item is not None else None
    if item.spec is not None and item.spec.needs:
        raise UntrustedError(item.problem, item.spec.needs)
    raise ModelError(item.problem)


def _describe(path: Path, answers: Mapping[str, Any], entry: Entry | None) -> ModelSpec:
    """The description of a package, with the answers that it was given and what the catalogue knows of its bytes."""
    from napari_medai import models

    spec = models.describe(path, **answers) if answers else models.probe(path)
    if entry is None:
        return spec
    told = {
        "licence": entry.licence,
        "citation": entry.citation or spec.citation,
        "training_data": entry.training_data or spec.training_data,
        "metrics": entry.metrics or spec.metrics,
        "title": entry.title,
        "summary": entry.summary,
    }
    if entry.intended_use:
        told["intended_use"] = entry.intended_use
    # what a package does not say of itself, the gate then knows
    if not spec.accepts.modality and entry.modality in _MODALITIES:
        spec = spec.model_copy(update={"accepts": spec.accepts.model_copy(update={"modality": (entry.modality,)})})
    return spec.model_copy(update=told)


# What was read from packages in this process: path -> (state of its files, description)
_SEEN: dict[Path, tuple[object, ModelSpec]] = {}


def _look(place: Path) -> Added:
    """One folder of the store."""
    try:
        record = Record.model_validate_json((place / RECORD).read_bytes())
        package = place / record.package
        if not safe_name(record.package) or not package.exists():
            raise ModelError(f"its package {record.package!r} is not in its folder")
    except (OSError, ValidationError, ModelError) as error:
        why = "its added.json is not valid" if isinstance(error, ValidationError) else str(error)
        return Added(place.name, place, problem=_damaged(place.name, why))
    from napari_medai.models.catalogue import find_entry

    entry = find_entry(record.entry) if record.entry else None
    item = Added(place.name, package, entry=entry, sha256=record.sha256, answers=record.answers)
    try:
        state = (_state(package), record.answers)
        if package not in _SEEN or _SEEN[package][0] != state:
            _SEEN[package] = (state, _describe(package, record.answers, entry))
        spec = _SEEN[package][1].model_copy(update={"id": place.name})
    except (OSError, MedaiError) as error:
        return replace(item, problem=_damaged(place.name, str(error)))
    from napari_medai.models import load

    item = replace(item, spec=spec)
    try:
        model = load(spec, _grant(spec, record.sha256))
    except ModelError as error:
        # here it has an id, wherever its files lie
        said = str(error).replace(f"medai models trust {package.name} ", f"medai models trust {place.name} ")
        return replace(item, problem=said)
    return replace(item, model=model.model_copy(update={"source": f"added: {spec.source}"}))


def _grant(spec: ModelSpec, sha256: str) -> Grant | None:
    """A permission for the bytes that were added; whoever runs them compares the bytes with it again."""
    from napari_medai.models.trust import find_grant

    return find_grant(sha256) if spec.needs else None


def _damaged(id: str, why: str) -> str:
    why = why.rstrip(".")
    return f"{id!r} was added and cannot be opened: {why}. Remove it and add it again: medai models remove {id}"


def _state(package: Path) -> object:
    """Changes when any file of the package does."""
    files = sorted(package.rglob("*")) if package.is_dir() else [package]
    return tuple((str(f), s.st_size, s.st_mtime_ns) for f in files for s in (f.lstat(),))


def _place(id: str) -> Path | None:
    place = folder() / id
    return place if safe_name(id) and place.is_dir() else None


def _check_id(id: str, given_id: bool, entry: Entry | None) -> None:
    """Refuse ids that are no names or belong to another model."""
    if not safe_name(id):
        raise ModelError(
            f"{id!r} cannot be an id: use letters, digits, dots, dashes and underscores, and begin with one of the "
            "first two. Give one: --id NAME"
        )
    from napari_medai.models import find_models
    from napari_medai.models.catalogue import find_entry

    other = find_entry(id)
    if other is not None and other != entry:
        raise ModelError(
            f"{id!r} is the catalogue's id of {other.title}, and these are other bytes. Give another: --id NAME"
        )
    taken = {item.id.lower() for item in survey()} | {model.id.lower() for model in find_models()}
    if id.lower() in taken:
        how = "Give another: --id NAME" if given_id else f"Give an id: --id NAME, or: medai models remove {id}"
        raise ModelError(f"There is a model called {id!r} already. {how}")


def _slug(name: str, keep: bool = False) -> str:
    """A plain name out of a title: lower case, dashes (or as it is, but for letters that cannot be)."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")
    plain = plain if keep else plain.lower()
    return plain[:80].rstrip(".-_") if safe_name(plain[:80].rstrip(".-_")) else "model"
