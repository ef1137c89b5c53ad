"""OME-Zarr stores, written here attribute by attribute as the specifications 0.4 and 0.5 have them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import napari_medai as medai
from napari_medai.core.errors import NoImagesError, ReadError, SeriesChoiceError, UnsupportedFormatError

PIXELS = np.arange(2 * 4 * 6 * 8, dtype=np.uint16).reshape(2, 4, 6, 8)
AXES: list[Any] = [
    {"name": "c", "type": "channel"},
    {"name": "z", "type": "space", "unit": "micrometer"},
    {"name": "y", "type": "space", "unit": "micrometer"},
    {"name": "x", "type": "space", "unit": "nanometer"},
]
MULTISCALES: list[dict[str, Any]] = [
    {
        "axes": AXES,
        "datasets": [
            {
                "path": "0",
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1, 2.0, 0.5, 250.0]},
                    {"type": "translation", "translation": [0, 10.0, 20.0, 30000.0]},
                ],
            },
            {"path": "1", "coordinateTransformations": [{"type": "scale", "scale": [1, 2.0, 1.0, 500.0]}]},
        ],
    }
]


def image(group: zarr.Group, version: str, attributes: dict[str, Any] | None = None) -> None:
    """An image of two levels in a group."""
    content = {"multiscales": MULTISCALES, **(attributes or {})}
    group.attrs.update(content if version == "0.4" else {"ome": {"version": "0.5", **content}})
    for level, pixels in enumerate((PIXELS, PIXELS[..., ::2, ::2])):
        array = group.create_array(str(level), shape=pixels.shape, dtype=pixels.dtype, chunks=(1, 1, 6, 4))
        array[...] = pixels


def store(path: Path, version: str) -> zarr.Group:
    return zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_finest_level_lazily_in_micrometres(tmp_path: Path, version: str) -> None:
    image(store(tmp_path / "cells.ome.zarr", version), version)
    volume = medai.open(tmp_path / "cells.ome.zarr")
    assert (volume.axes, volume.shape, volume.units, volume.name) == ("czyx", PIXELS.shape, "um", "cells")
    assert volume.is_lazy
    assert volume.spacing == (2.0, 0.5, 0.25)
    np.testing.assert_allclose(volume.affine[:3, 3], (10.0, 20.0, 30.0))
    np.testing.assert_array_equal(volume.numpy(), PIXELS)
    (series,) = medai.list_series(tmp_path / "cells.ome.zarr")
    assert (series.uid, series.shape) == ("", PIXELS.shape)
    np.testing.assert_allclose(series.spacing_mm, (0.002, 0.0005, 0.00025))


def test_scale_of_all_levels_comes_after_that_of_one(tmp_path: Path) -> None:
    group = store(tmp_path / "a.zarr", "0.4")
    image(group, "0.4")
    scales = dict(MULTISCALES[0]) | {"coordinateTransformations": [{"type": "scale", "scale": [1, 10, 10, 10]}]}
    group.attrs["multiscales"] = [scales]
    volume = medai.open(tmp_path / "a.zarr")
    np.testing.assert_allclose(volume.spacing, (20.0, 5.0, 2.5))
    np.testing.assert_allclose(volume.affine[:3, 3], (100.0, 200.0, 300.0))


def test_without_units_in_pixels(tmp_path: Path) -> None:
    group = store(tmp_path / "a.zarr", "0.4")
    image(group, "0.4")
    group.attrs["multiscales"] = [dict(MULTISCALES[0]) | {"axes": ["c", "z", "y", "x"]}]
    volume = medai.open(tmp_path / "a.zarr")
    assert volume.units == "pixel"
    assert volume.spacing == (2.0, 0.5, 250.0)


def test_several_images_in_one_store(tmp_path: Path) -> None:
    group = store(tmp_path / "a.zarr", "0.4")
    group.attrs["bioformats2raw.layout"] = 3
    for name in ("0", "1"):
        image(group.create_group(name), "0.4")
    with pytest.raises(SeriesChoiceError) as caught:
        medai.open(tmp_path / "a.zarr")
    assert [s.uid for s in caught.value.series] == ["0", "1"]
    assert medai.open(tmp_path / "a.zarr", series_uid="1").name == "a_1"
    with pytest.raises(ReadError, match="it has: 0, 1"):
        medai.open(tmp_path / "a.zarr", series_uid="2")


def test_fields_of_a_plate(tmp_path: Path) -> None:
    group = store(tmp_path / "plate.zarr", "0.4")
    group.attrs["plate"] = {"wells": [{"path": "A/1"}, {"path": "B/2"}]}
    for well in ("A/1", "B/2"):
        made = group.create_group(well)
        made.attrs["well"] = {"images": [{"path": "0"}]}
        image(made.create_group("0"), "0.4")
    assert [s.uid for s in medai.list_series(tmp_path / "plate.zarr")] == ["A/1/0", "B/2/0"]
    assert medai.open(tmp_path / "plate.zarr", series_uid="B/2/0").shape == PIXELS.shape


def test_label_image_inside_a_store(tmp_path: Path) -> None:
    group = store(tmp_path / "a.zarr", "0.5")
    image(group, "0.5")
    image(group.create_group("labels/nuclei"), "0.5", {"image-label": {}})
    assert medai.open(tmp_path / "a.zarr" / "labels" / "nuclei").meta["is_labels"] is True
    assert "is_labels" not in medai.open(tmp_path / "a.zarr").meta


def test_store_without_an_image(tmp_path: Path) -> None:
    store(tmp_path / "a.zarr", "0.5")
    with pytest.raises(NoImagesError, match="multiscales"):
        medai.open(tmp_path / "a.zarr")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_bare_array(tmp_path: Path, zarr_format: int) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(2, 3), dtype="u1", zarr_format=zarr_format)
    with pytest.raises(UnsupportedFormatError, match="bare Zarr array"):
        medai.open(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    "broken",
    [
        [],
        "text",
        [{"axes": AXES}],
        [{"axes": AXES, "datasets": [{"path": "9"}]}],
        [{"axes": AXES[1:], "datasets": [{"path": "0"}]}],
        [{"axes": AXES, "datasets": [{"path": "0", "coordinateTransformations": [{"type": "affine"}]}]}],
        [
            {
                "axes": AXES,
                "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 2]}]}],
            }
        ],
    ],
)
def test_damaged_metadata(tmp_path: Path, broken: Any) -> None:
    group = store(tmp_path / "a.zarr", "0.4")
    image(group, "0.4")
    group.attrs["multiscales"] = broken
    with pytest.raises(ReadError):
        medai.open(tmp_path / "a.zarr")


def test_damaged_chunk_is_told_when_it_is_read(tmp_path: Path) -> None:
    # Zstandard, the default of format 3; numcodecs' Blosc, that of format 2, does not notice a chunk cut short
    image(store(tmp_path / "a.zarr", "0.5"), "0.5")
    for chunk in (p for p in (tmp_path / "a.zarr" / "0" / "c").rglob("*") if p.is_file()):
        chunk.write_bytes(chunk.read_bytes()[:20])
    volume = medai.open(tmp_path / "a.zarr")
    with pytest.raises(ReadError, match="damaged chunk"):
        volume.numpy()


def test_travels_to_another_process(tmp_path: Path) -> None:
    image(store(tmp_path / "a.zarr", "0.5"), "0.5")
    volume = medai.open(tmp_path / "a.zarr")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume)).numpy(), PIXELS)


def test_zarr_json_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").write_text("{")
    with pytest.raises(ReadError):
        medai.open(tmp_path / "a.zarr")


def test_levels_of_a_slide(tmp_path: Path) -> None:
    pixels = np.arange(600, dtype=np.uint16).reshape(30, 20)
    group = store(tmp_path / "a.zarr", "0.5")
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    datasets = []
    for n in range(3):
        array = group.create_array(str(n), data=pixels[:: 2**n, :: 2**n], chunks=(8, 8))
        datasets.append({"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [0.5 * 2**n] * 2}]})
    assert array.shape == (8, 5)
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    volume = medai.open(tmp_path / "a.zarr")
    assert [level.shape for level in volume.meta["levels"]] == [(30, 20), (15, 10), (8, 5)]
    assert volume.meta["levels"][0] is volume.array
    np.testing.assert_array_equal(np.asarray(volume.meta["levels"][2]), pixels[::4, ::4])
