"""The models that can be run."""

from __future__ import annotations

from rich.table import Table as RichTable

from napari_medai.cli.options import Json
from napari_medai.terminal import console, print_json


def models_list(as_json: Json = False) -> None:
    """List the models that can be run now."""
    from napari_medai.models import find_models

    found = find_models()
    if as_json:
        print_json([m.spec.model_dump(mode="json") | {"source": m.source} for m in found])
        return
    table = RichTable("id", "stage", "for", "summary", "licence", "source")
    for m in found:
        space = " or ".join(f"{n}-D" for n in m.spec.accepts.ndim)
        table.add_row(
            m.id,
            m.spec.stage,
            f"{space} {', '.join(m.spec.accepts.modality)}".strip(),
            m.spec.summary,
            m.spec.licence,
            m.source,
        )
    console().print(table)


def models_show(model: str, as_json: Json = False) -> None:
    """Show a model's card."""
    from napari_medai.models import load_model

    found = load_model(model)
    if as_json:
        print_json(found.spec.model_dump(mode="json") | {"source": found.source, "card": found.card})
    else:
        print(found.card)
