"""What is imported at the start: by the package, by the command's help, by napari for the plugin's sake."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import napari_medai
from napari_medai.cli.commands import COMMANDS

HEAVY = {"torch", "monai", "dask", "zarr", "scipy", "skimage", "pydicom", "nibabel", "pandas", "xarray", "highdicom"}
LIGHT = {*HEAVY, "numpy"}


# one after the other in one process: from what a step has imported nothing may be heavy
STEPS = {
    "import napari_medai; napari_medai.__version__": LIGHT,
    "command('--help')": LIGHT,
    "command('info', '--help')": LIGHT,
    "import napari_medai.api, napari_medai.ui.readers": HEAVY,
    "command('segment', '--help')": HEAVY,
    "command('pull', '--help')": HEAVY,
}
CODE = """
import sys
def command(*words):
    from napari_medai.cli import main
    sys.argv = ["medai", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
for step in sys.stdin.read().splitlines():
    exec(step)
    print("imported", *{name.partition(".")[0] for name in sys.modules})
"""


def test_nothing_heavy_is_imported_early() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE],
        input="\n".join(STEPS),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [set(line.split()[1:]) for line in done.stdout.splitlines() if line.startswith("imported ")]
    for (step, absent), modules in zip(STEPS.items(), found, strict=True):
        assert "napari_medai" in modules
        assert not modules & absent, step


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: f"{row.group} {row.name}".strip())
def test_the_list_of_commands_says_what_each_says_of_itself(row) -> None:
    documented = inspect.getdoc(row.load())
    assert documented is not None
    assert row.summary == documented.partition("\n\n")[0].replace("\n", " ")


def test_napari_imports_nothing_of_the_plugin_at_its_start() -> None:
    manifest = yaml.safe_load((Path(napari_medai.__file__).parent / "napari.yaml").read_text(encoding="utf-8"))
    # whatever else napari reads of a manifest waits for a person
    assert set(manifest) <= {"name", "display_name", "contributions", "visibility", "categories", "schema_version"}
    assert "on_activate" not in manifest


def test_a_word_that_is_no_command_is_refused() -> None:
    done = subprocess.run([sys.executable, "-m", "napari_medai.cli", "segmen"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "segmen" in done.stderr
