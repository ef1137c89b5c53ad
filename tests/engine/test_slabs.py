"""Slab by slab is the same as everything at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
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


def test_two_classes_with_a_threshold() -> None:
    # probabilities of the second class: 0.5, 0.62, 0.73
    scores = np.array([[[0.0, 0.0, 0.0]], [[0.0, 0.5, 1.0]]], np.float32)
    assert labels(Undo((1, 3), (1, 3), Decide((4, 9))), scores).tolist() == [[4, 9, 9]]
    over = Decide((4, 9), thresholds=(float(np.log(0.7 / 0.3)),))
    assert labels(Undo((1, 3), (1, 3), over), scores).tolist() == [[4, 4, 9]]
    assert labels(Undo((1, 3), (1, 6), over), scores).tolist() == [[4, 4, 4, 4, 9, 9]]


@settings(max_examples=40, deadline=None)
@given(cases(), st.data())
def test_a_run_goes_on_from_any_plane(case: Any, data: st.DataObject) -> None:
    scores, shape, how, _ = case
    decide = Decide(tuple(range(len(scores))))
    whole = labels(Undo(scores.shape[1:], shape, decide, how=how), scores)
    begin = data.draw(st.integers(0, shape[0] - 1))
    undo = Undo(scores.shape[1:], shape, decide, how=how, begin=begin)
    assert undo.next in (0, undo.first_needed(begin))
    rest = np.concatenate([found for _, found in undo.add(scores[:, undo.next :])])
    np.testing.assert_array_equal(rest, whole[begin:])


def test_what_is_held_is_what_the_next_plane_needs() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 12, 4, 4)).astype(np.float32)
    undo = Undo((12, 4, 4), (24, 8, 8), Decide((0, 1, 2)))
    came = [first for start in range(0, 12, 3) for first, _ in undo.add(scores[:, start : start + 3])]
    assert came == [0, 5, 11, 17]  # a plane waits for the next one that it lies between
    undo.finish()


def test_what_does_not_fit_is_said() -> None:
    undo = Undo((4, 5, 6), (8, 5, 6), Decide((0, 1, 2)))
    with pytest.raises(ValueError, match=r"\(2, 1, 5, 6\) at plane 0 of \(4, 5, 6\); 3 channels"):
        next(undo.add(np.zeros((2, 1, 5, 6), np.float32)))
    with pytest.raises(ValueError, match="at plane 0"):
        next(undo.add(np.zeros((3, 5, 5, 6), np.float32)))
    list(undo.add(np.zeros((3, 2, 5, 6), np.float32)))
    with pytest.raises(ValueError, match="2 of 4 planes of scores came; labels end at plane 3"):
        undo.finish()
    with pytest.raises(ValueError, match="1 thresholds for 3 channels"):
        Decide((0, 1, 2), thresholds=(0.5,))
    with pytest.raises(ValueError, match="two or three axes"):
        Undo((4,), (8,), Decide((0, 1)))
