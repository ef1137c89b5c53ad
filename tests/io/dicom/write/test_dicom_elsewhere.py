"""Scans in archives and on the network, and scans that no DICOM object can be made of."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

import napari_medai as medai
from napari_medai.cli import app
from napari_medai.core.errors import WriteError
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Boxes, Denoised, Heatmap, Mask
from napari_medai.core.volume import Volume
from napari_medai.io.dicom.remote import RemoteSeries, register, unregister
from napari_medai.io.verify import verify

RUN = Provenance("segment", ("3",), "brain", "ab" * 32)


def mask_on(scan: Volume) -> Mask:
    array = np.zeros(scan.shape, np.uint8)
    array[..., 4:12, 4:12] = 1
    return Mask(scan.replace(array=array, meta=dict(scan.meta)), RUN, {1: "brain"})


def everything_is_written(scan: Volume, folder: Path, slices: Path, errors_of: Callable[[Path], list[str]]) -> None:
    """Segmentation, report and contours of a mask refer to the instances of the slices; so does a derived series."""
    there = {pydicom.dcmread(path).SOPInstanceUID for path in slices.iterdir()}
    for name in ("m.dcm", "m.sr.dcm", "m.rtstruct.dcm"):
        path = medai.save(mask_on(scan), folder / name)
        assert errors_of(path) == []
        assert verify(path, slices).faults == ()
    seg = pydicom.dcmread(folder / "m.dcm")
    whole = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {item.ReferencedSOPInstanceUID for item in whole} == there
    clean = medai.save(Denoised(scan, RUN), folder / "clean")
    np.testing.assert_array_equal(medai.open(clean).numpy(), medai.open(slices).numpy())


def test_a_scan_in_an_archive(
    tmp_path: Path, write_ct: Callable[..., Path], errors_of: Callable[[Path], list[str]]
) -> None:
    slices, other = write_ct(tmp_path / "ct"), write_ct(tmp_path / "other", count=3)
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as packed:
        for path in (*slices.iterdir(), *other.iterdir()):
            packed.write(path, f"{path.parent.name}/{path.name}")
    uid = pydicom.dcmread(slices / "0.dcm").SeriesInstanceUID
    everything_is_written(medai.open(tmp_path / "study.zip", series_uid=uid), tmp_path, slices, errors_of)
    assert verify(tmp_path / "m.dcm", tmp_path / "study.zip").faults == ()


@pytest.fixture
def remote(tmp_path: Path, write_ct: Callable[..., Path]) -> Iterator[tuple[Path, Path]]:
    """A folder of headers, and one with the whole instances, which are fetched from there."""
    slices, headers, cache = write_ct(tmp_path / "ct"), tmp_path / "headers", tmp_path / "cache"
    headers.mkdir()
    cache.mkdir()
    for path in slices.iterdir():
        header = pydicom.dcmread(path)
        del header.PixelData
        header.save_as(headers / path.name)
    keywords = {path.name: "PixelData" for path in slices.iterdir()}
    register(RemoteSeries(headers, cache, keywords, lambda name, target: shutil.copy(slices / name, target) and None))
    yield headers, slices
    unregister(headers)


def test_a_scan_on_the_network(
    tmp_path: Path, remote: tuple[Path, Path], errors_of: Callable[[Path], list[str]]
) -> None:
    headers, slices = remote
    everything_is_written(medai.open(headers), tmp_path, slices, errors_of)


def test_a_scan_that_is_no_longer_there(tmp_path: Path, remote: tuple[Path, Path]) -> None:
    headers, slices = remote
    mask = mask_on(medai.open(headers))
    shutil.rmtree(headers)
    with pytest.raises(WriteError, match=r"cannot be read again: .* --against"):
        medai.save(mask, tmp_path / "m.dcm")
    medai.save(mask, tmp_path / "m.dcm", against=slices)
    assert verify(tmp_path / "m.dcm", slices).faults == ()


def without_frame(folder: Path) -> Path:
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        del ds.FrameOfReferenceUID
        ds.save_as(path)
    return folder


def test_a_scan_without_a_frame_of_reference(
    tmp_path: Path, write_ct: Callable[..., Path], errors_of: Callable[[Path], list[str]]
) -> None:
    scan = medai.open(without_frame(write_ct(tmp_path / "ct")))
    mask = mask_on(scan)
    with pytest.raises(WriteError, match=r"no Frame of Reference UID.*Save labels as \.dcm.*\.nii\.gz"):
        medai.save(mask, tmp_path / "m.rtstruct.dcm")
    boxes = Boxes(np.full((1, 3), 3.0), np.full((1, 3), 2.0), ("lesion",), np.array([0.9]), 3, scan.grid, RUN)
    with pytest.raises(WriteError, match=r"no Frame of Reference UID.*Save as \.csv or \.json"):
        medai.save(boxes, tmp_path / "b.sr.dcm", against=scan)
    # segmentations and outlines refer to the images themselves
    for name in ("m.dcm", "m.sr.dcm"):
        assert errors_of(medai.save(mask, tmp_path / name)) == []
    opened = medai.open(tmp_path / "m.dcm")
    assert opened.grid.same_place(scan.grid)
    for name in ("m.seg.nrrd", "m.nii.gz"):
        assert medai.open(medai.save(mask, tmp_path / name)).grid.same_place(scan.grid)


def test_images_along_t(tmp_path: Path, write_ct: Callable[..., Path]) -> None:
    scan = medai.open(write_ct(tmp_path / "ct"))
    mask = mask_on(scan)
    twice = mask.labels.replace(array=np.stack([mask.labels.numpy()] * 2), axes="tzyx")
    heat = Heatmap(twice.replace(array=twice.numpy() / np.float32(2)), "noise", "gradcam++", RUN)
    series = Mask(twice, RUN, {1: "brain"})
    said = r"2 images along t, and a.* holds one\. Take the one you need with take\('t', n\) in Python.*\.nii\.gz"
    for what, name in ((series, "m.dcm"), (series, "m.sr.dcm"), (series, "m.rtstruct.dcm"), (heat, "h.dcm")):
        with pytest.raises(WriteError, match=said):
            medai.save(what, tmp_path / name)
    # so does the shell, with the file that was said to hold all of them
    assert medai.save(series, tmp_path / "m.nii.gz").exists()
    done = CliRunner().invoke(
        app, ["convert", str(tmp_path / "m.nii.gz"), str(tmp_path / "m.dcm"), "--against", str(tmp_path / "ct")]
    )
    assert isinstance(done.exception, WriteError)
    assert "images along t" in str(done.exception)
    one = Mask(twice.take("t", 1), RUN, {1: "brain"})
    assert verify(medai.save(one, tmp_path / "m.dcm"), tmp_path / "ct").faults == ()


def test_labels_beside_the_scan_are_refused_though_the_grids_overlap(
    tmp_path: Path, write_ct: Callable[..., Path]
) -> None:
    scan = medai.open(write_ct(tmp_path / "ct"))
    depth, rows, columns = scan.shape
    wide = np.zeros((depth, rows, 3 * columns), np.uint8)
    wide[:, :, 2 * columns :] = 1
    affine = np.array(scan.affine)
    affine[2, 2] *= 0.999  # on voxels of its own
    mask = scan.replace(array=wide, affine=affine, meta={**scan.meta, "is_labels": True, "label_names": {1: "lesion"}})
    with pytest.raises(WriteError, match="None of the labelled voxels lies inside"):
        medai.save(mask, tmp_path / "seg.dcm", against=scan)
    assert not (tmp_path / "seg.dcm").exists()
    wide[:, 2:5, 2:5] = 1
    assert medai.save(mask.replace(array=wide), tmp_path / "seg.dcm", against=scan).exists()


def test_a_segmentation_of_a_scan_without_a_frame_of_reference_verifies(
    tmp_path: Path, write_ct: Callable[..., Path]
) -> None:
    folder = without_frame(write_ct(tmp_path / "ct"))
    scan = medai.open(folder)
    path = medai.save(medai.labels(scan.numpy() > np.median(scan.numpy()), scan, {1: "liver"}), tmp_path / "seg.dcm")
    assert verify(path, folder).ok


@pytest.mark.parametrize("name", ["ISO 2022 IR 100", "ISO 2022 IR 6"])
def test_a_single_character_set_under_the_name_for_several(
    tmp_path: Path, write_ct: Callable[..., Path], errors_of: Callable[[Path], list[str]], name: str
) -> None:
    folder = write_ct(tmp_path / "ct")
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.SpecificCharacterSet = name
        dataset.save_as(file)
    scan = medai.open(folder)
    path = medai.save(medai.labels(scan.numpy() > np.median(scan.numpy()), scan, {1: "liver"}), tmp_path / "seg.dcm")
    assert errors_of(path) == []
