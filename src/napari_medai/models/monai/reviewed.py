"""Reviewed transforms and inferers of MONAI: what a bundle may name, and what it may say to each. Imports no torch.

Every row was read like those of `napari_medai.nets.registry`: only whole names count, only listed arguments are taken,
and none of those opens a file, imports a module or takes a program. What reads or writes files is never built: readers
are replaced by the image at hand, writers are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from napari_medai.nets import registry

_T = "monai.transforms."
_WINDOWS = "roi_size sw_batch_size overlap mode sigma_scale padding_mode cval sw_device device progress"


@dataclass(frozen=True)
class Row:
    """A reviewed class.

    Attributes
    ----------
    target : str
        ``"module:Class"``.
    arguments : frozenset of str
        What it may be given.
    kind : str
        ``"transform"``, ``"inferer"``, ``"network"`` or ``"helper"``.
    """

    target: str
    arguments: frozenset[str]
    kind: str


# module, name, arguments of the array transform and of the dictionary transform, those of the latter alone
_BOTH = (
    ("post", "Activations", "sigmoid softmax other dim", ""),
    ("post", "AsDiscrete", "argmax to_onehot threshold rounding dim keepdim", ""),
    ("post", "FillHoles", "applied_labels connectivity", ""),
    ("post", "Invert", "transform nearest_interp to_tensor device",
     "orig_keys meta_keys orig_meta_keys meta_key_postfix"),
    ("post", "KeepLargestConnectedComponent", "applied_labels is_onehot independent connectivity num_components", ""),
    ("post", "LabelFilter", "applied_labels", ""),
    ("post", "RemoveSmallObjects", "min_size connectivity independent_channels by_measure pixdim", ""),
    ("spatial", "Flip", "spatial_axis", ""),
    ("spatial", "Orientation", "axcodes as_closest_canonical labels", ""),
    ("spatial", "Resize", "spatial_size size_mode mode align_corners anti_aliasing anti_aliasing_sigma dtype", ""),
    ("spatial", "Rotate90", "k spatial_axes", ""),
    ("spatial", "Spacing", "pixdim diagonal mode padding_mode align_corners dtype scale_extent recompute_affine "
     "min_pixdim max_pixdim", "ensure_same_shape"),
    ("spatial", "Zoom", "zoom mode padding_mode align_corners dtype keep_size", ""),
    ("croppad", "BorderPad", "spatial_border mode value constant_values", ""),
    ("croppad", "CenterScaleCrop", "roi_scale", ""),
    ("croppad", "CenterSpatialCrop", "roi_size", ""),
    ("croppad", "CropForeground",
     "select_fn channel_indices margin allow_smaller k_divisible mode value constant_values",
     "source_key start_coord_key end_coord_key"),
    ("croppad", "DivisiblePad", "k mode method value constant_values", ""),
    ("croppad", "ResizeWithPadOrCrop", "spatial_size method mode value constant_values", ""),
    ("croppad", "SpatialCrop", "roi_center roi_size roi_start roi_end", ""),
    ("croppad", "SpatialPad", "spatial_size method mode value constant_values", ""),
    ("intensity", "AdjustContrast", "gamma invert_image retain_stats", ""),
    ("intensity", "ClipIntensityPercentiles", "lower upper sharpness_factor channel_wise dtype", ""),
    ("intensity", "GaussianSharpen", "sigma1 sigma2 alpha approx", ""),
    ("intensity", "GaussianSmooth", "sigma approx", ""),
    ("intensity", "HistogramNormalize", "num_bins min max dtype", ""),
    ("intensity", "MaskIntensity", "select_fn", "mask_key"),
    ("intensity", "MedianSmooth", "radius", ""),
    ("intensity", "NormalizeIntensity", "subtrahend divisor nonzero channel_wise dtype", ""),
    ("intensity", "ScaleIntensity", "minv maxv factor channel_wise dtype", ""),
    ("intensity", "ScaleIntensityRange", "a_min a_max b_min b_max clip dtype", ""),
    ("intensity", "ScaleIntensityRangePercentiles", "lower upper b_min b_max clip relative channel_wise dtype", ""),
    ("intensity", "ShiftIntensity", "offset safe", ""),
    ("intensity", "ThresholdIntensity", "threshold above cval", ""),
    ("utility", "AsChannelLast", "channel_dim", ""),
    ("utility", "CastToType", "dtype", ""),
    ("utility", "EnsureChannelFirst", "strict_check channel_dim", ""),
    ("utility", "EnsureType", "data_type dtype device wrap_sequence track_meta", ""),
    ("utility", "Identity", "", ""),
    ("utility", "Lambda", "func inv_func track_meta", "overwrite"),
    ("utility", "RemoveRepeatedChannel", "repeats", ""),
    ("utility", "RepeatChannel", "repeats", ""),
    ("utility", "SqueezeDim", "dim update_meta", ""),
    ("utility", "ToDevice", "device", ""),
    ("utility", "ToNumpy", "dtype wrap_sequence", ""),
    ("utility", "ToTensor", "dtype device wrap_sequence track_meta", ""),
    ("utility", "Transpose", "indices", ""),
)  # fmt: skip

_ONLY_DICTIONARY = (
    ("utility", "ConcatItemsd", "keys name dim"),
    ("utility", "CopyItemsd", "keys times names"),
    ("utility", "DeleteItemsd", "keys"),
    ("utility", "FlattenSubKeysd", "keys sub_keys delete_keys prefix"),
    ("utility", "SelectItemsd", "keys"),
    ("meta_utility", "FromMetaTensord", "keys data_type"),
    ("meta_utility", "ToMetaTensord", "keys"),
    ("spatial", "ResampleToMatchd", "keys key_dst mode padding_mode align_corners dtype"),
)

# full module, names, arguments, kind
_OTHERS = (
    (_T + "compose", "Compose", "transforms", "transform"),
    ("monai.apps.pathology.transforms.post.dictionary",
     "HoVerNetInstanceMapPostProcessingd HoVerNetInstanceMapPostProcessingD HoVerNetInstanceMapPostProcessingDict",
     "nuclear_prediction_key hover_map_key instance_info_key instance_map_key activation mask_threshold "
     "min_object_size sobel_kernel_size marker_threshold marker_radius watershed_connectivity min_num_points "
     "contour_level device",
     "transform"),
    ("monai.apps.pathology.transforms.post.dictionary",
     "HoVerNetNuclearTypePostProcessingd HoVerNetNuclearTypePostProcessingD HoVerNetNuclearTypePostProcessingDict",
     "type_prediction_key instance_info_key instance_map_key type_map_key activation threshold return_type_map device",
     "transform"),
    ("monai.apps.nuclick.transforms", "AddLabelAsGuidanced AddLabelAsGuidanceD AddLabelAsGuidanceDict", "keys source",
     "transform"),
    ("monai.apps.detection.transforms.dictionary", "ClipBoxToImaged ClipBoxToImageD ClipBoxToImageDict",
     "box_keys label_keys box_ref_image_keys remove_empty", "transform"),
    ("monai.inferers.inferer", "SimpleInferer", "", "inferer"),
    *(("monai.inferers.inferer", name,
       f"{_WINDOWS} cache_roi_weight_map cpu_thresh buffer_steps buffer_dim", "inferer")
      for name in ("SlidingWindowInferer", "SlidingWindowInfererAdapt")),
    ("monai.inferers.inferer", "SliceInferer", f"{_WINDOWS} spatial_dim", "inferer"),
    ("monai.apps.pathology.inferers.inferer", "SlidingWindowHoVerNetInferer",
     f"{_WINDOWS} cache_roi_weight_map cpu_thresh extra_input_padding", "inferer"),
    ("monai.apps.detection.networks.retinanet_network", "RetinaNet",
     "spatial_dims num_classes num_anchors feature_extractor size_divisible use_list_output", "network"),
    # MONAI's own needs torchvision
    ("napari_medai.nets.retina", "resnet_fpn_feature_extractor",
     "backbone spatial_dims pretrained_backbone returned_layers trainable_backbone_layers", "network"),
    ("monai.apps.detection.networks.retinanet_detector", "RetinaNetDetector",
     "network anchor_generator spatial_dims num_classes size_divisible cls_key box_reg_key debug", "helper"),
    ("monai.apps.detection.utils.anchor_utils", "AnchorGeneratorWithAnchorShape",
     "feature_map_scales base_anchor_shapes indexing", "helper"),
    ("napari_medai.engine.monai.detection", "RetinaNetInferer", "detector force_sliding_window", "inferer"),
)  # fmt: skip

# Readers and writers of files: never built. Of the first the keys, the type of pixels and the place of channels are
# taken, of the others the keys; nothing else of them is looked at.
READERS = frozenset({"LoadImage", "LoadImaged", "LoadImageD", "LoadImageDict"})
WRITERS = frozenset(
    {"SaveImage", "SaveImaged", "SaveImageD", "SaveImageDict"}
    | {"SaveClassificationd", "SaveClassificationD", "SaveClassificationDict", "WriteFileMapping", "WriteFileMappingd"}
)
# What the engine does itself with boxes, because they return to the voxels of the scan and not to a file
LEFT_OUT = frozenset(
    {f"AffineBoxToWorldCoordinate{end}" for end in ("d", "D", "Dict")}
    | {f"ConvertBoxMode{end}" for end in ("d", "D", "Dict")}
)
# Transforms that need what a person clicks or draws
INTERACTIVE = frozenset(
    {"AddClickSignalsd", "AddClickSignalsD", "AddClickSignalsDict", "AddGuidanceFromPointsDeepEditd"}
    | {"AddGuidanceSignalDeepEditd", "AddGuidanceSignald", "AddGuidanceFromPointsd", "VistaPreTransformd"}
    | {"ResizeGuidanceMultipleLabelDeepEditd"}
)
# Scripts that the zoo ships, by the sha256 of their bytes, whose step this package does with code of its own; the
# script is not run, and a script with other bytes is a script like any other.
STAND_INS: Mapping[str, tuple[str, str, frozenset[str]]] = MappingProxyType(
    {
        "scripts.detection_inferer.RetinaNetInferer": (
            "RetinaNetInferer",
            "scripts/detection_inferer.py",
            frozenset({"420cc65c1cef882307ad5a778b45cec7d49ba44a5c8786aada849a3527c8717b"}),
        )
    }
)
# Order of arguments of what configurations call with arguments by position
POSITIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "resnet_fpn_feature_extractor": (
            "backbone",
            "spatial_dims",
            "pretrained_backbone",
            "returned_layers",
            "trainable_backbone_layers",
        )
    }
)
# Methods that a configuration may call on a part, with their arguments
METHODS: Mapping[str, Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "RetinaNetDetector": {
            "set_target_keys": frozenset({"box_key", "label_key"}),
            "set_box_selector_parameters": frozenset(
                {"score_thresh", "topk_candidates_per_level", "nms_thresh", "detections_per_img", "apply_sigmoid"}
            ),
            "set_sliding_window_inferer": frozenset(
                {"roi_size", "sw_batch_size", "overlap", "mode", "sigma_scale", "padding_mode", "cval", "sw_device"}
                | {"device", "progress", "cache_roi_weight_map"}
            ),
        }
    }
)
# Arguments that take a function of a tensor, another part, or a list of parts, and no other value
FUNCTIONS = frozenset({"func", "inv_func", "select_fn", "other"})
PARTS = frozenset({"transform", "feature_extractor", "network", "anchor_generator", "detector"})
BACKBONES = frozenset({"resnet_fpn_feature_extractor"})  # whose argument ``backbone`` is a part; of others it is a name
DEVICES = frozenset({"device", "sw_device"})
# Arguments that are intensities: any number
INTENSITIES = frozenset(
    {"a_min", "a_max", "b_min", "b_max", "minv", "maxv", "lower", "upper", "offset", "cval", "threshold"}
    | {"subtrahend", "divisor", "value", "constant_values"}
)


def _rows() -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for module, name, arguments, more in _BOTH:
        given = frozenset(arguments.split())
        rows[name] = Row(f"{_T}{module}.array:{name}", given, "transform")
        row = Row(
            f"{_T}{module}.dictionary:{name}d", given | {"keys", "allow_missing_keys", *more.split()}, "transform"
        )
        rows |= dict.fromkeys((f"{name}d", f"{name}D", f"{name}Dict"), row)
    for module, name, arguments in _ONLY_DICTIONARY:
        row = Row(f"{_T}{module}.dictionary:{name}", frozenset(arguments.split()), "transform")
        rows |= dict.fromkeys((name, f"{name[:-1]}D", f"{name[:-1]}Dict"), row)
    for module, names, arguments, kind in _OTHERS:
        row = Row(f"{module}:{names.split()[0]}", frozenset(arguments.split()), kind)
        rows |= dict.fromkeys(names.split(), row)
    for name, target in registry.REVIEWED.items():
        rows[name] = Row(target, registry.ARGUMENTS[name], "network")
    return rows


ROWS: Mapping[str, Row] = MappingProxyType(_rows())
"""Bare name -> reviewed class."""

_PACKAGES = {"transform": "monai.transforms", "inferer": "monai.inferers", "network": "monai.networks.nets"}


def _full_names() -> dict[str, str]:
    names = {}
    for name, row in ROWS.items():
        module = row.target.partition(":")[0]
        if not module.startswith("monai."):
            continue
        names[f"{module}.{name}"] = name
        if module.startswith(_PACKAGES.get(row.kind, "-")):
            names[f"{_PACKAGES[row.kind]}.{name}"] = name
    names["monai.apps.detection.networks.retinanet_network.resnet_fpn_feature_extractor"] = (
        "resnet_fpn_feature_extractor"
    )
    for name in (*READERS, *WRITERS):
        names[f"monai.transforms.{name}"] = name
        names[f"monai.transforms.io.{'dictionary' if name[-1] in 'dDt' else 'array'}.{name}"] = name
    return names


_FULL: Mapping[str, str] = MappingProxyType(_full_names())
# names that only their own stand-in may have
_HIDDEN = frozenset({"RetinaNetInferer"})


def find(target: str) -> str:
    """The bare name for a name as it stands in a bundle, bare or with its module; empty if it is not in the tables."""
    if target in _HIDDEN:
        return ""
    if target in ROWS or target in READERS or target in WRITERS or target in LEFT_OUT:
        return target
    return _FULL.get(target, "")
