"""Run a model on a Volume: device, tiles, memory, weights, and the record of it.

`RUNNERS` is the table of the code that prepares a model's input and decodes its output. A new runner is one
file in this folder and one row. Importing this package leaves torch alone; its modules import it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from napari_medai.core.errors import ModelError

if TYPE_CHECKING:
    from napari_medai.models.spec import Model

# torch reads this once, when it first takes memory: large tensors in pages of 2 MiB, where Linux has them, cost a
# quarter of the time. Small pages are most of what an image through a network costs besides its convolutions.
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
os.environ.setdefault(LARGE_PAGES, "1")

__all__ = ["ANY_TYPE", "AT_ONCE", "LARGE_PAGES", "RUNNERS", "can_be_planned", "load_runner"]

# `ModelSpec.runner` -> "module:function" of `function(volume, run, params)`, imported on first use
RUNNERS: Mapping[str, str] = {
    "bioimageio": "napari_medai.engine.bioimageio:run_package",
    "blobs3d": "napari_medai.engine.volumes:detect_blobs",
    "brain": "napari_medai.engine.brain:segment_brain",
    "hdbet": "napari_medai.engine.hdbet:segment_brain",
    # what its owner allowed to run: any of the others, in a process of its own
    "isolated": "napari_medai.engine.isolated:run_isolated",
    "micronuclei": "napari_medai.engine.nuclei:detect_micronuclei",
    "monai": "napari_medai.engine.monai.run:run_bundle",
    "nnunet": "napari_medai.engine.nnunet.run:segment",
    "network": "napari_medai.engine.network:run_network",
    "nuclei": "napari_medai.engine.nuclei:segment_nuclei",
    "onnx": "napari_medai.engine.onnx:run_onnx",
    "program": "napari_medai.engine.programs:run_program",
    "quality": "napari_medai.engine.quality:classify_slices",
    "self": "napari_medai.engine.volumes:denoise_itself",
}

# Runners that read the pixels of a volume themselves, in any type and from wherever they are: nothing is copied first
ANY_TYPE = frozenset({"brain", "micronuclei", "network", "nnunet", "nuclei"})

# Runners without tiles: they learn on the image, or look at whole slices
AT_ONCE = frozenset({"quality", "self"})


def can_be_planned(stage: str, model: Model) -> bool:
    """Whether a run is one of tiles that this process cuts, so that what it takes is known after the first of them."""
    return stage != "explain" and model.grant is None and model.spec.runner not in AT_ONCE


def load_runner(name: str) -> Callable[..., Any]:
    """Import the runner with a name.

    Returns
    -------
    callable
        ``runner(volume, run, params)``; what it gives depends on the stage.

    Raises
    ------
    ModelError
        No runner has the name; the message lists those that exist.
    """
    if name not in RUNNERS:
        raise ModelError(f"The model asks for the runner {name!r}; there are: {', '.join(sorted(RUNNERS))}.")
    module, _, function = RUNNERS[name].partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found
