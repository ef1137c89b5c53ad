"""The record in a header, and what is heard of libraries."""

from __future__ import annotations

import json
import logging
import warnings

import numpy as np

from napari_medai.core.volume import Volume
from napari_medai.io.record import dump, load, meta_of, record_of
from napari_medai.io.single import heeding


def test_comes_back() -> None:
    meta = {
        "is_labels": True,
        "label_names": {2: "Leber ü"},
        "label_colors": {2: (0.0, 0.5, 1.0)},
        "window": (np.float32(-100.0), 200.0),
        "series_uid": "1.2.3",
    }
    volume = Volume(np.zeros((2, 3), np.uint8), "yx", units="um", modality="CT", meta=meta, source="/home/someone/x")
    text = dump(record_of(volume, {"provenance": {"model": "m"}, "target": ""}))
    assert text.isascii()
    assert "someone" not in text
    assert "1.2.3" not in text
    read = load(text)
    assert (read["axes"], read["units"], read["modality"]) == ("yx", "um", "CT")
    assert meta_of(read) == {
        "is_labels": True,
        "label_names": {2: "Leber ü"},
        "label_colors": {2: (0.0, 0.5, 1.0)},
        "window": (-100.0, 200.0),
        "provenance": {"model": "m"},
    }


def test_what_is_not_a_record_is_empty() -> None:
    for text in ("", "hello", "[1]", "{}", '{"napari_medai": 2}', "{" * 100):
        assert load(text) == {}


def test_values_of_a_wrong_kind_are_left_out() -> None:
    wrong = {
        "napari_medai": 1,
        "axes": 3,
        "units": "parsec",
        "modality": "x" * 99,
        "is_labels": "yes",
        "label_names": {"a": "b", "1": 2, "3": "kept"},
        "label_colors": {"1": [1, 2], "3": [0, 0, 1]},
        "window": ["low", "high"],
        "affine": "none",
        "provenance": [],
    }
    assert load(json.dumps(wrong)) == {"label_names": {3: "kept"}, "label_colors": {3: (0, 0, 1)}}


def test_warnings_and_log_become_findings() -> None:
    findings = ["known"]
    with heeding(findings, "some.library"):
        for _ in range(2):
            warnings.warn("odd header", stacklevel=1)
        logging.getLogger("some.library").warning("odd %s", "tag")
        logging.getLogger("some.library").info("nothing")
        warnings.warn("known", stacklevel=1)
    assert findings == ["known", "odd tag", "odd header"]
    assert logging.getLogger("some.library").filters == []
