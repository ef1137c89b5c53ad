"""Objects on scans of many kinds: dciodvfy finds nothing wrong in them that is not wrong in the scan."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

import napari_medai as medai
from napari_medai.core.errors import WriteError
from napari_medai.core.provenance import Provenance
from napari_medai.core.result import Denoised, Heatmap, Mask

RUN = Provenance("segment", ("3",), "brain", "ab" * 32)
EVERYTHING = ("m.dcm", "h.dcm", "clean.dcm", "m.sr.dcm", "m.rtstruct.dcm")
# pictures without a place in the patient carry no map and no contours
PICTURE = ("m.dcm", "clean.dcm", "m.sr.dcm")
NO_METHOD = "Missing attribute Type 1C Conditional Element=<DeidentificationMethod"
BAD_ROOTS = "Illegal root for UID"
# Of each file: what it allows, and how its own errors begin that are found again in an object.
FILES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "MR_small.dcm": (EVERYTHING, ()),
    "CT_small.dcm": (EVERYTHING, ()),
    "examples_overlay.dcm": (EVERYTHING, ()),
    "J2K_pixelrep_mismatch.dcm": (EVERYTHING, ()),
    "eCT_Supplemental.dcm": (EVERYTHING, ()),
    "explicit_VR-UN.dcm": (EVERYTHING, ()),
    "693_UNCI.dcm": (("m.dcm", "h.dcm", "clean.dcm", "m.sr.dcm"), (NO_METHOD,)),
    "US1_UNCR.dcm": (PICTURE, ()),
    "examples_ybr_color.dcm": (PICTURE, ()),
    "RG1_UNCR.dcm": (PICTURE, ()),
    "SC_rgb_small_odd.dcm": (PICTURE, ()),
    "JPGExtended.dcm": (PICTURE, ()),
    "OT-PAL-8-face.dcm": (PICTURE, ()),
    "vlut_04.dcm": (PICTURE, ()),
    "emri_small.dcm": (("clean.dcm", "m.sr.dcm"), ()),
    "rtdose.dcm": (("m.dcm", "h.dcm", "m.sr.dcm", "m.rtstruct.dcm"), (BAD_ROOTS,)),
}


@pytest.mark.parametrize("name", FILES)
def test_no_error_that_is_not_the_scans(tmp_path: Path, name: str, errors_of: Callable[[Path], list[str]]) -> None:
    there = get_testdata_file(name, download=False)
    if there is None:
        pytest.skip("not among the installed test files")
    (tmp_path / "scan").mkdir()
    shutil.copy(there, tmp_path / "scan" / name)
    written, known = FILES[name]
    own = set(errors_of(tmp_path / "scan" / name))
    scan = medai.open(tmp_path / "scan")
    one = scan.take("t", 0) if "t" in scan.axes else scan
    array = np.zeros(one.spatial_shape, np.uint8)
    height, width = array.shape[-2:]
    array[..., height // 4 : height // 2 + 1, width // 4 : width // 2 + 1] = 1
    flat = one.replace(array=array if "z" in one.axes else array.reshape(height, width), axes=one.axes.replace("s", ""))
    mask = Mask(flat, RUN, {1: "brain"})
    heat = Heatmap(flat.replace(array=flat.numpy() / np.float32(2)), "noise", "gradcam++", RUN)
    results = {"m.dcm": mask, "h.dcm": heat, "clean.dcm": Denoised(scan, RUN)}
    for file in EVERYTHING:
        what = results.get(file, mask)
        if file not in written:
            with pytest.raises(WriteError):
                medai.save(what, tmp_path / file)
            continue
        errors = set(errors_of(medai.save(what, tmp_path / file)))
        if file == "clean.dcm":  # has the header of the scan
            errors -= own
        assert [e for e in sorted(errors) if not e.removeprefix("Error - ").startswith(known or ("-",))] == []


def test_a_picture_that_says_it_has_one_frame(tmp_path: Path) -> None:
    """Secondary capture is a class of single frames, whatever Number of Frames says."""
    shutil.copy(get_testdata_file("SC_rgb_small_odd.dcm"), tmp_path / "a.dcm")
    scan = medai.open(tmp_path / "a.dcm")
    assert pydicom.dcmread(tmp_path / "a.dcm").NumberOfFrames == 1
    labels = Mask(scan.replace(array=np.eye(3, dtype=np.uint8), axes="yx"), RUN, {1: "brain"})
    seg = pydicom.dcmread(medai.save(labels, tmp_path / "m.dcm"))
    (item,) = seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence
    assert "ReferencedFrameNumber" not in item
