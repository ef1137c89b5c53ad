"""Whether a model is what it says and runs here: its bytes, its description, its own test data, one small image.

What `check` finds is kept beside the added models, so that an entry of the catalogue that was never run where the
catalogue was made becomes verified on this machine.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_medai.api import run_stage
from napari_medai.core.errors import MedaiError, ModelNotFoundError
from napari_medai.core.result import Boxes, Mask, Result, Scores
from napari_medai.core.stage import Part, Progress
from napari_medai.core.volume import Volume
from napari_medai.models import find_models, load, load_model, probe, store
from napari_medai.models.catalogue import Entry, File, entries, find_entry
from napari_medai.models.catalogue.matching import matches
from napari_medai.models.package import package_sha256
from napari_medai.models.records import Checked, Finding, keep
from napari_medai.models.spec import Accepts, Model, ModelSpec
from napari_medai.models.trust import find_grant

# source -> "module:function" of `function(model) -> list[str]`, imported on first use: runs what a package carries to
# test itself with, says what was compared, one line each, and raises `ModelError` if it differs
TESTS: Mapping[str, str] = {"bioimageio": "napari_medai.engine.bioimageio_tests:check_tests"}

# Voxels along each axis of the small image, between which a model's own tile decides
_SMALLEST, _LARGEST = 32, 128
# What libraries raise on weights or images that do not fit; a check tells it instead of ending
_LIBRARY_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, ArithmeticError)


@dataclass(frozen=True)
class _Subject:
    """What is checked: as it is found, whether it can be run or not."""

    id: str
    spec: ModelSpec
    package: Path | None
    sha256: str
    entry: Entry | None
    model: Model | None
    problem: str


def check(model: str | Path, progress: Progress | None = None) -> Checked:
    """Check a model that is here: hashes, description, weights, its own test data, and one small image.

    Nothing contacts the network, and nothing is run that its owner did not allow.

    Parameters
    ----------
    model : str or Path
        An id (of an added model, or any other that can be run), or where a package is.
    progress : Progress, optional
        Told of each step; can cancel.

    Returns
    -------
    Checked
        What was found; kept on this machine.

    Raises
    ------
    ModelNotFoundError
        There is no such model here; the message says how to have it.
    Cancelled
        The person stopped it.
    """
    progress = progress or Progress()
    started = time.perf_counter()
    subject = _subject(model)
    findings = _bytes(subject)
    progress.update(0.1, 1.0, "its files were compared")
    findings.append(_description(subject))
    if subject.model is not None:
        progress.update(0.2, 1.0, "is run")
        findings += _tests(subject.model)
        progress.check()
        findings.append(_runs(subject.model, Part(progress, 0.3, 1.0)))
    result = Checked(
        id=subject.id,
        ok=all(finding.ok for finding in findings),
        findings=tuple(findings),
        sha256=subject.sha256,
        entry=subject.entry.id if subject.entry else "",
        seconds=round(time.perf_counter() - started, 2),
    )
    return keep(result)


def _subject(model: str | Path) -> _Subject:
    """What was meant by an id or a path."""
    name = str(model)
    item = store.added(name)
    if item is not None and item.spec is not None:
        return _Subject(item.id, item.spec, item.package, item.sha256, item.entry, item.model, item.problem)
    if item is not None:
        raise ModelNotFoundError(item.problem)
    entry = find_entry(name) or next((e for e in entries() if e.model and e.model == name), None)
    wanted = entry.model if entry is not None and entry.install else name
    for found in find_models():
        if found.id == wanted:
            package = found.spec.path
            sha256 = package_sha256(package) if package is not None else found.spec.sha256
            return _Subject(found.id, found.spec, package, sha256, entry, found, "")
    place = Path(model)
    if entry is not None or not place.exists():
        raise ModelNotFoundError(_absent(name))
    spec = probe(place)
    sha256 = package_sha256(spec.path or place)
    try:
        loaded, problem = load(spec, find_grant(sha256) if spec.needs else None), ""
    except MedaiError as error:
        loaded, problem = None, str(error)
    return _Subject(place.name, spec, spec.path or place, sha256, None, loaded, problem)


def _absent(name: str) -> str:
    try:
        load_model(name)
    except ModelNotFoundError as error:
        return str(error)
    return f"No model is called {name!r}."


def _bytes(subject: _Subject) -> list[Finding]:
    """The files against what was added, and against what the catalogue says."""
    findings = []
    if subject.package is not None:
        found = package_sha256(subject.package)
        same = found == subject.sha256
        said = f"sha256 {found}" if same else f"the package was changed since it was added, from {subject.sha256}"
        findings.append(Finding("files", same, said))
    entry = subject.entry
    if entry is not None and len(entry.files) > 1 and subject.package is not None:
        wrong = [f.name for f in entry.files if not _is(subject.package / f.name, f)]
        said = f"differ from the catalogue: {', '.join(wrong)}" if wrong else f"{len(entry.files)} files as published"
        findings.append(Finding("published hashes", not wrong, said))
    elif entry is not None and entry.files:
        known = entry.files[0].known_hash.partition(":")[0]
        said = f"the archive had the {known} that its publisher gives" if known else "its publisher gives none"
        findings.append(Finding("published hashes", True, said))
    return findings


def _is(path: Path, file: File) -> bool:
    return path.is_file() and matches(path, file)


def _description(subject: _Subject) -> Finding:
    if subject.model is None:
        return Finding("description", False, subject.problem)
    if subject.model.grant is not None:
        return Finding("description", True, f"allowed: {', '.join(sorted(subject.model.grant.capabilities))}")
    return Finding("description", True, f"read as {subject.spec.safety}; nothing in it is executed")


def _tests(model: Model) -> list[Finding]:
    """What the package carries to test itself with, if its source knows how."""
    if model.spec.source not in TESTS:
        return []
    module, _, name = TESTS[model.spec.source].partition(":")
    function: Callable[[Model], list[str]] = getattr(importlib.import_module(module), name)
    try:
        return [Finding("test data", True, line) for line in function(model)]
    except (MedaiError, *_LIBRARY_ERRORS) as error:
        return [Finding("test data", False, f"{_kind(error)}{error}")]


def _runs(model: Model, progress: Progress) -> Finding:
    """One small image through the whole stage, on the CPU or an accelerator as any run."""
    image = small_image(model.spec)
    size = " x ".join(map(str, image.shape))
    try:
        result = run_stage(model.spec.stage, image, model, progress=progress)
    except (MedaiError, *_LIBRARY_ERRORS) as error:
        if type(error).__name__ == "Cancelled":
            raise
        return Finding("small image", False, f"{size}: {_kind(error)}{error}")
    return Finding("small image", True, f"{size}: {_outcome(result)}")


def _kind(error: BaseException) -> str:
    return "" if isinstance(error, MedaiError) else f"{type(error).__name__}: "


def _outcome(result: Result) -> str:
    if isinstance(result, Boxes):
        return f"{len(result)} objects"
    if isinstance(result, Scores):
        best = int(np.argmax(result.probabilities))
        return f"{len(result.classes)} classes, {result.classes[best]!r} first"
    if isinstance(result, Mask):
        return f"{len(result.table.get('label', ()))} labels"
    return "an image of the same shape"


def small_image(spec: ModelSpec) -> Volume:
    """A small image that a model accepts: noise and a bright ellipsoid, with the spacing and values that it expects."""
    accepts = spec.accepts
    ndim = max(accepts.ndim)
    spacing = _spacing(spec, ndim)
    sizes = [_size(spec, axis, spacing[axis], ndim) for axis in range(3)][3 - ndim :]
    low, high = accepts.intensity or (0.0, 1000.0)
    grid = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in sizes), indexing="ij")
    inside = sum(axis**2 for axis in grid) < 1
    noise = np.random.default_rng(0).uniform(0.0, 0.2, (accepts.channels, *sizes))
    pixels = (low + (high - low) * (noise + 0.6 * inside)).astype(np.float32)
    axes = "zyx"[3 - ndim :]
    array, axes = (pixels, f"c{axes}") if accepts.channels > 1 else (pixels[0], axes)
    if accepts.rgb and accepts.channels == 3:
        array, axes = np.moveaxis(pixels, 0, -1), f"{axes[1:]}s"
    modality = accepts.modality[0] if accepts.modality else ""
    units = "mm" if ndim == 3 or accepts.spacing_mm else "um"
    return Volume(array, axes, np.diag([*spacing, 1.0]), units, modality, "check")


def _spacing(spec: ModelSpec, ndim: int) -> tuple[float, ...]:
    if spec.accepts.spacing_mm is not None:
        return tuple(float(np.sqrt(max(low, 1e-3) * high)) for low, high in spec.accepts.spacing_mm)
    return spec.prepare.spacing_mm or (1.0, 1.0, 1.0)


def _size(spec: ModelSpec, axis: int, spacing_mm: float, ndim: int) -> int:
    """Voxels along an axis (z, y, x): the model's tile within bounds, and a field of view that it accepts."""
    accepts: Accepts = spec.accepts
    tile = spec.tiling.size[axis - 3] if len(spec.tiling.size) >= 3 - axis else 64
    size = int(np.clip(tile or 64, max(_SMALLEST, accepts.min_size), max(_LARGEST, accepts.min_size)))
    if accepts.field_of_view_mm is not None:
        low, high = accepts.field_of_view_mm[axis]
        size = int(np.clip(size, np.ceil(low / spacing_mm), max(np.floor(high / spacing_mm), 1)))
    return size
