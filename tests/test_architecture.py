"""Every rule of the architecture, proven by a copy of the package in which it is broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

# rule -> file that breaks it, the import that does, and the contract that must say so
BREACHES = {
    "core knows nothing above it": ("core/volume.py", "import napari_medai.io", "Data flows one way"),
    "io knows no models": ("io/nifti.py", "import napari_medai.models", "Data flows one way"),
    "engine knows no stages": ("engine/run.py", "import napari_medai.stages", "Data flows one way"),
    "stages know no viewer": ("stages/detect.py", "import napari_medai.ui", "Data flows one way"),
    "napari stays in ui": ("stages/segment.py", "import napari", "Only ui knows napari and Qt"),
    "Qt stays in ui": ("cli/__init__.py", "import qtpy", "Only ui knows napari and Qt"),
    "stages touch no files": (
        "stages/classify.py",
        "import napari_medai.io",
        "Computation never touches files of images",
    ),
    "models touch no images": ("models/spec.py", "import napari_medai.io", "Computation never touches files of images"),
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "lint-imports", "--config", ROOT / "pyproject.toml", "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "src/napari_medai", folder / "napari_medai", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize("rule", BREACHES)
def test_a_breach_is_found(rule: str, copy: Path) -> None:
    file, breach, contract = BREACHES[rule]
    path = copy / "napari_medai" / file
    before = path.read_text(encoding="utf-8")
    path.write_text(before + f"\n{breach}\n", encoding="utf-8")
    try:
        done = lint(copy)
    finally:
        path.write_text(before, encoding="utf-8")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{contract} BROKEN" in done.stdout


def test_the_copy_itself_is_clean(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "found"),
    [("stages/segment.py", True), ("ui/panel.py", True), ("engine/run.py", False), ("nets/x.py", False)],
)
def test_torch_is_imported_at_module_level_in_engine_and_nets_only(file: str, found: bool) -> None:
    done = subprocess.run(
        [BIN / "ruff", "check", "--select", "TID253", "--stdin-filename", f"src/napari_medai/{file}", "-"],
        cwd=ROOT,
        input="import torch\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("TID253" in done.stdout) == found


@pytest.mark.parametrize(
    "modules",
    [
        "napari_medai",
        "napari_medai.stages",
        "napari_medai.models",
        "napari_medai.io",
        "napari_medai.cli",
        "napari_medai.ui.widgets",
        "napari_medai.ui.readers",
        "napari_medai.ui.writers",
    ],
)
def test_importing_leaves_torch_alone(modules: str) -> None:
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'monai' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_headless_part_needs_neither_napari_nor_qt() -> None:
    code = (
        "import sys\n"
        "for name in ('napari', 'qtpy', 'superqt', 'magicgui', 'PyQt6'): sys.modules[name] = None\n"
        "import napari_medai.api, napari_medai.cli, napari_medai.io, napari_medai.io.dicom, napari_medai.engine.run\n"
        "from napari_medai.models import find_models\n"
        "from napari_medai.engine import RUNNERS, load_runner\n"
        "[load_runner(name) for name in RUNNERS]\n"
        "assert find_models()\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_module_is_longer_than_it_should_be() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / "src").rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long
