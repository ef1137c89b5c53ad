"""What the trainers of networks on fluorescence share: the loop, whole-image prediction, files, the card."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from napari_medai.core.volume import Volume
from training.metrics import Counts

Batch = tuple[torch.Tensor, ...]


def fit(
    network: torch.nn.Module,
    batch: Callable[[np.random.Generator], Batch],
    loss: Callable[[torch.Tensor, Batch], torch.Tensor],
    *,
    steps: int,
    rate: float,
    seed: int,
    checkpoint: Path | None = None,
    report_every: int = 50,
) -> float:
    """Train a network with AdamW under a one-cycle learning rate.

    Parameters
    ----------
    network
        Changed in place; left in evaluation mode.
    batch
        Makes one batch; its first tensor is the network's input.
    loss
        Of the network's output and the batch.
    steps
        Number of batches.
    rate
        Highest learning rate.
    seed
        Of the batches.
    checkpoint
        Written every ten reports, so that a cut-off run is not lost.
    report_every
        Steps between printed lines.

    Returns
    -------
    float
        Seconds it took.
    """
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.15)
    network.train()
    began, recent = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        made = batch(rng)
        value = loss(network(made[0]), made)
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        recent = value.item() if step == 1 else 0.95 * recent + 0.05 * value.item()
        if step % report_every == 0:
            print(f"step {step}/{steps} loss {recent:.4f} {time.monotonic() - began:.0f} s", flush=True)
            if checkpoint is not None and step % (10 * report_every) == 0:
                save_weights(network, checkpoint)
    network.eval()
    return time.monotonic() - began


def save_weights(network: torch.nn.Module, path: Path) -> None:
    """Write a network's state as safetensors, floating-point numbers as float16."""
    state = {
        name: (value.half() if value.is_floating_point() else value).detach().contiguous()
        for name, value in network.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    save_file(state, partial)
    partial.chmod(0o644)  # safetensors writes a file that only its owner can read
    partial.replace(path)


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Read a state written by `save_weights` into a network, which is then in evaluation mode.

    Raises
    ------
    RuntimeError
        If a weight is missing, too many or of another shape.
    """
    state = load_file(path)
    network.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in state.items()})
    network.eval()


def predict(network: torch.nn.Module, image: NDArray[np.float32], multiple: int = 16) -> NDArray[np.float32]:
    """Apply a network to a whole image, reflected at its far edges up to a multiple of `multiple`.

    Parameters
    ----------
    image
        Shape (y, x).

    Returns
    -------
    ndarray
        Shape (K, y, x).
    """
    height, width = image.shape
    padded = np.pad(image, ((0, -height % multiple), (0, -width % multiple)), mode="reflect")
    with torch.inference_mode():
        out = network(torch.from_numpy(padded)[None, None])[0]
    return np.asarray(out[:, :height, :width].numpy())


def write_into_card(card: Path, marker: str, text: str) -> None:
    """Replace what stands between ``<!-- marker -->`` and ``<!-- /marker -->`` in a model card.

    Raises
    ------
    ValueError
        If the card has no such pair of marks.
    """
    before = card.read_text(encoding="utf-8")
    begin, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    after, found = re.subn(pattern, lambda _: f"{begin}\n{text.strip()}\n{end}", before, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"{card.name} has {found} blocks {begin} … {end}, expected 1")
    partial = card.with_name(card.name + ".part")
    partial.write_text(after, encoding="utf-8")
    partial.replace(card)


def as_volume(name: str, image: NDArray[np.generic]) -> Volume:
    """A fluorescence image (y, x) as the product's functions take it."""
    return Volume(image, "yx", modality="fluorescence", name=name)


def results_table(rows: Sequence[tuple[str, Counts]], decimals: int = 3) -> str:
    """A markdown table of counts: one row each with TP, FP, FN, precision, recall, F1 and AP."""
    lines = [
        "| | right | wrong | missed | precision | recall | F1 | AP |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for title, c in rows:
        figures = " | ".join(f"{v:.{decimals}f}" for v in (c.precision, c.recall, c.f1, c.average_precision))
        lines.append(f"| {title} | {c.true_positive} | {c.false_positive} | {c.false_negative} | {figures} |")
    return "\n".join(lines)
