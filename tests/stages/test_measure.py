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


def test_a_lazy_slide_is_measured_in_parts(monkeypatch) -> None:
    import dask.array as da

    from napari_medai.stages import measure as module

    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 900, (20, 30)), np.ones((7, 5), int)).astype(np.int32)
    image = rng.random(labels.shape, np.float32)
    expected = measure(from_array(labels), image, {}, instances=True)
    by_hand = labels == 17 if (labels == 17).any() else labels == labels[0, 0]
    row = int(np.flatnonzero(expected["label"] == labels[by_hand][0])[0])
    where = np.nonzero(by_hand)
    assert expected["count"][row] == by_hand.sum()
    assert (expected["y"][row], expected["x"][row]) == pytest.approx((where[0].mean(), where[1].mean()))
    assert expected["size_y_px"][row] == np.ptp(where[0]) + 1
    assert expected["mean_intensity"][row] == pytest.approx(image[by_hand].mean(dtype=np.float64))
    monkeypatch.setattr(module, "_READ", 1000)
    monkeypatch.setattr(module, "_AT_ONCE", 333)
    lazy = from_array(da.from_array(labels, chunks=(33, 40)), "yx")
    found = measure(lazy, da.from_array(image, chunks=(50, 50)), {}, instances=True)
    for name, column in expected.items():
        np.testing.assert_allclose(found[name], column, rtol=1e-12)
