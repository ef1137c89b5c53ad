"""What goes over to a process of its own and what comes back: nothing that comes back is believed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from napari_medai.core.errors import ModelError
from napari_medai.core.volume import Volume
from napari_medai.engine.isolated_values import plain_text, read_result, write_result
from napari_medai.engine.results import Found, SliceScores

SCAN = Volume(np.zeros((4, 9, 8), np.float32), "zyx")
SLIDE = Volume(np.zeros((9, 8), np.float32), "yx")


def back(folder: Path, stage: str, result, volume: Volume = SCAN, classes: int = 2):
    return read_result(folder, stage, volume, classes, write_result(folder, result))


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32, np.uint16, np.int64])
def test_labels_come_back(tmp_path: Path, dtype: type) -> None:
    labels = np.arange(4 * 9 * 8).reshape(4, 9, 8).astype(dtype)
    found = back(tmp_path, "segment", labels[:, ::-1])
    np.testing.assert_array_equal(found, labels[:, ::-1])
    assert found.dtype == dtype
    assert found.flags.writeable


def test_arrays_in_other_orders_come_back(tmp_path: Path) -> None:
    labels = np.arange(72, dtype=np.int32).reshape(9, 8)
    np.save(tmp_path / "array.npy", np.asfortranarray(labels))
    np.testing.assert_array_equal(read_result(tmp_path, "segment", SLIDE, 0, {}), labels)
    np.save(tmp_path / "array.npy", labels.astype(">i4"))
    np.testing.assert_array_equal(read_result(tmp_path, "segment", SLIDE, 0, {}), labels)


def test_images_heat_scores_and_objects_come_back(tmp_path: Path) -> None:
    image = np.linspace(0, 1, 4 * 9 * 8, dtype=np.float32).reshape(4, 9, 8)
    np.testing.assert_array_equal(back(tmp_path, "denoise", image), image)
    heat, target = back(tmp_path, "explain", (image, "noise"))
    np.testing.assert_array_equal(heat, image)
    assert target == "noise"
    said = SliceScores(np.array([0.25, 0.75]), np.array([0, 2]), np.full((2, 2), 0.5), np.array([0.5, 0.5]))
    read = back(tmp_path, "classify", said)
    np.testing.assert_array_equal(read.probabilities, [0.25, 0.75])
    np.testing.assert_array_equal(read.slice_index, [0, 2])
    assert read.slice_probabilities.shape == (2, 2)
    found = Found(np.ones((3, 3)), np.full((3, 3), 2.0), ["b", "a", "b"], np.array([0.5, 0.25, 0.125]))
    boxes = back(tmp_path, "detect", found)
    assert boxes.labels == ["b", "a", "b"]
    np.testing.assert_array_equal(boxes.scores, found.scores)
    np.testing.assert_array_equal(boxes.sizes, found.sizes)


def test_no_objects_come_back_as_none(tmp_path: Path) -> None:
    none = back(tmp_path, "detect", Found(np.zeros((0, 2)), np.zeros((0, 2)), [], np.zeros(0)), SLIDE)
    assert none.labels == []
    assert none.centres.shape == (0, 2)


@pytest.mark.parametrize(
    ("stage", "result", "why"),
    [
        ("segment", np.zeros((3, 3), np.uint8), "an array of 3 x 3; 4 x 9 x 8 expected"),
        ("segment", np.zeros((4, 9, 8), np.float32), "numbers of type float32"),
        ("segment", np.full((4, 9, 8), -1, np.int16), "labels below 0"),
        ("denoise", np.full((4, 9, 8), np.nan), "not finite"),
        ("denoise", np.zeros((4, 9, 8), np.int8), "numbers of type int8"),
        ("classify", SliceScores(np.ones(3), np.arange(1), np.ones((1, 3)), np.ones(1)), "an array of 3; 2 expected"),
        ("classify", SliceScores(np.ones(2), np.arange(9), np.ones((9, 2)), np.ones(9)), "9; at most 4 expected"),
        ("classify", SliceScores(np.ones(2), np.array([3, 4]), np.ones((2, 2)), np.ones(2)), "slices that the image"),
        ("classify", SliceScores(np.ones(2), np.arange(2), np.ones((2, 3)), np.ones(2)), "2 x 3; 2 x 2 expected"),
        ("detect", Found(np.ones((2, 2)), np.ones((2, 3)), ["a", "b"], np.ones(2)), "2 x 2; 2 x 3 expected"),
        ("detect", Found(np.ones((2, 3)), np.ones((2, 3)), ["a", "b"], np.array([1, np.inf])), "not finite"),
        ("measure", np.zeros((4, 9, 8), np.uint8), "cannot be run in a process"),
    ],
)
def test_results_of_another_shape_or_type_are_refused(tmp_path: Path, stage: str, result, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        back(tmp_path, stage, result)


def test_a_runner_that_gives_no_numbers_is_refused_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gave ndarray; an array of numbers"):
        write_result(tmp_path, np.array([object()]))


@pytest.mark.parametrize("rest", [{}, {"kinds": "ab"}, {"kinds": [1]}, {"kinds": []}, {"kinds": ["a"] * 2000}])
def test_kinds_of_objects_are_names(tmp_path: Path, rest: dict) -> None:
    write_result(tmp_path, Found(np.ones((1, 3)), np.ones((1, 3)), ["a"], np.ones(1)))
    with pytest.raises(ModelError, match="kind"):
        read_result(tmp_path, "detect", SCAN, 0, rest)


def header(text: str) -> bytes:
    padded = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY\x01\x00\x10",
        b"\x93NUMPY\x09\x00\x10\x00",
        header("__import__('os').system('true')"),
        header("(" * 100),
        header(str({"descr": "|u1", "fortran_order": False, "shape": (4, 9, 8)})) + b"\0" * 287,
        header(str({"descr": "|u1", "fortran_order": False, "shape": (4, 9, 8)})) + b"\0" * 289,
        header(str({"descr": "|u1", "fortran_order": False, "shape": (1 << 40,)})),
        header(str({"descr": "|u1", "fortran_order": False, "shape": (-4, 9, 8)})) + b"\0" * 288,
        header(str({"descr": "|O", "fortran_order": False, "shape": (4, 9, 8)})) + b"\0" * 288 * 8,
        header(str({"descr": [("a", "|u1")], "fortran_order": False, "shape": (4, 9, 8)})) + b"\0" * 288,
        header(str({"descr": "|V1", "fortran_order": False, "shape": (4, 9, 8)})) + b"\0" * 288,
    ],
)
def test_forged_files_are_not_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "array.npy").write_bytes(content)
    with pytest.raises(ModelError, match="it is not used"):
        read_result(tmp_path, "segment", SCAN, 0, {})


@pytest.mark.skipif(os.name != "posix", reason="links and pipes as POSIX has them")
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "nothing"])
def test_what_is_no_plain_file_is_not_read(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "array.npy"
    if kind == "link":
        np.save(tmp_path / "secret.npy", np.zeros((4, 9, 8), np.uint8))
        place.symlink_to(tmp_path / "secret.npy")
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    with pytest.raises(ModelError, match=r"it is not used|is a link|no plain file"):
        read_result(tmp_path, "segment", SCAN, 0, {})


def test_text_from_elsewhere_is_one_plain_line() -> None:
    assert plain_text("a\n\x1b[31mb\tc\x00") == "a [31mb c"
    assert plain_text({"a": 1}) == "{'a': 1}"
    assert len(plain_text("x" * 10_000)) == 300
