"""What belongs to a package that is added, and copying it."""

from __future__ import annotations

from pathlib import Path

from napari_medai.core.errors import ModelError
from napari_medai.core.stage import Part, Progress
from napari_medai.models.catalogue.download import copy
from napari_medai.models.catalogue.entry import Entry
from napari_medai.models.spec import ModelSpec


def is_unpacked(path: Path) -> bool:
    """Whether it lies in the cache of unpacked archives, from where it may be taken."""
    from napari_medai.models.archive import cache_folder

    return path.resolve().is_relative_to(cache_folder().resolve())


def own_files(place: Path, spec: ModelSpec, entry: Entry | None) -> frozenset[str] | None:
    """The files to take out of the folder around a package, by their paths in it; none to take it whole."""
    if entry is not None and len(entry.files) > 1:
        return frozenset(file.name for file in entry.files)
    if place.is_file() and spec.runner in ("onnx", "program") and place.name == spec.weights:
        # whatever else lies beside a file of weights is not its own
        return frozenset({place.name, "medai-model.yaml", "card.md", *spec.details.get("external", ())})
    return None


def copy_package(source: Path, target: Path, only: frozenset[str] | None, progress: Progress) -> None:
    """Copy a file, a folder, or some files of a folder.

    Raises
    ------
    ModelError
        It holds a link, which is not followed.
    OSError
        It cannot be read or written.
    """
    if source.is_file():
        copy(source, target, progress)
        return
    files = [f for f in sorted(source.rglob("*")) if f.is_symlink() or f.is_file()]
    if only is not None:
        files = [f for f in files if f.relative_to(source).as_posix() in only]
    if links := [f for f in files if f.is_symlink()]:
        raise ModelError(
            f"{source.name!r} holds a link, {links[0].name!r}; a package is added with its own files only."
        )
    total, done = sum(f.stat().st_size for f in files) or 1, 0
    target.mkdir()
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        size = file.stat().st_size
        copy(file, place, Part(progress, done / total, (done + size) / total))
        done += size
