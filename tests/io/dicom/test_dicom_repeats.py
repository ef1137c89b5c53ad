"""Several images of one place, as scanners write them, and what becomes of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_medai.core.volume import Volume
from napari_medai.io import dicom
from napari_medai.io.dicom.stacks import stacks_of
from tests.io.dicom.test_dicom_multiframe import enhanced

Write = Callable[..., Path]


@pytest.fixture
def scan(write: Write, tmp_path: Path) -> Callable[[list[dict[str, Any]]], Path]:
    """One file for each description; file n is filled with n, and named and numbered in the order of the list."""

    def written(slices: list[dict[str, Any]]) -> Path:
        for n, fields in enumerate(slices):
            values = {"Modality": "MR", "InstanceNumber": n + 1, **fields}
            values["ImagePositionPatient"] = [0, 0, values.pop("z", 0)]
            write(f"scan/{n:04}", np.full((4, 6), n, np.uint16), **values)
        return tmp_path / "scan"

    return written


def pixels(volume: Volume) -> list[Any]:
    return volume.numpy()[..., 0, 0].tolist()


def images(folder: Path) -> list[Volume]:
    return [dicom.open_volume(folder, entry.uid) for entry in dicom.list_series(folder)]


def said(volume: Volume) -> str:
    return " ".join(volume.meta["findings"])


@pytest.mark.parametrize(
    ("keyword", "values", "name", "unit"),
    [
        ("EchoTime", [5, 2.5], "echo", "ms"),
        ("KVP", [140, 80], "kvp", "kV"),
        ("InversionTime", [700, 2500], "inversion", "ms"),
        ("FlipAngle", [2, 15], "flip", "degrees"),
        ("TriggerTime", [0, 40], "trigger", "ms"),
    ],
)
def test_one_quantity_is_the_axis(keyword: str, values: list[float], name: str, unit: str, scan: Any) -> None:
    volume = dicom.open_volume(scan([{"z": z, keyword: v} for v in values for z in (0, 2)]))
    assert volume.axes == "tzyx"
    assert volume.meta["axis_t"] == {"name": name, "unit": unit, "values": tuple(sorted(map(float, values)))}
    assert pixels(volume)[0] == ([0, 1] if values[0] < values[1] else [2, 3])
    assert volume.meta["findings"] == ()


def test_photon_energies_in_the_image_type(scan: Any) -> None:
    kinds = {e: ["DERIVED", "PRIMARY", "AXIAL", f"MONO_{e}KEV"] for e in (70, 40, 100)}
    folder = scan([{"Modality": "CT", "z": z, "ImageType": kinds[e]} for e in kinds for z in (0, 2)])
    volume = dicom.open_volume(folder)
    assert volume.meta["axis_t"] == {"name": "kev", "unit": "keV", "values": (40.0, 70.0, 100.0)}
    assert pixels(volume) == [[2, 3], [0, 1], [4, 5]]


def test_two_echoes_at_five_time_points(scan: Any) -> None:
    folder = scan(
        [
            {"z": z, "EchoTime": echo, "TemporalPositionIdentifier": t + 1, "AcquisitionTime": f"0800{10 + 2 * t}.5"}
            for t in range(5)
            for echo in (4, 8)
            for z in (0, 3)
        ]
    )
    first, second = images(folder)
    assert first.meta["axis_t"] == {"name": "t", "unit": "s", "values": (0.0, 2.0, 4.0, 6.0, 8.0)}
    assert pixels(first) == [[4 * t, 4 * t + 1] for t in range(5)]
    assert pixels(second) == [[4 * t + 2, 4 * t + 3] for t in range(5)]
    assert "2 echo times (4, 8 ms) of several images each; it was split, and this is echo 8 ms." in said(second)


def test_magnitude_and_phase_of_several_echoes(scan: Any) -> None:
    folder = scan(
        [
            {"z": z, "EchoTime": echo, "ImageType": ["ORIGINAL", "PRIMARY", part]}
            for part in "MP"
            for echo in (4, 8, 12)
            for z in (0, 3)
        ]
    )
    magnitude, phase = images(folder)
    assert magnitude.meta["axis_t"] == {"name": "echo", "unit": "ms", "values": (4.0, 8.0, 12.0)}
    assert pixels(phase) == [[6, 7], [8, 9], [10, 11]]
    assert "2 kinds of image (M, P); this is P." in said(phase)
    assert "different kind of image" in said(phase)


def test_water_and_fat(scan: Any) -> None:
    folder = scan([{"z": z, "ImageType": ["DERIVED", "PRIMARY", "DIXON", w]} for z in (0, 3) for w in ("WATER", "FAT")])
    fat, water = images(folder)
    assert (pixels(fat), pixels(water)) == ([1, 3], [0, 2])


def test_kernels_are_images_of_their_own(scan: Any) -> None:
    folder = scan([{"z": z, "Modality": "CT", "ConvolutionKernel": k} for k in ("B60f", "B30f") for z in (0, 1, 2)])
    soft, sharp = images(folder)
    assert (pixels(soft), pixels(sharp)) == ([3, 4, 5], [0, 1, 2])
    assert "2 reconstruction kernels (B30f, B60f); this is B30f." in said(soft)


def test_diffusion_directions_stay_one_image_in_the_order_of_acquisition(scan: Any) -> None:
    shells = [(0, None), (1000, [1, 0, 0]), (1000, [0, 1, 0]), (0, None), (1000, [0, 0.6, 0.8]), (2000, [0, 0, 1])]
    slices = []
    for n, (b, direction) in enumerate(shells):
        for z in (0, 2, 4):
            # interleaved: the middle slice comes last, and all slices of a volume follow one another
            fields = {"z": z, "DiffusionBValue": b, "AcquisitionTime": f"1000{10 * n + (z == 2):02}"}
            slices.append(fields | ({"DiffusionGradientOrientation": direction} if direction else {}))
    volume = dicom.open_volume(scan(slices))
    axis = volume.meta["axis_t"]
    assert (axis["name"], axis["unit"]) == ("b", "s/mm2")
    assert axis["values"] == (0.0, 1000.0, 1000.0, 0.0, 1000.0, 2000.0)
    # patient (z, y, x)
    assert axis["directions"] == ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 0, 0), (0.8, 0.6, 0), (1, 0, 0))
    assert pixels(volume) == [[3 * n, 3 * n + 1, 3 * n + 2] for n in range(6)]
    assert volume.meta["findings"] == ()


def test_gradients_in_the_elements_of_siemens(scan: Any) -> None:
    import pydicom

    folder = scan([{"z": z, "Manufacturer": "SIEMENS"} for _ in range(3) for z in (0, 2)])
    for n, path in enumerate(sorted(folder.iterdir())):
        ds = pydicom.dcmread(path)
        ds.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
        ds.add_new(0x0019100C, "IS", [0, 800, 800][n // 2])
        if n >= 2:
            ds.add_new(0x0019100E, "FD", [[1.0, 0, 0], [0, -1.0, 0]][n // 2 - 1])
        ds.save_as(path)
    axis = dicom.open_volume(folder).meta["axis_t"]
    assert axis["values"] == (0.0, 800.0, 800.0)
    assert axis["directions"] == ((0, 0, 0), (0, 0, 1), (0, -1, 0))


def test_heart_phases_whose_delays_differ_from_slice_to_slice(scan: Any) -> None:
    folder = scan([{"z": z, "TriggerTime": 40 * p + 0.5 * z} for z in (0, 8, 16) for p in range(4)])
    volume = dicom.open_volume(folder)
    assert volume.meta["axis_t"] == {"name": "trigger", "unit": "ms", "values": (4.0, 44.0, 84.0, 124.0)}
    assert pixels(volume) == [[p, 4 + p, 8 + p] for p in range(4)]


def test_heart_phases_at_several_time_points(scan: Any) -> None:
    folder = scan(
        [
            {"z": z, "TriggerTime": 40 * p, "TemporalPositionIdentifier": t}
            for t in (1, 2)
            for p in (0, 1, 2)
            for z in (0, 8)
        ]
    )
    first, second = images(folder)
    assert first.meta["axis_t"]["values"] == (0.0, 40.0, 80.0)
    assert pixels(second) == [[6, 7], [8, 9], [10, 11]]
    assert "this is time point 2." in said(second)


def test_time_runs_on_over_midnight(scan: Any) -> None:
    clocks = ["235940", "235950", "000000", "000010"]
    volume = dicom.open_volume(scan([{"z": z, "AcquisitionTime": c} for c in clocks for z in (0, 3)]))
    assert volume.meta["axis_t"] == {"name": "t", "unit": "s", "values": (0.0, 10.0, 20.0, 30.0)}
    assert pixels(volume) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_dates_are_used_but_not_shown(scan: Any) -> None:
    moments = ["20250101235959.5", "20250103000000.5"]
    volume = dicom.open_volume(scan([{"z": z, "AcquisitionDateTime": m} for m in moments for z in (0, 3)]))
    assert volume.meta["axis_t"]["values"] == (0.0, 86401.0)
    assert "2025" not in repr(dict(volume.meta))


def test_frames_of_a_dynamic_pet(scan: Any) -> None:
    middles = [5_000, 15_000, 45_000]
    folder = scan([{"z": z, "Modality": "PT", "FrameReferenceTime": m} for z in (0, 3) for m in middles])
    axis = dicom.open_volume(folder).meta["axis_t"]
    assert axis == {"name": "t", "unit": "s", "values": (5.0, 15.0, 45.0)}


def test_time_points_without_a_clock(scan: Any) -> None:
    folder = scan([{"z": z, "AcquisitionNumber": n} for n in (1, 2, 3) for z in (0, 3)])
    assert dicom.open_volume(folder).meta["axis_t"] == {"name": "index", "unit": "", "values": (0.0, 1.0, 2.0)}


def test_hundreds_of_time_points_do_not_flow_together(scan: Any) -> None:
    # 1001 is nearly 1002, and another image all the same
    folder = scan([{"z": z, "TemporalPositionIdentifier": n} for n in range(1000, 1005) for z in (0, 3)])
    assert dicom.open_volume(folder).shape == (5, 2, 4, 6)


def test_an_echo_that_lacks_a_slice(scan: Any) -> None:
    slices = [{"z": z, "EchoTime": e} for e in (3, 6) for z in range(5)]
    del slices[7]
    volume = dicom.open_volume(scan(slices))
    assert pixels(volume) == [[0, 1, 2, 3, 4], [5, 6, 0, 7, 8]]
    assert "1 slices are missing in some of the 2 volumes; they are left blank." in said(volume)


def test_two_stacks_in_each_other(scan: Any) -> None:
    # 5 mm slices and, between some of them, thin ones at distances that do not fit
    slices = [{"z": 5 * n, "SliceThickness": 5, "AcquisitionNumber": 1} for n in range(6)]
    slices += [{"z": 10.3 + 1.7 * n, "SliceThickness": 1.7, "AcquisitionNumber": 2} for n in range(5)]
    thick, thin = images(scan(slices))
    assert (thick.spacing[0], thin.spacing[0]) == pytest.approx((5, 1.7))
    assert "2 stacks that lie in each other; they were told apart by acquisition." in said(thin)


def test_frames_of_reference_are_not_mixed(scan: Any) -> None:
    folder = scan([{"z": z, "FrameOfReferenceUID": f"1.2.{f}"} for f in (1, 2) for z in (0, 2, 4)])
    assert [pixels(v) for v in images(folder)] == [[0, 1, 2], [3, 4, 5]]
    # not told for some of them
    some = [{"z": z, **({"FrameOfReferenceUID": "1.2.3"} if z else {})} for z in range(6)]
    assert dicom.open_volume(scan(some)).shape == (6, 4, 6)
    # made up anew for each file by whoever removed the identity
    folder = scan([{"z": z, "FrameOfReferenceUID": f"1.2.{z}"} for z in range(6)])
    assert dicom.open_volume(folder).shape == (6, 4, 6)


def test_the_later_acquisition_wins_whatever_its_number(scan: Any) -> None:
    slices = [{"z": z, "AcquisitionTime": f"09{z:02}00"} for z in range(5)]
    # repeated at 10:00, and numbered as if it were older
    slices.append({"z": 2, "AcquisitionTime": "100000", "InstanceNumber": -5})
    volume = dicom.open_volume(scan(slices))
    assert pixels(volume) == [0, 1, 5, 3, 4]
    assert "1 slices lie where others do; of each place the one acquired last was kept (by acquisition time)." in said(
        volume
    )


def test_enhanced_frames_in_time(write: Write) -> None:
    import pydicom

    path = enhanced(write, [{"position": [0, 0, z], "t": t} for t in (1, 2, 3) for z in (0, 1)])
    ds = pydicom.dcmread(path)
    for n, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        group.FrameContentSequence[0].FrameAcquisitionDateTime = f"202501010800{n // 2 * 3:02}"
    ds.save_as(path)
    assert dicom.open_volume(path).meta["axis_t"] == {"name": "t", "unit": "s", "values": (0.0, 3.0, 6.0)}


def test_enhanced_diffusion_with_directions(write: Write) -> None:
    import pydicom

    path = enhanced(write, [{"position": [0, 0, z], "b": b} for b in (0, 700, 700) for z in (0, 1)])
    ds = pydicom.dcmread(path)
    for n, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        if n >= 2:
            direction = pydicom.Dataset()
            direction.DiffusionGradientOrientation = [[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]][n // 2 - 1]
            group.MRDiffusionSequence[0].DiffusionGradientDirectionSequence = [direction]
    ds.save_as(path)
    volume = dicom.open_volume(path)
    assert volume.meta["axis_t"]["values"] == (0.0, 700.0, 700.0)
    assert volume.meta["axis_t"]["directions"] == ((0, 0, 0), (0, 0, 1), (-1, 0, 0))
    assert pixels(volume) == [[0, 1], [2, 3], [4, 5]]


def test_thousands_of_directions_are_sorted_quickly(write: Write) -> None:
    from dataclasses import replace

    from napari_medai.io.dicom.frames import frames_of
    from napari_medai.io.dicom.headers import read_header

    (lead,) = frames_of(read_header(write("a", np.zeros((4, 6), np.uint16))))
    assert lead.place is not None
    frames = []
    for angle in np.linspace(0, np.pi, 3000, endpoint=False):
        # 0.06 degrees apart, twice each
        turned = np.array([[1.0, 0, 0], [0, np.cos(angle), np.sin(angle)]])
        for far in (0, 5):
            place = replace(lead.place, orientation=turned, position=far * np.cross(*turned))
            frames.append(replace(lead, place=place))
    start = time.perf_counter()
    found = stacks_of(frames)
    assert time.perf_counter() - start < 10
    assert sum(len(s.frames) for s in found) == 6000
