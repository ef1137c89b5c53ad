"""MONAI bundles: a folder with ``configs/metadata.json``, ``configs/inference.json`` (or YAML) and weights.

Only what the network, the preprocessing, the inferer and the postprocessing reach is resolved, and only reviewed
classes with reviewed arguments are ever built. Everything else becomes a need that names its place. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from napari_medai.models.monai import files
from napari_medai.models.monai.describe import describe
from napari_medai.models.spec import ModelSpec

__all__ = ["probe", "recognise"]


def recognise(path: Path) -> bool:
    """Whether a folder is a MONAI bundle."""
    return path.is_dir() and (path / "configs" / "metadata.json").is_file() and files.configuration(path) is not None


def probe(path: Path) -> ModelSpec:
    """The description of a bundle; parses, executes nothing.

    Raises
    ------
    ModelError
        A file of it is missing, not well formed, or out of all proportion; the message says which.
    """
    return describe(path)
