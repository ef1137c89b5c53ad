"""Samples: the same bytes for everyone; a clear error where one cannot be had."""

from __future__ import annotations

import numpy as np
import pytest

from napari_medai.core.errors import SampleError, SeriesChoiceError
from napari_medai.samples import SAMPLES, sample, sample_path
from napari_medai.samples.fetch import store


@pytest.mark.parametrize("name", [n for n in SAMPLES if n != "dicomdir"])
def test_every_sample_opens(name: str) -> None:
    volume = sample(name)
    assert volume.modality == (SAMPLES[name].modality or volume.modality)
    assert np.asarray(volume.array).max() > 0


def test_the_study_offers_its_series() -> None:
    with pytest.raises(SeriesChoiceError) as error:
        sample("dicomdir")
    volume = sample("dicomdir", error.value.series[0].uid)
    assert volume.modality in ("CR", "CT", "MR")


def test_a_sample_that_is_not_here_says_how_to_get_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MEDAI_CACHE", str(tmp_path))
    with pytest.raises(SampleError, match="Run `medai samples` once while online"):
        sample_path("head_mr")
    assert list(tmp_path.rglob("*.gz")) == []
    with pytest.raises(SampleError, match="No sample is called 'liver'"):
        sample_path("liver")


def test_a_damaged_sample_is_put_right(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MEDAI_CACHE", str(tmp_path))
    path = sample_path("ihc")  # out of scikit-image, which is always installed
    whole = path.read_bytes()
    path.write_bytes(b"damaged")
    assert sample_path("ihc").read_bytes() == whole


def test_other_bytes_are_refused_and_nothing_stays(tmp_path) -> None:
    with pytest.raises(SampleError, match="was expected"):
        store(b"other", tmp_path / "x.tif", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_as_mirror(tmp_path, monkeypatch) -> None:
    whole = sample_path("ihc").read_bytes()
    monkeypatch.setenv("MEDAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDAI_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(SampleError, match=r"The mirror has no samples/ihc\.png"):
        sample_path("ihc")
    (tmp_path / "mirror" / "samples").mkdir(parents=True)
    (tmp_path / "mirror" / "samples" / "ihc.png").write_bytes(whole)
    assert sample_path("ihc").read_bytes() == whole
