"""The catalogue that ships: whole, honest about what was run, and no reason to contact anybody."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from napari_medai.core.errors import DownloadError, ModelError, ModelNotFoundError
from napari_medai.models import SOURCES, load_model
from napari_medai.models.catalogue import FILE, Entry, entries, fetch, find_entry, hint, known_files, read, readable
from napari_medai.models.catalogue.matching import match
from napari_medai.stages import STAGES


def test_it_has_what_people_ask_for() -> None:
    by_source: dict[str, list[Entry]] = {}
    for entry in entries():
        by_source.setdefault(entry.source, []).append(entry)
    assert [e.id for e in by_source["brainchop"]] == ["brainchop-gwm", "brainchop-18", "brainchop-50", "brainchop-104"]
    assert len(by_source["monai"]) == 31
    assert [e.id for e in by_source["bioimageio"]] == ["unet2d_nuclei_broad"]
    assert {e.install for e in by_source["package"]} == {"napari-medai[deepbet]", "napari-medai[hdbet]"}
    assert len(by_source["nnunet"]) >= 40
    assert {e.source for e in entries()} - {"package"} <= set(SOURCES)


def test_each_entry_says_what_matters() -> None:
    for entry in entries():
        assert entry.title, entry.id
        assert entry.summary.endswith("."), entry.id
        assert entry.licence, entry.id
        assert entry.homepage.startswith("https://"), entry.id
        assert entry.stage in {"", *STAGES}, entry.id
        for file in entry.files:
            assert file.urls, entry.id
            assert all(url.startswith("https://") for url in file.urls)


def test_the_zoos_hashes_are_those_that_it_publishes() -> None:
    """sha1 of each archive, as its list of models has them."""
    assert all(e.files[0].sha1 for e in entries() if e.source == "monai")
    zoo = os.environ.get("MEDAI_ZOO")
    if not zoo:
        pytest.skip("MEDAI_ZOO does not name a copy of the zoo")
    published = json.loads((Path(zoo) / "model_info.json").read_text())
    for entry in (e for e in entries() if e.source == "monai"):
        (file,) = entry.files
        assert published[file.name.removesuffix(".zip")] == {"checksum": file.sha1, "source": file.urls[0]}


def test_brainchops_hashes_are_those_of_the_files() -> None:
    samples = os.environ.get("MEDAI_MODELS_DIR")
    if not samples:
        pytest.skip("MEDAI_MODELS_DIR does not name the folder of sample models")
    for entry in (e for e in entries() if e.source == "brainchop"):
        folder = Path(samples) / "brainchop" / entry.files[0].urls[0].split("/")[-2]
        for file in entry.files:
            content = (folder / file.name).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)


@pytest.mark.parametrize("id", ["brainchop-gwm", "brainchop-18", "brainchop-50", "brainchop-104"])
def test_the_files_of_the_samples_are_those_that_would_be_downloaded(
    id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror made of them gives a model that can be run; a folder of them is known for what it is."""
    samples = os.environ.get("MEDAI_MODELS_DIR")
    if not samples:
        pytest.skip("MEDAI_MODELS_DIR does not name the folder of sample models")
    monkeypatch.setenv("MEDAI_MODELS", str(tmp_path / "store"))
    monkeypatch.setenv("MEDAI_MIRROR", str(tmp_path / "mirror"))
    entry = find_entry(id)
    assert entry is not None
    folder = Path(samples) / "brainchop" / entry.files[0].urls[0].split("/")[-2]
    assert match(folder) == entry
    assert match(folder / "model.pth") == entry
    place = tmp_path / "mirror" / "models" / id
    place.mkdir(parents=True)
    for file in entry.files:
        (place / file.name).write_bytes((folder / file.name).read_bytes())
    item = fetch(id)
    assert item.problem == ""
    assert item.model is not None
    assert item.model.spec.safety == entry.safety
    assert load_model(id).spec.licence == "MIT"


def test_what_was_not_had_has_no_sha256() -> None:
    """Only what was had where the catalogue was made has a sha256 and a size; the rest is its publisher's word."""
    for entry in entries():
        if entry.source in ("monai", "nnunet"):
            assert entry.status == "unverified", entry.id
            assert not any(file.sha256 or file.size for file in entry.files), entry.id


def test_an_id_that_is_not_here_says_what_to_type() -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"\(25\.6 KB, MIT\) is in the catalogue; .*: medai models add brainchop-gwm$"
    ):
        load_model("brainchop-gwm")
    assert hint("monai:spleen_ct_segmentation").endswith("medai models add monai-spleen_ct_segmentation")
    assert hint("HD-BET").endswith('pip install "napari-medai[hdbet]"')
    assert hint("nothing") == ""
    with pytest.raises(ModelNotFoundError, match="medai models list --available"):
        fetch("nothing")
    with pytest.raises(DownloadError, match="pip install"):
        fetch("deepbet")


def test_looking_contacts_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEDAI_MODELS", str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    entries("segment")
    known_files()
    with pytest.raises(ModelNotFoundError):
        load_model("brainchop-18")


def test_lookups() -> None:
    assert find_entry("BRAINCHOP-18") is find_entry("brainchop-18")
    assert find_entry("brain") is None
    assert all(e.stage == "detect" for e in entries("detect"))
    entry, file = known_files()["sha256:8b83b35b971305b9baeef9f927a5f0d4432c7beea60743f54e8d960031298ba3"]
    assert (entry.id, file.name, file.size) == ("brainchop-gwm", "model.pth", 23928)
    assert [readable(n) for n in (None, 0, 999, 1000, 23928, 293_616_516, 4_200_000_000)] == [
        "?", "0 B", "999 B", "1 KB", "23.9 KB", "294 MB", "4.2 GB",
    ]  # fmt: skip


GOOD: dict[str, Any] = {
    "id": "x", "title": "X", "summary": "X.", "source": "manifest", "licence": "MIT", "safety": "data",
    "files": [{"name": "a.zip", "urls": ["https://example.org/a.zip"]}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": "../x"}, "no plain name"),
        ({"files": [{"name": "../a"}]}, "no plain file name"),
        ({"files": [{"name": "a", "urls": ["http://example.org/a"]}]}, "start with https://"),
        ({"files": [{"name": "a", "sha256": "abc"}]}, "sha256"),
        ({"files": [{"name": "a"}, {"name": "A"}]}, "two files have one name"),
        ({"files": []}, "either files or something to install"),
        ({"install": "x"}, "either files or something to install"),
        ({"status": "verified"}, "the size and the sha256"),
        ({"unknown": 1}, "unknown"),
        ({"safety": "harmless"}, "safety"),
    ],
)
def test_entries_that_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Entry.model_validate(GOOD | change)
    Entry.model_validate(GOOD)


def test_a_catalogue_that_is_wrong_names_the_field(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read(tmp_path / "gone.json")
    content = json.loads(FILE.read_text("utf-8"))
    content["entries"][1]["id"] = content["entries"][0]["id"].upper()
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="ids that stand twice: brainchop-gwm"):
        read(tmp_path / "c.json")
    del content["entries"][3]["licence"]
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"entries\.3\.licence: Field required"):
        read(tmp_path / "c.json")
