from __future__ import annotations

import numpy as np
import pytest

from napari_medai.engine.instances import decode_instances


def _cone(shape: tuple[int, int], middle: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.clip(1 - np.hypot(y - middle[0], x - middle[1]) / radius, 0, 1).astype(np.float32)


def test_two_touching_cones_become_two_objects_split_half_way() -> None:
    left, right = _cone((21, 41), (10, 11), 10.5), _cone((21, 41), (10, 29), 10.5)
    depth = np.maximum(left, right)
    labels = decode_instances((depth > 0).astype(np.float32), depth)
    assert labels.max() == 2
    assert labels[10, 11] == 1
    assert labels[10, 29] == 2
    assert labels[10, 18] == 1
    assert labels[10, 22] == 2
    assert labels[0, 20] == 0
    assert labels.dtype == np.int32


def test_a_shallow_saddle_does_not_split() -> None:
    # Two tops at distance 6 on cones of radius 20: the saddle between them is 3/20 = 0.15 deep.
    depth = np.maximum(_cone((51, 61), (25, 27), 20.0), _cone((51, 61), (25, 33), 20.0))
    foreground = (depth > 0).astype(np.float32)
    assert decode_instances(foreground, depth, saddle=0.2).max() == 1
    assert decode_instances(foreground, depth, saddle=0.05).max() == 2


def test_small_objects_go_and_small_holes_are_filled() -> None:
    depth = _cone((31, 51), (15, 15), 12.0)
    foreground = (depth > 0).astype(np.float32)
    foreground[15, 15] = 0.0
    depth[3:5, 45:48] = 1.0
    foreground[3:5, 45:48] = 1.0
    labels = decode_instances(foreground, depth, min_area=7)
    assert labels.max() == 1
    assert labels[15, 15] == 1
    assert labels[3, 45] == 0


def test_foreground_without_depth_is_no_object() -> None:
    foreground = np.zeros((20, 20), np.float32)
    foreground[5:15, 5:15] = 1.0
    assert decode_instances(foreground, np.zeros_like(foreground)).max() == 0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_empty_and_full_images(value: float) -> None:
    foreground = np.full((16, 16), value, np.float32)
    labels = decode_instances(foreground, _cone((16, 16), (8, 8), 8.0) * value)
    assert labels.max() == int(value)
    assert (labels > 0).mean() == value
