"""Deep learning on medical and microscopy images, in napari and headless, in true patient geometry.

Research software, not a medical device.

>>> import napari_medai as medai
>>> ct = medai.open("study/CT")  # doctest: +SKIP
>>> mask = medai.segment(ct, "brain")  # doctest: +SKIP
>>> medai.save(mask, "brain.nii.gz")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# onnxruntime 1.29 and later keep an identifier of the machine and report to Microsoft, unless this is set before they
# are first imported, by whomever. Nothing here contacts the network unless a person asks for it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# name -> module that defines it; imported on first use (PEP 562), so that nothing heavy loads early
_LAZY = {
    "open": "napari_medai.io",
    "list_series": "napari_medai.io",
    "save": "napari_medai.io",
    "load_model": "napari_medai.models",
    "find_models": "napari_medai.models",
    "denoise": "napari_medai.api",
    "segment": "napari_medai.api",
    "classify": "napari_medai.api",
    "detect": "napari_medai.api",
    "explain": "napari_medai.api",
    "plan_stage": "napari_medai.api",
    "run_stage": "napari_medai.api",
    "sample": "napari_medai.samples",
    "Volume": "napari_medai.core.volume",
    "from_array": "napari_medai.core.volume",
    "labels": "napari_medai.core.volume",
    "reslice": "napari_medai.core.reslice",
    "Cancelled": "napari_medai.core.stage",
    "Progress": "napari_medai.core.stage",
    "MedaiError": "napari_medai.core.errors",
}

__all__ = sorted([*_LAZY, "__version__"])

if TYPE_CHECKING:
    from napari_medai.api import classify, denoise, detect, explain, plan_stage, run_stage, segment
    from napari_medai.core.errors import MedaiError
    from napari_medai.core.reslice import reslice
    from napari_medai.core.stage import Cancelled, Progress
    from napari_medai.core.volume import Volume, from_array, labels
    from napari_medai.io import list_series, open, save
    from napari_medai.models import find_models, load_model
    from napari_medai.samples import sample

    __version__: str


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("napari-medai")
        except PackageNotFoundError:  # run from a source tree that was never installed
            return "0"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
