"""Models whose weights (or none) are in the package: one folder each under ``builtin``."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from napari_medai.models.spec import Model, read_spec

FOLDER = Path(__file__).parent / "builtin"


@cache
def find() -> list[Model]:
    """Every model in the package, by name."""
    return [
        Model(spec=read_spec(path), folder=path.parent, source="builtin")
        for path in sorted(FOLDER.glob("*/model.json"))
    ]
