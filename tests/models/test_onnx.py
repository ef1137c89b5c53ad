"""ONNX files: parsed, never run; what a file may not hold; and what is asked once."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from napari_medai.core.errors import ModelError
from napari_medai.models import describe, load, probe
from napari_medai.models.exported import ANSWERS, guess_axes
from napari_medai.models.manifest import write_manifest
from napari_medai.models.onnx_file import Port, is_onnx, read_onnx
from tests.models import fabricated as made


@pytest.fixture
def file(tmp_path):
    return made.box(tmp_path / "model.onnx")


def with_external(folder, location, offset=0, length=100, write=True):
    """A network whose one weight (25 float32) lies in a file beside it."""
    made.box(folder / "model.onnx")
    model = onnx.load(folder / "model.onnx")
    (tensor,) = model.graph.initializer
    data = bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    if write:
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        (folder / location).write_bytes(b"\0" * offset + data)
    return folder / "model.onnx"


def reasons(path):
    return [why for _, why in read_onnx(path).refused]


def test_it_is_known_by_its_bytes(file, tmp_path):
    assert is_onnx(file)
    renamed = file.rename(tmp_path / "weights.bin")
    assert probe(renamed).source == "onnx"
    (tmp_path / "text.onnx").write_text("no network")
    assert not is_onnx(tmp_path / "text.onnx")
    with pytest.raises(ModelError, match="no model package that any source recognises"):
        probe(tmp_path / "text.onnx")
    (tmp_path / "cut.onnx").write_bytes(renamed.read_bytes()[:120])
    with pytest.raises(ModelError, match="is no ONNX file, or it is damaged"):
        probe(tmp_path / "cut.onnx")


def test_without_its_axes_it_says_what_to_pass(file):
    spec = probe(file)
    (need,) = spec.needs
    assert need.capability == ""
    assert "x (1 x 1 x n0 x n1, float32)" in need.why
    assert "medai models add model.onnx --axes bcyx --stage segment --labels NAMES" in need.why
    with pytest.raises(ModelError, match="--axes bcyx"):
        load(spec)
    with pytest.raises(ModelError, match="--axes bcyx"):
        describe(file, stage="segment")


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((1, 1, 64, 64), "bcyx"), ((0, 0, 0, 3), "byxc"), ((1, 1, 96, 96, 96), "bczyx"), ((64, 64), "yx"), ((7,), "")],
)
def test_axes_are_guessed_by_sizes(shape, axes):
    assert guess_axes(Port("x", shape, ("",) * len(shape), "float32")) == axes


def test_answers_make_a_description(file):
    spec = describe(
        file, axes="bcyx", stage="segment", labels=("cell",), modality="fluorescence", normalise="percentile",
        spacing="1,0.5,0.5", tile="64,64", multiple="8", halo="2", threshold="0.4",
    )  # fmt: skip
    assert spec.needs == ()
    assert spec.safety == "data"
    assert spec.accepts.ndim == (2,)
    assert spec.accepts.modality == ("fluorescence",)
    assert spec.prepare.spacing_mm == (1, 0.5, 0.5)
    assert (spec.prepare.normalise, spec.prepare.low, spec.prepare.high) == ("percentile", 1.0, 99.8)
    assert spec.tiling.size == (64, 64)
    assert (spec.tiling.multiple, spec.tiling.halo) == (8, 2)
    assert spec.options == {"axes": "bcyx", "threshold": 0.4}
    assert [(label.value, label.name) for label in spec.gives.labels] == [(1, "cell")]
    assert load(spec).weights == file


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"axes": "bczyx"}, "has 4 axes; 'bczyx' has 5"),
        ({"axes": "bcyq"}, "are none"),
        ({"axes": "bcyx,bcyx"}, "has 1 inputs"),
        ({"axes": "bcyx", "stage": "detect"}, "does not run exported networks"),
        ({"axes": "bcyx", "activation": "tanh"}, "none of none, sigmoid, softmax"),
        ({"axes": "bcyx", "output": "z"}, "has no output 'z'; there are: y "),
        ({"axes": "bcyx", "spacing": "a"}, "no numbers"),
        ({"axes": "bcyx", "normalise": "best"}, "normalise: Input should be"),
        ({"axes": "bcyx", "size": "12"}, "2 numbers"),
        ({"axes": "bcyx", "tile": "64"}, "1 edges; its axes of space are 2"),
        ({"axes": "bcyx", "axis": "x"}, "Nothing is asked by the name axis"),
    ],
)
def test_answers_that_do_not_fit_are_told(file, answers, message):
    with pytest.raises(ModelError, match=message):
        describe(file, **answers)


def test_everything_that_is_asked_is_said_what_for():
    assert all(text and not text.endswith(".") for text in ANSWERS.values())


def test_a_manifest_beside_it_says_it_for_good(file):
    spec = describe(file, axes="bcyx", labels="cell")
    write_manifest(spec, file.parent)
    for place in (file, file.parent):
        found = probe(place)
        assert found.needs == ()
        assert found.options["axes"] == "bcyx"
        assert found.runner == "onnx"
        assert found.details["inputs"][0]["name"] == "x"
    made.box(file, gain=2)
    with pytest.raises(ModelError, match="the sha256"):
        probe(file.parent)


def test_operators_of_libraries_are_refused_wherever_they_hide(tmp_path):
    value = ("x", [1, 1, "h", "w"])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("evil", 1), helper.make_opsetid("com.microsoft", 1)]
    inner = helper.make_node("Run", ["x"], ["i"], domain="evil")
    inside = [helper.make_tensor_value_info("i", TensorProto.FLOAT, None)]
    branch = helper.make_graph([inner], "branch", [], inside)
    condition = ("c", np.array(True))
    choose = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    made.save(tmp_path / "if.onnx", [choose], [value], [("y", value[1])], [condition], opset_imports=opsets)
    assert reasons(tmp_path / "if.onnx") == ["the operator 'Run' of 'evil' needs a library, and none is loaded"]
    function = helper.make_function("own", "f", ["x"], ["i"], [inner], opsets)
    call = helper.make_node("f", ["x"], ["y"], domain="own")
    with_own = [*opsets, helper.make_opsetid("own", 1)]
    made.save(
        tmp_path / "function.onnx", [call], [value], [("y", value[1])], opset_imports=with_own, functions=[function]
    )
    assert [where for where, _ in read_onnx(tmp_path / "function.onnx").refused] == ["functions.f.Run"]
    honest = helper.make_function("own", "f", ["x"], ["i"], [helper.make_node("Relu", ["x"], ["i"])], opsets)
    made.save(tmp_path / "honest.onnx", [call], [value], [("y", value[1])], opset_imports=with_own, functions=[honest])
    assert reasons(tmp_path / "honest.onnx") == []
    for operator, wrong in (("Gelu", []), ("EPContext", ["onnxruntime's operator 'EPContext' is not known"])):
        node = helper.make_node(operator, ["x"], ["y"], domain="com.microsoft")
        made.save(tmp_path / "ms.onnx", [node], [value], [("y", value[1])], opset_imports=opsets)
        assert [why[: len(w)] for why, w in zip(reasons(tmp_path / "ms.onnx"), wrong, strict=True)] == wrong


def test_external_data_inside_the_folder_belongs_to_it(tmp_path):
    file = with_external(tmp_path, "data/weights.bin", offset=64)
    found = read_onnx(file)
    assert found.refused == ()
    assert found.external == {"data/weights.bin": made.sha256(tmp_path / "data" / "weights.bin")}
    assert probe(file).path == tmp_path


@pytest.mark.parametrize(
    "location",
    ["../weights.bin", "/etc/passwd", "data/../../weights.bin", "C:\\w.bin", "*/_ORT_MEM_ADDR_/*", "w\n.bin", ""],
)
def test_external_data_elsewhere_is_refused(tmp_path, location):
    (tmp_path / "model").mkdir()
    (tmp_path / "weights.bin").write_bytes(b"\0" * 100)
    file = with_external(tmp_path / "model", location, write=False)
    (why,) = reasons(file)
    assert "no path inside the folder" in why
    spec = describe(file, axes="bcyx", labels="a")
    with pytest.raises(ModelError, match="cannot be run here"):
        load(spec)


def test_external_data_has_to_be_there_as_long_as_it_says(tmp_path):
    file = with_external(tmp_path, "w.bin")
    (tmp_path / "w.bin").write_bytes(b"\0" * 99)
    assert "100 bytes, of a file of 99 bytes" in reasons(file)[0]
    (tmp_path / "w.bin").unlink()
    assert "is not there" in reasons(file)[0]
    os.symlink("/etc/hostname", tmp_path / "w.bin")
    assert "is a link" in reasons(file)[0]
    (tmp_path / "x").mkdir()
    assert "96 bytes for a tensor of 100" in reasons(with_external(tmp_path / "x", "w.bin", length=96))[0]


def test_external_data_in_attributes_is_found(tmp_path):
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "t")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../secret"
    nodes = [helper.make_node("Constant", [], ["k"], value=tensor), helper.make_node("Add", ["x", "k"], ["y"])]
    made.save(tmp_path / "model.onnx", nodes, [("x", [1, 1, "h", 3])], [("y", [1, 1, "h", 3])])
    assert "no path inside the folder" in reasons(tmp_path / "model.onnx")[0]


def test_what_onnxruntime_would_take_for_its_own_format_is_refused(file):
    # an unknown field whose bytes put ORTM where onnxruntime looks first
    content = b"\xfa\x06\x10\x00ORTM" + b"\0" * 13 + file.read_bytes()
    assert content[4:8] == b"ORTM"
    with pytest.raises(ModelError, match="own format"):
        read_onnx(file, content)
