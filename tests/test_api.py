"""What the functions say of an argument that is no image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import napari_medai as medai
from napari_medai.api import run_stage
from napari_medai.core.stage import Cancelled


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("plain.tif", r"segment takes a Volume and was given a path; open it first: medai\.open\(path\) \(str found\)"),
        (Path("plain.tif"), r"open it first: medai\.open"),
        (np.zeros((8, 8)), r"make a volume of it first: medai\.from_array"),
        (None, r"given no image; open one with medai\.open"),
    ],
)
def test_what_is_no_volume_is_named(given, says) -> None:
    for model in ("nuclei", ""):
        with pytest.raises(medai.MedaiError, match=says):
            medai.segment(given, model)
        with pytest.raises(medai.MedaiError, match=says):
            medai.plan_stage("segment", given, model)


def test_a_parameter_of_another_type_is_named() -> None:
    volume = medai.from_array(np.zeros((8, 8)), "yx")
    with pytest.raises(medai.MedaiError, match="diameter is 'big', of type str; give a number"):
        medai.segment(volume, "nuclei", diameter="big")


@pytest.mark.parametrize(("stage", "model", "axes"), [("segment", "nuclei", "cyx"), ("detect", "blobs3d", "czyx")])
def test_a_channel_of_one_value_is_named(stage, model, axes) -> None:
    array = np.full((*(2, 16)[: len(axes) - 2], 64, 64), 5, np.uint8)
    array[1] = np.arange(64)
    volume = medai.from_array(array, axes, modality="fluorescence")
    says = r"Every pixel of channel 0 of 2 \(numbered from 0\) has the value 5: .* another with channel="
    with pytest.raises(medai.MedaiError, match=says):
        run_stage(stage, volume, model)


def test_what_stops_a_run_is_exported() -> None:
    assert medai.Cancelled is Cancelled
