from __future__ import annotations

import numpy as np
import pytest

from napari_medai.engine.peaks import detections, find_peaks, suppress


def test_peaks_come_best_first_and_below_threshold_is_left_out() -> None:
    heat = np.zeros((9, 9), np.float32)
    heat[1, 1], heat[4, 7], heat[7, 2] = 0.5, 0.9, 0.2
    centres, scores = find_peaks(heat, 0.3)
    assert centres.tolist() == [[4, 7], [1, 1]]
    assert scores == pytest.approx([0.9, 0.5])


def test_a_peak_on_the_rim_is_found() -> None:
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 1.0
    assert find_peaks(heat, 0.5)[0].tolist() == [[0, 3]]


def test_a_flat_top_gives_one_peak() -> None:
    heat = np.zeros((7, 7), np.float32)
    heat[3, 3] = heat[3, 4] = 0.8
    assert find_peaks(heat, 0.5)[0].tolist() == [[3, 3]]


def test_peaks_nearer_than_the_distance_keep_the_higher_and_at_the_distance_keep_both() -> None:
    heat = np.zeros((1, 12), np.float32)
    heat[0, 2], heat[0, 5] = 0.6, 0.7
    assert find_peaks(heat, 0.5, min_distance=3.1)[0].tolist() == [[0, 5]]
    assert find_peaks(heat, 0.5, min_distance=3.0)[0].tolist() == [[0, 5], [0, 2]]


def test_peaks_in_three_dimensions() -> None:
    heat = np.zeros((5, 6, 7), np.float32)
    heat[2, 3, 4] = 0.7
    heat[2, 3, 5] = 0.6
    centres, scores = find_peaks(heat, 0.5)
    assert centres.tolist() == [[2, 3, 4]]
    assert centres.shape == (1, 3)
    assert scores.shape == (1,)


def test_no_peak_gives_empty_arrays_of_the_right_shape() -> None:
    centres, scores = find_peaks(np.zeros((4, 4, 4), np.float32), 0.5)
    assert centres.shape == (0, 3)
    assert scores.shape == (0,)


def test_suppress_by_overlap() -> None:
    # Boxes 4x4 at 0 and 2 along x share 2*4=8 of 16+16-8=24: IoU 1/3. The third is apart.
    centres = np.array([[0.0, 0.0], [0.0, 2.0], [20.0, 20.0]])
    sizes = np.full((3, 2), 4.0)
    scores = np.array([0.5, 0.9, 0.7])
    assert suppress(centres, sizes, scores, max_iou=0.3).tolist() == [1, 2]
    assert suppress(centres, sizes, scores, max_iou=0.34).tolist() == [1, 2, 0]


def test_nothing_is_suppressed_of_nothing() -> None:
    empty = np.zeros((0, 2))
    assert suppress(empty, empty, np.zeros(0), 0.5).tolist() == []


def test_boxes_that_overlap_and_peaks_that_are_near() -> None:
    centres = np.array([[4.0, 6.0], [4.0, 7.0], [4.0, 9.0], [4.0, 30.0]])
    sizes = np.array([[4.0, 6.0], [4.0, 6.0], [4.0, 6.0], [2.0, 2.0]])
    scores = np.array([0.6, 0.9, 0.8, 0.7])
    found = detections(centres, sizes, scores, min_distance=1.5, max_iou=0.5)
    # 1 pixel away from the best one; sharing 4 of its 6 columns with it, 16 of 32 pixels
    assert found.centres.tolist() == [[4.0, 7.0], [4.0, 9.0], [4.0, 30.0]]
    assert found.scores.tolist() == [0.9, 0.8, 0.7]
    assert len(detections(centres, sizes, scores, min_distance=1.5, max_iou=0.49)) == 2
