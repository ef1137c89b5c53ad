"""The plan's memory is what the run takes: predicted before the second tile, measured by the kernel."""

from __future__ import annotations

import sys
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


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All cases in two new processes; the plane alone: memory that others gave back would be taken again."""
    folder, alone = tmp_path_factory.mktemp("planned"), tmp_path_factory.mktemp("alone")
    volumes = {name: case for name, case in CASES.items() if len(case["shape"]) == 3}
    found = fresh("tests.engine.planned:each", folder=str(folder), cases=volumes)
    return found | {"a plane": fresh("tests.engine.planned:planned", folder=str(alone), **CASES["a plane"])}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's mark of the resident size, as Linux has it")
@pytest.mark.parametrize("name", CASES)
def test_the_predicted_memory_is_what_is_taken(measured: dict[str, Any], name: str) -> None:
    assert "died" not in measured, measured
    found = measured[name]
    assert "died" not in found, found
    assert found["tiles"] > 1
    assert found["increase_mb"] > 0.25 * found["peak_mb"]  # else a prediction of nothing would do
    assert found["predicted"] == pytest.approx(found["peak_mb"], rel=0.25)
