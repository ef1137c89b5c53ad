"""nnU-Net's ``plans.json`` read as data: what is known is taken over, the rest becomes a `Need`. Nothing is imported.

nnU-Net itself imports by name whatever stands there as network, argument, normalisation, resampling, reader or
preprocessor. Here each name is looked up in a table of this file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from napari_medai.core.errors import ModelError
from napari_medai.models.nnunet_stage import Channel, Resampling, StagePlan
from napari_medai.models.spec import Need

_NETWORKS = {
    "dynamic_network_architectures.architectures.unet.PlainConvUNet": "PlainConvUNet",
    "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet": "ResidualEncoderUNet",
    "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet": "ResidualEncoderUNet",
}
_CONVOLUTIONS = {f"torch.nn.{module}Conv{n}d": n for n in (2, 3) for module in ("", "modules.conv.")}


def _layers(module: str, *names: str) -> dict[str, str]:
    return {f"torch.nn.{where}{name}": name for name in names for where in ("", f"modules.{module}.")}


# Argument -> dotted name -> bare name in `napari_medai.nets.plainconv.LAYERS`
_LAYERS: Mapping[str, Mapping[str, str]] = {
    "norm_op": _layers("instancenorm", "InstanceNorm2d", "InstanceNorm3d")
    | _layers("batchnorm", "BatchNorm2d", "BatchNorm3d"),
    "dropout_op": _layers("dropout", "Dropout", "Dropout2d", "Dropout3d"),
    "nonlin": _layers("activation", "LeakyReLU", "ReLU", "ELU", "GELU", "SiLU"),
}
_LAYER_KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "norm_op": ("eps", "affine", "momentum", "track_running_stats"),
    "dropout_op": ("p", "inplace"),
    "nonlin": ("negative_slope", "inplace", "alpha", "approximate"),
}
_BLOCKS = {
    "dynamic_network_architectures.building_blocks.residual.BasicBlockD": False,
    "dynamic_network_architectures.building_blocks.residual.BottleneckD": True,
}
_IMPORTED = ("conv_op", "norm_op", "dropout_op", "nonlin", "block")
_ARGUMENTS = (
    "n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "n_conv_per_stage_decoder", "conv_bias",
    "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs", "nonlin", "nonlin_kwargs", "deep_supervision",
)  # fmt: skip
_OWN_ARGUMENTS = {
    "PlainConvUNet": ("n_conv_per_stage", "nonlin_first"),
    "ResidualEncoderUNet": ("n_blocks_per_stage", "block", "bottleneck_channels", "stem_channels"),
}
_SCHEMES = (
    "CTNormalization", "ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization",
)  # fmt: skip
_RESAMPLERS = {
    "resample_data_or_seg_to_shape": "spline",
    "resample_torch_fornnunet": "torch",
    "no_resampling_hack": "none",
}
_RESAMPLER_KEYWORDS = (
    "is_seg", "order", "order_z", "force_separate_z", "separate_z_anisotropy_threshold", "mode", "aniso_axis_mode",
    "memefficient_seg_resampling", "num_threads",
)  # fmt: skip
READERS = (
    "SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient", "NaturalImage2DIO", "Tiff3DIO",
)  # fmt: skip
# No real plan comes near these; beyond them a file only means to exhaust the memory
_MOST_STAGES, _MOST_CHANNELS, _MOST_CONVOLUTIONS, _LARGEST_KERNEL, _LARGEST_PATCH = 16, 8192, 64, 31, 2**28


class PlansReader:
    """Reads one configuration of a ``plans.json`` and gathers what is not known here.

    Parameters
    ----------
    plans : mapping
        The parsed file.
    where : str
        The file's path in the package, for messages.

    Attributes
    ----------
    needs : list of Need
        What was found and cannot be run.
    """

    def __init__(self, plans: Mapping[str, Any], where: str) -> None:
        self.plans, self.where = plans, where
        self.needs: list[Need] = []

    def stage(self, name: str, channels: int, **fields: Any) -> StagePlan | None:
        """The configuration ``name`` for images of so many channels; None if `needs` tell why not.

        Raises
        ------
        ModelError
            Something is missing or of the wrong type; the message names it.
        """
        first = len(self.needs)
        plan, path = self.resolved(name), ("configurations", name)
        self._known(plan, path, "preprocessor_name", ("DefaultPreprocessor",), default="DefaultPreprocessor")
        self._known(self.plans, (), "label_manager", ("LabelManager",), default="LabelManager")
        reader = self._known(self.plans, (), "image_reader_writer", READERS, default="SimpleITKIO")
        patch = self._numbers(plan, path, "patch_size", int, (2, 3), 1, 2**16)
        if math.prod(patch) > _LARGEST_PATCH:
            raise self._wrong((*path, "patch_size"), f"a patch of {math.prod(patch)} voxels")
        spacing = self._numbers(plan, path, "spacing", float, (len(patch),), 1e-6, 1e6)
        forward, backward = self._order("transpose_forward"), self._order("transpose_backward")
        if any(forward[backward[n]] != n for n in range(3)):
            raise self._wrong(("transpose_backward",), f"{backward}, which does not undo {forward}")
        network, arguments = self._network(plan, path, len(patch))
        fields |= {
            "channels": self._channels(plan, path, channels),
            "data": self._resampling(plan, path, "resampling_fn_data"),
            "probabilities": self._resampling(plan, path, "resampling_fn_probabilities"),
            "labels": self._resampling(plan, path, "resampling_fn_seg"),
        }
        if len(self.needs) > first:
            return None
        return StagePlan(
            configuration=name,
            patch=tuple(patch),
            spacing=tuple(spacing),
            forward=forward,
            backward=backward,
            network=network,
            arguments=arguments,
            previous=self.previous(name),
            reader=reader,
            **fields,
        )

    def resolved(self, name: str) -> dict[str, Any]:
        """A configuration with what it inherits from others."""
        known = self.plans.get("configurations")
        if not isinstance(known, dict):
            raise self._wrong(("configurations",), "nothing", "an object")
        chain: list[dict[str, Any]] = []
        seen: list[str] = []
        while name:
            if name in seen:
                raise self._wrong(("configurations", name, "inherits_from"), "a circle", "one that ends")
            seen.append(name)
            found = known.get(name)
            if not isinstance(found, dict):
                raise ModelError(
                    f"{self.where} has no configuration {name!r}; there are: {', '.join(map(str, known)) or 'none'}."
                )
            chain.append(found)
            name = found.get("inherits_from") or ""
            if not isinstance(name, str):
                raise self._wrong(("configurations", seen[-1], "inherits_from"), type(name).__name__, "a name")
        merged: dict[str, Any] = {}
        for part in reversed(chain):
            merged |= part
        return merged

    def previous(self, name: str) -> str:
        """The configuration that must run before; empty if none."""
        found = self.resolved(name).get("previous_stage") or ""
        if not isinstance(found, str):
            raise self._wrong(("configurations", name, "previous_stage"), type(found).__name__, "a name")
        return found

    def _network(self, plan: dict[str, Any], path: tuple[str, ...], ndim: int) -> tuple[str, dict[str, Any]]:
        if "architecture" not in plan:
            return self._old_network(plan, path, ndim)
        path = (*path, "architecture")
        architecture = plan["architecture"]
        if not isinstance(architecture, dict):
            raise self._wrong(path, type(architecture).__name__, "an object")
        kind = _NETWORKS.get(self._text(architecture, path, "network_class_name"), "")
        if not kind:
            self._need((*path, "network_class_name"), architecture["network_class_name"], tuple(_NETWORKS))
        for entry in _list(architecture.get("_kw_requires_import", [])):
            if entry not in _IMPORTED:
                self._need((*path, "_kw_requires_import"), entry, _IMPORTED)
        given = architecture.get("arch_kwargs")
        if not isinstance(given, dict):
            raise self._wrong((*path, "arch_kwargs"), type(given).__name__, "an object")
        return self._arguments(kind, given, (*path, "arch_kwargs"), ndim)

    def _arguments(
        self, kind: str, given: dict[str, Any], path: tuple[str, ...], ndim: int
    ) -> tuple[str, dict[str, Any]]:
        known = (*_ARGUMENTS, *_OWN_ARGUMENTS.get(kind, ()))
        for name in given:
            if kind and name not in known:
                self._need((*path, str(name)), given[name], known, "argument")
        if _CONVOLUTIONS.get(str(given.get("conv_op"))) != ndim:
            wanted = tuple(name for name, n in _CONVOLUTIONS.items() if n == ndim)
            self._need((*path, "conv_op"), given.get("conv_op"), wanted)
        arguments: dict[str, Any] = {"bias": bool(given.get("conv_bias", False))}
        for name, field in (("norm_op", "norm"), ("dropout_op", "dropout"), ("nonlin", "nonlin")):
            arguments |= self._layer(given, path, name, field, ndim)
        if not kind:  # its further arguments are unknown too
            return "", {}
        stages = self._numbers(given, path, "n_stages", int, None, 1, _MOST_STAGES)[0]

        def each(name: str, count: int, high: int) -> list[int]:
            values = self._numbers(given, path, name, int, None, 1, high)
            values = values * count if not isinstance(given[name], list) else values
            if len(values) != count:
                raise self._wrong((*path, name), f"{len(values)} numbers", f"{count}")
            return values

        arguments["features_per_stage"] = each("features_per_stage", stages, _MOST_CHANNELS)
        arguments["kernel_sizes"] = self._sizes(given, path, "kernel_sizes", stages, ndim)
        arguments["strides"] = self._sizes(given, path, "strides", stages, ndim)
        arguments["n_conv_per_stage_decoder"] = each("n_conv_per_stage_decoder", stages - 1, _MOST_CONVOLUTIONS)
        if kind == "PlainConvUNet":
            arguments["n_conv_per_stage"] = each("n_conv_per_stage", stages, _MOST_CONVOLUTIONS)
            arguments["nonlin_first"] = bool(given.get("nonlin_first", False))
            return "plain_conv_unet", arguments
        arguments["n_blocks_per_stage"] = each("n_blocks_per_stage", stages, _MOST_CONVOLUTIONS)
        block = given.get("block")
        if block is not None and (not isinstance(block, str) or block not in _BLOCKS):
            self._need((*path, "block"), block, tuple(_BLOCKS))
        elif block is not None and _BLOCKS[block]:
            arguments["bottleneck_channels"] = each("bottleneck_channels", stages, _MOST_CHANNELS)
        if given.get("stem_channels") is not None:
            arguments["stem_channels"] = self._numbers(given, path, "stem_channels", int, None, 1, _MOST_CHANNELS)[0]
        return "residual_encoder_unet", arguments

    def _layer(self, given: dict[str, Any], path: tuple[str, ...], name: str, field: str, ndim: int) -> dict[str, Any]:
        """The bare name of one kind of layer and its checked keywords."""
        wanted, keywords = given.get(name), given.get(f"{name}_kwargs") or {}
        if wanted is None:
            return {}
        bare = _LAYERS[name].get(wanted) if isinstance(wanted, str) else None
        if bare is None or bare.endswith(f"{5 - ndim}d"):
            self._need((*path, name), wanted, tuple(n for n in _LAYERS[name] if not n.endswith(f"{5 - ndim}d")))
            return {}
        if not isinstance(keywords, dict):
            raise self._wrong((*path, f"{name}_kwargs"), type(keywords).__name__, "an object")
        for keyword, value in keywords.items():
            plain = isinstance(value, bool | int | float) or value is None or value in ("none", "tanh")
            if keyword not in _LAYER_KEYWORDS[name] or not plain:
                self._need((*path, f"{name}_kwargs", str(keyword)), value, _LAYER_KEYWORDS[name], "argument")
        return {field: bare, f"{field}_kwargs": dict(keywords)}

    def _old_network(self, plan: dict[str, Any], path: tuple[str, ...], ndim: int) -> tuple[str, dict[str, Any]]:
        """Plans of nnU-Net 2.0 to 2.3: numbers beside a bare name, the rest of the network by convention."""
        kind = self._text(plan, path, "UNet_class_name")
        if kind not in _OWN_ARGUMENTS:
            self._need((*path, "UNet_class_name"), kind, tuple(_OWN_ARGUMENTS))
            return "", {}
        counts = _list(plan.get("n_conv_per_stage_encoder", []))
        width = self._numbers(plan, path, "UNet_base_num_features", int, None, 1, _MOST_CHANNELS)[0]
        most = self._numbers(plan, path, "unet_max_num_features", int, None, 1, _MOST_CHANNELS)[0]
        given = {
            "n_stages": len(counts),
            "features_per_stage": [min(width * 2**n, most) for n in range(min(len(counts), _MOST_STAGES))],
            "conv_op": f"torch.nn.Conv{ndim}d",
            "kernel_sizes": plan.get("conv_kernel_sizes"),
            "strides": plan.get("pool_op_kernel_sizes"),
            "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage": counts,
            "n_conv_per_stage_decoder": plan.get("n_conv_per_stage_decoder"),
            "conv_bias": True,
            "norm_op": f"torch.nn.InstanceNorm{ndim}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
        return self._arguments(kind, given, path, ndim)

    def _channels(self, plan: dict[str, Any], path: tuple[str, ...], count: int) -> tuple[Channel, ...]:
        schemes = _list(plan.get("normalization_schemes", []))
        masked = _list(plan.get("use_mask_for_norm", []))
        if len(schemes) != count or len(masked) != count:
            there = f"{len(schemes)} schemes and {len(masked)} masks"
            raise self._wrong((*path, "normalization_schemes"), there, f"{count} of each, one for each channel")
        key = "foreground_intensity_properties_per_channel"
        if key not in self.plans and "foreground_intensity_properties_by_modality" in self.plans:
            key = "foreground_intensity_properties_by_modality"
        measured = self.plans.get(key)
        found: list[Channel] = []
        for n, (scheme, mask) in enumerate(zip(schemes, masked, strict=True)):
            if scheme not in _SCHEMES:
                self._need((*path, "normalization_schemes", str(n)), scheme, _SCHEMES)
                continue
            fields: dict[str, Any] = {}
            if scheme == "CTNormalization":
                own = measured.get(str(n)) if isinstance(measured, dict) else None
                if not isinstance(own, dict):
                    raise self._wrong((key, str(n)), "nothing", "an object")
                names = {"mean": "mean", "std": "std", "low": "percentile_00_5", "high": "percentile_99_5"}
                for field, name in names.items():
                    fields[field] = self._numbers(own, (key, str(n)), name, float, None, -1e12, 1e12)[0]
            found.append(Channel(scheme=scheme, masked=bool(mask), **fields))
        return tuple(found)

    def _resampling(self, plan: dict[str, Any], path: tuple[str, ...], name: str) -> Resampling:
        method = self._known(plan, path, name, tuple(_RESAMPLERS), default="resample_data_or_seg_to_shape")
        keywords = plan.get(f"{name}_kwargs") or {}
        if not isinstance(keywords, dict):
            raise self._wrong((*path, f"{name}_kwargs"), type(keywords).__name__, "an object")
        for keyword, value in keywords.items():
            plain = isinstance(value, bool | int | float | str) or value is None
            if keyword not in _RESAMPLER_KEYWORDS or not plain:
                self._need((*path, f"{name}_kwargs", str(keyword)), value, _RESAMPLER_KEYWORDS, "argument")
        # nnU-Net's default of force_separate_z is False for splines, and "where anisotropic" for torch
        automatic = None if _RESAMPLERS.get(method) == "torch" else False
        fields = {
            "method": _RESAMPLERS.get(method, "none"),
            "labels": bool(keywords.get("is_seg", False)),
            "order": keywords.get("order", 3),
            "order_z": keywords.get("order_z", 0),
            "separate_z": keywords.get("force_separate_z", automatic),
            "threshold": keywords.get("separate_z_anisotropy_threshold", 3.0),
            "across": keywords.get("aniso_axis_mode", "nearest-exact"),
            "in_plane": keywords.get("mode", "linear"),
            "lean": bool(keywords.get("memefficient_seg_resampling", False)),
        }
        try:
            return Resampling.model_validate(fields)
        except ValueError as error:
            raise self._wrong((*path, f"{name}_kwargs"), str(keywords)[:200], "known values") from error

    def _known(
        self, values: Mapping[str, Any], path: tuple[str, ...], name: str, known: Sequence[str], default: str
    ) -> str:
        found = values.get(name, default)
        if found in known and isinstance(found, str):
            return found
        self._need((*path, name), found, known)
        return default

    def _order(self, name: str) -> tuple[int, int, int]:
        found = self._numbers(self.plans, (), name, int, (3,), 0, 2)
        if sorted(found) != [0, 1, 2]:
            raise self._wrong((name,), str(found), "0, 1 and 2 in some order")
        return (found[0], found[1], found[2])

    def _sizes(
        self, given: dict[str, Any], path: tuple[str, ...], name: str, stages: int, ndim: int
    ) -> list[list[int]]:
        """One size along each axis for each stage, from numbers or lists."""
        rows = given.get(name)
        rows = [rows] * stages if isinstance(rows, int) else rows
        if not isinstance(rows, list) or len(rows) != stages:
            raise self._wrong((*path, name), type(rows).__name__, f"a list of {stages}")
        expanded = [[row] * ndim if isinstance(row, int) else row for row in rows]
        for n, row in enumerate(expanded):
            self._numbers({str(n): row}, (*path, name), str(n), int, (ndim,), 1, _LARGEST_KERNEL)
        return expanded

    def _numbers(
        self,
        values: Mapping[str, Any],
        path: tuple[str, ...],
        name: str,
        kind: type[int] | type[float],
        counts: tuple[int, ...] | None,
        low: float,
        high: float,
    ) -> list[Any]:
        """One number or a list of them, checked; None in ``counts`` takes both."""
        found = values.get(name)
        listed: list[Any] = found if isinstance(found, list) else [found]
        if counts is not None and (not isinstance(found, list) or len(found) not in counts):
            raise self._wrong((*path, name), str(found)[:80], f"a list of {' or '.join(map(str, counts))}")
        for number in listed:
            right = isinstance(number, int | float) and not isinstance(number, bool) and low <= number <= high
            if not right or (kind is int and number % 1):
                raise self._wrong((*path, name), str(found)[:80], f"numbers from {low:g} to {high:g}")
        return [kind(number) for number in listed]

    def _text(self, values: Mapping[str, Any], path: tuple[str, ...], name: str) -> str:
        found = values.get(name)
        if not isinstance(found, str):
            raise self._wrong((*path, name), type(found).__name__ if found is not None else "nothing", "a name")
        return found

    def _path(self, path: Sequence[str]) -> str:
        return f"{self.where}#{'::'.join(path)}"

    def _wrong(self, path: Sequence[str], found: str, expected: str = "a sensible value") -> ModelError:
        return ModelError(f"{self._path(path)}: {found} was found, {expected} is needed.")

    def _need(self, path: Sequence[str], found: object, known: Sequence[str], what: str = "name") -> None:
        shown = ", ".join(known) if len(known) <= 12 else ", ".join(known[:12]) + ", …"
        value = f"{str(found)[:120]!r}" if what == "name" else "an argument that is not known here"
        why = f"{value} was found; it is neither imported nor run. Known are: {shown}."
        self.needs.append(Need(where=self._path(path), why=why))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
