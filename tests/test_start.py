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


def imported(code: str) -> set[str]:
    """The packages that a fresh process has imported after some lines."""
    code += "\nimport sys; print('imported', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("imported")[2].split())


def command(*words: str) -> str:
    return f"""
import sys
from napari_medai.cli import main
sys.argv = ["medai", *{words!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import napari_medai; napari_medai.__version__", LIGHT),
        (command("--help"), LIGHT),
        (command("info", "--help"), LIGHT),
        (command("segment", "--help"), HEAVY),
        (command("pull", "--help"), HEAVY),
        ("import napari_medai.api, napari_medai.ui.readers", HEAVY),
    ],
)
def test_nothing_heavy_is_imported_early(code: str, absent: set[str]) -> None:
    assert not imported(code) & absent


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
