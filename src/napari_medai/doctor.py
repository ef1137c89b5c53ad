"""What this machine has and what is missing, for ``medai doctor`` and for reports of errors."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

PACKAGES = (
    *("napari-medai", "torch", "monai", "numpy", "pydicom", "nibabel", "scikit-image", "zarr", "dask"),
    *("napari", "npe2", "PyQt6", "deepbet", "distributed"),
)
# transfer syntax -> packages of which any one decodes it
CODECS = {
    "JPEG baseline and lossless": ("gdcm",),
    "JPEG-LS": ("gdcm",),
    "JPEG 2000": ("openjpeg", "gdcm"),
    "RLE": ("rle", "pydicom"),
}


def examine() -> dict[str, dict[str, Any]]:
    """Sections of the report: software, devices, codecs, viewer, samples and models.

    Returns
    -------
    dict of dict
        Section -> name -> finding; ready for JSON, without any path or identity.
    """
    software: dict[str, Any] = {"python": platform.python_version(), "system": f"{sys.platform} {platform.machine()}"}
    for package in PACKAGES:
        try:
            software[package] = version(package)
        except PackageNotFoundError:
            software[package] = "not installed"
    codecs = {
        syntax: ", ".join(p for p in packages if find_spec(p)) or 'missing: pip install "napari-medai[codecs]"'
        for syntax, packages in CODECS.items()
    }
    return {
        "software": software,
        "devices": _devices(),
        "codecs": codecs,
        "viewer": _viewer(),
        "samples": _samples(),
        "models": _models(),
    }


def _devices() -> dict[str, Any]:
    from napari_medai.engine.device import available_devices

    return {d.name: str(d) for d in available_devices()}


def _viewer() -> dict[str, Any]:
    if find_spec("napari") is None:
        return {"napari": 'not installed: pip install "napari-medai[all]"'}
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform in ("win32", "darwin")
    found: dict[str, Any] = {"screen": "yes" if screen else "none (use xvfb-run for a virtual one)"}
    if sys.platform.startswith("linux"):
        import ctypes.util

        for name in ("GL", "EGL", "xcb-cursor", "xkbcommon-x11"):
            found[f"lib{name}"] = "yes" if ctypes.util.find_library(name) else f"missing: apt-get install lib{name}"
    return found


def _samples() -> dict[str, Any]:
    from napari_medai.core.errors import SampleError
    from napari_medai.samples import SAMPLES, sample_path

    found = {}
    for name in SAMPLES:
        try:
            sample_path(name)
            found[name] = "in the cache"
        except SampleError:
            found[name] = "not in the cache: medai samples"
    return found


def _models() -> dict[str, Any]:
    from napari_medai.models import find_models

    return {m.id: f"{m.spec.stage}, from {m.source}" for m in find_models()}
