"""Makes trained models of nnU-Net as its own training leaves them, small and with outputs that mean something.

The weights are random but for the last layer, which is fitted so that the labels are those of the phantom: labels are
coherent shapes, not noise, and two implementations must agree about their borders.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from napari_medai import nets
from napari_medai.core.geometry import scaling
from napari_medai.core.volume import Volume
from napari_medai.engine.nnunet.prepare import prepare, read
from napari_medai.engine.nnunet.sliding import padded, windows
from napari_medai.models import nnunet
from napari_medai.models.nnunet_labels import LabelSet
from napari_medai.models.nnunet_stage import StagePlan

LABELS = {"background": 0, "shell": 1, "core": 2, "rod": 3}
REGIONS = {"background": 0, "all": [1, 2, 3], "inner": [2, 3], "rod": 3}


@dataclass(frozen=True, kw_only=True)
class Made:
    """What kind of model is to be made; the defaults are an isotropic ``3d_fullres``."""

    configurations: tuple[str, ...] = ("3d_fullres",)
    patch: tuple[int, ...] = (16, 20, 20)
    spacing: tuple[float, ...] = (1.5, 1.5, 1.5)
    channel_names: tuple[str, ...] = ("T1",)
    schemes: tuple[str, ...] = ("ZScoreNormalization",)
    masked: tuple[bool, ...] = (False,)
    labels: Mapping[str, Any] = field(default_factory=lambda: dict(LABELS))
    order: tuple[int, ...] = ()
    forward: tuple[int, int, int] = (0, 1, 2)
    kernels: tuple[tuple[int, ...], ...] = ((3, 3, 3), (3, 3, 3), (3, 3, 3))
    strides: tuple[tuple[int, ...], ...] = ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    features: tuple[int, ...] = (8, 10, 12)
    residual: bool = False
    old: bool = False
    folds: tuple[str, ...] = ("0",)
    mirroring: tuple[int, ...] | None = None
    separate_z: bool | None = None
    resampler: str = "resample_data_or_seg_to_shape"
    reader: str = "SimpleITKIO"
    trainer: str = "nnUNetTrainer"
    extra: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = "Dataset777_Phantom"


def phantom(
    shape: Sequence[int] = (32, 36, 40), spacing: Sequence[float] = (1.5, 1.5, 1.5), channels: int = 1, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A head of zeros around a shell, a core and a rod, in mm: (c, z, y, x) pixels and (z, y, x) labels."""
    rng = np.random.default_rng(seed)
    z, y, x = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True))
    z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
    half = [n * s / 2 for n, s in zip(shape, spacing, strict=True)]
    radius = np.sqrt((z / half[0]) ** 2 + (y / half[1]) ** 2 + (x / half[2]) ** 2)
    labels = np.zeros(tuple(shape), np.uint8)
    head = radius < 0.9
    labels[(radius < 0.72) & head] = 1
    labels[(radius < 0.45)] = 2
    rod = ((y - 0.15 * half[1]) / (0.16 * half[1])) ** 2 + ((x + 0.1 * half[2]) / (0.2 * half[2])) ** 2 < 1
    labels[rod & (np.abs(z) < 0.7 * half[0]) & head] = 3
    images = []
    for channel in range(channels):
        values = np.array([60.0, 140.0, 220.0, 330.0]) if channel % 2 == 0 else np.array([300.0, 90.0, 190.0, 40.0])
        image = gaussian_filter(values[labels] + rng.normal(0, 12, labels.shape), 0.7)
        images.append(np.where(head, np.maximum(image, 1), 0))
    return np.round(np.stack(images)).astype(np.float32), labels


def configuration(made: Made) -> dict[str, Any]:
    """One configuration of plans, new or old."""
    ndim, stages = len(made.patch), len(made.features)
    spline = made.resampler == "resample_data_or_seg_to_shape"

    def resampling(labels: bool, order: int) -> dict[str, Any]:
        chosen = {"is_seg": labels, "force_separate_z": made.separate_z}
        return chosen | ({"order": order, "order_z": 0} if spline else {"memefficient_seg_resampling": False})

    plan: dict[str, Any] = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(made.patch),
        "median_image_size_in_voxels": [40.0] * ndim,
        "spacing": list(made.spacing),
        "normalization_schemes": list(made.schemes),
        "use_mask_for_norm": list(made.masked),
        "resampling_fn_data": made.resampler,
        "resampling_fn_data_kwargs": resampling(False, 3),
        "resampling_fn_seg": made.resampler,
        "resampling_fn_seg_kwargs": resampling(True, 1),
        "resampling_fn_probabilities": made.resampler,
        "resampling_fn_probabilities_kwargs": resampling(False, 1),
        "batch_dice": True,
    }
    kernels, strides = [list(k) for k in made.kernels], [list(s) for s in made.strides]
    if made.old:
        name = "ResidualEncoderUNet" if made.residual else "PlainConvUNet"
        return plan | {
            "UNet_class_name": name,
            "UNet_base_num_features": made.features[0],
            "n_conv_per_stage_encoder": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "num_pool_per_axis": [stages - 1] * ndim,
            "pool_op_kernel_sizes": strides,
            "conv_kernel_sizes": kernels,
            "unet_max_num_features": made.features[-1],
        }
    kind = "ResidualEncoderUNet" if made.residual else "PlainConvUNet"
    counts = {"n_blocks_per_stage": [1, 3, 2]} if made.residual else {"n_conv_per_stage": [2] * stages}
    arguments = {
        "n_stages": stages,
        "features_per_stage": list(made.features),
        "conv_op": f"torch.nn.modules.conv.Conv{ndim}d",
        "kernel_sizes": kernels,
        "strides": strides,
        **counts,
        "n_conv_per_stage_decoder": [1 if made.residual else 2] * (stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{ndim}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return plan | {
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
            "arch_kwargs": arguments,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
    }


def plans(made: Made) -> dict[str, Any]:
    """A whole ``plans.json``."""
    backward = [made.forward.index(n) for n in range(3)]
    measured = {"max": 500.0, "mean": 180.0, "median": 170.0, "min": 0.0, "percentile_00_5": 20.0,
                "percentile_99_5": 340.0, "std": 90.0}  # fmt: skip
    configurations: dict[str, Any] = {}
    for name in dict.fromkeys(("3d_fullres", *made.configurations)):
        if name == "3d_cascade_fullres":
            configurations[name] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
        elif name == "3d_lowres":
            coarse = configuration(made) | {"spacing": [s * 1.6 for s in made.spacing]}
            configurations[name] = coarse | {"next_stage": "3d_cascade_fullres"}
        else:
            configurations[name] = configuration(made)
    return {
        "dataset_name": made.dataset,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.5, 1.5, 1.5],
        "original_median_shape_after_transp": [40, 44, 48],
        "image_reader_writer": made.reader,
        "transpose_forward": list(made.forward),
        "transpose_backward": backward,
        "configurations": configurations,
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(n): measured for n in range(len(made.channel_names))},
    } | dict(made.extra)


def dataset(made: Made) -> dict[str, Any]:
    """A whole ``dataset.json``."""
    ending = ".png" if made.reader == "NaturalImage2DIO" else ".nii.gz"
    described = {
        "channel_names": {str(n): name for n, name in enumerate(made.channel_names)},
        "labels": dict(made.labels),
        "numTraining": 4,
        "file_ending": ending,
    }
    return described | ({"regions_class_order": list(made.order)} if made.order else {})


def folder_of(root: Path, made: Made, name: str) -> Path:
    """Where nnU-Net lays a configuration."""
    return root / made.dataset / f"{made.trainer}__nnUNetPlans__{name}"


def make(root: Path, made: Made, weights: bool = True) -> Path:
    """Lay trained models under ``root`` and return the folder of the data set.

    Parameters
    ----------
    root : Path
        An empty folder.
    made : Made
        What is made.
    weights : bool
        Whether checkpoints hold fitted weights; else they are empty files, enough to be described.
    """
    for name in made.configurations:
        folder = folder_of(root, made, name)
        for fold in made.folds:
            (folder / f"fold_{fold}").mkdir(parents=True)
            (folder / f"fold_{fold}" / "checkpoint_final.pth").touch()
        (folder / "plans.json").write_text(json.dumps(plans(made), indent=1))
        (folder / "dataset.json").write_text(json.dumps(dataset(made), indent=1))
    if weights:
        for name in made.configurations:
            spec = nnunet.probe(folder_of(root, made, name))
            assert not spec.needs, spec.needs
            plan = StagePlan.model_validate(spec.details["stages"][-1])
            labels = LabelSet.model_validate(spec.details["labels"])
            for fold in made.folds:
                state = fitted(plan, labels, made, seed=int(fold) if fold != "all" else 9)
                save(folder_of(root, made, name) / f"fold_{fold}" / "checkpoint_final.pth", state, made, name)
    return root / made.dataset


def fitted(plan: StagePlan, labels: LabelSet, made: Made, seed: int) -> dict[str, torch.Tensor]:
    """State of a network with random weights whose last layer tells the phantom's labels."""
    torch.manual_seed(seed)
    inputs = len(plan.channels) + (len(labels.foreground) if plan.previous else 0)
    network = nets.build(plan.network, input_channels=inputs, num_classes=labels.heads, **plan.arguments).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("weight") and parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter, a=0.01)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    shape, spacing = ((32, 36, 40), (1.5, 1.5, 1.5)) if len(plan.patch) == 3 else ((6, 60, 64), (4.0, 1.5, 1.5))
    if made.reader == "NaturalImage2DIO":
        shape, spacing = (1, 60, 64), (999.0, 1.0, 1.0)
    pixels, truth = phantom(shape, spacing, len(plan.channels), seed=seed + 50)
    if "RGBTo01Normalization" in made.schemes:
        pixels = np.clip(pixels / 1.5, 0, 255)
    image = read(Volume(pixels, "czyx", scaling(spacing), units="mm"), "SimpleITKIO")
    case = prepare(image, plan, labels, truth, lambda: None)
    values = torch.stack([_paint(case.tensor[len(plan.channels) :], labels)])[0]
    image_channels = case.tensor if plan.previous else case.tensor[: len(plan.channels)]
    seen, _ = padded(image_channels, plan.patch)
    target, _ = padded(values[None].float(), plan.patch)
    features, wanted, every = [], [], windows(seen.shape[1:], plan.patch, 0.5)
    axes = made.mirroring or ()
    flips = [tuple(a + 2 for a in some) for n in range(len(axes) + 1) for some in combinations(axes, n)]
    head = network.decoder.seg_layers[-1]  # type: ignore[union-attr, index]
    kept: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda _m, given, _out: kept.append(given[0]))
    with torch.inference_mode():
        for window in every[:: -(-len(every) // 10)]:
            tile = seen[(slice(None), *window)][None].contiguous()
            for flip in flips:
                network(tile.flip(flip))
                kept[-1] = kept[-1].flip(flip)
            features.append((sum(kept) / len(flips))[0].flatten(1).T)  # type: ignore[union-attr]
            kept.clear()
            wanted.append(_wanted(target[(0, *window)].flatten().long(), labels, made))
    hook.remove()
    seen_all, wanted_all = torch.cat(features), torch.cat(wanted)
    ones = torch.cat([seen_all, torch.ones(len(seen_all), 1)], 1)
    # rare labels count as much as the background
    kind = (wanted_all > 0).float() @ (2.0 ** torch.arange(wanted_all.shape[1]))
    share = torch.stack([(kind == k).float().mean() * (kind == k) for k in kind.unique()]).sum(0)
    weight = share.rsqrt()[:, None]
    solved = torch.linalg.lstsq((ones * weight).double(), (wanted_all * weight).double()).solution.float()
    state = network.state_dict()
    last = f"decoder.seg_layers.{len(plan.arguments['strides']) - 2}"
    state[f"{last}.weight"] = solved[:-1].T.reshape(state[f"{last}.weight"].shape).contiguous()
    state[f"{last}.bias"] = solved[-1].contiguous()
    return state


def _paint(one_hot: torch.Tensor, labels: LabelSet) -> torch.Tensor:
    painted = torch.zeros(one_hot.shape[1:])
    for channel, value in zip(one_hot, labels.foreground, strict=True):
        painted[channel > 0] = value
    return painted


def _wanted(truth: torch.Tensor, labels: LabelSet, made: Made) -> torch.Tensor:
    """Logits of +-4 that would be right, (voxels, heads)."""
    if not labels.region_values:
        return torch.stack([(truth == n) * 8.0 - 4 for n in range(labels.heads)], 1)
    kept = [value for name, value in made.labels.items() if name != "ignore" and value != 0]
    regions = [value if isinstance(value, list) else [value] for value in kept]
    return torch.stack([torch.isin(truth, torch.tensor(r)) * 8.0 - 4 for r in regions], 1)


def save(path: Path, state: Mapping[str, torch.Tensor], made: Made, name: str, old_numpy: bool = False) -> None:
    """A checkpoint with all that nnU-Net's trainer writes, numpy's scalars too.

    ``old_numpy`` writes the names that numpy 1 gave them.
    """
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimiser = torch.optim.SGD([parameter], 0.01, momentum=0.99, nesterov=True)
    parameter.grad = torch.ones(3)
    optimiser.step()
    losses = [np.float32(0.5), np.float64(0.25)]
    content = {
        "network_weights": dict(state),
        "optimizer_state": optimiser.state_dict(),
        "grad_scaler_state": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3},
        "logging": {
            "mean_fg_dice": [np.float64(0.7)],
            "dice_per_class_or_region": [[np.float32(0.6), np.float64(0.8)]],
            "train_losses": losses,
            "val_losses": losses,
            "lrs": [0.01],
            "epoch_start_timestamps": [1.0e9],
        },
        "_best_ema": np.float64(0.7),
        "current_epoch": 1,
        "init_args": {
            "plans": plans(made),
            "configuration": name,
            "fold": 0,
            "dataset_json": dataset(made),
            "unpack_dataset": True,
            "device": torch.device("cuda"),
        },
        "trainer_name": made.trainer,
        "inference_allowed_mirroring_axes": made.mirroring,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    if not old_numpy:
        path.write_bytes(buffer.getvalue())
        return
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            raw = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray\n" in raw
                raw = raw.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
            new.writestr(entry.filename, raw)


def main(folder: str) -> None:
    """Lay a small cascade of two folds and a scan for it into a new folder, to try things on."""
    import nibabel

    root = Path(folder)
    made = Made(configurations=("3d_lowres", "3d_fullres", "3d_cascade_fullres"), folds=("0", "1"), mirroring=(2,))
    torch.set_num_threads(1)
    make(root, made)
    pixels, _ = phantom(seed=3)
    nibabel.save(nibabel.Nifti1Image(pixels[0].T, np.diag([1.5, 1.5, 1.5, 1.0])), root / "scan.nii.gz")


if __name__ == "__main__":
    import sys

    main(sys.argv[1])
