"""Models whose weights (or none) are in the package: one folder each under ``builtin``."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from napari_medai.models.manifest import NAME, read_manifest
from napari_medai.models.spec import Model

FOLDER = Path(__file__).parent / "builtin"


@cache
def find() -> list[Model]:
    """Every model in the package, by name."""
    return [
        Model(spec=read_manifest(path).model_copy(update={"source": "builtin"}), folder=path.parent, source="builtin")
        for path in sorted(FOLDER.glob(f"*/{NAME}"))
    ]
