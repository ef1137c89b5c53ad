"""From the archive and back: find a study, open it lazily, segment, push the SEG, pull it again, compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

import napari_medai as medai
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Mask
from napari_medai.core.stage import Progress
from napari_medai.pacs import Access, Query, connect, open_remote
from napari_medai.pacs.archive import series_of
from tests.pacs.orthanc import COMPRESSED, PATIENT_ID, PLAIN, STUDY, Orthanc, pixels

pytestmark = pytest.mark.pacs


@pytest.mark.parametrize(("push_by", "pull_by", "uid"), [("web", "dimse", PLAIN), ("dimse", "web", COMPRESSED)])
def test_a_segmentation_goes_back_and_comes_again(filled: Orthanc, relay, tmp_path: Path, push_by, pull_by, uid):
    counting = relay(filled.http_port)
    archive = connect(f"http://127.0.0.1:{counting.port}/dicom-web")
    (study,) = archive.find_studies(Query(patient_id=PATIENT_ID))
    found = series_of(archive, Query(study_uid=study.uid, series_uid=uid))[0]
    ct = open_remote(archive, found.study_uid, found.uid)
    assert not [r for r in counting.requests if "/instances/" in r], "opening fetches headers alone"

    inside = pixels() > 1200  # the ball
    labels = ct.replace(array=(ct.numpy() > 150).astype(np.uint8), name="ball", modality="SEG")
    np.testing.assert_array_equal(labels.numpy(), inside)
    record = Provenance("segment", (ct.name,), "threshold", "", {"above": 150})
    saved = medai.save(Mask(labels, record, {1: "ball"}), tmp_path / "ball.dcm")

    sender = connect({"web": filled.web, "dimse": filled.dimse}[push_by])
    assert sender.push([saved], Progress()).failed == {}
    assert sender.push([saved], Progress()).skipped == 1

    receiver = connect({"web": filled.web, "dimse": filled.dimse}[pull_by])
    mine = dcmread(saved, stop_before_pixels=True)
    (segmentation,) = series_of(receiver, Query(study_uid=STUDY, modality="SEG", series_uid=mine.SeriesInstanceUID))
    outcome = receiver.pull(segmentation, tmp_path / "again", Progress())
    if pull_by == "dimse":  # Orthanc 1.10 gives no label maps by C-GET
        (why,) = outcome.failed.values()
        assert "by C-GET; give a port for C-MOVE (--port), or use its DICOMweb address" in why
        receiver = connect(filled.dimse, Access(move_port=filled.move_port))
        outcome = receiver.pull(segmentation, tmp_path / "again", Progress())
    assert (outcome.done, outcome.failed) == (1, {})
    again = medai.open(outcome.folder)
    assert again.meta["is_labels"]
    assert again.meta["label_names"] == {1: "ball"}
    # voxel by voxel at the same place in the patient
    where = {tuple(np.round(p, 3)) for p in _places(again)}
    assert where == {tuple(np.round(p, 3)) for p in _places(labels)}
    assert len(where) == inside.sum() > 100
    archive.close()


def _places(volume) -> np.ndarray:
    """World (z, y, x) in mm of the labelled voxels."""
    index = np.argwhere(volume.numpy())
    return index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
