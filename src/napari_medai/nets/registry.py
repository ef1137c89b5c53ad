"""Reviewed networks of MONAI: those that a package may name, and what it may say to each. Imports no torch.

Every row was read: what the class does with its arguments, and that none of those listed opens a file, asks the network
or imports a module named in it. An argument that does not stand in a row is refused, also one that a later MONAI adds.
A new network is one row in `_ROWS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from napari_medai.core.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ARGUMENTS", "OBSOLETE", "REVIEWED", "check_arguments", "check_value", "known", "make"]

_NETS = "monai.networks.nets."
_UNET = (
    "spatial_dims in_channels out_channels channels strides kernel_size up_kernel_size num_res_units act norm dropout "
    "bias"
)
_DENSE = "spatial_dims in_channels out_channels init_features growth_rate block_config bn_size act norm dropout_prob"
_RESNET = (
    "spatial_dims n_input_channels conv1_t_size conv1_t_stride no_max_pool shortcut_type widen_factor "
    "num_classes feed_forward bias_downsample act norm"
)
_SENET = "spatial_dims in_channels num_classes layers groups reduction dropout_prob dropout_dim inplanes"
_SEG = "spatial_dims init_filters in_channels out_channels act norm blocks_down blocks_up"

# module, names (the first is the class or function, the others are how else MONAI calls it), arguments
_ROWS: tuple[tuple[str, str, str], ...] = (
    (_NETS + "ahnet", "AHNet", "layers spatial_dims in_channels out_channels psp_block_num upsample_mode pretrained"),
    (_NETS + "attentionunet", "AttentionUnet", "spatial_dims in_channels out_channels channels strides kernel_size "
     "up_kernel_size dropout"),
    (_NETS + "autoencoder", "AutoEncoder", f"{_UNET} inter_channels inter_dilations num_inter_units padding"),
    (_NETS + "basic_unet", "BasicUNet BasicUnet Basicunet basicunet",
     "spatial_dims in_channels out_channels features act norm bias dropout upsample"),
    (_NETS + "basic_unetplusplus", "BasicUNetPlusPlus BasicUnetPlusPlus",
     "spatial_dims in_channels out_channels features deep_supervision act norm bias dropout upsample"),
    (_NETS + "classifier", "Classifier",
     "in_shape classes channels strides kernel_size num_res_units act norm dropout bias last_act"),
    (_NETS + "densenet", "DenseNet Densenet", _DENSE),
    *((_NETS + "densenet", f"DenseNet{n} Densenet{n} densenet{n}", f"{_DENSE} pretrained progress")
      for n in (121, 169, 201, 264)),
    (_NETS + "dynunet", "DynUNet DynUnet Dynunet",
     "spatial_dims in_channels out_channels kernel_size strides upsample_kernel_size filters dropout norm_name "
     "act_name deep_supervision deep_supr_num res_block trans_bias"),
    (_NETS + "efficientnet", "EfficientNetBN",
     "model_name spatial_dims in_channels num_classes norm adv_prop pretrained progress"),
    (_NETS + "flexible_unet", "FlexibleUNet FlexUNet",
     "in_channels out_channels backbone decoder_channels spatial_dims norm act dropout decoder_bias upsample pre_conv "
     "interp_mode is_pad pretrained"),
    (_NETS + "highresnet", "HighResNet",
     "spatial_dims in_channels out_channels norm_type acti_type dropout_prob bias layer_params channel_matching"),
    (_NETS + "hovernet", "HoVerNet Hovernet HoVernet HoverNet",
     "mode in_channels np_out_channels out_classes act norm decoder_padding dropout_prob adapt_standard_resnet "
     "freeze_encoder"),
    (_NETS + "mednext", "MedNeXt MedNext",
     "spatial_dims init_filters in_channels out_channels encoder_expansion_ratio decoder_expansion_ratio "
     "bottleneck_expansion_ratio kernel_size deep_supervision use_residual_connection blocks_down blocks_bottleneck "
     "blocks_up norm_type global_resp_norm"),
    (_NETS + "regressor", "Regressor",
     "in_shape out_shape channels strides kernel_size num_res_units act norm dropout bias"),
    *((_NETS + "resnet", f"resnet{n}", f"{_RESNET} pretrained progress") for n in (10, 18, 34, 50, 101, 152, 200)),
    (_NETS + "resnet", "ResNet", f"block layers block_inplanes {_RESNET}"),
    *((_NETS + "senet", f"{name} {name.replace('Net', 'Next') if 'X' in name else ''}", f"{_SENET} pretrained progress")
      for name in ("SENet154", "SEResNet50", "SEResNet101", "SEResNet152", "SEResNext50", "SEResNext101")),
    (_NETS + "segresnet", "SegResNet", f"{_SEG} dropout_prob norm_name num_groups use_conv_final upsample_mode"),
    (_NETS + "segresnet_ds", "SegResNetDS", f"{_SEG} dsdepth upsample_mode resolution"),
    (_NETS + "swin_unetr", "SwinUNETR",
     "in_channels out_channels patch_size depths num_heads window_size qkv_bias mlp_ratio feature_size norm_name "
     "drop_rate attn_drop_rate dropout_path_rate normalize patch_norm use_checkpoint spatial_dims downsample use_v2 "
     "use_flash_attention"),
    (_NETS + "unet", "UNet Unet", f"{_UNET} adn_ordering"),
    (_NETS + "unetr", "UNETR",
     "in_channels out_channels img_size feature_size hidden_size mlp_dim num_heads proj_type norm_name conv_block "
     "res_block dropout_rate spatial_dims qkv_bias save_attn"),
    (_NETS + "vit", "ViT",
     "in_channels img_size patch_size hidden_size mlp_dim num_layers num_heads proj_type pos_embed_type classification "
     "num_classes dropout_rate spatial_dims post_activation qkv_bias save_attn"),
    (_NETS + "vnet", "VNet",
     "spatial_dims in_channels out_channels act dropout_prob dropout_prob_down dropout_prob_up dropout_dim bias"),
)  # fmt: skip

REVIEWED: Mapping[str, str] = MappingProxyType(
    {name: f"{module}:{names.split()[0]}" for module, names, _ in _ROWS for name in names.split()}
)
"""Name of a network -> ``"module:name"``: a class, or a function that makes a network."""

ARGUMENTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {name: frozenset(arguments.split()) for _, names, arguments in _ROWS for name in names.split()}
)
"""Name of a network -> the arguments it may be given."""

OBSOLETE: Mapping[str, frozenset[str]] = MappingProxyType({"SwinUNETR": frozenset({"img_size"})})
"""Arguments of older versions of MONAI that only checked something and are left out today."""

_PUBLIC = {f"monai.networks.nets.{name}": name for name in REVIEWED}
_FULL = {f"{target.partition(':')[0]}.{name}": name for name, target in REVIEWED.items() if target.endswith(f":{name}")}
# what names layers, modes and backbones; no path, address or dotted name fits
_WORD = re.compile(r"[A-Za-z0-9_+ -]{0,64}")
_MOST_PROBLEMS = 3
_MOST_VALUES = 100_000
_LARGEST = 65536
_DEEPEST, _LONGEST = 6, 1024


def known(target: str) -> str:
    """The name in `REVIEWED` for a name as it stands in a package, bare or with its module; empty if there is none.

    Only whole names count: ``"UNet"``, ``"monai.networks.nets.UNet"``, ``"monai.networks.nets.unet.UNet"``.
    """
    if target in REVIEWED:
        return target
    return _PUBLIC.get(target) or _FULL.get(target) or ""


def check_arguments(name: str, arguments: Mapping[str, Any]) -> list[str]:
    """What is wrong with the arguments of a network; nothing is imported or made.

    Parameters
    ----------
    name : str
        A name that `known` finds.
    arguments : mapping of str to JSON values
        What the network is to be made with.

    Returns
    -------
    list of str
        One sentence part for each problem, beginning with the name of the argument; empty if there is none.
    """
    row = known(name)
    if not row:
        return [f"{name!r} is not in the list of reviewed networks"]
    problems = []
    for argument, value in arguments.items():
        if argument in OBSOLETE.get(row, ()):
            continue
        if argument not in ARGUMENTS[row]:
            problems.append(f"{argument}: is not among the reviewed arguments of {row}")
        elif argument == "pretrained" and value not in (False, None):
            problems.append("pretrained: weights from the internet or another file are not loaded")
        else:
            problems += [f"{argument}: {problem}" for problem in check_value(value)]
    return problems


def check_value(value: Any, depth: int = 0, largest: float | None = None) -> list[str]:
    """What is wrong with one plain value: only numbers, short words, and lists and mappings of them pass.

    Parameters
    ----------
    value
        As it stands in a package.
    depth : int
        How deeply it is nested already.
    largest : float, optional
        Largest absolute number. Default: what can be a number of channels or the like.
    """
    most = _LARGEST if largest is None else largest
    todo: list[tuple[Any, int]] = [(value, depth)]
    problems: list[str] = []
    count = 0
    while todo and len(problems) < _MOST_PROBLEMS:
        item, level = todo.pop()
        count += 1
        if count > _MOST_VALUES:  # lists that hold one another many times are short to write
            problems.append("has too many values")
            break
        if item is None or isinstance(item, bool):
            continue
        if isinstance(item, int | float):
            if not abs(item) <= most:
                problems.append(f"{item if abs(item) < 1e30 else 'a number'} is out of all proportion")
        elif isinstance(item, str):
            if not _WORD.fullmatch(item):
                problems.append("the text is no plain word")
        elif isinstance(item, Mapping) or (isinstance(item, Sequence) and not isinstance(item, bytes)):
            if level > _DEEPEST or len(item) > _LONGEST:
                problems.append("is nested too deeply or too long")
                continue
            parts = [*item, *item.values()] if isinstance(item, Mapping) else list(item)
            todo += [(part, level + 1) for part in reversed(parts)]
        else:
            problems.append(f"a value of type {type(item).__name__} is not plain")
    return problems


def make(name: str, **arguments: Any) -> nn.Module:
    """An untrained network by its name, on the CPU.

    Parameters
    ----------
    name : str
        A name that `known` finds.
    **arguments
        Plain values, as they stand in a package.

    Raises
    ------
    ModelError
        The name or an argument is not in the reviewed table, or the network cannot be made with these arguments.
    """
    problems = check_arguments(name, arguments)
    if problems:
        raise ModelError(f"The network {name!r} is not made: {'; '.join(problems)}.")
    row = known(name)
    given = {key: value for key, value in arguments.items() if key not in OBSOLETE.get(row, ())}
    if "pretrained" in ARGUMENTS[row]:
        given["pretrained"] = False  # the default of some is to download
    module, _, attribute = REVIEWED[row].partition(":")
    try:
        return cast("nn.Module", getattr(import_module(module), attribute)(**given))
    except (TypeError, ValueError, AssertionError, LookupError, ArithmeticError, RuntimeError) as error:
        raise ModelError(f"MONAI cannot make the network {row!r} with these arguments: {error}.") from error
