"""Models of third parties, by the entry-point group ``napari_medai.models`` of packages that a person installed.

An entry point is one of

- a callable without arguments that gives a list of `Model` or `ModelSpec` (a description as `probe` gives it, with the
  path of its package), or the folder of packages,
- the path of such a folder: each folder or file in it that a source recognises is a model.

The code of a package is loaded because somebody installed it, which is a decision of theirs and no weaker one than to
allow a package to run what it carries. What goes wrong in one package is told by `problems` and stops no other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from napari_medai.core.errors import MedaiError, ModelError
from napari_medai.models.spec import Model, ModelSpec

GROUP = "napari_medai.models"


@dataclass(frozen=True)
class Offer:
    """What one entry point gave.

    Attributes
    ----------
    name : str
        ``"package: entry"``.
    models : tuple of Model
        Those that can be run.
    problems : tuple of str
        What could not be used, and why.
    """

    name: str
    models: tuple[Model, ...] = ()
    problems: tuple[str, ...] = ()


_KNOWN: dict[tuple[str, str, str], Offer] = {}


def offers() -> list[Offer]:
    """What every installed package offers, by its name; each entry point is loaded once."""
    found = []
    for point in sorted(entry_points(group=GROUP), key=_name):
        key = (_name(point), point.value, point.dist.version if point.dist else "")
        if key not in _KNOWN:
            _KNOWN[key] = _load(point)
        found.append(_KNOWN[key])
    return found


def find() -> list[Model]:
    """Every model that an installed package offers and that can be run."""
    return [model for offer in offers() for model in offer.models]


def problems() -> list[str]:
    """One line for each thing that an installed package offers and that cannot be used."""
    return [problem for offer in offers() for problem in offer.problems]


def forget() -> None:
    """Load the entry points again when they are next asked for."""
    _KNOWN.clear()


def _name(point: EntryPoint) -> str:
    return f"{point.dist.name if point.dist else '?'}: {point.name}"


def _load(point: EntryPoint) -> Offer:
    name = _name(point)
    try:
        given = point.load()
        given = given() if callable(given) else given
    except Exception as error:  # noqa: BLE001  code of others may raise anything; it is told, and stops no other
        return Offer(name, problems=(f"{name} cannot be loaded: {type(error).__name__}: {error}",))
    models, wrong = [], []
    try:
        for item in _items(given):
            try:
                models.append(_model(item, name))
            except MedaiError as error:
                wrong.append(f"{name}: {error}")
    except (MedaiError, OSError) as error:
        wrong.append(f"{name}: {error}")
    return Offer(name, tuple(models), tuple(wrong))


def _items(given: Any) -> Iterator[Any]:
    if isinstance(given, (str, os.PathLike)):
        folder = Path(given)
        if not folder.is_dir():
            raise ModelError(f"{folder.name!r} is no folder; an entry point names a folder of packages, or a function.")
        yield from (path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "_")))
    elif isinstance(given, (list, tuple)):
        yield from given
    else:
        raise ModelError(f"it gives a {type(given).__name__}; a list of Model or ModelSpec, or a folder, is expected.")


def _model(item: Any, name: str) -> Model:
    from napari_medai.models import load, probe
    from napari_medai.models.package import package_sha256
    from napari_medai.models.trust import find_grant

    if isinstance(item, Model):
        return item.model_copy(update={"source": name})
    if isinstance(item, Path):
        item = probe(item)
    if not isinstance(item, ModelSpec):
        raise ModelError(f"a {type(item).__name__} is no model; a Model or a ModelSpec is expected.")
    if item.path is None:
        raise ModelError(f"{item.id!r} has no path; give what napari_medai.models.probe gives of its package.")
    grant = find_grant(package_sha256(item.path)) if item.needs else None
    return load(item, grant).model_copy(update={"source": name})
