"""Figures for the classifier ``quality``: what it says of spoiled and of sound images, and a plain baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import rankdata

from napari_medai.api import classify
from napari_medai.core.volume import from_array
from napari_medai.nets.quality import QualityNet
from training.defects import DEFECTS
from training.quality_data import Source, phantom, sources
from training.quality_draw import Draw, make_example

LENGTHS_OF_VOLUMES = (1, 4, 8, 16, 24)


@dataclass(frozen=True)
class Judged:
    """An example that the network has seen.

    Attributes
    ----------
    kind : str
        Group of the source, see `group_of`.
    logits, labels : float (defect,)
    slice_logits, slice_labels : float (slice, defect)
    severities : dict
        Defect -> severity that was asked for.
    means : float32 (12,)
        Mean and deviation of each input map, for the baseline.
    """

    kind: str
    logits: NDArray[np.float32]
    labels: NDArray[np.float32]
    slice_logits: NDArray[np.float32]
    slice_labels: NDArray[np.float32]
    severities: dict[str, float]
    means: NDArray[np.float32]


def group_of(source: Source) -> str:
    """Group for reporting: head MR and head CT apart from the rest of their modality."""
    return f"head {source.kind}" if "head" in source.name else source.kind


def summary_features(inputs: NDArray[np.floating]) -> NDArray[np.float32]:
    """Mean and standard deviation of each input map over a series: what the baseline sees."""
    maps = inputs.astype(np.float32)
    return np.concatenate([maps.mean((0, 2, 3)), maps.std((0, 2, 3))])


def judge(network: QualityNet, images: Sequence[Source], per_group: int, seed: int) -> list[Judged]:
    """Spoil the images of a split at random and let the network judge them.

    Parameters
    ----------
    per_group : int
        Series per group of `group_of`, shared evenly among its sources.
    """
    rng = np.random.default_rng(seed)
    groups = {group_of(s): [t for t in images if group_of(t) == group_of(s)] for s in images}
    found = []
    for kind, members in groups.items():
        for n in range(per_group):
            source = members[n % len(members)]
            lengths = [k for k in LENGTHS_OF_VOLUMES if k <= len(source.pixels)]
            count = int(rng.choice(lengths))
            example = make_example(source, count, rng)
            with torch.inference_mode():
                out = network(torch.from_numpy(example.inputs.astype(np.float32))[None])
            found.append(
                Judged(
                    kind,
                    out.logits[0, 1:].numpy(),
                    example.labels,
                    out.slice_logits[0, :, 1:].numpy(),
                    example.slice_labels,
                    example.severities,
                    summary_features(example.inputs),
                )
            )
    return found


def auroc(scores: NDArray[np.floating], labels: NDArray[np.floating]) -> float:
    """Area under the receiver operating characteristic by ranks (Mann and Whitney); nan labels are left out."""
    known = ~np.isnan(labels)
    values, truth = scores[known], labels[known] > 0.5
    present, absent = int(truth.sum()), int((~truth).sum())
    if present == 0 or absent == 0:
        return float("nan")
    ranks = rankdata(values)
    return float((ranks[truth].sum() - present * (present + 1) / 2) / (present * absent))


def scores_and_labels(judged: Sequence[Judged], column: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits and labels of one defect."""
    return np.array([j.logits[column] for j in judged]), np.array([j.labels[column] for j in judged])


def mean_auroc(judged: Sequence[Judged]) -> float:
    """Mean over the defects."""
    return float(np.mean([auroc(*scores_and_labels(judged, c)) for c in range(len(DEFECTS))]))


def baseline(seed: int, count: int = 900) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    """Logistic regression on `summary_features`, fitted on training images; returns features -> logits."""
    rng = np.random.default_rng(seed)
    draw = Draw(sources("training"), [phantom(rng) for _ in range(8)])
    lengths = rng.choice((1, 4), size=count)
    examples = [make_example(draw(int(k), rng), int(k), rng) for k in lengths]
    features = np.stack([summary_features(e.inputs) for e in examples]).astype(np.float64)
    labels = np.stack([e.labels for e in examples])
    centre, spread = features.mean(0), features.std(0) + 1e-6

    def expand(raw: NDArray[np.floating]) -> NDArray[np.float64]:
        unit = (np.asarray(raw, np.float64) - centre) / spread
        return np.concatenate([unit, np.ones((*unit.shape[:-1], 1))], axis=-1)

    weights = []
    for column in range(len(DEFECTS)):
        known = ~np.isnan(labels[:, column])
        x, t = expand(features[known]), labels[known, column]

        def loss(w: NDArray[np.float64], x: NDArray[np.float64] = x, t: NDArray[np.float64] = t) -> float:
            z = x @ w
            return float(np.mean(np.logaddexp(0, z) - t * z) + 1e-3 * (w @ w))

        weights.append(minimize(loss, np.zeros(x.shape[1]), method="L-BFGS-B").x)
    return lambda raw: np.asarray(expand(raw) @ np.stack(weights).T)


def defect_table(judged: Sequence[Judged], plain: Callable[[NDArray[np.float32]], NDArray[np.float64]]) -> str:
    """One row per defect: how often it is there, how well it is told, and what the threshold of 0.5 does."""
    groups = list(dict.fromkeys(j.kind for j in judged))
    guesses = plain(np.stack([j.means for j in judged]))
    lines = [
        "| defect | prevalence | AUROC | baseline | "
        + " | ".join(groups)
        + " | mild | moderate | gross | sensitivity | false positives |",
        "|---|" + "---|" * (8 + len(groups)),
    ]
    totals: list[list[float]] = []
    for column, name in enumerate(DEFECTS):
        scores, labels = scores_and_labels(judged, column)
        by_group = [auroc(*scores_and_labels([j for j in judged if j.kind == g], column)) for g in groups]
        severity = np.array([j.severities.get(name, np.nan) for j in judged])
        graded = []
        for low, high in ((0.0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.01)):
            keep = (labels == 0) | ((severity >= low) & (severity < high))
            graded.append(auroc(scores[keep], labels[keep]))
        present, absent = labels == 1, labels == 0
        row = [
            float(present.sum() / (present.sum() + absent.sum())),
            auroc(scores, labels),
            auroc(guesses[:, column], labels),
            *by_group,
            *graded,
            float((scores[present] >= 0).mean()),
            float((scores[absent] >= 0).mean()),
        ]
        totals.append(row)
        lines.append(f"| {name} | " + " | ".join(f"{v:.3f}" for v in row) + " |")
    lines.append("| **mean** | " + " | ".join(f"{v:.3f}" for v in np.nanmean(totals, axis=0)) + " |")
    return "\n".join(lines)


def slice_auroc(judged: Sequence[Judged]) -> float:
    """Mean AUROC of slices within series of which only a part has noise, blur, motion or ghosting."""
    found = []
    for j in judged:
        for column in range(len(DEFECTS)):
            labels = j.slice_labels[:, column]
            if (labels == 1).any() and (labels == 0).any():
                found.append(auroc(j.slice_logits[:, column], labels))
    return float(np.mean(found)) if found else float("nan")


def clean_table(images: Sequence[Source]) -> str:
    """What the product says of held-out images as they were acquired, without any change.

    Only defects that the image is not known to have count as false positives.
    """
    lines = ["| image as acquired | slices | called | none |", "|---|---|---|---|"]
    false, known = np.zeros(len(DEFECTS), int), np.zeros(len(DEFECTS), int)
    flagged = 0
    for source in images:
        array = source.pixels if len(source.pixels) > 1 else source.pixels[0]
        scores = classify(from_array(array, "zyx"[-array.ndim :]), "quality")
        called = scores.probabilities[1:] >= scores.thresholds[1:]
        countable = np.array([name not in source.unknown for name in DEFECTS])
        false += called & countable
        known += countable
        flagged += bool((called & countable).any())
        names = [f"{n} {p:.2f}" for n, p, c in zip(DEFECTS, scores.probabilities[1:], called, strict=True) if c]
        cells = [source.name, str(len(scores.slice_index)), ", ".join(names) or "-", f"{scores.probabilities[0]:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    rates = ", ".join(f"{n} {f}/{k}" for n, f, k in zip(DEFECTS, false, known, strict=True))
    lines.append("")
    lines.append(f"False positives on these images: {rates}; any at all: {flagged}/{len(images)}.")
    return "\n".join(lines)
