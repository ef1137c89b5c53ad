"""Where models come from: one door for every kind of package. `SOURCES` is the table.

A new source is one file here and one row. Nothing in this folder imports torch or executes a byte of a package:
`probe` parses, `load` decides whether it may be run, and the engine runs it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from napari_medai.core.errors import ModelError, ModelNotFoundError, UntrustedError
from napari_medai.models.package import package_sha256, unpacked
from napari_medai.models.spec import Model, ModelSpec
from napari_medai.models.trust import Grant, find_grant

__all__ = ["SOURCES", "Model", "ModelSpec", "describe", "find_models", "load", "load_model", "probe"]

# name -> module with any of
#   find() -> list[Model]             models that are here without being pointed at
#   recognise(path: Path) -> bool     whether a file or folder is a package of this source; looks at names and bytes
#   probe(path: Path) -> ModelSpec    its description; parses, executes nothing
#   describe(path: Path, **answers) -> ModelSpec   the same, with what the package does not say and a person does
#   named(id: str) -> Model | None    the model with an id, or an error that says why it cannot be used
#   hint(id: str) -> str              what to do to have a model that was not found; empty if it is none of this source
# Earlier rows win where two know one id, or recognise one package.
SOURCES: Mapping[str, str] = {
    "builtin": "napari_medai.models.builtins",
    "deepbet": "napari_medai.models.deepbet",
    "hdbet": "napari_medai.models.hdbet",
    "manifest": "napari_medai.models.manifest",
    "brainchop": "napari_medai.models.brainchop",
    "nnunet": "napari_medai.models.nnunet",
    "bioimageio": "napari_medai.models.bioimageio",
    "added": "napari_medai.models.store",
    "plugin": "napari_medai.models.plugins",
    "monai": "napari_medai.models.monai",
    "onnx": "napari_medai.models.onnx",
    "program": "napari_medai.models.programs",
    "catalogue": "napari_medai.models.catalogue",
}


def find_models(stage: str = "") -> list[Model]:
    """Every model that can be run now, in the order of the sources.

    Parameters
    ----------
    stage : str, optional
        Only the models of this stage.
    """
    found: dict[str, Model] = {}
    for module in _having("find"):
        for model in module.find():
            found.setdefault(model.id, model)
    return [m for m in found.values() if not stage or m.spec.stage == stage]


def probe(path: str | Path) -> ModelSpec:
    """Describe a package: a file, a folder or a ZIP archive. Parses it and executes nothing of it.

    Raises
    ------
    ModelError
        There is nothing, no source recognises it, or its description is wrong; the message says where.
    """
    place = Path(path)
    if not place.exists():
        raise ModelError(f"There is no model at {place.name!r}; pass a file, a folder or a ZIP archive.")
    return describe(place)


def describe(path: str | Path, **answers: Any) -> ModelSpec:
    """As `probe`, with what a package does not say itself: ``axes``, ``stage``, ``labels`` and the like.

    Raises
    ------
    ModelError
        As `probe`; or answers are given for a package that says everything itself.
    """
    place = unpacked(Path(path))
    for name, module in zip(SOURCES, _modules(), strict=True):
        if hasattr(module, "recognise") and module.recognise(place):
            if answers and not hasattr(module, "describe"):
                given = ", ".join(f"--{answer}" for answer in answers)
                raise ModelError(f"{place.name!r} says itself what it takes and gives; leave out {given}.")
            spec: ModelSpec = module.describe(place, **answers) if answers else module.probe(place)
            return spec.model_copy(update={"source": name, "path": spec.path or place})
    known = ", ".join(name for name, module in zip(SOURCES, _modules(), strict=True) if hasattr(module, "recognise"))
    raise ModelError(f"{place.name!r} is no model package that any source recognises; asked were: {known}.")


def load(spec: ModelSpec, grant: Grant | None = None) -> Model:
    """A model that the engine may run, from the description of a package.

    Parameters
    ----------
    spec : ModelSpec
        As `probe` gave it.
    grant : Grant, optional
        The owner's permission. It counts only for the bytes it was given for.

    Raises
    ------
    UntrustedError
        The package needs what nobody allowed; the message names each place and what it would need.
    ModelError
        No permission would help: what the package asks for is not known here.
    """
    if spec.path is None:
        raise ModelError(f"{spec.id!r} was not probed from a package; load it by its id: load_model({spec.id!r}).")
    if spec.needs and grant is not None and grant.sha256 != package_sha256(spec.path):
        raise UntrustedError(
            f"{spec.title!r} is not what was allowed: it was changed since, or the permission is another package's.",
            spec.needs,
        )
    return _load(spec, grant)


def _load(spec: ModelSpec, grant: Grant | None) -> Model:
    assert spec.path is not None
    folder = spec.path if spec.path.is_dir() else spec.path.parent
    if not spec.needs:
        return Model(spec=spec, folder=folder, source=spec.source)
    listing = "\n".join(f"  {need.where}: {need.why}" + _needs(need.capability) for need in spec.needs)
    if any(not need.capability for need in spec.needs):
        raise ModelError(f"{spec.title!r} cannot be run here:\n{listing}")
    missing = spec.capabilities - (grant.capabilities if grant else frozenset())
    if grant is None or missing:
        asked = " ".join(f"--allow {capability}" for capability in sorted(spec.capabilities))
        raise UntrustedError(
            f"{spec.title!r} carries what is not run unless you allow it:\n{listing}\n"
            f"If you trust who made it: medai models trust {spec.path.name} {asked}",
            spec.needs,
        )
    return Model(spec=spec, folder=folder, source=spec.source, grant=grant)


def load_model(model: str | Path | Model) -> Model:
    """The model with an id, or of a package; its weights are read when it first runs.

    Parameters
    ----------
    model : str, Path or Model
        An id such as ``"nuclei"``, or where a package is. Permissions that the owner of the machine gave are found.

    Raises
    ------
    ModelNotFoundError
        No source knows the id; the message lists those that can be had.
    ModelError, UntrustedError
        As `probe` and `load`.
    """
    if isinstance(model, Model):
        return model
    models = find_models()
    for module in _having("named"):
        if isinstance(model, str) and all(m.id != model for m in models) and (found := module.named(model)) is not None:
            return cast(Model, found)
    for candidate in models:
        if candidate.id == model:
            if not candidate.spec.needs:
                return candidate
            return candidate.model_copy(update={"grant": _allowed(candidate.spec).grant})
    if isinstance(model, Path) or Path(model).exists():
        return _allowed(probe(model))
    known = ", ".join(sorted(m.id for m in models))
    hints = [module.hint(model) for module in _having("hint")]
    advice = "".join(f" {hint}" for hint in hints if hint)
    raise ModelNotFoundError(f"No model is called {model!r}; there are: {known}.{advice}")


def _allowed(spec: ModelSpec) -> Model:
    """`load` with the permission that the owner of this account gave for the package's bytes, if there is one."""
    if not spec.needs or spec.path is None:
        return load(spec)
    return _load(spec, find_grant(package_sha256(spec.path)))


def _needs(capability: str) -> str:
    return f" (needs: {capability})" if capability else ""


def _modules() -> list[ModuleType]:
    return [importlib.import_module(module) for module in SOURCES.values()]


def _having(function: str) -> list[ModuleType]:
    return [module for module in _modules() if hasattr(module, function)]
