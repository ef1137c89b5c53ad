"""Network definitions, and the table that finds them by name without importing torch.

A new network is one file in this folder and one row in `NETWORKS`. MONAI's stand in `registry.REVIEWED`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from napari_medai.nets.registry import REVIEWED, check_arguments, check_value, make

if TYPE_CHECKING:
    import torch

NETWORKS: dict[str, str] = {
    "blob_centres": "napari_medai.nets.blobs:BlobCentres",
    "hdbet": "napari_medai.nets.hdbet:HDBetUNet",
    "meshnet": "napari_medai.nets.meshnet:MeshNet",
    "nuclei_unet": "napari_medai.nets.nuclei:NucleiUNet",
    "micronuclei_centres": "napari_medai.nets.micronuclei:MicronucleiCentres",
    "plain_conv_unet": "napari_medai.nets.plainconv:PlainConvUNet",
    "quality": "napari_medai.nets.quality:QualityNet",
    "residual_encoder_unet": "napari_medai.nets.plainconv:ResidualEncoderUNet",
}
"""Name in a model's specification -> ``"module:Class"``. Classes take plain JSON values as keywords."""

ARGUMENTS: dict[str, str] = {
    "blob_centres": "in_channels features",
    "hdbet": "",
    "meshnet": "layers activation normalise",
    "micronuclei_centres": "features",
    "nuclei_unet": "features",
    "plain_conv_unet": (
        "input_channels num_classes features_per_stage kernel_sizes strides n_conv_per_stage n_conv_per_stage_decoder "
        "bias norm norm_kwargs dropout dropout_kwargs nonlin nonlin_kwargs nonlin_first"
    ),
    "quality": "defects channels width hidden dropout",
    "residual_encoder_unet": (
        "input_channels num_classes features_per_stage kernel_sizes strides n_blocks_per_stage "
        "n_conv_per_stage_decoder bottleneck_channels stem_channels bias norm norm_kwargs "
        "dropout dropout_kwargs nonlin nonlin_kwargs"
    ),
}
"""Name -> what it may be told, so that a description can be checked without torch."""


def problems(name: str, arguments: Mapping[str, Any]) -> list[str]:
    """What is wrong with a network and its arguments as they stand in a description; imports no torch.

    Returns
    -------
    list of str
        Each begins with the field; empty if the network can be named so.
    """
    if name in NETWORKS:
        known = ARGUMENTS.get(name, "").split()
        wrong = [f"arguments.{key}: {name} takes {', '.join(known) or 'none'}" for key in arguments if key not in known]
        return wrong + [f"arguments.{key}: {what}" for key, value in arguments.items() for what in check_value(value)]
    if name in REVIEWED:
        return [f"arguments.{what}" for what in check_arguments(name, arguments)]
    return [f"network: {name!r} is not known; there are: {', '.join(sorted({*NETWORKS, *REVIEWED}))}"]


def build(name: str, **args: Any) -> torch.nn.Module:
    """Make an untrained network by its name.

    Parameters
    ----------
    name
        A key of `NETWORKS`, or of `registry.REVIEWED`.
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
    ModelError
        A network of MONAI cannot be made with these arguments.
    """
    if name in REVIEWED and name not in NETWORKS:
        return make(name, **args)
    if name not in NETWORKS:
        raise KeyError(f"no network {name!r}; known networks: {', '.join(sorted({*NETWORKS, *REVIEWED}))}")
    module, _, cls = NETWORKS[name].partition(":")
    return cast("torch.nn.Module", getattr(import_module(module), cls)(**args))


__all__ = ["ARGUMENTS", "NETWORKS", "build", "problems"]
