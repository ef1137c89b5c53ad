"""Small bundles of our own in the shapes of those that labs have: the same parts in the same places, tiny networks."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import yaml

from napari_medai.engine.monai.build import Builder
from napari_medai.models.monai.resolve import resolve

Config = dict[str, Any]
DEVICE = "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"
LABELS_3 = {"0": "background", "1": "inner", "2": "outer"}


def unet(classes: int, dims: int = 3, **more: Any) -> Config:
    return {
        "_target_": "UNet",
        "spatial_dims": dims,
        "in_channels": 1,
        "out_channels": classes,
        "channels": [4, 8, 8],
        "strides": [2, 2],
        "num_res_units": 1,
    } | more


def load(**more: Any) -> list[Config]:
    return [{"_target_": "LoadImaged", "keys": "image"} | more, {"_target_": "EnsureChannelFirstd", "keys": "image"}]


def compose(*transforms: Config) -> Config:
    return {"_target_": "Compose", "transforms": copy.deepcopy(list(transforms))}


def turned(*pixdim: float) -> list[Config]:
    return [
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": list(pixdim), "mode": "bilinear"},
    ]


def inverted(**more: Any) -> Config:
    given = {"keys": "pred", "transform": "@preprocessing", "orig_keys": "image", "to_tensor": True}
    return {"_target_": "Invertd", **given, "nearest_interp": False, **more}


def windows(*roi: int, **more: Any) -> Config:
    return {"_target_": "SlidingWindowInferer", "roi_size": list(roi), "sw_batch_size": 2, "overlap": 0.5} | more


SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
SAVE = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_dtype": "$numpy.float32"}
TYPED = {"_target_": "EnsureTyped", "keys": "image"}
AROUND = {
    "imports": ["$import glob", "$import os"],
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "dataset_dir": "/data",
    "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
    "device": DEVICE,
    "network": "$@network_def.to(@device)",
    "handlers": [
        {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        }
    ],
    "run": ["$@evaluator.run()"],
}


def spleen() -> Config:
    """CT, turned and resampled, a window of intensities, softmax, brought back, argmax; keys by reference."""
    scale = {"_target_": "ScaleIntensityRanged", "keys": "@image_key", "b_min": 0, "b_max": 1, "clip": True}
    return AROUND | {
        "image_key": "image",
        "network_def": unet(2, norm="batch"),
        "preprocessing": compose(*load(), *turned(1.5, 1.5, 2.0), scale | {"a_min": -57, "a_max": 164}, TYPED),
        "inferer": windows(16, 16, 16),
        "postprocessing": compose(SOFTMAX, inverted(), ARGMAX, SAVE),
        "evaluator": {"_target_": "SupervisedEvaluator", "amp": True, "network": "@network"},
    }


def prostate() -> Config:
    """MR, resampled finely, argmax and the largest components before it is brought back."""
    largest = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1, 2]}
    scale = {"_target_": "ScaleIntensityd", "keys": "image", "minv": 0, "maxv": 1}
    normal = {"_target_": "NormalizeIntensityd", "keys": "image"}
    return AROUND | {
        "network_def": unet(3, act="prelu", dropout=0.15),
        "preprocessing": compose(*load(), *turned(0.8, 0.8, 0.8), scale, normal, TYPED),
        "inferer": windows(16, 16, 16),
        "postprocessing": compose(ARGMAX, largest, inverted(meta_key_postfix="meta_dict"), SAVE),
    }


def ventricular() -> Config:
    """A 2-D network on every slice of a volume that is not turned."""
    return AROUND | {
        "network_def": unet(4, dims=2),
        "preprocessing": compose(
            *load(image_only=False), {"_target_": "ScaleIntensityd", "keys": "image"}, TYPED | {"device": "@device"}
        ),
        "inferer": {"_target_": "SliceInferer", "roi_size": [16, 16], "spatial_dim": 2},
        "postprocessing": compose(SOFTMAX, inverted(), ARGMAX, SAVE),
    }


def whole_body() -> Config:
    """Conditions and nested references, blended windows, nearest neighbours on the way back."""
    return AROUND | {
        "displayable_configs": {"highres": True, "sw_overlap": 0.25, "sw_batch_size": 1},
        "pixdim": "$[1.5, 1.5, 1.5] if @displayable_configs#highres else [3.0, 3.0, 3.0]",
        "modelname": "$'model.pt' if @displayable_configs#highres else 'model_lowres.pt'",
        "handlers": [],
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/' + @modelname",
            "load_dict": {"model": "@network"},
        },
        "network_def": {
            "_target_": "SegResNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 5,
            "init_filters": 8,
            "blocks_down": [1, 1],
            "blocks_up": [1],
            "dropout_prob": 0.2,
        },
        "preprocessing": compose(
            {"_target_": "LoadImaged", "keys": "image"},
            TYPED,
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": "@pixdim", "mode": "bilinear"},
            {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True},
            {"_target_": "ScaleIntensityd", "keys": "image", "minv": -1.0, "maxv": 1.0},
        ),
        "inferer": windows(
            16,
            16,
            16,
            sw_batch_size="@displayable_configs#sw_batch_size",
            overlap="@displayable_configs#sw_overlap",
            padding_mode="replicate",
            mode="gaussian",
            device=DEVICE,
        ),
        "postprocessing": compose(SOFTMAX, ARGMAX, inverted(nearest_interp=True), SAVE),
    }


def template() -> Config:
    """Transforms in an entry of their own, keys out of MONAI, the whole image at once, nothing brought back."""
    return AROUND | {
        "image": "$monai.utils.CommonKeys.IMAGE",
        "pred": "$monai.utils.CommonKeys.PRED",
        "num_classes": 4,
        "network_def": unet(4) | {"out_channels": "@num_classes"},
        "transforms": [
            {"_target_": "LoadImaged", "keys": "@image", "image_only": True},
            {"_target_": "EnsureChannelFirstd", "keys": "@image"},
            {"_target_": "ScaleIntensityd", "keys": "@image"},
        ],
        "preprocessing": {"_target_": "Compose", "transforms": "$@transforms"},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": compose(
            SOFTMAX | {"keys": "@pred"},
            ARGMAX | {"keys": "@pred"},
            SAVE | {"keys": "@pred", "output_dtype": "$None", "resample": False},
        ),
    }


def classification() -> Config:
    """A 2-D classifier, of which the ground truth stands beside the prediction."""
    return AROUND | {
        "pred": "$monai.utils.CommonKeys.PRED",
        "label": "$monai.utils.CommonKeys.LABEL",
        "network_def": {
            "_target_": "DenseNet",
            "spatial_dims": 2,
            "in_channels": 1,
            "out_channels": 3,
            "init_features": 8,
            "growth_rate": 4,
            "block_config": [1, 1],
        },
        "preprocessing": compose(*load(), {"_target_": "ScaleIntensityd", "keys": "image"}),
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": compose(
            SOFTMAX | {"keys": "@pred"}, {"_target_": "ToTensord", "keys": ["@pred", "@label"], "device": "@device"}
        ),
    }


def tumour() -> Config:
    """Four channels in, three that overlap out, put together by a function of the bundle."""
    where = "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"
    return AROUND | {
        "network_def": unet(3) | {"in_channels": 4},
        "preprocessing": compose(
            {"_target_": "LoadImaged", "keys": "image", "image_only": False},
            {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True},
        ),
        "inferer": windows(16, 16, 16),
        "postprocessing": compose(
            {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
            inverted(),
            {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
            {"_target_": "Lambdad", "keys": "pred", "func": where},
            SAVE,
        ),
    }


BUNDLES = {
    "spleen": (spleen, "CT", {"0": "background", "1": "spleen"}, 1),
    "prostate": (prostate, "MR", LABELS_3, 1),
    "ventricular": (ventricular, "MR", {"0": "background", "1": "pool", "2": "wall", "3": "other pool"}, 1),
    "whole_body": (whole_body, "CT", {"0": "background", "1": "a", "2": "b", "3": "c", "4": "d"}, 1),
    "template": (template, "none", {"0": "background", "1": "a", "2": "b", "3": "c"}, 1),
    "classification": (classification, "none", {"0": "none", "1": "round", "2": "square"}, 1),
    "tumour": (tumour, "MR", {"0": "core", "1": "whole", "2": "enhancing"}, 4),
}


def metadata(name: str) -> Config:
    _, modality, channels, count = BUNDLES[name]
    flat = name == "classification"
    shape = [16, 16] if flat or name == "ventricular" else [16, 16, 16]
    image = {"type": "image", "format": "hounsfield" if modality == "CT" else "magnitude", "modality": modality}
    names = {"0": "image"} if count == 1 else {str(n): f"T{n}" for n in range(count)}
    return {
        "schema": "https://example.org/schema.json",
        "version": "0.1.0",
        "name": name.replace("_", " ").capitalize(),
        "task": f"What {name} does",
        "description": f"A small bundle in the shape of {name}.",
        "copyright": "The authors",
        "data_source": "random numbers",
        "intended_use": "Tests only",
        "eval_metrics": {"mean_dice": 0.5},
        "references": ["Someone. Something. Somewhere, 2020."],
        "network_data_format": {
            "inputs": {"image": image | {"num_channels": count, "spatial_shape": shape, "channel_def": names}},
            "outputs": {
                "pred": {
                    "type": "probabilities" if flat else "image",
                    "format": "classes" if flat else "segmentation",
                    "num_channels": len(channels),
                    "spatial_shape": [1, 3] if flat else shape,
                    "channel_def": channels,
                }
            },
        },
    }


def write(folder: Path, name: str, config: Config | None = None, weights: bool = True) -> Path:
    """A bundle on disk; the template is YAML. Weights are random, of a fixed seed."""
    bundle = folder / name
    (bundle / "configs").mkdir(parents=True)
    (bundle / "models").mkdir()
    (bundle / "LICENSE").write_text("MIT License\n\nCopyright (c) nobody\n")
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata(name)))
    config = BUNDLES[name][0]() if config is None else config
    if name == "template":
        (bundle / "configs" / "inference.yaml").write_text(yaml.safe_dump(config))
    else:
        (bundle / "configs" / "inference.json").write_text(json.dumps(config, indent=1))
    if weights:
        write_weights(bundle)
    return bundle


def write_weights(bundle: Path, file: str = "models/model.pt") -> Path:
    """Random weights for a bundle's network."""
    plan, needs, _ = resolve(bundle)
    assert plan is not None, needs
    torch.manual_seed(0)
    network = Builder(torch.device("cpu")).part(plan.network)
    torch.save(network.state_dict(), bundle / file)
    return bundle / file
