"""Whether an image fits a model: every finding, on small phantoms."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest

from napari_medai.core.errors import ModelFitError
from napari_medai.core.geometry import scaling
from napari_medai.core.volume import Volume, from_array
from napari_medai.models.gate import gate, to_expected_units
from napari_medai.models.spec import Accepts, Gives, Model, ModelSpec, Prepare
from napari_medai.stages.common import check_fit
from napari_medai.stages.detect import DetectParams
from napari_medai.stages.segment import SegmentParams


def spec(stage: str = "segment", kind: Any = "labels", prepare: Prepare | None = None, **accepts: Any) -> ModelSpec:
    return ModelSpec(
        id="phantom",
        title="Phantom",
        summary="For tests.",
        stage=stage,
        accepts=Accepts(**{"ndim": (3,), **accepts}),
        prepare=prepare or Prepare(),
        gives=Gives(kind=kind),
        runner="none",
    )


def scan(low: float = -1000, high: float = 1000, **fields: Any) -> Volume:
    array = np.linspace(low, high, 12 * 20 * 24).reshape(12, 20, 24)
    return Volume(
        **{"array": array, "axes": "zyx", "affine": scaling((3, 1, 1)), "units": "mm", "modality": "CT", **fields}
    )


def said(volume: Volume, model: ModelSpec, stage: str = "segment", **choice: int) -> list[tuple[str, str]]:
    return [(finding.severity, finding.about) for finding in gate(volume, model, stage, **choice)]


def test_nothing_is_said_of_an_image_that_fits() -> None:
    wanted = spec(
        modality=("CT",),
        spacing_mm=((1, 5), (0.5, 2), (0.5, 2)),
        field_of_view_mm=((30, 40), (15, 25), (15, 25)),
        orientation="LPS",
        intensity_units="HU",
        intensity=(-1024, 3000),
        body_part=("CHEST",),
    )
    assert said(scan(meta={"body_part": "CHEST", "value_unit": "HU"}), wanted) == []


@pytest.mark.parametrize(
    ("model", "about"),
    [
        (spec(ndim=(2,)), "axes"),
        (spec(min_size=32), "size"),
        (spec(stage="detect", kind="boxes"), "stage"),
        (spec(channels=4, channel_names=("T1", "T1c", "T2", "FLAIR")), "channels"),
    ],
)
def test_what_cannot_be_computed_blocks_for_good(model: ModelSpec, about: str) -> None:
    found = gate(scan(), model, "segment")
    assert [(f.severity, f.about, f.final) for f in found] == [("block", about, True)]
    override = SegmentParams(override=True)
    with pytest.raises(ModelFitError, match=r"works on 2-D|at least 32|made for 'detect'|T1, T1c, T2, FLAIR"):
        check_fit(scan(), Model(spec=model, folder="nowhere", source="test"), "segment", override)


def test_a_block_of_judgement_is_overridden_and_recorded() -> None:
    model = Model(spec=spec(modality=("MR",)), folder="nowhere", source="test")
    with pytest.raises(ModelFitError, match=r"made for MR; this image is CT.*override=True"):
        check_fit(scan(), model, "segment", SegmentParams())
    (note,) = check_fit(scan(), model, "segment", SegmentParams(override=True))
    assert note.startswith("overridden: The model was made for MR; this image is CT")


def test_channels_and_time_points_are_picked() -> None:
    series = from_array(np.zeros((2, 3, 12, 20, 24)), "tczyx", modality="MR")
    assert said(series, spec()) == [("fix", "channels")]
    found = gate(series, spec(stage="detect", kind="boxes", channel_names=("DAPI",)), "detect", channel=1, frame=1)
    assert [f.text for f in found] == ["channel 1 of 3 is taken, as DAPI", "time point 1 of 2 is taken"]
    notes = check_fit(
        series,
        Model(spec=spec(stage="detect", kind="boxes"), folder="nowhere", source="test"),
        "detect",
        DetectParams(channel=2, frame=0),
    )
    assert notes == ["channel 2 of 3 is taken", "time point 0 of 2 is taken"]
    together = spec(channels=3, channel_names=("a", "b", "c"))
    assert [f.text for f in gate(series, together, "segment")] == [
        "The channels are taken to be, in this order: (a, b, c)."
    ]


def test_colour_and_bright_grounds() -> None:
    slide = np.full((40, 40, 3), 240, np.uint8)
    slide[10:14, 10:14] = (90, 30, 120)
    fluorescence = spec(ndim=(2,), modality=("fluorescence",))
    assert said(from_array(slide), fluorescence) == [("block", "modality"), ("fix", "channels")]
    assert said(from_array(255 - slide), fluorescence) == [("fix", "channels"), ("warn", "modality")]
    assert said(from_array(slide), spec(ndim=(2,), rgb=True, channels=3)) == []


def test_spacing_extent_and_orientation() -> None:
    tested = spec(spacing_mm=((0.5, 1.5), (0.5, 1.5), (0.5, 1.5)))
    (found,) = gate(scan(), tested, "segment")
    assert found.text == "voxels of 3 x 1 x 1 mm; the model was tested on 0.5 to 1.5 x 0.5 to 1.5 x 0.5 to 1.5 mm"
    assert said(scan(affine=scaling((1.55, 1, 1))), tested) == []  # within 5 %
    micrometres = scan(affine=scaling((3000, 1000, 1000)), units="um")
    assert said(micrometres, tested) == [("warn", "spacing")]
    assert said(scan(units="pixel"), tested) == [("warn", "spacing")]
    resampled = spec(prepare=Prepare(spacing_mm=(1, 1, 1)))
    assert [f.text for f in gate(scan(), resampled, "segment")] == [
        "resampled from 3 x 1 x 1 mm to 1 x 1 x 1 mm, and back"
    ]
    (found,) = gate(scan(), spec(field_of_view_mm=((100, 300),) * 3), "segment")
    assert (found.severity, found.about) == ("warn", "field of view")
    assert "covers 36 x 20 x 24 mm" in found.text
    (found,) = gate(scan(), spec(orientation="RAS"), "segment")
    assert found.text == "turned from LPS to RAS, and back"
    assert said(scan(units="pixel"), spec(orientation="RAS")) == [("warn", "orientation")]


def test_units_and_values() -> None:
    hounsfield = spec(intensity_units="HU")
    assert said(scan(meta={"values": "stored"}), hounsfield) == [("block", "units")]
    assert said(scan(low=0, high=2000), hounsfield) == [("warn", "values")]
    assert said(scan(low=0, high=2000, meta={"value_unit": "HU"}), hounsfield) == []
    assert said(scan(low=2000, high=4000), spec(intensity=(0, 1))) == [("warn", "values")]
    assert said(scan(low=0, high=1), spec(intensity=(0, 1))) == []
    assert said(scan(array=np.ones((12, 20, 24), complex)), hounsfield) == [("block", "values")]


def test_uptake_values_are_computed_where_the_header_tells() -> None:
    wanted = spec(intensity_units="SUV", modality=("PT",))
    activity = scan(
        low=0, high=20000, modality="PT", meta={"values": "rescale", "value_unit": "Bq/ml", "suv_factor": 5e-4}
    )
    (found,) = gate(activity, wanted, "segment")
    assert (found.severity, found.text) == ("fix", "Bq/ml turned to SUV by body weight, factor 0.0005")
    taken = to_expected_units(activity, wanted)
    assert taken.numpy().max() == pytest.approx(10)
    assert gate(taken, wanted, "segment") == []
    assert to_expected_units(taken, wanted) is taken
    lazy = to_expected_units(activity.replace(array=da.from_array(activity.array)), wanted)
    assert lazy.is_lazy
    unknown = activity.replace(meta={"values": "rescale", "value_unit": "Bq/ml"})
    assert said(unknown, wanted) == [("block", "units")]
    assert said(activity, spec(modality=("PT",))) == []


def test_body_parts_and_gaps_are_said() -> None:
    meta = {"body_part": "KNEE", "missing_slices": 2}
    assert [f.text for f in gate(scan(meta=meta), spec(body_part=("HEAD", "BRAIN")), "segment")] == [
        "the header says knee; the model was made for head, brain",
        "2 slices are missing and were left blank; repair them first",
    ]


def test_a_lazy_series_is_hardly_looked_at() -> None:
    decoded = []

    def plane(block_info: Any = None) -> np.ndarray:
        decoded.append(block_info[None]["array-location"][0][0])
        return np.full((1, 20, 24), 500.0)

    array = da.map_blocks(plane, chunks=((1,) * 300, (20,), (24,)), dtype=float, meta=np.empty((0, 0, 0)))
    assert said(scan(array=array), spec(intensity=(0, 1))) == [("warn", "values")]
    assert len(decoded) == 3
