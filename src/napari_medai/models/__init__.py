"""Where models come from. `SOURCES` is the table; a new source is one file here and one row."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from napari_medai.core.errors import ModelNotFoundError
from napari_medai.models.spec import Model, ModelSpec

__all__ = ["SOURCES", "Model", "ModelSpec", "find_models", "load_model"]

# name -> module with `find() -> list[Model]`, and if something has to be installed first `hint(id) -> str`;
# earlier rows win where two sources know one id
SOURCES: Mapping[str, str] = {
    "builtin": "napari_medai.models.builtins",
    "deepbet": "napari_medai.models.deepbet",
}


def find_models(stage: str = "") -> list[Model]:
    """Every model that can be run now, in the order of the sources.

    Parameters
    ----------
    stage : str, optional
        Only the models of this stage.
    """
    found: dict[str, Model] = {}
    for module in SOURCES.values():
        for model in importlib.import_module(module).find():
            found.setdefault(model.id, model)
    return [m for m in found.values() if not stage or m.spec.stage == stage]


def load_model(model: str | Model) -> Model:
    """The model with an id; its weights are read when it first runs.

    Raises
    ------
    ModelNotFoundError
        No source knows the id; the message lists those that can be had.
    """
    if isinstance(model, Model):
        return model
    models = find_models()
    for candidate in models:
        if candidate.id == model:
            return candidate
    known = ", ".join(sorted(m.id for m in models))
    hints = [getattr(importlib.import_module(module), "hint", lambda _: "")(model) for module in SOURCES.values()]
    advice = "".join(f" {hint}" for hint in hints if hint)
    raise ModelNotFoundError(f"No model is called {model!r}; there are: {known}.{advice}")
