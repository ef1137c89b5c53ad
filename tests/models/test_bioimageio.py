"""Descriptions of bioimage.io: what is concluded from them, and what is refused, without running anything."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from napari_medai.core.errors import ModelError, UntrustedError
from napari_medai.models import load, probe
from napari_medai.models.bioimageio import MOST_BYTES
from tests.models import fabricated as made

STEP = {"min": 32, "step": 16}


@pytest.fixture
def network(tmp_path):
    made.box(tmp_path / "model.onnx")
    return tmp_path


def simple(folder, **more):
    inputs = [made.tensor("raw", ["gray"], {"y": STEP, "x": STEP}, **more.pop("input", {}))]
    outputs = [made.tensor("probability", ["channel0"], made.like("raw"), halo=4) | more.pop("output", {})]
    return made.package(folder, more.pop("inputs", inputs), outputs, **more)


def refused(folder):
    """Place and reason of each need that no permission helps."""
    return [(need.where, need.why) for need in probe(folder).needs if not need.capability]


def test_a_package_with_onnx_needs_nothing(network):
    spec = probe(simple(network, tags=["segmentation", "fluorescence-light-microscopy", "nuclei"]))
    assert spec.needs == ()
    assert spec.safety == "config"
    assert (spec.source, spec.runner, spec.stage) == ("bioimageio", "bioimageio", "segment")
    assert spec.accepts.ndim == (2,)
    assert spec.accepts.modality == ("fluorescence",)
    assert [(label.value, label.name) for label in spec.gives.labels] == [(1, "foreground")]
    assert spec.tiling.halo == 4
    assert spec.licence == "CC-BY-4.0"
    assert "Nobody 2020 doi:10.1000/182" in spec.citation
    assert spec.sha256 == made.sha256(network / "model.onnx")
    assert load(spec).grant is None


def test_the_description_for_the_library_leads_nowhere(network):
    text = str(probe(simple(network)).details["description"])
    assert "bioimage.invalid" not in text
    assert "http" not in text


def test_both_formats_say_the_same(network, tmp_path_factory):
    old = tmp_path_factory.mktemp("old")
    made.box(old / "model.onnx")
    made.package_04(
        old,
        "bcyx",
        {"min": [1, 1, 32, 32], "step": [0, 0, 16, 16]},
        "bcyx",
        {"reference_tensor": "raw", "scale": [1, 1, 1, 1], "offset": [0, 0, 0, 0]},
        halo=[0, 0, 4, 4],
    )
    first, second = probe(simple(network)), probe(old)
    assert second.needs == ()
    assert first.details["grid"]["sizes"] == second.details["grid"]["sizes"]
    assert first.details["grid"]["halo"] == second.details["grid"]["halo"] == [4, 4]


@pytest.mark.parametrize(
    ("names", "kind", "labels"),
    [
        (["probability"], "labels", ["foreground"]),
        (["membrane"], "labels", ["membrane"]),
        (["foreground", "boundary"], "instances", []),
        (["nuclei", "distance"], "instances", []),
        (["background", "inside", "border"], "instances", []),
        (["background", "grey", "white"], "labels", ["grey", "white"]),
    ],
)
def test_channels_tell_what_comes_out(network, names, kind, labels):
    made.package(
        network,
        [made.tensor("raw", ["gray"], {"y": STEP, "x": STEP})],
        [made.tensor("out", names, made.like("raw"), data={"range": [0.0, 1.0]})],
    )
    gives = probe(network).gives
    assert gives.kind == kind
    assert [label.name for label in gives.labels] == labels


def test_affinities_are_refused_in_words(network):
    made.package(
        network,
        [made.tensor("raw", ["gray"], {"y": STEP, "x": STEP})],
        [made.tensor("out", ["affinity x", "affinity y"], made.like("raw"))],
    )
    assert any("affinities" in why for _, why in refused(network))
    with pytest.raises(ModelError, match="cannot be run here"):
        load(probe(network))


def test_rays_without_the_operator_that_reads_them_are_refused(network):
    ((where, why),) = refused(simple(network, tags=["stardist", "instance segmentation"]))
    assert where == "rdf.yaml#outputs"
    assert "the rays of StarDist" in why


def test_tensors_without_a_name_have_the_names_of_the_format(network):
    """``input`` and ``output``: the voxels of the output are twice as large, it has half as many."""
    before = made.tensor("input", ["gray"], {"y": STEP, "x": STEP})
    after = made.tensor("output", ["gray"], {})
    after["axes"] += [made.space(a, size, scale=2.0) for a, size in made.like("input").items()]
    for tensor in (before, after):
        del tensor["id"]
    made.package(network, [before], [after])
    assert probe(network).details["grid"]["outputs"] == {"output": {"scale": [0.5, 0.5], "offset": [0, 0]}}


@pytest.mark.parametrize(
    "source", ["https://bioimage.invalid/model.onnx", "/etc/passwd", "../model.onnx", "a/../../model.onnx", "C:\\x", ""]
)
def test_weights_stand_inside_the_package(network, source):
    simple(network, weights={"onnx": {"source": source, "opset_version": 17}})
    (where, why), *_ = refused(network)
    assert where.startswith("rdf.yaml#weights.onnx.source")
    assert "no file inside the package" in why


def test_links_are_not_followed(network, tmp_path_factory):
    outside = made.box(tmp_path_factory.mktemp("outside") / "model.onnx")
    simple(network)
    (network / "model.onnx").unlink()
    (network / "model.onnx").symlink_to(outside)
    assert any("is a link" in why for _, why in refused(network))
    (network / "model.onnx").unlink()
    assert any("is not in the package" in why for _, why in refused(network))


def test_a_changed_file_is_told(network):
    simple(network)
    made.box(network / "model.onnx", gain=2)
    assert any("damaged or of another version" in why for _, why in refused(network))


def test_programs_need_a_permission_each_with_its_place(network):
    marker = network / "ran"
    (network / "net.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (network / "weights.pt").write_bytes(b"PK\x03\x04")
    state = {
        "source": "weights.pt",
        "sha256": made.sha256(network / "weights.pt"),
        "pytorch_version": "2.5",
        "architecture": {"source": "net.py", "callable": "Net", "sha256": made.sha256(network / "net.py")},
    }
    simple(network, weights={"pytorch_state_dict": state, "torchscript": {"source": "weights.pt"}})
    spec = probe(network)
    assert [(n.capability, n.where) for n in spec.needs] == [
        ("python", "rdf.yaml#weights.pytorch_state_dict.architecture")
    ]
    assert set(spec.details["files"]) == {"net.py", "weights.pt"}
    with pytest.raises(UntrustedError, match=r"(?s)net\.py builds the network .*--allow python"):
        load(spec)
    simple(network, weights={"torchscript": {"source": "weights.pt", "pytorch_version": "2.5"}})
    assert probe(network).capabilities == {"torchscript"}
    library = state | {"architecture": {"import_from": "os", "callable": "system"}}
    simple(network, weights={"pytorch_state_dict": library})
    assert "imported from 'os'" in probe(network).needs[0].why
    assert not marker.exists()


def test_a_processing_step_of_its_own_is_a_program_even_beside_onnx(network):
    (network / "ops.py").write_text("raise SystemExit")
    step = {"id": "custom", "callable": "f", "source": "ops.py", "sha256": made.sha256(network / "ops.py")}
    spec = probe(simple(network, input={"preprocessing": [step]}))
    assert [(n.capability, n.where) for n in spec.needs] == [("python", "rdf.yaml#inputs.0.preprocessing.0")]
    assert spec.safety == "code"
    assert any(
        "is not known" in why for _, why in refused(simple(network, output={"postprocessing": [{"id": "eval"}]}))
    )


def test_other_frameworks_are_named(network):
    simple(network, weights={"keras_hdf5": {"source": "m.h5"}, "tensorflow_js": {"source": "m.zip"}})
    ((where, why),) = refused(network)
    assert where == "rdf.yaml#weights"
    assert "there are weights for keras_hdf5, tensorflow_js" in why


def test_outputs_of_other_models_are_never_fetched(network):
    spec = probe(simple(network, input={"output_of": "affable-shark"}))
    assert "affable-shark" not in str(spec.details["description"])


def test_operators_in_the_onnx_file_are_looked_at(network):
    from onnx import helper

    nodes = [helper.make_node("Run", ["x"], ["y"], domain="evil")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("evil", 1)]
    made.save(network / "model.onnx", nodes, [("x", [1, 1, "h", "w"])], [("y", [1, 1, "h", "w"])], opset_imports=opsets)
    ((where, why),) = refused(simple(network))
    assert where == "model.onnx#graph.Run"
    assert "'Run' of 'evil' needs a library" in why


def test_descriptions_that_would_fill_the_memory_are_refused(network):
    simple(network)
    bomb = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
    )
    text = (network / "rdf.yaml").read_text()
    (network / "rdf.yaml").write_text(text + bomb)
    with pytest.raises(ModelError, match="more than 20000 values"):
        probe(network)
    (network / "rdf.yaml").write_text(text + "deep: " + "[" * 5000 + "]" * 5000 + "\n")
    with pytest.raises(ModelError, match="too deep a nesting"):
        probe(network)
    (network / "rdf.yaml").write_text(text + "#" * MOST_BYTES)
    with pytest.raises(ModelError, match="larger than 256 KiB"):
        probe(network)
    (network / "rdf.yaml").write_text(text + "x: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ModelError, match="the tag"):
        probe(network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": "0.9.0"}, "0.4 and 0.5 are opened"),
        ({"type": "dataset"}, "0.4 and 0.5 are opened"),
        ({"output": {"id": "raw"}}, "two inputs or outputs have one name"),
        ({"inputs": []}, "at least one input and one output"),
        ({"inputs": [{"id": "raw", "axes": [made.space("q", 3)]}]}, "space axis called 'q'"),
        ({"inputs": [{"id": "raw", "axes": [made.space("x", -3)]}]}, r"inputs\.0\.axes\.0\.size: -3"),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(network, change, message):
    with pytest.raises(ModelError, match=message):
        probe(simple(network, **change))


def test_aliases_and_numbers_of_the_newer_yaml_are_understood(network):
    step = "{id: scale_linear, kwargs: {gain: 1e-3, offset: 0.0}}"
    space = ", ".join(f"{{type: space, id: {letter}, size: 32}}" for letter in "yx")
    sizes = f"[{{type: batch}}, {{type: channel, channel_names: [gray]}}, {space}]"
    (network / "bioimageio.yaml").write_text(
        "%YAML 1.2\n---\nformat_version: 0.5.4\ntype: model\nname: Aliases\n"
        f"inputs: [{{id: raw, axes: &axes {sizes}, preprocessing: [{step}]}}]\n"
        "outputs: [{id: probability, axes: *axes}]\n"
        "weights: {onnx: {source: model.onnx, opset_version: 17}}\n"
    )
    spec = probe(network)
    assert spec.needs == ()
    assert spec.details["description"]["inputs"][0]["preprocessing"][0]["kwargs"]["gain"] == 1e-3
    assert [size["least"] for size in spec.details["grid"]["sizes"]] == [32, 32]


def test_looking_imports_no_library_that_runs(network):
    simple(network)
    np.save(network / "x.npy", np.zeros(1))
    code = (
        "import sys\nfrom napari_medai.models import probe\n"
        f"probe({str(network)!r})\n"
        "print([m for m in ('torch', 'onnxruntime', 'bioimageio', 'monai') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=network)
    assert found.stdout.strip() == "[]"
