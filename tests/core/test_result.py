"""Tables and scores by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from napari_medai.core.errors import InputError
from napari_medai.core.geometry import Grid, scaling
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Boxes, Scores, object_table

GRID = Grid((10, 20, 30), scaling((5, 2, 1), (-10, 0, 100)))


def test_boxes_make_the_table_that_everyone_reads() -> None:
    boxes = Boxes(
        np.array([[1, 2, 3.0]]), np.array([[2, 3, 4.0]]), ("lesion",), np.array([0.9]), 3, GRID, Provenance("detect")
    )
    table = {k: v.tolist() for k, v in boxes.table.items()}
    assert table == {
        "index": [0],
        "label": ["lesion"],
        "score": [0.9],
        "z": [1.0],
        "y": [2.0],
        "x": [3.0],
        "z_mm": [-5.0],
        "y_mm": [4.0],
        "x_mm": [103.0],
        "size_z_mm": [10.0],
        "size_y_mm": [6.0],
        "size_x_mm": [4.0],
    }
    assert len(boxes) == 1


def test_a_slide_has_no_z_and_its_own_unit() -> None:
    grid = Grid((1, 4, 4), scaling((1, 0.5, 0.5)), "um")
    table = object_table(grid, 2, np.array([[0, 2, 2.0]]), np.array([7]))
    assert list(table) == ["index", "label", "score", "y", "x", "y_um", "x_um"]
    assert table["y_um"].tolist() == [1.0]
    with pytest.raises(InputError, match="1 centres and 2 labels"):
        object_table(grid, 2, np.zeros((1, 3)), np.zeros(2))


def test_scores_say_what_is_present_most_probable_first() -> None:
    scores = Scores(
        ("noise", "blur", "motion"),
        np.array([0.4, 0.1, 0.9]),
        np.array([0, 5]),
        np.array([[0.4, 0.1, 0.9], [0.2, 0.1, 0.7]]),
        np.array([0.75, 0.25]),
        np.array([0.3, 0.5, 0.5]),
        GRID,
        Provenance("classify", model="quality"),
    )
    assert scores.present == ("motion", "noise")
    record = json.loads(json.dumps(scores.as_dict()))
    assert record["model"] == "quality"
    assert record["scores"] == {"noise": 0.4, "blur": 0.1, "motion": 0.9}
    assert record["slices"][1] == {
        "index": 5,
        "attention": 0.25,
        "scores": {"noise": 0.2, "blur": 0.1, "motion": 0.7},
    }


def test_provenance_is_plain_json() -> None:
    record = Provenance("segment", ("scan",), "brain", params={"tile": 0}, notes=("resampled",))
    assert json.loads(json.dumps(record.as_dict()))["params"] == {"tile": 0}
