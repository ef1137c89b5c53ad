"""The manifest against the tables it repeats, and against what napari does with it."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest
from npe2 import PluginManifest

import napari_medai
from napari_medai.io import FORMATS
from napari_medai.samples import SAMPLES
from napari_medai.stages import STAGES

PACKAGE = Path(napari_medai.__file__).parent
MANIFEST = PACKAGE / "napari.yaml"
# plain TIFF and photographs stay napari's own in the viewer
VIEWER_FORMATS = ("dicom", "nifti")
# pairs of header and pixels are read by script and shell; `*.img` and `*.hdr` mean other things to other plugins
SHELL_SUFFIXES = (".hdr", ".img")

# what layers are saved as, by suffix
WRITTEN = {"image": ("nifti", "nrrd", "dicom"), "labels": ("nifti", "nrrd", "surface", "dicom")}
OTHER_SUFFIXES = {kind: {*SHELL_SUFFIXES, ".dicom", ".ima"} for kind in WRITTEN}
OTHER_SUFFIXES["image"] |= {".seg.nrrd"}

# docks that are no stage
OTHER_DOCKS = {"napari-medai.archive", "napari-medai.browser", "napari-medai.models"}


@pytest.fixture(scope="module")
def manifest() -> PluginManifest:
    return PluginManifest.from_file(MANIFEST)


def _missing(lines: list[str]) -> str:
    return "missing in napari.yaml:\n" + "\n".join(lines)


def test_link_at_the_top_leads_to_the_manifest():
    top = PACKAGE.parents[1] / "napari.yaml"
    if not top.exists():
        pytest.skip("an installed package has no top folder")
    assert top.is_symlink()
    assert top.readlink() == Path("src/napari_medai/napari.yaml")
    assert top.read_text() == MANIFEST.read_text()


def test_every_python_name_can_be_imported(manifest):
    manifest.validate_imports()


def test_no_command_stands_twice(manifest):
    ids = [command.id for command in manifest.contributions.commands]
    assert sorted(set(ids)) == sorted(ids)


def test_entry_point_gives_this_manifest(manifest):
    assert PluginManifest.from_distribution("napari-medai").contributions == manifest.contributions


def test_formats(manifest):
    readers = {reader.command: reader.filename_patterns for reader in manifest.contributions.readers}
    lines = [
        f'    - command: napari-medai.read_{name}\n      filename_patterns: ["*{suffix}"]'
        for name in VIEWER_FORMATS
        for suffix in (*FORMATS[name].suffixes, *FORMATS[name].names)
        if suffix not in SHELL_SUFFIXES
        and ("*" if suffix.startswith(".") else "") + suffix not in readers.get(f"napari-medai.read_{name}", [])
    ]
    assert not lines, _missing(lines)


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_writers(manifest, kind):
    offered = {e for w in manifest.contributions.writers if w.layer_types == [kind] for e in w.filename_extensions}
    wanted = {suffix for name in WRITTEN[kind] for suffix in FORMATS[name].suffixes} - OTHER_SUFFIXES[kind]
    assert offered == wanted


def test_stages(manifest):
    contributions = manifest.contributions
    widgets = {w.command: w.display_name for w in contributions.widgets}
    menus = {menu: [item.command for item in items] for menu, items in contributions.menus.items()}
    commands = {c.id: c.python_name for c in contributions.commands}
    lines = []
    for name, stage in STAGES.items():
        command = f"napari-medai.{name}"
        if commands.get(command) != f"napari_medai.ui.widgets:{name}_panel":
            lines.append(f"    - id: {command}\n      python_name: napari_medai.ui.widgets:{name}_panel")
        if widgets.get(command) != stage.title:
            lines.append(f"    - command: {command}\n      display_name: {stage.title}")
        if command not in menus.get(stage.menu, []):
            lines.append(f"    {stage.menu}:\n      - command: {command}")
    assert not lines, _missing(lines)
    assert set(widgets) - OTHER_DOCKS == {f"napari-medai.{name}" for name in STAGES}
    assert set(widgets) >= OTHER_DOCKS


def test_samples(manifest):
    shown = {sample.key: (sample.command, sample.display_name) for sample in manifest.contributions.sample_data}
    names = {c.id: c.python_name for c in manifest.contributions.commands}
    lines = []
    for key, sample in SAMPLES.items():
        command, title = shown.get(key, ("", ""))
        if names.get(command) != f"napari_medai.ui.samples:{key}":
            lines.append(f"    - id: napari-medai.sample_{key}\n      python_name: napari_medai.ui.samples:{key}")
        if title != sample.title:
            entry = f"    - command: napari-medai.sample_{key}\n      key: {key}\n      display_name: {sample.title}"
            lines.append(entry)
    assert not lines, _missing(lines)
    assert set(shown) == set(SAMPLES)


def test_menus_are_ones_that_napari_lets_plugins_add_to(manifest):
    from napari._app_model.constants._menus import is_menu_contributable

    assert [menu for menu in manifest.contributions.menus if not is_menu_contributable(menu)] == []


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("image.dcm", True),
        ("IMAGE.DCM", True),
        ("x.1.IMA", True),
        ("DICOMDIR", True),
        ("IM000001", True),
        ("I0_2", True),
        ("1.2.840.113619.2.5.1762583153", True),
        ("MR.1.2.840.113619.2.5", True),
        ("brain.nii.gz", True),
        ("Brain.NII", True),
        ("slide.ome.tif", True),
        ("Slide.OME.TIFF", True),
        ("photo.png", False),
        ("stack.tif", False),
        ("notes.txt", False),
        ("Makefile", False),
    ],
)
def test_which_names_are_offered(tmp_path, name, ours):
    from npe2 import PluginManager

    path = tmp_path / name
    path.touch()
    manager = PluginManager()
    manager.register(PluginManifest.from_file(MANIFEST))
    assert bool(list(manager.iter_compatible_readers([str(path)]))) is ours


def test_a_pattern_of_capitals_alone_would_not_match():
    # why the manifest has patterns of negated classes beside DICOMDIR
    assert not fnmatch("DICOMDIR", "DICOMDIR".lower())
