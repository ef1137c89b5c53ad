"""Added models: copied whole, found by their id, refused with a reason, never half there."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from napari_medai.core.errors import ModelError, UntrustedError
from napari_medai.core.stage import Cancelled, Progress
from napari_medai.models import find_models, load_model, store
from napari_medai.models.builtins import FOLDER
from napari_medai.models.catalogue import entries
from napari_medai.models.catalogue.entry import Entry, File, safe_name
from napari_medai.models.catalogue.matching import match

DESCRIPTION = """\
id: {id}
title: A denoiser
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


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDAI_MODELS", str(tmp_path / "store"))
    return tmp_path / "store"


def package(place: Path, id: str = "mine") -> Path:
    place.mkdir(parents=True)
    (place / "medai-model.yaml").write_text(DESCRIPTION.format(id=id))
    (place / "card.md").write_text("# Mine\n")
    return place


def test_a_folder_is_copied_and_found(tmp_path: Path, folder: Path) -> None:
    source = package(tmp_path / "a package")
    item = store.add(source)
    assert (item.id, item.problem) == ("mine", "")
    assert item.model is not None
    shutil.rmtree(source)  # the copy is what counts
    model = load_model("mine")
    assert model.card == "# Mine\n"
    assert model.source == "added: manifest"
    assert "mine" in {m.id for m in find_models("denoise")}
    assert sorted(p.name for p in folder.iterdir()) == ["mine"]
    record = json.loads((folder / "mine" / "added.json").read_text())
    assert len(record["sha256"]) == 64


def test_a_zip_archive_is_unpacked_into_the_store(tmp_path: Path, folder: Path) -> None:
    package(tmp_path / "zipped")
    archive = tmp_path / "zipped.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for file in (tmp_path / "zipped").iterdir():
            out.write(file, f"zipped/{file.name}")
    item = store.add(archive, "from-zip")
    assert item.model is not None
    assert (folder / "from-zip" / "zipped" / "card.md").is_file()
    assert archive.is_file()


def test_a_description_that_is_named_brings_its_folder(tmp_path: Path) -> None:
    source = package(tmp_path / "p")
    assert store.add(source / "medai-model.yaml").package.is_dir()


def test_weights_run_from_the_store(tmp_path: Path) -> None:
    item = store.add(FOLDER / "blobs3d", "blobs-again")
    assert item.model is not None
    assert item.model.weights is not None
    assert item.model.weights.read_bytes() == (FOLDER / "blobs3d" / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("id", "says"),
    [
        ("nuclei", "There is a model called 'nuclei' already. Give another: --id NAME"),
        ("NUCLEI", "There is a model called"),
        ("brainchop-18", "catalogue's id of 18 brain regions"),
        ("../out", "cannot be an id"),
        (".hidden", "cannot be an id"),
        ("a/b", "cannot be an id"),
        ("con", "cannot be an id"),
        ("x" * 90, "cannot be an id"),
        ("ends.", "cannot be an id"),
    ],
)
def test_ids_that_are_refused(tmp_path: Path, folder: Path, id: str, says: str) -> None:
    with pytest.raises(ModelError) as caught:
        store.add(package(tmp_path / "p"), id)
    assert says in str(caught.value)
    assert not folder.exists() or list(folder.iterdir()) == []


def test_an_id_out_of_the_description_that_is_taken_asks_for_another(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is a model called 'nuclei' already. Give an id: --id NAME"):
        store.add(FOLDER / "nuclei")
    store.add(package(tmp_path / "one"))
    with pytest.raises(ModelError, match="medai models remove mine"):
        store.add(package(tmp_path / "two"))


def test_what_is_no_model_leaves_nothing(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ModelError, match="no model package"):
        store.add(tmp_path / "notes.txt")
    with pytest.raises(ModelError, match="There is no model at"):
        store.add(tmp_path / "gone")
    assert not folder.exists()


def test_a_link_in_a_package_is_not_followed(tmp_path: Path, folder: Path) -> None:
    source = package(tmp_path / "p")
    (source / "secret").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="link"):
        store.add(source)
    assert not folder.exists() or list(folder.iterdir()) == []


def test_a_cancelled_copy_leaves_nothing(tmp_path: Path, folder: Path) -> None:
    class Stop(Progress):
        def update(self, done: float, total: float, message: str = "") -> None:
            raise Cancelled

    with pytest.raises(Cancelled):
        store.add(package(tmp_path / "p"), progress=Stop())
    assert list(folder.iterdir()) == []


def test_answers_for_a_package_that_says_all_itself_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"says itself what it takes and gives; leave out --axes"):
        store.add(package(tmp_path / "p"), axes="bcyx")


def test_remove(tmp_path: Path, folder: Path) -> None:
    store.add(package(tmp_path / "p"))
    store.remove("mine")
    assert list(folder.iterdir()) == []
    with pytest.raises(ModelError, match="No added model is called 'mine'; added are: none"):
        store.remove("mine")
    (tmp_path / "outside").mkdir()
    with pytest.raises(ModelError, match="No added model"):
        store.remove("../outside")
    assert (tmp_path / "outside").is_dir()


def test_damaged_models_stop_no_other(tmp_path: Path, folder: Path) -> None:
    store.add(package(tmp_path / "good"), "good")
    for name, harm in {
        "a-not-json": lambda p: (p / "added.json").write_text("{"),
        "b-no-package": lambda p: shutil.rmtree(p / "pk"),
        "c-no-field": lambda p: (p / "pk" / "medai-model.yaml").write_text("id: x"),
        "d-no-record": lambda p: (p / "added.json").unlink(),
        "e-leads-out": lambda p: (p / "added.json").write_text('{"id":"e","package":"..","sha256":""}'),
    }.items():
        store.add(package(tmp_path / name / "pk"), name)
        harm(folder / name)
    found = {item.id: item for item in store.survey()}
    assert [m.id for m in store.find()] == ["good"]
    for name in ("a-not-json", "b-no-package", "c-no-field", "d-no-record", "e-leads-out"):
        assert f"medai models remove {name}" in found[name].problem
        with pytest.raises(ModelError, match="was added and cannot be opened"):
            load_model(name)
        store.remove(name)
    assert [item.id for item in store.survey()] == ["good"]


def test_a_changed_description_is_read_again(tmp_path: Path) -> None:
    item = store.add(package(tmp_path / "p"))
    file = item.package / "medai-model.yaml"
    file.write_text(file.read_text().replace("A denoiser", "Another denoiser"))
    again = store.added("mine")
    assert again is not None
    assert again.spec is not None
    assert again.spec.title == "Another denoiser"


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_record_cannot_make_a_program_data(tmp_path: Path, folder: Path) -> None:
    """Whoever can write to the folder of models can write any record; what a package needs is read from its bytes."""
    source = tmp_path / "script.pt"
    torch.jit.script(torch.nn.Identity()).save(str(source))
    item = store.add(source, "script", axes="bcyx", stage="denoise")
    assert item.model is None
    record = folder / "script" / "added.json"
    forged = json.loads(record.read_text()) | {"needs": [], "safety": "data", "grant": ["torchscript"], "spec": {}}
    record.write_text(json.dumps(forged))
    with pytest.raises(UntrustedError, match="torchscript"):
        load_model("script")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path, folder: Path) -> None:
    folder.mkdir(mode=0o500)
    with pytest.raises(ModelError, match="cannot be copied into the folder of models"):
        store.add(package(tmp_path / "p"))


def test_a_place_that_is_no_folder(tmp_path: Path, folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(ModelError, match="cannot be copied into the folder of models"):
        store.add(package(tmp_path / "p"))


def test_the_folder_without_the_variable_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDAI_MODELS")
    assert store.folder().parts[-2:] == ("napari-medai", "models")


def test_names() -> None:
    assert safe_name("a.b-c_1")
    assert not any(map(safe_name, ("", "-a", "a b", "a\n", "ä", "nul.txt", "x" * 81, "a/", "..")))


def test_bytes_are_known_again_by_their_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry with several files: a folder, or one of its files with the others beside it; nothing else."""
    import hashlib

    from napari_medai.models import catalogue

    source = package(tmp_path / "p")
    (source / "unrelated.txt").write_text("not the entry's")
    files = tuple(
        File(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name in ("medai-model.yaml", "card.md")
        for data in ((source / name).read_bytes(),)
    )
    known = Entry(
        id="known", title="Known", summary="From the catalogue.", stage="denoise", source="manifest", licence="CC0-1.0",
        citation="Cite me.", safety="data", files=files,
    )  # fmt: skip
    assert match(source) is None
    shipped = catalogue.Catalogue(date="", entries=(*entries(), known))
    monkeypatch.setattr(catalogue, "_shipped", lambda: shipped)
    assert match(source) == known
    assert match(source / "card.md") == known
    assert match(source / "unrelated.txt") is None
    item = store.add(source)
    assert (item.id, item.entry) == ("known", known)
    assert item.spec is not None
    assert (item.spec.title, item.spec.licence, item.spec.citation) == ("Known", "CC0-1.0", "Cite me.")
    assert sorted(p.name for p in item.package.iterdir()) == ["card.md", "medai-model.yaml"]
    (source / "card.md").write_text("# Changed\n")
    assert match(source) is None
