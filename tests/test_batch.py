"""A batch on a real Dask cluster of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pydicom import dcmread
from typer.testing import CliRunner

import napari_medai as medai
from napari_medai.batch import plan_cases, run_batch
from napari_medai.cli import app
from napari_medai.core.errors import ParamsError
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Denoised
from tests.io.dicom.conftest import dataset


def test_names_and_clashes(tmp_path) -> None:
    for name in ("a.nii.gz", "b.tif", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "CT").mkdir()
    cases = plan_cases([tmp_path / "a.nii.gz", tmp_path / "b.tif", tmp_path / "CT"], tmp_path / "out", ".csv")
    assert [case.target.rpartition("/")[2] for case in cases] == ["a.csv", "b.csv", "CT.csv"]
    with pytest.raises(ParamsError, match="Two cases are called 'b'"):
        plan_cases([tmp_path / "b.tif", tmp_path / "b.png"], tmp_path, ".csv")
    with pytest.raises(ParamsError, match="is a file; give a folder"):
        plan_cases([tmp_path / "b.tif"], tmp_path / "b.png", ".csv")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_cluster_gives_what_this_process_gives(tmp_path) -> None:
    rng = np.random.default_rng(0)
    sources = []
    for n in range(3):
        sources.append(tmp_path / f"image{n}.tif")
        tifffile.imwrite(sources[-1], rng.integers(0, 255, (96, 96)).astype(np.uint8))
    (tmp_path / "broken.tif").write_bytes(b"no image")
    sources.append(tmp_path / "broken.tif")
    here = run_batch("classify", plan_cases(sources, tmp_path / "here", ".csv"))
    there = run_batch("classify", plan_cases(sources, tmp_path / "there", ".csv"), scheduler="local", workers=1)
    assert [o.status for o in here] == [o.status for o in there] == ["done"] * 3 + ["failed"]
    for n in range(3):
        first, second = (tmp_path / f / f"image{n}.csv" for f in ("here", "there"))
        assert first.read_text() == second.read_text()


@pytest.fixture
def gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CT slices of 24 x 24 pixels at 0, 2 and 6 mm; denoising, which takes a minute, leaves them as they are."""
    monkeypatch.setattr(
        "napari_medai.batch.run_stage", lambda stage, volume, *_: Denoised(volume, Provenance(stage, (), "none"))
    )
    rng = np.random.default_rng(0)
    (tmp_path / "CT").mkdir()
    for n, z in enumerate((0, 2, 6)):
        pixels = rng.integers(0, 100, (24, 24)).astype(np.uint16)
        ds = dataset(pixels, ImagePositionPatient=[0, 0, z], InstanceNumber=n)
        ds.save_as(tmp_path / "CT" / f"{n}", enforce_file_format=True)
    return tmp_path / "CT"


def test_cases_are_repaired_where_that_was_asked_for(gap: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.tif"
    tifffile.imwrite(picture, np.zeros((24, 24), np.uint8))
    arguments = ["batch", "denoise", str(gap), str(picture), "--suffix", ".nii", "--json", "--repair"]
    done = CliRunner().invoke(app, [*arguments, "missing", "--out", str(tmp_path / "out")])
    first, second = json.loads(done.stdout)
    assert (first["status"], second["status"]) == ("done", "failed"), first["message"]
    assert second["message"] == "a.tif is not DICOM, and has nothing to repair or to choose values of."
    assert np.isfinite(medai.open(tmp_path / "out" / "CT.nii").numpy()).all()
    assert CliRunner().invoke(app, [*arguments, "everything", "--out", str(tmp_path / "no")]).exit_code != 0
    wrong = [*arguments[:-1], "--values", "colours", "--out", str(tmp_path / "no")]
    assert CliRunner().invoke(app, wrong).exit_code != 0
    assert not (tmp_path / "no").exists()


def test_values_of_cases(gap: Path, tmp_path: Path) -> None:
    for file in gap.iterdir():
        ds = dcmread(file)
        ds.RescaleSlope, ds.RescaleIntercept = 2, -1000
        ds.save_as(file)
    cases = plan_cases([gap], tmp_path / "out", ".nii")
    (outcome,) = run_batch("denoise", cases, opening={"values": "stored", "repair": ("missing",)})
    assert outcome.status == "done", outcome.message
    assert medai.open(outcome.case.target).numpy().min() > -200
