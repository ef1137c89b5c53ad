from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from napari_medai.core.errors import ModelError
from napari_medai.models import builtins, load, probe
from napari_medai.models.manifest import NAME, parse_yaml, read_manifest, recognise, write_manifest
from napari_medai.models.spec import Accepts, Gives, Label, ModelSpec, Prepare
from napari_medai.nets import ARGUMENTS, NETWORKS, build
from napari_medai.nets.registry import REVIEWED

UNET = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}


def spec(**changes: Any) -> ModelSpec:
    fields: dict[str, Any] = {
        "id": "lab-liver",
        "title": "Liver",
        "summary": "Liver in CT.",
        "stage": "segment",
        "accepts": Accepts(ndim=(3,), modality=("CT",), orientation="RAS"),
        "prepare": Prepare(spacing_mm=(3.0, 1.5, 1.5), normalise="range", low=-160, high=240, clip=True),
        "gives": Gives(kind="labels", labels=(Label(value=1, name="liver", color=(0.9, 0.4, 0.2)),)),
        "runner": "network",
        "network": "UNet",
        "arguments": UNET,
        "weights": "weights.safetensors",
    }
    return ModelSpec(**{**fields, **changes})


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "liver"
    folder.mkdir()
    save_file(build("UNet", **UNET).state_dict(), folder / "weights.safetensors")
    write_manifest(spec(), folder)
    return folder


def changed(package: Path, **fields: Any) -> Path:
    """The package with other values in its description; none removes a field."""
    content = {**yaml.safe_load((package / NAME).read_text()), **fields}
    content = {key: value for key, value in content.items() if value is not None}
    (package / NAME).write_text(yaml.safe_dump(content, sort_keys=False))
    return package


def test_what_is_written_is_read(package: Path) -> None:
    found = read_manifest(package)
    assert found.model_copy(update={"sha256": ""}) == spec()
    assert len(found.sha256) == 64
    assert [p.name for p in sorted(package.iterdir())] == [NAME, "weights.safetensors"]
    assert "modality: [CT]" in (package / NAME).read_text()


@pytest.mark.parametrize("place", ["", NAME])
def test_a_package_is_probed_and_loaded(package: Path, place: str) -> None:
    assert recognise(package / place)
    found = probe(package / place)
    assert (found.id, found.source, found.safety, found.needs) == ("lab-liver", "manifest", "data", ())
    model = load(found)
    assert (model.folder, model.grant) == (package, None)
    assert model.weights == package / "weights.safetensors"


def test_other_folders_are_not_ours(tmp_path: Path) -> None:
    assert not recognise(tmp_path)
    assert not recognise(tmp_path / "missing")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"summary": None}, "summary: Field required"),
        ({"accepts": {"ndim": [4]}}, r"accepts\.ndim\.0"),
        ({"prepare": {"spacing_mm": [1, 1, 0]}}, r"prepare\.spacing_mm\.2"),
        ({"prepare": {"spacing": 1}}, r"prepare\.spacing: Extra inputs"),
        ({"prepare": {"low": 99.0, "high": 1.0}}, r"prepare\.low: 99 is not below"),
        ({"prepare": {"low": -5.0}}, "percentiles lie in 0..100"),
        ({"prepare": {"conform": 256, "isotropic": True}}, "only one of size, conform"),
        ({"prepare": {"scaled": [1, 0]}}, r"prepare\.scaled"),
        ({"accepts": {"ndim": [3], "orientation": "RAP"}}, r"accepts\.orientation: 'RAP'"),
        ({"gives": {"kind": "labels", "labels": [{"value": 1, "name": "a"}, {"value": 1, "name": "b"}]}}, "twice"),
        ({"gives": {"kind": "labels", "labels": [{"value": 2**40, "name": "a"}]}}, "32 bits"),
        ({"version": 1.0}, "version: Input should be a valid string"),
        ({"id": "../../x"}, "id: "),
        ({"stage": "explain"}, "stage: 'explain' is none of"),
        ({"runner": "isolated"}, "runner: 'isolated' is none of"),
        ({"runner": "brain"}, "runner: 'brain' is none of"),
        ({"network": "Generator"}, "network: 'Generator' is not known"),
        ({"network": "os.system"}, "network: 'os.system' is not known"),
        ({"network": ""}, "does not go with the runner"),
        ({"arguments": {**UNET, "pretrained": True}}, r"arguments\.pretrained"),
        ({"arguments": {**UNET, "act": "/etc/passwd"}}, r"arguments\.act: the text is no plain word"),
        ({"network": "nuclei_unet", "arguments": {"path": "x"}}, r"arguments\.path: nuclei_unet takes features"),
        ({"safety": "data"}, "says safety, which a package cannot say about itself"),
        ({"needs": [], "path": "/etc"}, "says path, needs"),
        ({"weights": ""}, "weights: a network needs"),
    ],
)
def test_a_wrong_field_is_named(package: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        probe(changed(package, **fields))


@pytest.mark.parametrize("name", ["../w.safetensors", "/etc/passwd", "a\\b", "C:x", "missing.safetensors"])
def test_weights_stand_inside_the_package(package: Path, name: str) -> None:
    (package.parent / "w.safetensors").write_bytes((package / "weights.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"is no file inside the package|is not in the package"):
        probe(changed(package, weights=name))


def test_a_link_out_of_the_package_is_refused(package: Path) -> None:
    weights = package / "weights.safetensors"
    weights.rename(package.parent / "elsewhere")
    weights.symlink_to(package.parent / "elsewhere")
    with pytest.raises(ModelError, match="is a link; put the file itself into the package"):
        probe(package)


def test_other_weights_than_described_are_refused(package: Path) -> None:
    weights = package / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="The file is damaged or of another version"):
        probe(package)
    with pytest.raises(ModelError, match="has no sha256"):
        probe(changed(package, sha256=None))


def test_a_pickle_is_not_weights(package: Path) -> None:
    torch.save({"a": torch.zeros(1)}, package / "weights.safetensors")
    with pytest.raises(ModelError, match="not a safetensors file"):
        probe(changed(package, sha256="0" * 64))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id: &a [x]\ntitle: *a\n", r"line 2: the alias \*a"),
        ("id: " + "[" * 60 + "]" * 60, "too deep a nesting"),
        ("[" * 100_000, "too deep a nesting|not YAML"),
        ("id: !!python/object/apply:os.system [ls]", "line 1: the tag"),
        ("id: a\nid: b\n", "line 2: 'id' stands twice"),
        ("1: a\n", "the key 1 is not text"),
        ("- id\n", "holds list, not a mapping"),
        ("id: [", "not YAML that is read here"),
        ("", "holds NoneType"),
        ("#" * (2**20 + 1), "larger than 1 MiB"),
    ],
)
def test_yaml_that_is_more_than_values_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(ModelError, match=message):
        parse_yaml(tmp_path / NAME)


def test_bytes_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"id: \xff")
    with pytest.raises(ModelError, match="not text in UTF-8"):
        read_manifest(tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        read_manifest(tmp_path / "none" / NAME)


def test_writing_refuses_what_reading_would(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match="runner: 'isolated'"):
        write_manifest(spec(runner="isolated"), tmp_path)
    with pytest.raises(ModelError, match="not in the package"):
        write_manifest(spec(weights="other.safetensors"), tmp_path)
    assert not (tmp_path / NAME).exists()


def test_the_shipped_models_are_described_the_same_way() -> None:
    found = builtins.find()
    assert {m.id for m in found} == {"blobs3d", "micronuclei", "nuclei", "quality", "self2d", "self3d"}
    for model in found:
        package = probe(model.folder)
        assert package.model_copy(update={"path": None, "source": "builtin"}) == model.spec


def test_the_tables_of_networks_have_the_same_rows() -> None:
    assert set(ARGUMENTS) == set(NETWORKS)
    assert not set(NETWORKS) & set(REVIEWED)


def test_descriptions_survive_json(package: Path) -> None:
    found = probe(package)
    assert ModelSpec.model_validate(json.loads(found.model_dump_json())) == found
