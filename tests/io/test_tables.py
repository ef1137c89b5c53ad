"""CSV and JSON of objects and scores."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

import napari_medai as medai
from napari_medai.core.errors import WriteError
from napari_medai.core.geometry import Grid, scaling
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Boxes, Mask, Scores
from napari_medai.core.volume import Volume
from napari_medai.io.tables import as_csv, as_json, dump_json


@pytest.fixture
def boxes(provenance: Provenance) -> Boxes:
    grid = Grid((1, 100, 100), scaling((1, 0.5, 0.5)), "um")
    return Boxes(
        centres=np.array([[0.0, 10.0, 20.0], [0.0, 30.5, 40.0]]),
        sizes=np.array([[1.0, 4.0, 6.0], [1.0, 2.0, 2.0]]),
        labels=("micronucleus", 'odd, "name"'),
        scores=np.array([0.9, 0.1]),
        ndim=2,
        grid=grid,
        provenance=provenance,
    )


@pytest.fixture
def scores(provenance: Provenance) -> Scores:
    return Scores(
        classes=("noise", "blur"),
        probabilities=np.array([0.75, 0.25]),
        slice_index=np.array([0, 5]),
        slice_probabilities=np.array([[0.5, 0.25], [1.0, 0.0]]),
        attention=np.array([0.4, 0.6]),
        thresholds=np.array([0.5, 0.5]),
        grid=Grid((8, 10, 10), np.eye(4), "mm"),
        provenance=provenance,
    )


def test_csv_of_objects(tmp_path: Path, boxes: Boxes) -> None:
    text = medai.save(boxes, tmp_path / "a.csv").read_text(encoding="utf-8")
    assert text == (
        "index,label,score,y,x,y_um,x_um,size_y_um,size_x_um\n"
        "0,micronucleus,0.9,10.0,20.0,5.0,10.0,2.0,3.0\n"
        '1,"odd, ""name""",0.1,30.5,40.0,15.25,20.0,1.0,1.0\n'
    )


def test_csv_of_no_objects(tmp_path: Path, boxes: Boxes) -> None:
    none = Boxes(np.zeros((0, 3)), np.zeros((0, 3)), (), np.zeros(0), 2, boxes.grid, boxes.provenance)
    assert medai.save(none, tmp_path / "a.csv").read_text().splitlines() == [
        "index,label,score,y,x,y_um,x_um,size_y_um,size_x_um"
    ]
    assert json.loads(medai.save(none, tmp_path / "a.json").read_text())["rows"] == []


def test_floats_come_back_as_they_were() -> None:
    values = np.array([0.1, 1 / 3, 1e-300, 123456789.123456789, np.nan])
    read = list(csv.DictReader(io.StringIO(as_csv({"v": values}))))
    assert [float(row["v"] or "nan") for row in read[:4]] == values[:4].tolist()
    assert [*read[4].values()] == [""]


def test_float32_columns_are_written_as_they_print() -> None:
    assert as_csv({"v": np.array([0.5, 2], np.float32), "n": np.array([1, 2], np.int64)}) == "v,n\n0.5,1\n2.0,2\n"


def test_json_of_objects_carries_grid_and_provenance(tmp_path: Path, boxes: Boxes) -> None:
    content = json.loads(medai.save(boxes, tmp_path / "a.json").read_text(encoding="utf-8"))
    assert content["kind"] == "Boxes"
    assert content["rows"][0] == {
        "index": 0,
        "label": "micronucleus",
        "score": 0.9,
        "y": 10.0,
        "x": 20.0,
        "y_um": 5.0,
        "x_um": 10.0,
        "size_y_um": 2.0,
        "size_x_um": 3.0,
    }
    assert content["grid"]["units"] == "um"
    assert content["grid"]["affine_zyx_lps"][1] == [0.0, 0.5, 0.0, 0.0]
    assert content["provenance"]["model_sha256"] == "ab12"
    assert content["provenance"]["params"] == {"threshold": 0.5}


def test_scores(tmp_path: Path, scores: Scores) -> None:
    content = json.loads(medai.save(scores, tmp_path / "a.json").read_text(encoding="utf-8"))
    assert content["model"] == "brain"
    assert content["scores"] == {"noise": 0.75, "blur": 0.25}
    assert content["present"] == ["noise"]
    assert content["slices"][1] == {"index": 5, "attention": 0.6, "scores": {"noise": 1.0, "blur": 0.0}}
    assert content["thresholds"] == {"noise": 0.5, "blur": 0.5}
    assert medai.save(scores, tmp_path / "a.csv").read_text() == (
        "slice,attention,noise,blur\nall,1.0,0.75,0.25\n0,0.4,0.5,0.25\n5,0.6,1.0,0.0\n"
    )


def test_mask_without_a_table(tmp_path: Path, provenance: Provenance) -> None:
    mask = Mask(Volume(np.zeros((3, 4), np.uint8), "yx"), provenance)
    with pytest.raises(WriteError, match="has no table"):
        medai.save(mask, tmp_path / "a.csv")


def test_mask_table_names_labels(tmp_path: Path, provenance: Provenance) -> None:
    table = {"index": np.array([0]), "label": np.array(["liver"], dtype=object), "count": np.array([12])}
    mask = Mask(Volume(np.zeros((3, 4), np.uint8), "yx"), provenance, {1: "liver"}, table=table)
    content = as_json(mask)
    assert content["rows"] == [{"index": 0, "label": "liver", "count": 12}]
    assert content["label_names"] == {"1": "liver"}
    assert medai.save(mask, tmp_path / "a.csv").read_text() == "index,label,count\n0,liver,12\n"


def test_json_holds_no_nan() -> None:
    text = dump_json({"a": np.array([1.0, np.nan, np.inf]), "b": (np.float32(2), np.int8(3), True, None, Path("x"))})
    assert json.loads(text) == {"a": [1.0, None, None], "b": [2.0, 3, True, None, "x"]}
