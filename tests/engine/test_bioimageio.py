"""Packages of bioimage.io, run: what comes out is what can be computed by hand, whatever the size of the image."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from scipy import ndimage

import napari_medai as medai
from napari_medai.core.errors import ModelError
from napari_medai.core.stage import Progress
from napari_medai.core.volume import Volume
from napari_medai.engine.bioimageio_tests import check_tests, reproduce_tests
from napari_medai.engine.run import start
from napari_medai.models import describe, load, probe
from napari_medai.stages.segment import SegmentParams
from tests.models import fabricated as made

STEP = {"min": 16, "step": 8}
ZSCORE = [{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["channel", "y", "x"]}}]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whatever asks for an address fails the test."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def image_of(folder: Path, array, tile=0, axes="yx"):
    """What a package whose stage is denoise gives."""
    model = load(probe(folder))
    return medai.denoise(Volume(array, axes), model, tile=tile, device="cpu").image.numpy()


def restoring(folder, sizes, kernel=5, **more):
    """A package whose output is an image, so that its numbers can be looked at."""
    return made.package(
        folder,
        [made.tensor("raw", ["gray"], sizes)],
        [made.tensor("restored", ["gray"], made.like("raw"), halo=kernel // 2)],
        tags=["denoising"],
        **more,
    )


@pytest.mark.parametrize("shape", [(16, 24), (37, 50), (5, 61)])
@pytest.mark.parametrize("tile", [0, 24])
def test_any_size_is_run_in_tiles_without_seams(tmp_path, shape, tile):
    made.box(tmp_path / "model.onnx")
    array = noise(*shape)
    # the image's ends are mirrored, which scipy calls reflect
    expected = ndimage.uniform_filter(array.astype(np.float64), 5, mode="reflect")
    restoring(tmp_path, {"y": STEP, "x": STEP})
    np.testing.assert_allclose(image_of(tmp_path, array, tile), expected, rtol=1e-5)


def test_a_fixed_size_is_run_in_overlapping_tiles(tmp_path):
    made.box(tmp_path / "model.onnx", size=(32, 32))
    array = noise(70, 45)
    restoring(tmp_path, {"y": 32, "x": 32})
    expected = ndimage.uniform_filter(array.astype(np.float64), 5, mode="reflect")
    np.testing.assert_allclose(image_of(tmp_path, array), expected, rtol=1e-5)


def test_preparation_is_of_the_whole_image(tmp_path):
    made.box(tmp_path / "model.onnx")
    made.package(
        tmp_path,
        [made.tensor("raw", ["gray"], {"y": STEP, "x": STEP}, preprocessing=ZSCORE)],
        [made.tensor("restored", ["gray"], made.like("raw"), halo=2)],
        tags=["denoising"],
    )
    array = noise(61, 47) + np.linspace(0, 500, 61, dtype=np.float32)[:, None]
    normal = (array - array.mean(dtype=np.float64)) / array.std(dtype=np.float64)
    expected = ndimage.uniform_filter(normal, 5, mode="reflect")
    np.testing.assert_allclose(image_of(tmp_path, array, tile=24), expected, atol=1e-4)


def test_an_output_smaller_than_its_input_is_put_in_its_place(tmp_path):
    made.box(tmp_path / "model.onnx", pad=False)
    array = noise(40, 33)
    made.package(
        tmp_path,
        [made.tensor("raw", ["gray"], {"y": STEP, "x": STEP})],
        [made.tensor("restored", ["gray"], made.like("raw", offset=-4))],
        tags=["denoising"],
    )
    expected = ndimage.uniform_filter(array.astype(np.float64), 5, mode="reflect")
    np.testing.assert_allclose(image_of(tmp_path, array, tile=24), expected, rtol=1e-5)


def test_an_output_of_twice_the_size_comes_back_to_the_image(tmp_path):
    nodes = [helper.make_node("Resize", ["x", "", "s"], ["y"], mode="nearest", nearest_mode="floor",
                              coordinate_transformation_mode="asymmetric")]  # fmt: skip
    made.save(tmp_path / "model.onnx", nodes, [("x", [1, 1, "h", "w"])], [("y", [1, 1, "H", "W"])],
              [("s", np.array([1, 1, 2, 2], np.float32))])  # fmt: skip
    made.package(
        tmp_path,
        [made.tensor("raw", ["gray"], {"y": STEP, "x": STEP})],
        [{"id": "fine", "axes": [{"type": "batch"}, {"type": "channel", "channel_names": ["gray"]},
                                 made.space("y", made.like("raw")["y"], scale=0.5),
                                 made.space("x", made.like("raw")["x"], scale=0.5)]}],
        tags=["super-resolution"],
    )  # fmt: skip
    array = noise(21, 30)
    model = load(probe(tmp_path))
    result = medai.denoise(Volume(array, "yx"), model, device="cpu")
    np.testing.assert_allclose(result.image.numpy(), array, rtol=1e-6)
    assert any("another resolution" in note for note in result.provenance.notes)


def test_format_0_4_channels_last_and_a_fixed_size(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["a", "w"], ["b"], pads=[1] * 4),
        helper.make_node("Transpose", ["b"], ["y"], perm=[0, 2, 3, 1]),
    ]
    made.save(tmp_path / "model.onnx", nodes, [("x", [1, 32, 32, 1])], [("y", [1, 32, 32, 1])],
              [("w", np.full((1, 1, 3, 3), 1 / 9, np.float32))])  # fmt: skip
    made.package_04(
        tmp_path,
        "byxc",
        [1, 32, 32, 1],
        "byxc",
        {"reference_tensor": "raw", "scale": [1, 1, 1, 1], "offset": [0, 0, 0, 0]},
        halo=[0, 1, 1, 0],
        tags=["denoising"],
        preprocessing=[{"name": "scale_linear", "kwargs": {"gain": 2.0, "offset": 1.0}}],
    )
    array = noise(50, 41)
    expected = ndimage.uniform_filter(2 * array.astype(np.float64) + 1, 3, mode="reflect")
    np.testing.assert_allclose(image_of(tmp_path, array), expected, rtol=1e-5)


def test_three_dimensions_and_classes(tmp_path, oblique_affine):
    # three classes by the value alone: below 80, up to 120, above
    weight = np.array([0.0, 1.0, 2.0], np.float32).reshape(3, 1, 1, 1, 1)
    bias = np.array([0.0, -80.0, -200.0], np.float32)
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"])]
    made.save(tmp_path / "model.onnx", nodes, [("x", [1, 1, "d", "h", "w0"])], [("y", [1, 3, "d", "h", "w0"])],
              [("w", weight), ("b", bias)])  # fmt: skip
    made.package(
        tmp_path,
        [made.tensor("raw", ["t1"], dict.fromkeys("zyx", STEP))],
        [made.tensor("classes", ["background", "grey", "white"], made.like("raw", "zyx"), halo=2,
                     postprocessing=[{"id": "softmax", "kwargs": {"axis": "channel"}}])],
        tags=["segmentation", "mri", "3d"],
    )  # fmt: skip
    spec = probe(tmp_path)
    assert spec.accepts.ndim == (3,)
    assert spec.accepts.modality == ("MR",)
    assert [(label.value, label.name) for label in spec.gives.labels] == [(1, "grey"), (2, "white")]
    scan = Volume(noise(11, 30, 22), "zyx", oblique_affine, "mm", "MR", "t1")
    mask = medai.segment(scan, load(spec), tile=16, device="cpu")
    expected = np.digitize(scan.numpy(), [80, 120])
    np.testing.assert_array_equal(mask.labels.numpy(), expected)
    np.testing.assert_array_equal(mask.grid.affine, oblique_affine)
    assert mask.names == {1: "grey", 2: "white"}


def test_several_inputs_and_outputs_give_instances(tmp_path):
    nodes = [helper.make_node("Identity", ["a"], ["fg"]), helper.make_node("Identity", ["b"], ["rim"])]
    made.save(tmp_path / "model.onnx", nodes, [(n, [1, 1, "h", "w"]) for n in "ab"],
              [(n, [1, 1, "h", "w"]) for n in ("fg", "rim")])  # fmt: skip
    made.package(
        tmp_path,
        [made.tensor(n, ["channel0"], {"y": STEP, "x": STEP}) for n in ("nuclei", "membrane")],
        [made.tensor("foreground", ["channel0"], made.like("nuclei"), data={"range": [0.0, 1.0]}),
         made.tensor("boundary", ["channel0"], made.like("membrane"), data={"range": [0.0, 1.0]})],
    )  # fmt: skip
    spec = probe(tmp_path)
    assert spec.accepts.channels == 2
    assert spec.accepts.channel_names == ("nuclei", "membrane")
    image = np.zeros((2, 33, 41), np.float32)
    image[0, 5:25, 4:34] = 0.9  # two cells that touch
    image[1, 5:25, 18:20] = 0.8
    image[0, 28:31, 3:6] = 0.9  # nine pixels are no cell
    mask = medai.segment(Volume(image, "cyx"), load(spec), device="cpu").labels.numpy()
    assert mask.max() == 2
    assert mask[10, 6] != mask[10, 30]
    assert (mask > 0).sum() == 20 * 30


def test_a_person_may_say_that_pieces_are_objects(tmp_path):
    made.box(tmp_path / "model.onnx", kernel=1)
    made.package(
        tmp_path,
        [made.tensor("raw", ["gray"], {"y": STEP, "x": STEP})],
        [made.tensor("probability", ["channel0"], made.like("raw"), data={"range": [0.0, 1.0]})],
    )
    image = np.full((40, 40), 0.1, np.float32)
    image[5:15, 5:15] = image[20:30, 20:30] = 0.9
    assert medai.segment(Volume(image, "yx"), load(probe(tmp_path)), device="cpu").labels.numpy().max() == 1
    model = load(describe(tmp_path, kind="instances"))
    assert medai.segment(Volume(image, "yx"), model, device="cpu").labels.numpy().max() == 2
    restored = medai.denoise(Volume(image, "yx"), load(describe(tmp_path, stage="denoise")), device="cpu")
    np.testing.assert_allclose(restored.image.numpy(), image)
    assert medai.segment(Volume(image, "yx"), load(describe(tmp_path, labels="cell")), device="cpu").names == {
        1: "cell"
    }
    with pytest.raises(ModelError, match="says itself its axes"):
        describe(tmp_path, axes="bcyx")


def test_scores_of_an_image(tmp_path):
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["m"]), helper.make_node("Flatten", ["m"], ["f"]),
             helper.make_node("Gemm", ["f", "w", "b"], ["y"])]  # fmt: skip
    made.save(tmp_path / "model.onnx", nodes, [("x", [1, 1, 32, 32])], [("y", [1, 2])],
              [("w", np.array([[1.0, -1.0]], np.float32)), ("b", np.zeros(2, np.float32))])  # fmt: skip
    output = {"id": "kind", "axes": [{"type": "batch"}, {"type": "channel", "channel_names": ["bright", "dark"]}],
              "postprocessing": [{"id": "softmax", "kwargs": {"axis": "channel"}}]}  # fmt: skip
    made.package(tmp_path, [made.tensor("raw", ["gray"], {"y": 32, "x": 32})], [output], tags=["classification"])
    scores = medai.classify(Volume(np.tile([0.2, 0.4], (64, 32)).astype(np.float32), "yx"), load(probe(tmp_path)))
    assert scores.classes == ("bright", "dark")
    # mean 0.3: 1 / (1 + exp(-0.6))
    np.testing.assert_allclose(scores.probabilities, [0.645656, 0.354344], atol=1e-5)
    assert any("resampled to 32 x 32" in note for note in scores.provenance.notes)


def test_labels_that_the_network_gives_itself_are_not_blended(tmp_path):
    nodes = [
        helper.make_node("Greater", ["x", "t"], ["g"]),
        helper.make_node("Cast", ["g"], ["y"], to=TensorProto.UINT8),
    ]
    made.save(tmp_path / "model.onnx", nodes, [("x", [1, 1, "h", "w"])], [("y", [1, 1, "h", "w"], TensorProto.UINT8)],
              [("t", np.array(100, np.float32))])  # fmt: skip
    made.package(
        tmp_path,
        [made.tensor("raw", ["gray"], {"y": STEP, "x": STEP})],
        [made.tensor("tissue", ["channel0"], made.like("raw"), data={"type": "uint8", "values": ["none", "tissue"]})],
    )
    spec = probe(tmp_path)
    array = noise(50, 70)
    result = medai.segment(Volume(array, "yx"), load(spec), tile=16, device="cpu")
    np.testing.assert_array_equal(result.labels.numpy(), array > 100)
    assert result.names == {1: "tissue"}
    assert result.provenance.tiles == 1


def test_the_arrays_that_a_package_brings_are_reproduced(tmp_path):
    made.box(tmp_path / "model.onnx")
    array = noise(1, 1, 24, 32)
    expected = ndimage.uniform_filter(array[0, 0].astype(np.float64), 5, mode="constant")[None, None]
    for name, content in (("in.npy", array), ("out.npy", expected.astype(np.float32))):
        np.save(tmp_path / name, content)
    made.package(
        tmp_path,
        [made.tensor("raw", ["gray"], {"y": STEP, "x": STEP}, test_tensor={"source": "in.npy"})],
        [made.tensor("restored", ["gray"], made.like("raw"), halo=2, test_tensor={"source": "out.npy"})],
    )
    model = load(probe(tmp_path))
    with start("segment", Volume(array[0, 0], "yx"), model, SegmentParams(device="cpu"), Progress()) as run:
        (found,) = reproduce_tests(model, run)
    assert found.largest < 1e-3
    assert found.share == 0
    assert check_tests(model)[0].startswith("restored: the package's own array, to within")
    np.save(tmp_path / "out.npy", expected.astype(np.float32) + 1)
    with pytest.raises(ModelError, match=r"restored: 100\.00% of the values differ, by up to 1"):
        check_tests(model)


def test_a_package_without_arrays_has_nothing_to_reproduce(tmp_path):
    made.box(tmp_path / "model.onnx")
    assert check_tests(load(probe(restoring(tmp_path, {"y": STEP, "x": STEP})))) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
def test_it_is_what_the_library_gives_in_blocks(tmp_path):
    """Ends and statistics as bioimageio.core has them: its own blocks, over the same package."""
    from bioimageio.core import create_prediction_pipeline, load_model_description
    from bioimageio.core.digest_spec import create_sample_for_model

    made.box(tmp_path / "model.onnx")
    folder = made.package(
        tmp_path,
        [made.tensor("raw", ["gray"], {"y": STEP, "x": STEP}, preprocessing=ZSCORE)],
        [made.tensor("restored", ["gray"], made.like("raw"), halo=2)],
        tags=["denoising"],
        documentation="README.md",
        covers=[],
        git_repo=None,
    )
    (folder / "README.md").write_text("#")
    array = noise(40, 56)
    theirs = load_model_description(folder / "rdf.yaml", perform_io_checks=False)
    pipeline = create_prediction_pipeline(theirs, weights_format="onnx", devices=["CPUExecutionProvider"])
    sample = create_sample_for_model(theirs, inputs={"raw": array[None, None]})
    blocks = pipeline.predict_sample_with_blocking(sample, ns=2).members["restored"].to_numpy()[0, 0]
    np.testing.assert_allclose(image_of(folder, array, tile=32), blocks, atol=1e-5)


def test_a_file_that_changed_after_it_was_looked_at_is_not_run(tmp_path):
    made.box(tmp_path / "model.onnx")
    model = load(probe(restoring(tmp_path, {"y": STEP, "x": STEP})))
    made.box(tmp_path / "model.onnx", gain=2)
    with pytest.raises(ModelError, match=r"model\.onnx has the sha256 .* was expected"):
        medai.denoise(Volume(noise(20, 20), "yx"), model)


def test_a_run_is_stopped_within_a_tile(tmp_path):
    from napari_medai.core.stage import Cancelled

    made.box(tmp_path / "model.onnx")
    model = load(probe(restoring(tmp_path, {"y": STEP, "x": STEP})))

    class Stop(Progress):
        seen = 0

        def update(self, done, total, message=""):
            self.seen += "tile" in message
            if self.seen == 2:
                raise Cancelled

    progress = Stop()
    with pytest.raises(Cancelled):
        medai.denoise(Volume(noise(200, 200), "yx"), model, tile=24, progress=progress)
    assert progress.seen == 2


@pytest.mark.skipif("MEDAI_MODELS_DIR" not in os.environ, reason="MEDAI_MODELS_DIR names no folder of published models")
def test_a_published_package_reproduces_its_test_tensors():
    folder = Path(os.environ["MEDAI_MODELS_DIR"]) / "bioimageio" / "unet2d_nuclei_broad"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    model = load(probe(folder))
    pixels = np.load(folder / "test_input.npy")[0, 0]
    expected = np.load(folder / "test_output.npy")[0, 0]
    with start("segment", Volume(pixels, "yx"), model, SegmentParams(device="cpu"), Progress()) as run:
        (found,) = reproduce_tests(model, run)
    assert found.largest < 1e-5
    mask = medai.segment(Volume(pixels, "yx"), model, device="cpu").labels.numpy()
    # ends are mirrored for the halo, where the test has none: a few pixels at the rim differ
    assert np.mean(mask == (expected >= 0.5)) > 0.999
    np.testing.assert_array_equal(mask[32:-32, 32:-32], expected[32:-32, 32:-32] >= 0.5)
