"""Runner of bioimage.io packages: bioimageio.core prepares, runs and finishes; tiles and the reading of maps are ours.

The library is given a short description that was made from the package's own, in a private folder with copies of just
the files that it needs, each checked by its sha256. It names one format of weights and holds no address, so that
nothing is downloaded, validated on a network, or tried with another format.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import DependencyError, ModelError, UntrustedError
from napari_medai.core.volume import Volume
from napari_medai.engine.decode import decode_maps
from napari_medai.engine.isolated_limits import inside
from napari_medai.engine.onnx_session import copy_checked, in_words, provider
from napari_medai.engine.passes import onto_tile, over_image
from napari_medai.engine.resample import resample
from napari_medai.engine.results import SliceScores
from napari_medai.engine.run import Run
from napari_medai.models.bioimageio_grid import TensorGrid
from napari_medai.models.bioimageio_tensors import Tensor
from napari_medai.models.onnx_file import read_onnx

INSTALL = 'pip install "napari-medai[bioimageio]"'
MOST_PIPELINES = 2

_warm: OrderedDict[str, Pipeline] = OrderedDict()
_lock = threading.RLock()


class Pipeline:
    """A package, opened by bioimageio.core; made by `open_package`."""

    def __init__(self, pipeline: Any, adapter: Any, inputs: list[Tensor], outputs: list[Tensor], name: str) -> None:
        self._pipeline, self._adapter = pipeline, adapter
        self.inputs, self.outputs, self.name = inputs, outputs, name

    def prepare(self, arrays: list[NDArray[Any]], letters: str) -> tuple[Any, list[NDArray[np.float32]]]:
        """What is done before the network, over whole images.

        Parameters
        ----------
        arrays : list of (C, \\*spatial) arrays
            One for each input.
        letters : str
            Axes of space.

        Returns
        -------
        sample
            For `finish`, which needs its statistics.
        list of (C, \\*spatial) float32 arrays
        """
        sample = library().sample.Sample(members=self._members(arrays, letters), stat={}, id=None)
        with in_words(self.name):
            self._pipeline.apply_preprocessing(sample)
        return sample, [
            channels_first(sample.members[tensor.id], letters).astype(np.float32, copy=False) for tensor in self.inputs
        ]

    def forward(self, arrays: list[NDArray[np.float32]], letters: str) -> dict[str, Any]:
        """The network alone: (C, \\*spatial) arrays in, a tensor of the library for each output."""
        sizes = ", ".join(f"{tensor.id} of {array.shape}" for tensor, array in zip(self.inputs, arrays, strict=True))
        with in_words(self.name, sizes):
            found = self._adapter.forward(self._members(arrays, letters))
        missing = [tensor.id for tensor in self.outputs if tensor.id not in found]
        if missing:
            raise ModelError(f"{self.name!r} gave no output {', '.join(missing)}, which its description names.")
        return {str(id): tensor for id, tensor in found.items()}

    def finish(self, sample: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """What is done after the network, over whole maps."""
        finished = library().sample.Sample(members=dict(tensors), stat=sample.stat, id=None)
        with in_words(self.name):
            self._pipeline.apply_postprocessing(finished)
        return {str(id): tensor for id, tensor in finished.members.items()}

    def _members(self, arrays: list[NDArray[Any]], letters: str) -> dict[str, Any]:
        return {tensor.id: labelled(array, tensor, letters) for tensor, array in zip(self.inputs, arrays, strict=True)}


def labelled(array: NDArray[Any], tensor: Tensor, letters: str) -> Any:
    """An array (C, \\*spatial) as a tensor of the library, whose axes have the names that the package gives them."""
    others = [axis.id for axis in tensor.axes if axis.id not in letters and axis.id != "channel"]
    channel = ["channel"] if tensor.axis("channel") is not None else []
    array = array if channel else array[0]
    return library().tensor.Tensor(array.reshape((1,) * len(others) + array.shape), dims=[*others, *channel, *letters])


def channels_first(tensor: Any, letters: str) -> NDArray[Any]:
    """(C, \\*spatial) of a tensor of the library.

    Raises
    ------
    ModelError
        It has another axis that is longer than 1.
    """
    names, array = [str(name) for name in tensor.dims], tensor.to_numpy()
    wanted = [name for name in ("channel", *letters) if name in names]
    others = [n for n, name in enumerate(names) if name not in wanted]
    if any(array.shape[n] != 1 for n in others) or len(wanted) < len(letters):
        raise ModelError(f"A tensor with the axes {', '.join(names)} of {array.shape} is no image.")
    array = array.transpose([*others, *(names.index(name) for name in wanted)]).reshape(
        [array.shape[names.index(name)] for name in wanted]
    )
    return np.asarray(array if "channel" in names else array[np.newaxis])


def run_package(volume: Volume, run: Run, params: Any) -> Any:
    """Run a package on an image (c)(z)yx of any size.

    Returns
    -------
    (\\*spatial) int32 labels, (\\*spatial) float32 image, or SliceScores
        As the description's stage says.

    Raises
    ------
    UntrustedError
        It needs what nobody allowed.
    DependencyError
        bioimageio.core is not installed.
    ModelError
        A file has changed, or the package fails.
    """
    details = run.spec.details
    pipeline = open_package(run)
    grid, decode = TensorGrid.model_validate(details["grid"]), _how(run)
    image = volume.numpy()
    image = image if "c" in volume.axes else image[np.newaxis]
    run.progress.update(0, 1, "preparing")
    sample, prepared = pipeline.prepare(_split(image, [tensor.channels for tensor in pipeline.inputs]), grid.letters)
    used = [tensor for tensor in pipeline.outputs if tensor.id in details["used"]]
    unused = [tensor.id for tensor in pipeline.outputs if tensor.id not in details["used"]]
    if unused:
        run.note(f"outputs that are not used: {', '.join(unused)}")
    stacked, counts = np.concatenate(prepared), [len(array) for array in prepared]
    run.precision = "float32"
    if decode["kind"] == "scores":
        return _scores(pipeline, sample, stacked, counts, used[0], grid, run)

    def forward(tile: NDArray[np.float32]) -> NDArray[np.float32]:
        found = pipeline.forward(_split(tile, counts), grid.letters)
        maps = []
        for tensor in used:
            place = grid.outputs[tensor.id]
            values = channels_first(found[tensor.id], grid.letters)
            maps.append(onto_tile(values, tile.shape[1:], place.scale, place.offset))
        return np.concatenate(maps)

    if any(scale != 1 for place in grid.outputs.values() for scale in place.scale):
        run.note("the model's output has another resolution than its input: it was brought to the image's")
    # labels of tiles do not add up
    whole = decode["kind"] == "labels" or (decode["kind"] == "instances" and used[0].channels == 1)
    maps = over_image(stacked, forward, grid.sizes, grid.halo, run, mode=pipeline.inputs[0].pad, whole=whole)
    parts = _split(maps, [tensor.channels for tensor in used])
    tensors = {tensor.id: labelled(part, tensor, grid.letters) for tensor, part in zip(used, parts, strict=True)}
    finished = pipeline.finish(sample, tensors)
    return _read(finished, used, grid.letters, run, params, volume.spatial_shape)


def open_package(run: Run) -> Pipeline:
    """A package, opened by bioimageio.core; kept for the next run.

    Raises
    ------
    UntrustedError
        It needs what nobody allowed.
    DependencyError
        bioimageio.core is not installed.
    ModelError
        A file has changed, or the library refuses the description.
    """
    model, spec = run.model, run.spec
    allowed = model.grant.capabilities if model.grant else frozenset()
    if not spec.capabilities <= allowed or any(not need.capability for need in spec.needs) or spec.path is None:
        raise UntrustedError(f"{spec.title!r} needs what was not allowed; nothing of it was run.", spec.needs)
    if spec.capabilities and not inside():
        raise UntrustedError(f"{spec.title!r} carries programs, which run in a process of their own only.", spec.needs)
    details, weights = spec.details, spec.details["weights"]
    device = provider(run) if weights == "onnx" else str(run.device)
    key = json.dumps([details["description"], details["files"], str(spec.path), weights, device], sort_keys=True)
    with _lock:
        if key in _warm:
            _warm.move_to_end(key)
            return _warm[key]
        pipeline = _open(spec.path, details, device, spec.id)
        _warm[key] = pipeline
        while len(_warm) > MOST_PIPELINES:
            _warm.popitem(last=False)
        return pipeline


def _open(package: Path, details: dict[str, Any], device: str, name: str) -> Pipeline:
    core = library()
    folder = Path(tempfile.mkdtemp(prefix="medai-bioimageio-"))
    try:
        for file, digest in details["files"].items():
            copy_checked(package, file, digest, folder)
        if details["weights"] == "onnx":
            found = read_onnx(folder / str(details["description"]["weights"]["onnx"]["source"]))
            if found.refused:
                raise ModelError(f"{name!r} is not run: {'; '.join(f'{at}: {why}' for at, why in found.refused)}.")
        description = folder / "bioimageio.yaml"
        description.write_text(json.dumps(details["description"]), encoding="utf-8")  # JSON is YAML
        # files that the format 0.4 wants to be there and that nobody reads
        for stand_in in ("README.md", *details["description"].get("test_inputs", []),
                         *details["description"].get("test_outputs", [])):  # fmt: skip
            (folder / stand_in).touch()
        with in_words(name), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about style, and about versions of other frameworks
            opened = core.load_model_description(description, format_version="discover", perform_io_checks=False)
            weights = details["weights"]
            adapter = core.backends.create_model_adapter(
                opened, devices=[device], weight_format_priority_order=[weights]
            )
            pipeline = core.create_prediction_pipeline(opened, weights_format=weights, model_adapter=adapter)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    inputs = [Tensor.model_validate(item) for item in details["inputs"]]
    outputs = [Tensor.model_validate(item) for item in details["outputs"]]
    return Pipeline(pipeline, adapter, inputs, outputs, name)


def _scores(
    pipeline: Pipeline,
    sample: Any,
    image: NDArray[np.float32],
    counts: list[int],
    output: Tensor,
    grid: TensorGrid,
    run: Run,
) -> SliceScores:
    """Probabilities of classes of a whole image, which is brought to a size that the network takes."""
    size = tuple(size.holds(n) for size, n in zip(grid.sizes, image.shape[1:], strict=True))
    if size != image.shape[1:]:
        run.note(f"resampled to {' x '.join(map(str, size))} for the model")
        image = resample(image, size)
    run.progress.check()
    found = pipeline.forward(_split(image, counts), grid.letters)
    finished = pipeline.finish(sample, {output.id: found[output.id]})
    run.tile_done(1)
    values = np.asarray(finished[output.id].to_numpy(), dtype=np.float64).ravel()
    if values.size != len(run.spec.gives.labels):
        raise ModelError(f"The model gave {values.size} scores; its description names {len(run.spec.gives.labels)}.")
    if values.min() < 0 or values.max() > 1:
        run.note("scores outside of 0..1 were made into probabilities by softmax")
        values = np.exp(values - values.max())
        values /= values.sum()
    return SliceScores(values, np.array([0]), values[np.newaxis], np.ones(1))


def _how(run: Run) -> dict[str, Any]:
    """How the outputs are read: as was concluded from the package, or as a person said."""
    decode: dict[str, Any] = run.spec.details["decode"]
    if run.spec.stage == "denoise":
        return {"kind": "image", "channel": 0}
    if run.spec.gives.kind == "instances" and decode["kind"] == "threshold":
        return decode | {"kind": "pieces"}
    return decode


def _read(
    finished: dict[str, Any], used: list[Tensor], letters: str, run: Run, params: Any, shape: tuple[int, ...]
) -> NDArray[Any]:
    """What the stage wants, out of the finished maps."""
    decode = _how(run)
    if decode["kind"] == "instances":
        # an operator that makes objects adds a tensor of labels to the sample
        added = [tensor for id, tensor in finished.items() if id != used[0].id]
        maps = channels_first((added or [finished[used[0].id]])[0], letters)
    else:
        maps = np.concatenate([channels_first(finished[tensor.id], letters) for tensor in used])
    if maps.shape[1:] != shape:
        raise ModelError(f"The model gave {maps.shape[1:]} for an image of {shape}.")
    if decode["kind"] == "image":
        if len(maps) > 1:
            run.note(f"of {len(maps)} channels that the model gives the first one is shown")
        return np.asarray(maps[decode["channel"]], dtype=np.float32)
    return decode_maps(maps, decode, threshold=params.threshold, min_size=params.min_size, note=run.note)


def _split(array: NDArray[Any], counts: list[int]) -> list[NDArray[Any]]:
    """An array (C, …) in parts along its channels."""
    if sum(counts) != len(array):
        raise ModelError(f"There are {len(array)} channels; the model's description says {sum(counts)}.")
    return np.split(array, np.cumsum(counts)[:-1])


def library() -> Any:
    """bioimageio.core.

    Raises
    ------
    DependencyError
        It is not installed.
    """
    try:
        import bioimageio.core
    except ModuleNotFoundError as error:
        raise DependencyError(f"Packages of bioimage.io need bioimageio.core; install it with: {INSTALL}") from error
    return bioimageio.core
