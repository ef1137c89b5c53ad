"""Slab by slab is the same as everything at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from napari_medai.engine.resample import nearest_index, resample, weights
from napari_medai.engine.slabs import Decide, Undo, _order, _round_to_half


def labels(undo: Undo, scores: NDArray[Any], cuts: Sequence[int] = ()) -> NDArray[Any]:
    """Of all planes, fed in slabs that end at ``cuts``; planes come in order and without gaps."""
    pieces, expected = [], 0
    for part in np.split(scores, list(cuts), axis=1):
        buffer = part.copy()
        for first, found in undo.add(buffer):
            assert first == expected
            expected += len(found)
            pieces.append(found)
        buffer.fill(np.nan)  # a caller may write over a slab that was taken
    undo.finish()
    return np.concatenate(pieces)


def between(scores: NDArray[Any], shape: Sequence[int], how: Sequence[str]) -> NDArray[np.float32]:
    """The plain way: every channel on the output's grid."""
    out = np.asarray(scores, np.float32)
    for axis, (size, way) in enumerate(zip(shape, how, strict=True), 1):
        if way == "nearest":
            out = np.take(out, nearest_index(out.shape[axis], size), axis=axis)
        elif way == "sampled":
            moved = np.moveaxis(out, axis, 0)
            flat = weights(len(moved), size, averaging=False) @ moved.reshape(len(moved), -1)
            out = np.moveaxis(flat.reshape(size, *moved.shape[1:]), 0, axis)
        else:
            out = resample(out, [size if n == axis else m for n, m in enumerate(out.shape)][1:])
    return out


def close_calls(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where the two largest channels are next to equal."""
    top = np.sort(scores, axis=0)
    return np.asarray(top[-1] - top[-2] < 1e-5)


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[Any], tuple[int, ...], tuple[str, ...], list[int]]:
    """Scores, the shape to go to, how, and where slabs end."""
    axes = draw(st.sampled_from((2, 3)))
    old = draw(st.tuples(*(st.integers(1, 9),) * axes))
    new = draw(st.tuples(*(st.integers(1, 14),) * axes))
    how = draw(st.tuples(*(st.sampled_from(("linear", "linear", "sampled", "nearest")),) * axes))
    channels = draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = rng.normal(size=(channels, *old)).astype(np.float32)
    if draw(st.booleans()):  # classes that are coherent
        scores = np.round(scores) + (np.arange(channels) == rng.integers(channels)).reshape(-1, *(1,) * axes) * 2
    kind = draw(st.sampled_from((np.float16, np.float32)))
    cuts = draw(st.lists(st.integers(1, old[0]), max_size=4, unique=True))
    return scores.astype(kind), new, how, sorted(c for c in cuts if c < old[0])


@settings(max_examples=150, deadline=None)
@given(cases())
def test_the_class_is_that_of_all_scores_at_once(case: Any) -> None:
    scores, shape, how, cuts = case
    values = tuple(range(7, 7 + len(scores)))
    undo = Undo(scores.shape[1:], shape, Decide(values), how=how)
    found = labels(undo, scores, cuts)
    everything = between(scores, shape, how)
    expected = np.asarray(values)[everything.argmax(axis=0)]
    assert found.dtype == np.uint8
    assert found.shape == shape
    np.testing.assert_array_equal(found[~close_calls(everything)], expected[~close_calls(everything)])
    np.testing.assert_array_equal(found, labels(Undo(scores.shape[1:], shape, Decide(values), how=how), scores))


@settings(max_examples=60, deadline=None)
@given(cases(), st.floats(-1, 1))
def test_regions_lie_on_each_other(case: Any, threshold: float) -> None:
    scores, shape, how, cuts = case
    thresholds = tuple(threshold + 0.1 * n for n in range(len(scores)))
    decide = Decide(tuple(range(300, 300 + len(scores))), "above", thresholds)
    found = labels(Undo(scores.shape[1:], shape, decide, how=how), scores, cuts)
    everything = between(scores, shape, how)
    expected = np.zeros(shape, int)
    close = np.zeros(shape, bool)
    for channel, value, least in zip(everything, decide.values, thresholds, strict=True):
        expected[channel > least] = value
        close |= np.abs(channel - least) < 1e-5
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found[~close], expected[~close])


@given(st.lists(st.floats(-65504, 65504, width=16), min_size=2, max_size=40))
def test_half_precision_is_put_in_order_by_its_bits(values: list[float]) -> None:
    half = np.array(values, np.float16)
    some = half[half != 0]  # but for the two zeros
    np.testing.assert_array_equal(np.sign(np.diff(_order(some).astype(int))), np.sign(np.diff(some.astype(float))))


@given(st.floats(2**-14, 65504, width=32), st.sampled_from((-1, 1)))
def test_rounding_to_half_precision(value: float, sign: int) -> None:
    scores = np.array([value * sign], np.float32)
    expected = scores.astype(np.float16)
    _round_to_half(scores)
    assert scores[0] == expected[0]
    ties = np.array([1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-11 + 2**-20], np.float32)
    _round_to_half(ties)
    assert ties.tolist() == [1, 1 + 2**-9, 1 + 2**-10]
