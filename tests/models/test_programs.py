"""TorchScript and torch.export archives: known by their bytes, opened by nobody here."""

from __future__ import annotations

import pytest
import torch

from napari_medai.core.errors import ModelError, UntrustedError
from napari_medai.models import describe, load, probe
from napari_medai.models.manifest import write_manifest
from napari_medai.models.programs import kind_of
from tests.models import fabricated as made


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return made.programs(tmp_path_factory.mktemp("programs"))


def test_they_are_known_by_their_bytes(files, tmp_path):
    found = {name: kind_of(path) for name, path in files.items()}
    assert found == {"torchscript": "torchscript", "pt2": "pt2", "state": "pickle", "old": "pickle"}
    renamed = tmp_path / "network.safetensors"
    renamed.write_bytes(files["torchscript"].read_bytes())
    assert kind_of(renamed) == "torchscript"
    (tmp_path / "text.pt").write_text("PK")
    assert kind_of(tmp_path / "text.pt") == ""
    (tmp_path / "cut.pt").write_bytes(files["pt2"].read_bytes()[:400])
    assert kind_of(tmp_path / "cut.pt") == ""


@pytest.mark.parametrize("kind", ["torchscript", "pt2"])
def test_they_need_a_permission_and_say_what_is_asked(files, kind):
    spec = probe(files[kind])
    (need,) = spec.needs
    assert need.capability == kind
    assert "medai models add" in need.why
    assert (spec.source, spec.runner, spec.safety) == ("program", "program", "code")
    with pytest.raises(UntrustedError, match=f"--allow {kind}"):
        load(spec)
    answered = describe(files[kind], axes="bcyx", labels="cell")
    assert answered.capabilities == {kind}
    assert "medai models add" not in answered.needs[0].why


def test_sizes_of_an_exported_program_are_read_as_json(files):
    assert probe(files["pt2"]).details == {"kind": "pt2", "shapes": [[1, 1, 0, 0]]}
    with pytest.raises(ModelError, match="has 4 axes; 'bczyx' has 5"):
        describe(files["pt2"], axes="bczyx")


@pytest.mark.parametrize("kind", ["state", "old"])
def test_tensors_alone_are_no_network(files, kind):
    with pytest.raises(ModelError, match=r"tensors saved by torch\.save and no network"):
        probe(files[kind])


def test_a_manifest_beside_it_is_read(files, tmp_path):
    place = tmp_path / "net.pt"
    place.write_bytes(files["torchscript"].read_bytes())
    write_manifest(describe(place, axes="bcyx", labels="cell", title="Cells"), tmp_path)
    for path in (place, tmp_path):
        spec = probe(path)
        assert (spec.title, spec.options["axes"]) == ("Cells", "bcyx")
        assert spec.capabilities == {"torchscript"}


def test_nothing_of_them_is_loaded(files, monkeypatch):
    for name in ("load", "jit.load", "export.load"):
        owner, _, function = f"torch.{name}".rpartition(".")
        module = {"torch": torch, "torch.jit": torch.jit, "torch.export": torch.export}[owner]
        monkeypatch.setattr(module, function, lambda *_a, **_k: pytest.fail("a package was opened"))
    for kind in ("torchscript", "pt2"):
        describe(files[kind], axes="bcyx")
