"""The plan's memory is what the run takes: predicted before the second tile, measured by the kernel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.memory import fresh

CASES: dict[str, dict[str, Any]] = {
    "two classes": {"shape": [64, 128, 128], "classes": 2, "tile": 64},
    "many classes, other spacing": {
        "shape": [96, 128, 128],
        "classes": 40,
        "tile": 64,
        "spacing": 1.0,
        "model_mm": 1.6,
    },
    "a plane": {"shape": [1200, 1500], "classes": 4, "tile": 512},
}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's mark of the resident size, as Linux has it")
@pytest.mark.parametrize("name", CASES)
def test_the_predicted_memory_is_what_is_taken(tmp_path: Path, name: str) -> None:
    found = fresh("tests.engine.planned:planned", folder=str(tmp_path), **CASES[name])
    assert "died" not in found, found
    assert found["tiles"] > 1
    assert found["increase_mb"] > 40  # else there is nothing to predict
    assert found["predicted"] == pytest.approx(found["peak_mb"], rel=0.25)
