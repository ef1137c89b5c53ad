"""The catalogue: models that can be had, with their hashes, and how they are brought here.

Reading it never contacts the network; `fetch` does, because the person asked for it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from napari_medai.core.errors import ModelError, ModelNotFoundError
from napari_medai.core.stage import Progress
from napari_medai.models.catalogue.entry import Catalogue, Entry, File

if TYPE_CHECKING:
    from napari_medai.models.store import Added

__all__ = ["Catalogue", "Entry", "File", "entries", "fetch", "find_entry", "hint", "known_files", "read"]

FILE = Path(__file__).with_name("catalogue.json")


def read(path: Path = FILE) -> Catalogue:
    """The catalogue in a file.

    Raises
    ------
    ModelError
        The file is missing or a field is wrong; the message names the field.
    """
    try:
        return Catalogue.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError(f"The catalogue {path.name} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ModelError(f"The catalogue {path.name} is not valid: {wrong}.") from error


@cache
def _shipped() -> Catalogue:
    return read()


def entries(stage: str = "") -> tuple[Entry, ...]:
    """Every model that can be had, in the catalogue's order.

    Parameters
    ----------
    stage : str, optional
        Only the models of this stage.
    """
    return tuple(entry for entry in _shipped().entries if not stage or entry.stage == stage)


def find_entry(id: str) -> Entry | None:
    """The entry with an id (``"monai:NAME"`` is ``"monai-NAME"``), or none."""
    wanted = id.replace(":", "-", 1).lower()
    return next((entry for entry in _shipped().entries if entry.id.lower() == wanted), None)


def known_files() -> dict[str, tuple[Entry, File]]:
    """Every file of which a hash is known: ``"sha256:…"`` -> its entry and itself."""
    known: dict[str, tuple[Entry, File]] = {}
    for entry in _shipped().entries:
        for file in entry.files:
            if file.known_hash:
                known.setdefault(file.known_hash, (entry, file))
    return known


def fetch(id: str, progress: Progress | None = None) -> Added:
    """Download a model of the catalogue and add it; resumes what an earlier attempt left.

    It comes from the mirror that ``MEDAI_MIRROR`` names (an address or a folder), else from its publisher. Every file
    is compared with its hash before it takes its name.

    Parameters
    ----------
    id : str
        An id of the catalogue.
    progress : Progress, optional
        Told of every chunk; it can cancel, which leaves what has arrived for the next time.

    Returns
    -------
    Added
        As `napari_medai.models.store.add` gives it; `napari_medai.models.find_models` finds the model from now on.

    Raises
    ------
    ModelNotFoundError
        The catalogue has no such entry.
    DownloadError
        It cannot be had: no address, no connection, other bytes than expected, no room. The message says what to do.
    Cancelled
        The person stopped it.
    """
    from napari_medai.models.catalogue.fetching import fetch_entry

    entry = find_entry(id)
    if entry is None:
        raise ModelNotFoundError(f"The catalogue has no {id!r}; see what it has: medai models list --available")
    return fetch_entry(entry, progress or Progress())


def hint(model: str) -> str:
    """What to do to have a model that was not found; empty if the catalogue has none of that name."""
    entry = find_entry(model) or next((e for e in _shipped().entries if e.model and e.model == model), None)
    if entry is None:
        return ""
    size = f"{readable(entry.size)}, " if entry.size else ""
    return f"{entry.title} ({size}{entry.licence}) is in the catalogue; to have it: {entry.add_command}"


def readable(size: int | None) -> str:
    """Bytes for people: ``"24 KB"``; ``"?"`` if not known."""
    if size is None:
        return "?"
    value = float(size)
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"
