"""Results as images."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

import napari_medai as medai
from napari_medai.core.errors import WriteError
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Boxes, Denoised, Heatmap, Mask
from napari_medai.core.volume import Volume


@pytest.fixture
def mask(oblique_scan: Volume, provenance: Provenance) -> Mask:
    labels = (oblique_scan.numpy() > 900).astype(np.int32)
    return Mask(oblique_scan.replace(array=labels), provenance, {1: "brain"}, {1: (1.0, 0.0, 0.0)})


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".tif", ".ome.tif"])
def test_a_mask_lies_on_its_scan_with_names_colours_and_provenance(tmp_path: Path, mask: Mask, suffix: str) -> None:
    opened = medai.open(medai.save(mask, tmp_path / f"a{suffix}"))
    assert opened.dtype == np.uint8
    assert opened.grid.same_place(mask.grid)
    assert opened.meta["is_labels"] is True
    assert opened.meta["label_names"] == {1: "brain"}
    assert opened.meta["label_colors"] == {1: (1.0, 0.0, 0.0)}
    assert opened.meta["provenance"]["model"] == "brain"
    assert opened.meta["provenance"]["params"] == {"threshold": 0.5}
    np.testing.assert_array_equal(opened.numpy(), mask.labels.numpy())


def test_provenance_stands_in_a_comment_that_others_can_read(tmp_path: Path, mask: Mask) -> None:
    (extension,) = nibabel.load(medai.save(mask, tmp_path / "a.nii.gz")).header.extensions
    assert extension.get_code() == 6
    assert '"model_sha256": "ab12"' in str(extension.get_content())


@pytest.mark.parametrize("suffix", [".nii.gz", ".tif"])
def test_denoised_and_heatmap(tmp_path: Path, oblique_scan: Volume, provenance: Provenance, suffix: str) -> None:
    opened = medai.open(medai.save(Denoised(oblique_scan, provenance), tmp_path / f"a{suffix}"))
    np.testing.assert_array_equal(opened.numpy(), oblique_scan.numpy())
    assert opened.meta["provenance"]["stage"] == "segment"
    heat = Heatmap(oblique_scan.replace(array=oblique_scan.numpy() / 2000), "blur", "occlusion", provenance)
    opened = medai.open(medai.save(heat, tmp_path / f"b{suffix}"))
    assert opened.grid.same_place(oblique_scan.grid)
    assert "window" not in opened.meta  # that of the scan says nothing about heat
    np.testing.assert_array_equal(opened.numpy(), heat.heat.numpy())


def test_two_dimensional_results_as_png(tmp_path: Path, slide: Volume, provenance: Provenance) -> None:
    heat = Heatmap(slide.replace(array=slide.numpy() / np.float32(900)), "blur", "occlusion", provenance)
    assert medai.open(medai.save(heat, tmp_path / "h.png")).numpy().max() == 65535
    labels = Mask(slide.replace(array=(slide.numpy() > 0) * np.int32(3)), provenance)
    assert set(np.unique(medai.open(medai.save(labels, tmp_path / "m.png")).numpy())) == {0, 3}
    with pytest.raises(WriteError, match="JPEG"):
        medai.save(labels, tmp_path / "m.jpg")


def test_what_does_not_fit(tmp_path: Path, oblique_scan: Volume, provenance: Provenance) -> None:
    boxes = Boxes(np.zeros((0, 3)), np.zeros((0, 3)), (), np.zeros(0), 3, oblique_scan.grid, provenance)
    with pytest.raises(WriteError, match=r"end the name in one of: \.sr\.dcm, \.csv, \.json"):
        medai.save(boxes, tmp_path / "a.nii.gz")
    with pytest.raises(WriteError, match=r"\.nii, \.nii\.gz"):
        medai.save(Denoised(oblique_scan, provenance), tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []
