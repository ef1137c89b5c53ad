"""The public configurations of MONAI's model zoo (October 2024), with random weights: which run, which are refused.

Set MEDAI_ZOO to the folder ``models`` of a copy of the zoo's repository; weights are not needed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from napari_medai.core.stage import Progress
from napari_medai.core.volume import Volume
from napari_medai.engine.weights import forget
from napari_medai.models import load, probe
from napari_medai.models.monai.resolve import resolve
from napari_medai.stages import classify, detect, segment
from tests.engine.monai.reference import AFFINES, write_scan
from tests.engine.monai.test_parity import check
from tests.models.monai.bundles import write_weights

ZOO = Path(os.environ.get("MEDAI_ZOO", ""))
PRESENT = bool(os.environ.get("MEDAI_ZOO")) and ZOO.is_dir()
pytestmark = [
    pytest.mark.zoo,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PRESENT, reason="MEDAI_ZOO names no folder of MONAI's model zoo"),
]
NAMES = sorted(path.name for path in ZOO.iterdir() if (path / "configs").is_dir()) if PRESENT else []
RUN = (
    "brats_mri_segmentation",
    "classification_template",
    "endoscopic_inbody_classification",
    "endoscopic_tool_segmentation",
    "lung_nodule_ct_detection",
    "pathology_nuclei_classification",
    "pathology_nuclei_segmentation_classification",
    "pediatric_abdominal_ct_segmentation",
    "prostate_mri_anatomy",
    "segmentation_template",
    "spleen_ct_segmentation",
    "swin_unetr_btcv_segmentation",
    "ventricular_short_axis_3label",
    "wholeBody_ct_segmentation",
)
# name -> shape of the scan (x, y, z): small, and what the network takes
BIT_FOR_BIT = {
    "spleen_ct_segmentation": (28, 26, 14),
    "prostate_mri_anatomy": (18, 20, 8),
    "ventricular_short_axis_3label": (30, 26, 3),
    "wholeBody_ct_segmentation": (28, 26, 14),
    "segmentation_template": (24, 32, 16),
}


def with_weights(name: str, folder: Path) -> tuple[Path, str]:
    """A copy of a bundle with random weights where its configuration names them."""
    bundle = folder / name
    shutil.copytree(ZOO / name, bundle)
    (bundle / "models").mkdir(exist_ok=True)
    config = next(path for path in (bundle / "configs").iterdir() if path.stem == "inference")
    named = re.search(r"load_path.*?/models/([\w.]+\.pt)", config.read_text())
    file = f"models/{named[1] if named else 'model.pt'}"
    write_weights(bundle, file)
    return bundle, file


def test_at_least_fourteen_run_and_each_other_says_where_and_why() -> None:
    assert len(NAMES) == 30 or len(NAMES) == 31
    runs = []
    for name in NAMES:
        plan, needs, resolver = resolve(ZOO / name)
        if plan is not None:
            runs.append(name)
        assert bool(needs) is (plan is None)
        for need in needs:
            file, _, path = need.where.partition("#")
            assert (ZOO / name / file).is_file()
            assert _is_there(resolver.config, path) or need.why.startswith("There is no "), need
            assert need.capability in ("", "python")
    assert sorted(runs) == sorted(RUN)
    assert len(runs) >= 14


def _is_there(config: Any, path: str) -> bool:
    for key in path.split("::"):
        try:
            config = config[int(key)] if isinstance(config, list) else config[key]
        except (KeyError, IndexError, ValueError, TypeError):
            return False
    return True


@pytest.mark.parametrize("name", [name for name in RUN if PRESENT])
def test_it_runs_under_strict(name: str, tmp_path: Path) -> None:
    bundle, _ = with_weights(name, tmp_path)
    spec = probe(bundle)
    model = load(spec)
    ndim = max(spec.accepts.ndim)
    shape = {"lung_nodule_ct_detection": (32, 64, 64), "swin_unetr_btcv_segmentation": (8, 24, 24)}.get(
        name, (8, 32, 24)
    )
    shape = shape if ndim == 3 else (64, 72)
    axes = "zyx"[-ndim:]
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (spec.accepts.channels, *shape)).astype(np.float32)
    many = spec.accepts.channels > 1
    volume = Volume(
        pixels if many else pixels[0],
        f"c{axes}" if many else axes,
        np.diag([3.0, 0.9, 0.9, 1.0]),
        units="mm",
        modality=spec.accepts.modality[0] if spec.accepts.modality else "",
    )
    # this one's window of 240 x 240 x 160 voxels needs 15 GB
    tile = 48 if name == "brats_mri_segmentation" else 0
    if spec.stage == "segment":
        mask = segment.run(volume, model, segment.SegmentParams(device="cpu", tile=tile), Progress())
        assert mask.labels.shape == shape
        allowed = {0, *(label.value for label in spec.gives.labels)}
        assert spec.gives.kind == "instances" or set(np.unique(mask.labels.numpy())) <= allowed
    elif spec.stage == "classify":
        scores = classify.run(volume, model, classify.ClassifyParams(device="cpu"), Progress())
        assert scores.probabilities.sum() == pytest.approx(1)
        assert len(scores.classes) == len(scores.probabilities) > 1
    else:
        boxes = detect.run(volume, model, detect.DetectParams(device="cpu"), Progress())
        assert len(boxes.scores) > 0
        assert (boxes.centres >= -1).all()
        assert (boxes.centres <= np.array(shape)).all()
    forget()


@pytest.mark.parametrize("affine", ["anisotropic", "oblique"])
@pytest.mark.parametrize("name", [name for name in BIT_FOR_BIT if PRESENT])
def test_the_same_bits_as_monai(name: str, affine: str, tmp_path: Path) -> None:
    bundle, file = with_weights(name, tmp_path)
    check(bundle, write_scan(tmp_path / "scan.nii.gz", BIT_FOR_BIT[name], AFFINES[affine]), file)
    forget()


def test_configurations_are_read_as_their_own_format_reads_them() -> None:
    for name in NAMES:
        _, _, resolver = resolve(ZOO / name)
        text = resolver.file.read_text()
        theirs = json.loads(text) if resolver.file.suffix == ".json" else yaml.safe_load(text)
        assert theirs == {key: value for key, value in resolver.config.items() if key != "_meta_"}
