"""Network definitions, and the table that finds them by name without importing torch.

A new network is one file in this folder and one row in `NETWORKS`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch

NETWORKS: dict[str, str] = {
    "blob_centres": "napari_medai.nets.blobs:BlobCentres",
    "nuclei_unet": "napari_medai.nets.nuclei:NucleiUNet",
    "micronuclei_centres": "napari_medai.nets.micronuclei:MicronucleiCentres",
    "quality": "napari_medai.nets.quality:QualityNet",
}
"""Name in a model's specification -> ``"module:Class"``. Classes take plain JSON values as keywords."""


def build(name: str, **args: Any) -> torch.nn.Module:
    """Make an untrained network by its name.

    Parameters
    ----------
    name
        A key of `NETWORKS`.
    **args
        Keyword arguments of the class, as they stand in a model's specification.

    Returns
    -------
    torch.nn.Module
        The network with random weights, on the CPU, in training mode.

    Raises
    ------
    KeyError
        If no network has that name; the message lists those that exist.
    """
    if name not in NETWORKS:
        raise KeyError(f"no network {name!r}; known networks: {', '.join(sorted(NETWORKS))}")
    module, _, cls = NETWORKS[name].partition(":")
    return cast("torch.nn.Module", getattr(import_module(module), cls)(**args))


__all__ = ["NETWORKS", "build"]
