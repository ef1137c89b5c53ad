"""What the built-in models ``self2d`` and ``self3d`` reach on images whose clean version is known.

They have no weights: the network is trained on each noisy image itself. ``python -m training.denoise
evaluate`` adds noise to sample images, cleans them, compares with scikit-image's non-local means, prints
the figures and writes them into the two model cards. ``python -m training.denoise tune`` prints the same
for other images; the cards say on which the recipe was chosen.
"""

from __future__ import annotations

import argparse
import gzip
import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from skimage import data
from skimage.restoration import denoise_nl_means

import napari_medai.models
from napari_medai.engine.noise import noise_level
from napari_medai.engine.selfdenoise import denoise
from napari_medai.models.manifest import write_manifest
from napari_medai.models.spec import Accepts, Gives, ModelSpec, Prepare, Tiling
from training import mnfinder
from training.blob_backgrounds import MNI152, MRICRON
from training.fitting import write_into_card
from training.packages import package_member

Array = NDArray[np.float32]

BUILTIN = Path(napari_medai.models.__file__).parent / "builtin"
SIGMA = 25 / 255
PHOTONS = 50.0
"""Expected photons where an image is 1, for the Poisson rows."""
SEED = 20261122
CITATION = (
    "Mansour, Heckel: Zero-Shot Noise2Noise, CVPR 2023; Huang et al.: Neighbor2Neighbor, CVPR 2021; "
    "Lehtinen et al.: Noise2Noise, ICML 2018."
)
SPECS = {
    ndim: ModelSpec(
        id=f"self{ndim}d",
        title=("Denoise planes" if ndim == 2 else "Denoise volumes") + ", learning on the image itself",
        summary="Removes pixel-wise noise with a network trained on this very image; nothing is downloaded.",
        stage="denoise",
        accepts=Accepts(ndim=(2, 3) if ndim == 2 else (3,), rgb=True, min_size=8),
        prepare=Prepare(normalise="none"),
        gives=Gives(kind="image"),
        tiling=Tiling(multiple=4),
        runner="self",
        citation=CITATION,
        options={"ndim": ndim},
    )
    for ndim in (2, 3)
}


def unit(image: NDArray[np.generic]) -> Array:
    """Smallest value 0, largest 1."""
    values = np.asarray(image, dtype=np.float32)
    return (values - values.min()) / (values.max() - values.min())


def _head(package: str, member: str) -> NDArray[np.generic]:
    return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(package_member(package, member))).dataobj).T


def sample_images() -> Mapping[str, Array]:
    """The five images of the figures, channels first, 0 to 1."""
    slide = mnfinder.load("test", "2022-10-14_U2OS/4").image
    stack = tifffile.imread(io.BytesIO(package_member("stardist", "stardist/data/images/img3d.tif")))
    return {
        "Colin27, axial slice": unit(_head("mricron-data", f"{MRICRON}/ch2.nii.gz")[90])[None],
        "mnfinder test slide": unit(slide)[None],
        "stardist 3-D nuclei": unit(stack)[None],
        "retina (RGB)": unit(np.moveaxis(data.retina(), -1, 0)),
        "immunohistochemistry (RGB)": unit(np.moveaxis(data.immunohistochemistry(), -1, 0)),
    }


def tuning_images() -> Mapping[str, Array]:
    """Images of the same kinds that are no samples."""
    slide = mnfinder.load("training", "2022-10-14_U2OS/1").image
    return {
        "MNI152, axial slice": unit(_head("nilearn", MNI152)[90, 20:212, 2:194])[None],
        "mnfinder training slide": unit(slide[:256, :256])[None],
        "coffee (RGB)": unit(np.moveaxis(data.coffee()[64:320, 100:356], -1, 0)),
        "cell": unit(data.cell()[100:356, 100:356])[None],
        "rocket (RGB)": unit(np.moveaxis(data.rocket()[:, 100:500], -1, 0)),
    }


def psnr(image: Array, clean: Array) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1."""
    return float(-10 * np.log10(np.mean((image.astype(np.float64) - clean) ** 2)))


def dimensions(image: Array) -> int:
    """2 for an image, 3 for a volume, channels first."""
    return image.ndim - 1


def clean(noisy: Array, steps: int = 0) -> tuple[Array, float]:
    """The product's denoising, and its processor time in seconds."""
    began = time.process_time()
    made = denoise(
        noisy,
        ndim=dimensions(noisy),
        steps=steps,
        seed=SEED,
        device=torch.device("cpu"),
        progress=lambda done, total, message: None,
    )
    return made, time.process_time() - began


def non_local_means(noisy: Array) -> list[Array]:
    """scikit-image's non-local means with patches of 5 and distance 6, fast mode, the noise estimated.

    Two usual settings: ``h`` 0.8 sigma, and ``h`` 0.6 sigma with ``sigma`` given.
    """
    sigma = float(np.mean([noise_level(channel) for channel in noisy]))
    picture, axis = (noisy[0], None) if len(noisy) == 1 else (noisy, 0)
    usual = {"patch_size": 5, "patch_distance": 6, "fast_mode": True, "channel_axis": axis}
    made = [
        denoise_nl_means(picture, h=0.8 * sigma, **usual),
        denoise_nl_means(picture, h=0.6 * sigma, sigma=sigma, **usual),
    ]
    return [m.reshape(noisy.shape).astype(np.float32) for m in made]


def gaussian(image: Array) -> Array:
    """The image with Gaussian noise of `SIGMA`, not clipped."""
    noise = np.random.default_rng(SEED).standard_normal(image.shape)
    return (image + SIGMA * noise).astype(np.float32)


def poisson(image: Array) -> Array:
    """The image as counted photons, `PHOTONS` where it is 1."""
    return (np.random.default_rng(SEED).poisson(image * PHOTONS) / PHOTONS).astype(np.float32)


def row(name: str, noise: str, image: Array, noisy: Array, steps: int) -> str:
    """Clean one noisy image both ways and say how it went, as a row of a markdown table."""
    ours, seconds = clean(noisy, steps)
    size = " x ".join(str(n) for n in image.shape[1:])
    if noise == "none":
        return f"| {name} | {size} | none | | {psnr(ours, image):.2f} | | | | {seconds:.0f} |"
    before, after = psnr(noisy, image), psnr(ours, image)
    others = " | ".join(f"{psnr(made, image):.2f}" for made in non_local_means(noisy))
    return (
        f"| {name} | {size} | {noise} | {before:.2f} | {after:.2f} | {after - before:+.2f} | {others} | {seconds:.0f} |"
    )


def table(images: Mapping[str, Array], steps: int, save: Callable[[str], None]) -> None:
    """Figures for Gaussian noise, photon noise and no noise as a markdown table, printed and saved as it grows."""
    lines = [
        "| image | size | noise | noisy, dB | network, dB | gain, dB | NLM h 0.8, dB | NLM h 0.6, dB | processor s |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(lines), flush=True)
    kinds: list[tuple[str, Callable[[Array], Array]]] = [
        ("Gaussian, sigma 25/255", gaussian),
        ("none", np.copy),
        (f"Poisson, {PHOTONS:.0f} photons", poisson),
    ]
    for noise, add in kinds:
        for name, image in images.items():
            lines.append(row(name, noise, image, add(image), steps))
            print(lines[-1], flush=True)
            save("\n".join(lines))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("tune", "evaluate", "describe"))
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--only", default="", help="images whose name holds this")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.action == "describe":
        for spec in SPECS.values():
            (BUILTIN / spec.id).mkdir(parents=True, exist_ok=True)
            write_manifest(spec, BUILTIN / spec.id)
        return
    images = sample_images() if chosen.action == "evaluate" else tuning_images()
    images = {name: image for name, image in images.items() if chosen.only in name}
    whole = chosen.action == "evaluate" and not chosen.only and not chosen.steps

    def save(text: str) -> None:
        if whole:
            for spec in SPECS.values():
                write_into_card(BUILTIN / spec.id / "card.md", "results", text)

    table(images, chosen.steps, save)


if __name__ == "__main__":
    main()
