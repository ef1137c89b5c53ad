"""The arrays that a bioimage.io package brings to test itself with, and what comes out for them here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_medai.core.errors import ModelError
from napari_medai.core.stage import Params, Progress
from napari_medai.core.volume import Volume
from napari_medai.engine.bioimageio import channels_first, library, open_package
from napari_medai.engine.run import Run, start
from napari_medai.engine.weights import read_checked
from napari_medai.models.bioimageio_grid import TensorGrid
from napari_medai.models.bioimageio_tensors import Tensor
from napari_medai.models.inside import file_inside
from napari_medai.models.spec import Model

# How far values of a package's own test may be off, and how many of them may be further: as bioimageio.core tests
TOLERANCE = 1e-3
MOST_DIFFERENT = 1e-4


@dataclass(frozen=True)
class Reproduced:
    """What came out for the array that a package gives to test an output with.

    Attributes
    ----------
    output : str
        Its name.
    largest : float
        Largest absolute difference to the array that the package says should come out.
    share : float
        Share of values that differ by more than ``TOLERANCE`` and that share of the value itself, as the library tests.
    """

    output: str
    largest: float
    share: float


def reproduce_tests(model: Model, run: Run) -> list[Reproduced]:
    """Run a package on the arrays that it gives to test with.

    As bioimageio.core does: in one pass, with nothing put at the image's ends.

    Raises
    ------
    ModelError
        It gives no test, an array cannot be read, or the output has another size.
    """
    details = model.spec.details
    pipeline, letters = open_package(run), TensorGrid.model_validate(details["grid"]).letters
    arrays = [channels_first(_test(model, tensor), letters) for tensor in pipeline.inputs]
    sample, prepared = pipeline.prepare(arrays, letters)
    found = pipeline.forward(prepared, letters)
    tested = [tensor for tensor in pipeline.outputs if tensor.id in details["used"] and tensor.test]
    if not tested:
        raise ModelError("The package gives no array to test its outputs with.")
    finished = pipeline.finish(sample, {tensor.id: found[tensor.id] for tensor in tested})
    results = []
    for tensor in tested:
        given, expected = finished[tensor.id].to_numpy(), _test(model, tensor).to_numpy()
        if given.shape != expected.shape:
            raise ModelError(f"The output {tensor.id!r} is {given.shape}; the package's test says {expected.shape}.")
        difference = np.abs(given.astype(np.float64) - expected)
        share = float(np.mean(difference > TOLERANCE + TOLERANCE * np.abs(expected)))
        results.append(Reproduced(tensor.id, float(difference.max()), share))
    return results


def check_tests(model: Model) -> list[str]:
    """What `reproduce_tests` finds, one line for each output; nothing if the package has no test.

    Raises
    ------
    ModelError
        More than `MOST_DIFFERENT` of an output's values differ.
    """
    tensors = [Tensor.model_validate(item) for side in ("inputs", "outputs") for item in model.spec.details[side]]
    if not all(tensor.test for tensor in tensors if tensor.id in model.spec.details["used"]) or not tensors[0].test:
        return []
    if model.spec.capabilities:
        return ["not compared: what it carries runs on images only, in a process of its own"]
    image = Volume(np.zeros((1, 1), np.float32), "yx")
    with start(model.spec.stage, image, model, Params(device="cpu"), Progress()) as run:
        results = reproduce_tests(model, run)
    wrong = [result for result in results if result.share > MOST_DIFFERENT]
    if wrong:
        raise ModelError(
            "; ".join(f"{r.output}: {r.share:.2%} of the values differ, by up to {r.largest:.3g}" for r in wrong)
        )
    return [f"{r.output}: the package's own array, to within {r.largest:.2g}" for r in results]


def _test(model: Model, tensor: Tensor) -> Any:
    """The array that a package gives to test with, as a tensor of the library."""
    folder = model.spec.path
    if not tensor.test or folder is None:
        raise ModelError(f"The package gives no array to test {tensor.id!r} with.")
    try:
        file = file_inside(folder, tensor.test)
        if tensor.test_sha256:
            read_checked(file, tensor.test_sha256)
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"The test array {tensor.test} cannot be read: {error}.") from error
    if array.ndim != len(tensor.axes):
        raise ModelError(f"The test array {tensor.test} has {array.ndim} axes; {len(tensor.axes)} were expected.")
    return library().tensor.Tensor(array, dims=[axis.id for axis in tensor.axes])
