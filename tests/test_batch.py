"""A batch on a real Dask cluster of this machine."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from napari_medai.batch import plan_cases, run_batch
from napari_medai.core.errors import ParamsError


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
