"""ONNX files, run by onnxruntime: axes in any order, any size, errors in words."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from scipy import ndimage

import napari_medai as medai
from napari_medai.core.errors import DeviceError, ModelError, ModelFitError
from napari_medai.core.volume import Volume
from napari_medai.engine import onnx_session
from napari_medai.models import describe, load
from tests.models import fabricated as made
from tests.models.test_onnx import with_external

BINARY = {"axes": "bcyx", "stage": "segment", "labels": "bright"}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)


def restored(file, array, tile=0):
    model = load(describe(file, axes="bcyx", stage="denoise", halo="2", multiple="8"))
    return medai.denoise(Volume(array, "yx"), model, tile=tile, device="cpu").image.numpy()


def whole(array, kernel):
    """The mean over a box; the image's ends are mirrored, which scipy calls reflect."""
    return ndimage.uniform_filter(array.astype(np.float64), kernel, mode="reflect")


@pytest.mark.parametrize("size", [None, (32, 32)])
def test_any_size_in_tiles_without_seams(tmp_path, size):
    file = made.box(tmp_path / "model.onnx", size=size)
    array = noise(75, 90)
    np.testing.assert_allclose(restored(file, array, 0 if size else 32), whole(array, 5), rtol=1e-5)


def test_channels_last_without_a_batch(tmp_path):
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)]
    made.save(tmp_path / "model.onnx", nodes, [("x", ["h", "w", 2])], [("y", ["h", "w", 1])],
              [("axes", np.array([2]))])  # fmt: skip
    model = load(describe(tmp_path / "model.onnx", axes="yxc", labels="bright"))
    assert model.spec.accepts.channels == 2
    array = noise(2, 33, 40)
    labels = medai.segment(Volume(array, "cyx"), model, device="cpu").labels.numpy()
    # sums go up to 2: they are taken as logits, of which half is 0
    np.testing.assert_array_equal(labels, np.ones((33, 40), int))
    with pytest.raises(ModelFitError, match="takes 2 channels"):
        medai.segment(Volume(array[:1], "cyx"), model)


def test_two_inputs_and_the_output_that_was_chosen(tmp_path):
    nodes = [helper.make_node("Sub", ["a", "b"], ["d"]), helper.make_node("Add", ["a", "b"], ["s"])]
    ports = [(n, [1, 1, "h", "w"]) for n in "abds"]
    made.save(tmp_path / "model.onnx", nodes, ports[:2], [ports[3], ports[2]])
    array = noise(2, 20, 31)
    image = Volume(array, "cyx")
    spec = describe(tmp_path / "model.onnx", axes="bcyx,bcyx", labels="more", output="d", threshold="0.25")
    labels = medai.segment(image, load(spec), device="cpu", threshold=0.0).labels.numpy()
    difference = array[0] - array[1]
    # below 0 they are no probabilities: 1 / (1 + exp(-d)) is always above 0.25
    assert labels.all()
    spec = describe(tmp_path / "model.onnx", axes="bcyx,bcyx", labels="more", output="d", activation="sigmoid")
    labels = medai.segment(image, load(spec), device="cpu").labels.numpy()
    np.testing.assert_array_equal(labels, difference >= 0)


def test_classes_in_three_dimensions(tmp_path, oblique_affine):
    weight = np.array([0.0, 10.0, 20.0], np.float32).reshape(3, 1, 1, 1, 1)
    bias = np.array([0.0, -3.0, -11.0], np.float32)
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"])]
    made.save(tmp_path / "model.onnx", nodes, [("x", [1, 1, 16, 16, 16])], [("y", [1, 3, 16, 16, 16])],
              [("w", weight), ("b", bias)])  # fmt: skip
    spec = describe(tmp_path / "model.onnx", axes="bczyx", labels="grey,white", modality="MR")
    scan = Volume(noise(11, 30, 22), "zyx", oblique_affine, "mm", "MR", "t1")
    mask = medai.segment(scan, load(spec), device="cpu")
    np.testing.assert_array_equal(mask.labels.numpy(), np.digitize(scan.numpy(), [0.3, 0.8]))
    assert mask.names == {1: "grey", 2: "white"}
    np.testing.assert_array_equal(mask.grid.affine, oblique_affine)


def test_instances_of_a_probability(tmp_path):
    file = made.box(tmp_path / "model.onnx", kernel=1)
    image = np.full((40, 40), 0.1, np.float32)
    image[5:15, 5:15] = image[20:30, 20:30] = 0.9
    image[35, 35] = 0.9
    spec = describe(file, axes="bcyx", kind="instances")
    result = medai.segment(Volume(image, "yx"), load(spec), device="cpu")
    assert result.labels.numpy().max() == 2
    assert (result.labels.numpy() > 0).sum() == 200


def test_scores_and_their_softmax(tmp_path):
    nodes = [helper.make_node("GlobalMaxPool", ["x"], ["m"]), helper.make_node("Flatten", ["m"], ["f"]),
             helper.make_node("Gemm", ["f", "w", "b"], ["y"])]  # fmt: skip
    made.save(tmp_path / "model.onnx", nodes, [("x", [1, 1, 32, 32])], [("y", [1, 2])],
              [("w", np.array([[2.0, 0.0]], np.float32)), ("b", np.zeros(2, np.float32))])  # fmt: skip
    answers = {"axes": "bcyx", "stage": "classify", "labels": "present,absent"}
    image = np.zeros((32, 32), np.float32)
    image[3, 4] = 1
    scores = medai.classify(Volume(image, "yx"), load(describe(tmp_path / "model.onnx", **answers)))
    # exp(2) / (1 + exp(2))
    np.testing.assert_allclose(scores.probabilities, [0.880797, 0.119203], atol=1e-5)
    one = load(describe(tmp_path / "model.onnx", **answers | {"labels": "present"}))
    with pytest.raises(ModelError, match="gave 2 scores; its description names 1 classes"):
        medai.classify(Volume(image, "yx"), one)


def test_labels_of_the_network_itself_go_in_one_pass(tmp_path):
    nodes = [
        helper.make_node("Greater", ["x", "t"], ["g"]),
        helper.make_node("Cast", ["g"], ["y"], to=TensorProto.INT64),
    ]
    made.save(tmp_path / "model.onnx", nodes, [("x", [1, 1, "h", "w"])], [("y", [1, 1, "h", "w"], TensorProto.INT64)],
              [("t", np.array(0.5, np.float32))])  # fmt: skip
    array = noise(70, 50)
    result = medai.segment(
        Volume(array, "yx"), load(describe(tmp_path / "model.onnx", **BINARY)), tile=16, device="cpu"
    )
    np.testing.assert_array_equal(result.labels.numpy(), array > 0.5)
    assert result.provenance.tiles == 1


def test_weights_beside_the_file_are_read_from_checked_copies(tmp_path):
    file = with_external(tmp_path, "w.bin", offset=64)
    array = noise(64, 64)
    model = load(describe(file, axes="bcyx", stage="denoise", halo="2"))
    result = medai.denoise(Volume(array, "yx"), model, device="cpu")
    np.testing.assert_allclose(result.image.numpy(), whole(array, 5), rtol=1e-5)
    content = bytearray((tmp_path / "w.bin").read_bytes())
    content[70] ^= 1
    (tmp_path / "w.bin").write_bytes(content)
    onnx_session._warm.clear()
    with pytest.raises(ModelError, match=r"w\.bin has the sha256"):
        medai.denoise(Volume(array, "yx"), model, device="cpu")


def test_a_file_that_changed_is_not_run(tmp_path):
    file = made.box(tmp_path / "model.onnx")
    model = load(describe(file, **BINARY))
    made.box(file, gain=2)
    with pytest.raises(ModelError, match=r"model\.onnx have the sha256"):
        medai.segment(Volume(noise(20, 20), "yx"), model, device="cpu")


def test_errors_of_onnxruntime_are_told_in_words(tmp_path):
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    made.save(tmp_path / "model.onnx", nodes, [("x", [1, 1, "h", "w"])], [("y", [1, 1, 7, 11])],
              [("s", np.array([1, 1, 7, 11]))])  # fmt: skip
    model = load(describe(tmp_path / "model.onnx", **BINARY))
    with pytest.raises(ModelError, match=r"onnxruntime cannot run model\.onnx on x of 1 x 1 x 32 x 32"):
        medai.segment(Volume(noise(20, 20), "yx"), model, device="cpu")
    broken = [helper.make_node("NoSuchOperator", ["x"], ["y"])]
    made.save(tmp_path / "broken.onnx", broken, [("x", [1, 1, "h", "w"])], [("y", [1, 1, "h", "w"])])
    model = load(describe(tmp_path / "broken.onnx", **BINARY))
    with pytest.raises(ModelError, match=r"onnxruntime cannot open broken\.onnx"):
        medai.segment(Volume(noise(20, 20), "yx"), model, device="cpu")
    shrinking = made.box(tmp_path / "valid.onnx", pad=False)
    with pytest.raises(ModelError, match="made 28 x 28 out of a tile of 32 x 32"):
        medai.segment(Volume(noise(20, 20), "yx"), load(describe(shrinking, **BINARY)), device="cpu")


def test_lack_of_memory_is_told_in_words(tmp_path):
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["z"]), helper.make_node("ReduceSum", ["z"], ["m"], keepdims=0),
             helper.make_node("Add", ["x", "m"], ["y"])]  # fmt: skip
    # 4 PiB of float32
    made.save(tmp_path / "model.onnx", nodes, [("x", [1, 1, 16, 16])], [("y", [1, 1, 16, 16])],
              [("s", np.array([2**25, 2**25]))])  # fmt: skip
    model = load(describe(tmp_path / "model.onnx", **BINARY))
    with pytest.raises(DeviceError, match="Not enough memory for tiles of 16 x 16 voxels"):
        medai.segment(Volume(noise(20, 20), "yx"), model, device="cpu")


def test_values_that_the_networks_type_cannot_hold_are_refused(tmp_path):
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)]
    ports = [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 1, "h", "w"])]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, "h", "w"])]
    graph = helper.make_graph(nodes, "graph", ports, out)
    file = tmp_path / "model.onnx"
    file.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    model = load(describe(file, axes="bcyx", stage="denoise"))
    fits = np.arange(256, dtype=np.uint16).reshape(16, 16)
    np.testing.assert_array_equal(medai.denoise(Volume(fits, "yx"), model, device="cpu").image.numpy(), fits)
    with pytest.raises(ModelError, match="takes uint8, 0 to 255; the image has values from 0 to 256"):
        medai.denoise(Volume(np.where(fits == 255, 256, fits), "yx"), model, device="cpu")
