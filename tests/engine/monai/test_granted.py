"""Bundles with programs: run by MONAI's own parser in a process of its own, and only with a permission."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from napari_medai.core.errors import ModelError, UntrustedError
from napari_medai.core.stage import Progress
from napari_medai.engine.monai.granted import run_granted
from napari_medai.engine.run import Run
from napari_medai.models import load, probe
from napari_medai.models.package import package_sha256
from napari_medai.models.spec import Model
from napari_medai.models.trust import Grant
from napari_medai.stages import segment
from tests.engine.monai.test_bundles import CPU, Told, scan
from tests.models.monai.bundles import spleen, write

# a step of the bundle's own, and an expression that strict does not know
SCRIPT = """
from monai.transforms import MapTransform

class Shift(MapTransform):
    def __init__(self, keys, by):
        super().__init__(keys)
        self.by = by

    def __call__(self, data):
        data = dict(data)
        for key in self.keys:
            data[key] = data[key] + self.by
        return data
"""


def with_script(folder: Path, by: str = "$float(os.sep == '/') - 1.0") -> Path:
    config = spleen()
    bundle = write(folder, "spleen", config)  # its weights
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "__init__.py").write_text("")
    (bundle / "scripts" / "mine.py").write_text(SCRIPT)
    config["preprocessing"]["transforms"].insert(4, {"_target_": "scripts.mine.Shift", "keys": "image", "by": by})
    (bundle / "configs" / "inference.json").write_text(json.dumps(config))
    return bundle


def granted(bundle: Path, *capabilities: str) -> Model:
    return load(probe(bundle), Grant(package_sha256(bundle), frozenset(capabilities)))


def test_allowed_it_gives_what_the_same_bundle_without_a_program_gives(tmp_path: Path) -> None:
    bundle = with_script(tmp_path / "code")
    plain = load(probe(write(tmp_path / "data", "spleen")))
    told = Told()
    mask = segment.run(scan(), granted(bundle, "python"), CPU, told)
    np.testing.assert_array_equal(mask.labels.numpy(), segment.run(scan(), plain, CPU, Told()).labels.numpy())
    assert any("allowed: python" in note for note in told.notes)
    assert any(update[2].startswith("looking, window") for update in told.updates)


def test_without_the_permission_nothing_of_it_runs(tmp_path: Path) -> None:
    bundle = with_script(tmp_path)
    with pytest.raises(UntrustedError, match=r"scripts\.mine\.Shift"):
        load(probe(bundle))
    with pytest.raises(UntrustedError):
        granted(bundle, "pickle")


def test_it_never_runs_in_this_process(tmp_path: Path) -> None:
    model = granted(with_script(tmp_path), "python")
    run = Run("segment", scan(), model, CPU, Progress())
    with pytest.raises(UntrustedError, match="nothing of it was run"):
        run_granted(scan(), run, CPU, model.folder)


def test_what_monai_cannot_build_is_told(tmp_path: Path) -> None:
    model = granted(with_script(tmp_path, by="$no_such_name"), "python")
    with pytest.raises(ModelError, match="MONAI cannot build preprocessing of the bundle"):
        segment.run(scan(), model, CPU, Told())
