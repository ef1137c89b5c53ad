"""The plan's memory is what the run takes: predicted before the second tile, measured by the kernel."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from benchmarks.memory import fresh

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's mark of the resident size, as it has it")

# Each is run in a process that has run those before it; the plane is the first of another one, too
CASES: dict[str, dict[str, Any]] = {
    "many classes, other spacing": {
        "shape": [96, 128, 128],
        "classes": 40,
        "tile": 64,
        "spacing": 1.0,
        "model_mm": 1.6,
    },
    "a plane": {"shape": [1100, 1300], "classes": 24, "tile": 512, "share": 0.85},
    "the largest piece": {"shape": [64, 128, 128], "classes": 2, "tile": 64, "options": {"largest": True}},
}
ALONE = "a plane, alone"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All cases in one new process, and one alone in another."""
    together = fresh("tests.engine.planned:each", folder=str(tmp_path_factory.mktemp("together")), cases=CASES)
    alone = fresh("tests.engine.planned:planned", folder=str(tmp_path_factory.mktemp("alone")), **CASES["a plane"])
    return together | {ALONE: alone}


@pytest.mark.parametrize("name", [*CASES, ALONE])
def test_the_predicted_memory_is_what_is_taken(measured: dict[str, Any], name: str) -> None:
    assert "died" not in measured, measured
    found = measured[name]
    assert "died" not in found, found
    assert found["tiles"] > 1
    assert not found["refused"]
    if name == ALONE:  # else a prediction of nothing would do
        assert found["increase_mb"] > 0.4 * found["peak_mb"]
    assert found["predicted"] == pytest.approx(found["peak_mb"], rel=0.25)


@pytest.mark.parametrize("name", ["a plane", ALONE])
def test_a_limit_is_not_passed_whatever_the_process_did_before(measured: dict[str, Any], name: str) -> None:
    found = measured[name]["limited"]
    assert found["limit"] < measured[name]["peak_mb"]
    assert found["peak_mb"] < 1.05 * found["limit"]
    assert not found["refused"]
    assert found["notes"]
