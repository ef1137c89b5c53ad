"""Models of third parties: a real distribution in a folder of its own, found by its entry points."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DESCRIPTION = """\
id: {id}
title: A denoiser of somebody
summary: For tests.
stage: denoise
accepts:
  ndim: [2]
prepare:
  normalise: none
gives:
  kind: image
runner: self
"""

CODE = """\
from pathlib import Path
from napari_medai.models import load, probe

HERE = Path(__file__).parent
FOLDER = HERE / "packages"

def specs():
    return [probe(HERE / "single")]

def models():
    return [load(probe(HERE / "other"))]

def broken():
    raise ZeroDivisionError("their own mistake")

def odd():
    return 7

def mixed():
    return [probe(HERE / "single").model_copy(update={"id": "theirs-mixed"}), "text", None]
"""

ASK = """\
import json
from napari_medai.models import find_models, load_model, plugins
print(json.dumps([{m.id: m.source for m in find_models()}, plugins.problems(), load_model("theirs-folder").id]))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """As `pip install --target` leaves it: modules, and a .dist-info with the metadata and the entry points."""
    site = tmp_path / "site"
    code = site / "their_models"
    for name, id in {
        "single": "theirs-spec",
        "other": "theirs-model",
        "packages/one": "theirs-folder",
        "packages/two": "nuclei",  # the id of a built-in model, which wins
    }.items():
        (code / name).mkdir(parents=True)
        (code / name / "medai-model.yaml").write_text(DESCRIPTION.format(id=id))
    (code / "packages" / "notes.txt").write_text("no model")
    (code / "__init__.py").write_text(CODE)
    info = site / "their_models-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-models\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[napari_medai.models]\n"
        + "\n".join(f"{n} = their_models:{n}" for n in ("specs", "models", "broken", "odd", "mixed"))
        + "\nfolder = their_models:FOLDER\nmissing = their_models:nothing\nabsent = no_such_module:x\n"
    )
    return site


def ask(site: Path, models: Path) -> tuple[dict[str, str], list[str], str]:
    environment = os.environ | {"PYTHONPATH": str(site), "MEDAI_MODELS": str(models)}
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True, env=environment)
    found, problems, loaded = json.loads(done.stdout)
    return found, problems, loaded


def test_an_installed_package_offers_models(site: Path, tmp_path: Path) -> None:
    found, problems, loaded = ask(site, tmp_path / "store")
    theirs = {id: source for id, source in found.items() if source.startswith("their-models")}
    assert theirs == {
        "theirs-spec": "their-models: specs",
        "theirs-model": "their-models: models",
        "theirs-mixed": "their-models: mixed",
        "theirs-folder": "their-models: folder",
    }
    assert found["nuclei"] == "builtin"
    assert loaded == "theirs-folder"
    said = "\n".join(problems)
    assert len(problems) == 7
    assert "their-models: broken cannot be loaded: ZeroDivisionError: their own mistake" in said
    assert "their-models: odd: it gives a int" in said
    assert "their-models: missing cannot be loaded: AttributeError" in said
    assert "their-models: absent cannot be loaded: ModuleNotFoundError" in said
    assert "a str is no model" in said
    assert "'notes.txt' is no model package" in said


def test_without_the_package_there_is_nothing(tmp_path: Path) -> None:
    from napari_medai.models import plugins

    assert plugins.offers() == []
    assert plugins.find() == []
