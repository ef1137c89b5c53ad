"""How the classifier ``quality`` was made: ``python -m training.quality train | evaluate``.

Clean series of slices are drawn out of real images and phantoms, spoiled by `training.defects`, stored in a random
number format and prepared by `napari_medai.engine.slices`, the code that the product runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch.nn import functional

from napari_medai.models.manifest import write_manifest
from napari_medai.models.spec import Accepts, Gives, Label, ModelSpec, Prepare
from napari_medai.nets.quality import QualityNet
from napari_medai.nets.quality_cues import LAG_CUES, repeats
from training.defects import DEFECTS
from training.fitting import load_weights, save_weights, write_into_card
from training.quality_data import corpus_sources, phantom, sources
from training.quality_draw import Draw, Example, make_example
from training.quality_figures import (
    Judged,
    auroc,
    baseline,
    clean_table,
    defect_table,
    judge,
    mean_auroc,
    scores_and_labels,
    slice_auroc,
)

FOLDER = Path(__file__).parents[1] / "src" / "napari_medai" / "models" / "builtin" / "quality"
WEIGHTS = FOLDER / "weights.safetensors"
SEED = 20261122
SLICES_PER_STEP = 32
LENGTHS = (1, 4, 8, 16)
LENGTH_SHARES = (0.62, 0.20, 0.12, 0.06)
WARM_UP_SLICES = 2600
WARM_UP_ROUNDS = 45
POSITIVE_WEIGHT = 1.7
SLICE_LOSS_SHARE = 0.4
REPLAY = 6
POOL_BATCHES = 96
FALSE_POSITIVE_LIMIT = 0.05


def masked_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy over the known labels, present ones weighted by `POSITIVE_WEIGHT`."""
    known = ~torch.isnan(labels)
    target = torch.where(known, labels, torch.zeros(()))
    weight = torch.tensor(POSITIVE_WEIGHT)
    losses = functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


def batch_of(examples: Sequence[Example], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Stack series of one length, turned and reversed at random."""
    inputs, slice_labels, labels = [], [], []
    for example in examples:
        maps, slices = example.inputs, example.slice_labels
        if rng.random() < 0.5:
            maps, slices = maps[::-1], slices[::-1]
        quarters = int(rng.integers(4))
        maps = np.rot90(maps, quarters, (2, 3))
        if quarters % 2:  # coarse detail along y becomes that along x
            maps = maps[:, [0, 1, 2, 4, 3, 5]]
        inputs.append(np.flip(maps, 3) if rng.random() < 0.5 else maps)
        slice_labels.append(slices)
        labels.append(example.labels)
    return (
        torch.from_numpy(np.stack(inputs).astype(np.float32)),
        torch.from_numpy(np.stack(slice_labels)),
        torch.from_numpy(np.stack(labels)),
    )


def warm_up(network: QualityNet, draw: Draw, seed: int) -> list[Example]:
    """Train the reader of repetition alone, with a head that is thrown away, on single slices.

    Motion and ghosts are learnt by thousands of quick steps on `repeats`, for which the whole network is too slow.

    Returns
    -------
    list of Example
        The slices, for use in `fit`.
    """
    rng = np.random.default_rng(seed)
    examples = [make_example(draw(1, rng), 1, rng, mildest=0.2) for _ in range(WARM_UP_SLICES)]
    faint = np.stack([e.inputs[0, 1] for e in examples])
    lags = torch.cat(
        [repeats(torch.from_numpy(part.astype(np.float32))) for part in np.array_split(faint, -(-len(faint) // 128))]
    )
    labels = torch.from_numpy(np.stack([e.labels for e in examples]))
    head = torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Linear(LAG_CUES, len(DEFECTS)))
    optimiser = torch.optim.AdamW([*network.lags.parameters(), *head.parameters()], lr=2e-3, weight_decay=1e-2)
    for _ in range(WARM_UP_ROUNDS):
        for picked in np.array_split(rng.permutation(len(examples)), max(1, len(examples) // 64)):
            loss = masked_loss(head(network.lags(lags[picked])), labels[picked])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    print(f"warm-up loss {loss.item():.4f}", flush=True)
    return examples


def fit(
    network: QualityNet,
    draw: Draw,
    first: Sequence[Example],
    *,
    minutes: float,
    rate: float,
    seed: int,
    checkpoint: Path | None,
) -> None:
    """Train for a given time of one core with AdamW; the learning rate follows half a cosine over the time.

    Each drawn example serves about `REPLAY` times, turned anew, because drawing costs more than a step.
    """
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-3)
    pools: dict[int, list[Example]] = {length: [] for length in LENGTHS}
    pools[1].extend(first)
    began, recent, step = time.process_time(), 0.0, 0
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    while (done := (time.process_time() - began) / (60 * minutes)) < 1:
        step += 1
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, step / 50) * (0.5 * (1 + np.cos(np.pi * done)) + 0.01)
        length = int(rng.choice(LENGTHS, p=LENGTH_SHARES))
        size = SLICES_PER_STEP // length
        pool = pools[length]
        fresh = size if len(pool) < 4 * size else -(-size // REPLAY)
        pool.extend(make_example(draw(length, rng), length, rng) for _ in range(fresh))
        del pool[: max(0, len(pool) - POOL_BATCHES * size)]
        picked = [*pool[-fresh:], *(pool[int(k)] for k in rng.integers(0, len(pool), size - fresh))]
        inputs, slice_labels, labels = batch_of(picked, rng)
        out = network(inputs)
        loss = masked_loss(out.logits[:, 1:], labels)
        loss = loss + SLICE_LOSS_SHARE * masked_loss(out.slice_logits[..., 1:], slice_labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        recent = loss.item() if step == 1 else 0.98 * recent + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"step {step} loss {recent:.4f} {time.process_time() - began:.0f} s", flush=True)
            if checkpoint is not None and step % 250 == 0:
                save_weights(network, checkpoint)
    network.eval()


def calibrate(network: QualityNet, judged: Sequence[Judged]) -> None:
    """Fit scale and shift of each class (Platt, 1999) and move the threshold to a logit of 0.

    The threshold is the one with the largest sensitivity + specificity among those with a false positive rate
    of at most `FALSE_POSITIVE_LIMIT` on validation images.
    """
    scale, shift = [], []
    for column in range(len(DEFECTS)):
        scores = np.array([j.logits[column] for j in judged], np.float64)
        labels = np.array([j.labels[column] for j in judged], np.float64)
        known = ~np.isnan(labels)
        scores, labels = scores[known], labels[known]

        def loss(ab: NDArray[np.float64], s: NDArray[np.float64] = scores, t: NDArray[np.float64] = labels) -> float:
            z = ab[0] * s + ab[1]
            return float(np.mean(np.logaddexp(0, z) - t * z) + 1e-3 * ab[0] ** 2)

        a, _ = minimize(loss, np.array([1.0, 0.0]), method="Nelder-Mead").x
        a = max(float(a), 0.05)
        candidates = np.unique(scores)
        sensitivity = np.array([(scores[labels == 1] >= t).mean() for t in candidates])
        false_positive = np.array([(scores[labels == 0] >= t).mean() for t in candidates])
        allowed = false_positive <= FALSE_POSITIVE_LIMIT
        best = int(np.argmax(np.where(allowed, sensitivity - false_positive, -np.inf)))
        below = candidates[best - 1] if best > 0 else candidates[best] - 1.0
        threshold = (candidates[best] + below) / 2
        scale.append(a)
        shift.append(-a * float(threshold))
    network.logit_shift.copy_(network.logit_shift * torch.tensor(scale) + torch.tensor(shift))
    network.logit_scale.mul_(torch.tensor(scale))


def write_description(weights: Path) -> None:
    """Write ``medai-model.yaml`` beside the weights."""
    spec = ModelSpec(
        id="quality",
        title="Image quality",
        summary="Noise, blur, motion, ghosting, bias field and clipping, in an image or a volume; several can hold.",
        stage="classify",
        accepts=Accepts(ndim=(2, 3), min_size=16),
        prepare=Prepare(normalise="none"),  # napari_medai.engine.slices scales, so that defects are kept
        gives=Gives(
            kind="classes",
            labels=tuple(Label(value=value, name=name) for value, name in enumerate(("none", *DEFECTS))),
        ),
        runner="quality",
        network="quality",
        weights=weights.name,
        intended_use="Sorting out spoiled images before further processing; research only, not a medical device.",
    )
    write_manifest(spec, weights.parent)


def train(minutes: float, weights: Path = WEIGHTS) -> None:
    """Train on the training split, calibrate on the validation split, write the weights."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    draw = Draw(sources("training"), [phantom(rng) for _ in range(24)])
    network = QualityNet()
    first = warm_up(network, draw, SEED + 4)
    checkpoint = weights.with_suffix(".part.safetensors")
    fit(network, draw, first, minutes=minutes, rate=2e-3, seed=SEED, checkpoint=checkpoint)
    judged = judge(network, sources("validation"), 130, SEED + 1)
    with torch.no_grad():
        calibrate(network, judged)
    save_weights(network, weights)
    checkpoint.unlink(missing_ok=True)
    load_weights(network, weights)
    write_description(weights)
    judged = judge(network, sources("validation"), 130, SEED + 1)
    print(f"validation: mean AUROC {mean_auroc(judged):.3f}")
    for column, name in enumerate(DEFECTS):
        print(f"  {name}: AUROC {auroc(*scores_and_labels(judged, column)):.3f}")


def evaluate(card: Path | None = None) -> str:
    """Figures on the test split as Markdown; written into the marked block of the card if one is given."""
    torch.set_num_threads(1)
    network = QualityNet()
    load_weights(network, WEIGHTS)
    images = sources("test")
    judged = judge(network, images, 240, SEED + 3)
    counts = ", ".join(f"{sum(j.kind == g for j in judged)} {g}" for g in dict.fromkeys(j.kind for j in judged))
    parts = [
        f"{len(judged)} spoiled or clean series ({counts}) drawn out of {len(images)} subjects and images that were "
        "never trained on. AUROC over all, of the baseline (logistic regression on the mean and deviation of the four "
        "input maps), by group, and by severity (thirds); sensitivity and share of false positives at 0.5:",
        defect_table(judged, baseline(SEED + 2)),
        f"Slices within series of which only a part is spoiled: AUROC {slice_auroc(judged):.3f}.",
        clean_table(images),
    ]
    extra = corpus_sources()
    if extra:
        parts += ["A scan from outside the packages, present only where `MEDAI_CORPUS` is set:", clean_table(extra)]
    text = "\n\n".join(parts)
    if card is not None:
        write_into_card(card, "results", text)
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["train", "evaluate"])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    given = parser.parse_args()
    if given.command == "train":
        train(given.minutes, given.weights)
    else:
        print(evaluate(FOLDER / "card.md"))
