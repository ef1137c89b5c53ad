"""Parameters are defined once: ranges, choices, order; progress is shared out."""

from __future__ import annotations

import numpy as np
import pytest

from napari_medai.core.errors import ParamsError
from napari_medai.core.stage import Cancelled, Part, Progress, fields_of
from napari_medai.stages import STAGES
from napari_medai.stages.denoise import DenoiseParams
from napari_medai.stages.explain import ExplainParams


def test_fields_tell_all_that_a_form_needs() -> None:
    fields = {f.name: f for f in fields_of(ExplainParams)}
    assert list(fields)[:2] == ["method", "target"]
    assert list(fields)[-5:] == ["device", "tile", "batch", "memory", "override"]
    assert fields["method"].choices == ("gradcam++", "occlusion", "attention")
    assert fields["method"].type is str
    assert (fields["tile"].low, fields["tile"].high, fields["tile"].advanced) == (0, 4096, True)


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda s: s.name)
def test_every_parameter_has_a_label_a_sentence_and_a_default_that_fits(stage) -> None:
    for field in fields_of(stage.params):
        assert field.label
        assert field.help.endswith(".")
        field.check(field.default)


def test_values_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(ParamsError, match=r"strength is 1\.5; it goes from 0\.0 to 1\.0"):
        DenoiseParams(strength=1.5)
    with pytest.raises(ParamsError, match="device is 'gpu'; use one of auto, cpu, cuda, mps"):
        DenoiseParams(device="gpu")  # type: ignore[arg-type]


def test_a_part_of_a_progress() -> None:
    seen: list[tuple[float, str]] = []

    class Seen(Progress):
        def update(self, done: float, total: float, message: str = "") -> None:
            seen.append((done / total, message))

        def check(self) -> None:
            raise Cancelled

    part = Part(Seen(), 0.5, 0.75, "second")
    part.update(1, 2)
    part.update(2, 2, "done")
    assert seen == [(0.625, "second"), (0.75, "done")]
    with pytest.raises(Cancelled):
        part.check()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"steps": "many"}, "steps is 'many', of type str; give a whole number"),
        ({"steps": 2.5}, "steps is 2.5, of type float; give a whole number"),
        ({"strength": None}, "strength is None, of type NoneType; give a number"),
        ({"strength": float("nan")}, r"strength is nan; it goes from 0\.0 to 1\.0"),
        ({"override": "no"}, "override is 'no', of type str; give True or False"),
        ({"device": 0}, "device is 0, of type int; give a text"),
    ],
)
def test_values_of_another_type_are_refused_in_words(value, says) -> None:
    with pytest.raises(ParamsError, match=says):
        DenoiseParams(**value)


def test_numbers_of_numpy_are_numbers() -> None:
    DenoiseParams(steps=np.int64(3), strength=np.float32(0.5), override=np.bool_(True))
