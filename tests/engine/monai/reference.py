"""MONAI's own pipeline, by its ConfigParser, on a file that its own LoadImaged reads: what ours is compared with."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import decollate_batch
from monai.data.utils import list_data_collate

# (x, y, z) voxels to RAS millimetres: straight and anisotropic; turned, flipped and sheared a little; axes exchanged
AFFINES = {
    "anisotropic": np.array([[1.1, 0, 0, -12], [0, 0.9, 0, 5], [0, 0, 2.7, 31], [0, 0, 0, 1.0]]),
    "oblique": np.array([[-1.05, 0.11, 0.3, 20], [0.1, -0.87, 0.4, 7], [0.2, 0.21, 2.5, -3], [0, 0, 0, 1.0]]),
    "exchanged": np.array([[0.05, 0.03, -2.6, 20], [-1.0, 0.1, 0.02, 7], [0.1, 0.95, 0.3, -3], [0, 0, 0, 1.0]]),
}


def write_scan(path: Path, shape: tuple[int, ...], affine: Any, seed: int = 0) -> Path:
    """A NIfTI file of whole numbers, like a CT: smooth, with noise."""
    rng = np.random.default_rng(seed)
    grids = np.meshgrid(*(np.linspace(-2, 2, n) for n in shape[:3]), indexing="ij")
    smooth = 300 * np.exp(-sum(g**2 for g in grids)) - 100
    if len(shape) == 4:
        smooth = smooth[..., np.newaxis]
    pixels = np.rint(smooth + rng.normal(0, 40, shape)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(pixels, affine), path)
    return path


def run_monai(bundle: Path, scan: Path, weights: str = "models/model.pt") -> tuple[Any, Any]:
    """The image as the network sees it, and the result of postprocessing."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        parser = ConfigParser()
        parser.read_meta(str(bundle / "configs" / "metadata.json"))
        config = next(path for path in (bundle / "configs").iterdir() if path.stem == "inference")
        parser.read_config(str(config))
        parser["bundle_root"] = str(bundle)
        steps = parser["postprocessing"]["transforms"]
        parser["postprocessing"]["transforms"] = [s for s in steps if not s["_target_"].startswith("Save")]
        network = parser.get_parsed_content("network_def").eval()
        network.load_state_dict(torch.load(bundle / weights, weights_only=True))
        data = parser.get_parsed_content("preprocessing")({"image": str(scan)})
        batch = list_data_collate([data])
        batch["pred"] = parser.get_parsed_content("inferer")(batch["image"], network)
        result = parser.get_parsed_content("postprocessing")(decollate_batch(batch)[0])
        return data["image"], result["pred"]
