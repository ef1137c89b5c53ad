"""Measurements of a phantom, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from napari_medai.core.volume import from_array
from napari_medai.stages.measure import measure


def test_a_box_in_a_volume() -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1:3, 1:4, 2:4] = 2  # 2 x 3 x 2 = 12 voxels, centre (1.5, 2, 2.5)
    image = np.where(labels == 2, 7.0, 1.0)
    table = measure(from_array(labels, spacing=(5, 2, 1), units="mm"), image, {2: "box"})
    assert table["label"].tolist() == ["box"]
    assert table["count"].tolist() == [12]
    assert table["volume_ml"].tolist() == [pytest.approx(0.12)]
    assert table["mean_intensity"].tolist() == [7.0]
    assert [table[c][0] for c in "zyx"] == [1.5, 2.0, 2.5]
    assert [table[f"{c}_mm"][0] for c in "zyx"] == [7.5, 4.0, 2.5]


def test_instances_on_a_slide() -> None:
    labels = np.zeros((6, 6), np.int32)
    labels[0:2, 0:3] = 1
    labels[4, 4] = 5
    table = measure(from_array(labels, spacing=(0.5, 0.5), units="um"), labels.astype(float), {}, instances=True)
    assert table["label"].tolist() == [1, 5]
    assert table["area_um2"].tolist() == [1.5, 0.25]
    assert table["size_x_um"].tolist() == [1.5, 0.5]
    assert "z" not in table


def test_frames_are_told_apart() -> None:
    labels = np.zeros((2, 1, 2, 2), np.uint8)
    labels[1, 0, 0, 0] = 1
    table = measure(from_array(labels, "tzyx", units="mm"), np.ones(labels.shape), {1: "dot"})
    assert table["t"].tolist() == [1]


def test_nothing_found_is_a_table_without_rows() -> None:
    table = measure(from_array(np.zeros((3, 3), np.uint8)), np.zeros((3, 3)), {}, instances=True)
    assert {len(column) for column in table.values()} == {0}
    assert "area_px" in table
