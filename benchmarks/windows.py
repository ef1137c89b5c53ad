"""What the rows about sliding windows of `benchmarks.engine` run, each function in a process of its own.

The task is made up and learnt in a minute: blobs in something like a head. Random weights would do for time and memory,
but not for labels: what was never learnt is a tie at every second voxel.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

import napari_medai as medai
from benchmarks.memory import Region, watched
from napari_medai.core.geometry import scaling
from napari_medai.core.stage import Params, Progress
from napari_medai.core.volume import Volume
from napari_medai.engine.run import start
from napari_medai.models.manifest import write_manifest
from napari_medai.models.spec import Accepts, Gives, Label, Model, ModelSpec, Prepare, Tiling
from napari_medai.nets import build

TILE, OVERLAP = 96, 0.5
TWO = {
    "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [16, 32, 64, 128, 256],
    "strides": [2, 2, 2, 2], "num_res_units": 2,
}  # fmt: skip
# 117 classes and background. Small before the last layer: what is looked at is what becomes of the scores
MANY = {
    "spatial_dims": 3, "in_channels": 1, "out_channels": 118, "channels": [8, 16, 32], "strides": [2, 2],
}  # fmt: skip
# What a run of them may take: the least that sums in half precision and tiles of this size need
MOST_MB = 2700
SCAN, SCAN_MM, MODEL_MM = (300, 512, 512), (1.5, 0.8, 0.8), 1.5
_WEIGHTS = "weights.safetensors"


def head(shape: tuple[int, ...], seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Something like a head with blobs in it and noise, and where the blobs are."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, *(max(2, n // 8) for n in shape), generator=generator)
    field = functional.interpolate(coarse, shape, mode="trilinear")[0, 0].numpy()
    squares = [((np.arange(n) / n - 0.5) / 0.45) ** 2 for n in shape]
    inside = squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :] < 1
    truth = (field > 0.6) & inside
    noise = torch.randn(*shape, generator=generator).numpy()
    image = (inside * (0.5 + 0.35 * truth + 0.05 * field) + 0.15 * noise).astype(np.float32)
    return image, truth


def fit(folder: str, steps: int = 80, seed: int = 1) -> dict[str, Any]:
    """Train MONAI's U-Net, about a minute on two cores, and describe it as a package."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = build("UNet", **TWO)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    image, truth = head((128, 128, 128), seed=100)
    loss = torch.zeros(())
    for _ in range(steps):
        at = rng.integers(0, 128 - 48, (4, 3))
        cuts = [tuple(slice(n, n + 48) for n in corner) for corner in at]
        pixels = torch.from_numpy(np.stack([image[cut] for cut in cuts]))[:, None]
        wanted = torch.from_numpy(np.stack([truth[cut] for cut in cuts])).long()
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(pixels), wanted)
        loss.backward()
        optimizer.step()
    labels = (Label(value=1, name="blob"),)
    # instance norm: only the same tiles give the same labels
    tiling = Tiling(size=(TILE,) * 3, overlap=OVERLAP, places="stepped")
    _describe(Path(folder), network, "UNet", TWO, Prepare(normalise="none"), labels, tiling)
    return {"loss": float(loss.detach())}


def make_many(folder: str, seed: int = 1) -> dict[str, Any]:
    """The network of 117 classes, with random weights."""
    torch.manual_seed(seed)
    labels = tuple(Label(value=n, name=f"structure {n}") for n in range(1, MANY["out_channels"]))  # type: ignore[call-overload]
    prepare = Prepare(normalise="range", low=-1000, high=1000, spacing_mm=(MODEL_MM,) * 3)
    tiling = Tiling(size=(TILE,) * 3, multiple=4, overlap=OVERLAP)
    _describe(Path(folder), build("UNet", **MANY), "UNet", MANY, prepare, labels, tiling)
    return {}


def ours(folder: str, edge: int, device: str, batch: int, out: str = "") -> dict[str, Any]:
    """`medai.segment` of a cube, by a network that is loaded and was used before."""
    model, image = medai.load_model(folder), head((edge,) * 3)[0]
    volume = Volume(image, "zyx", np.eye(4), units="mm")
    warm = volume.replace(array=np.ascontiguousarray(image[:TILE, :TILE, :TILE]))
    medai.segment(warm, model, device=device, batch=batch)
    with watched() as region:
        found = medai.segment(volume, model, device=device, batch=batch)
    return _told(region, np.asarray(found.labels.array), out, tiles=found.provenance.tiles)


def monai(folder: str, edge: int, device: str, batch: int, out: str = "") -> dict[str, Any]:
    """MONAI's SlidingWindowInferer on the same."""
    from monai.inferers import SlidingWindowInferer

    network = _network(folder, TWO).to(device)
    image = torch.from_numpy(head((edge,) * 3)[0])[None, None].to(device)
    windows = SlidingWindowInferer((TILE,) * 3, batch, OVERLAP, mode="gaussian")
    with torch.inference_mode():
        network(image[..., :TILE, :TILE, :TILE])
        with watched() as region:
            labels = windows(image, network).argmax(1)[0].to(torch.uint8).cpu().numpy()
    return _told(region, labels, out)


def scan(planes: int) -> NDArray[np.int16]:
    """Something like a CT of a trunk in HU, (planes, 512, 512)."""
    image, _ = head((planes, *SCAN[1:]))
    np.multiply(image, 1000, out=image)
    np.subtract(image, 950, out=image)
    return image.astype(np.int16)


def ours_many(folder: str, planes: int, device: str) -> dict[str, Any]:
    """117 classes on the scan's own voxels, from the file of the model to the labels, in a process of its own."""
    volume = Volume(scan(planes), "zyx", scaling(SCAN_MM), units="mm", modality="CT")
    with watched() as region:
        found = medai.segment(volume, medai.load_model(folder), device=device, memory=MOST_MB)
    labels = np.asarray(found.labels.array)
    return _told(region, labels, "", tiles=found.provenance.tiles, classes=len(np.unique(labels)))


def monai_many(folder: str, planes: int, device: str) -> dict[str, Any]:
    """The same by MONAI: scores of the whole grid, resampled to the scan's voxels, argmax.

    Where memory runs out: ``failed`` says in which step.
    """
    from monai.inferers import SlidingWindowInferer

    network, step = _network(folder, MANY).to(device), "the input"
    pixels = scan(planes)
    with watched() as region:
        try:
            image = torch.from_numpy(pixels).float()[None, None].div_(1000).to(device)
            small = functional.interpolate(image, grid(planes), mode="trilinear")
            step = "the sum of windows"
            with torch.inference_mode():
                scores = SlidingWindowInferer((TILE,) * 3, 1, OVERLAP, mode="gaussian")(small, network)
                step = "resampling the scores"
                labels = functional.interpolate(scores, pixels.shape, mode="trilinear").argmax(1)[0]
        except (RuntimeError, MemoryError) as error:
            text = str(error).partition("\n")[0]
            return {**region.as_dict(), "failed": step, "says": text[:300]}
    return _told(region, labels.to(torch.uint8).cpu().numpy(), "")


def grid(planes: int) -> tuple[int, ...]:
    """The model's grid of the scan."""
    return tuple(max(1, round(n * own / MODEL_MM)) for n, own in zip((planes, *SCAN[1:]), SCAN_MM, strict=True))


def overhead(folder: str, edge: int, device: str, repeats: int) -> dict[str, Any]:
    """Seconds of a run over a cube in tiles and of as many passes of such tiles, in turns; the shortest of each."""
    image = head((edge,) * 3)[0][None]
    volume = Volume(image[0], "zyx", np.eye(4), units="mm")
    model: Model = medai.load_model(folder)
    # as a description has them that asks for no other framework's
    usual = Tiling(size=(TILE,) * 3, multiple=16, overlap=OVERLAP)
    model = model.model_copy(update={"spec": model.spec.model_copy(update={"tiling": usual})})
    best = {"run": math.inf, "passes": math.inf, "stage": math.inf}
    tiles = passes = 0
    for repeat in range(repeats + 1):
        with start("segment", volume, model, Params(device=device), Progress()) as run:  # type: ignore[arg-type]
            network = run.network()
            sizes: list[int] = []

            def counted(pixels: torch.Tensor, network: Any = network, sizes: list[int] = sizes) -> Any:
                sizes.append(len(pixels))
                return network(pixels)

            ran = _seconds(lambda run=run, counted=counted: run.predict(image, counted), device)  # type: ignore[misc]
            tiles, passes = sum(sizes), len(sizes)
            half = {"float16 (autocast)": torch.float16, "bfloat16 (autocast)": torch.bfloat16}.get(run.precision)

            pixels = torch.from_numpy(image[:, :TILE, :TILE, :TILE]).repeat(max(sizes), 1, 1, 1, 1).to(device)
            floored = _seconds(lambda given=(network, pixels, sizes, half): _passes(*given), device)  # type: ignore[misc]
        staged = _seconds(lambda: medai.segment(volume, model, device=device), device)
        if repeat:  # the first is for warming up
            for name, seconds in (("run", ran), ("passes", floored), ("stage", staged)):
                best[name] = min(best[name], seconds)
    return {**best, "tiles": tiles, "in": passes}


def _passes(network: Any, pixels: torch.Tensor, sizes: list[int], half: torch.dtype | None) -> None:
    """A network on so many tiles, and nothing else."""
    cast = torch.autocast(pixels.device.type, dtype=half or torch.bfloat16, enabled=half is not None)
    with torch.inference_mode(), cast:
        for size in sizes:
            network(pixels[:size])


def _seconds(work: Any, device: str) -> float:
    begun = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _describe(
    folder: Path, network: nn.Module, name: str, arguments: dict[str, Any], prepare: Prepare,
    labels: tuple[Label, ...], tiling: Tiling,
) -> None:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), folder / _WEIGHTS)
    spec = ModelSpec(
        id="benchmark", title="Benchmark", summary="Made for a benchmark.", stage="segment",
        accepts=Accepts(ndim=(3,)), prepare=prepare, gives=Gives(kind="labels", labels=labels),
        tiling=tiling, runner="network", network=name,
        arguments=arguments, weights=_WEIGHTS,
    )  # fmt: skip
    write_manifest(spec, folder)


def _network(folder: str, arguments: dict[str, Any]) -> nn.Module:
    network = build("UNet", **arguments)
    network.load_state_dict(load_file(Path(folder) / _WEIGHTS))
    return network.eval()


def _told(region: Region, labels: NDArray[Any], out: str, **more: Any) -> dict[str, Any]:
    if out:
        np.save(out, labels.astype(np.uint8))
    return {**region.as_dict(), "foreground": float((labels > 0).mean()), **more}
