"""ONNX files by onnxruntime: from bytes that were checked, without libraries of operators, errors in words."""

from __future__ import annotations

import hashlib
import importlib
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import DependencyError, ModelError
from napari_medai.engine.weights import read_checked
from napari_medai.models.inside import file_inside
from napari_medai.models.onnx_file import INSTALL, read_onnx

if TYPE_CHECKING:
    from napari_medai.engine.run import Run

# Sessions kept between runs
MOST_SESSIONS = 2
_NO_MEMORY = ("failed to allocate", "bad_alloc", "out of memory", "bad allocation", "cudaerrormemoryallocation")

_warm: OrderedDict[tuple[str, ...], Any] = OrderedDict()
_lock = threading.RLock()


def provider(run: Run) -> str:
    """The execution provider for a run's device; onnxruntime without CUDA runs on the CPU, with a note."""
    runtime = _runtime()
    if run.device.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers():
        run.precision = "float32"
        return "CUDAExecutionProvider"
    if run.device.type != "cpu":
        run.use_cpu(f"the onnxruntime that is installed has no {run.device.type}: running on the CPU instead")
    return "CPUExecutionProvider"


def open_session(path: Path, sha256: str, external: Mapping[str, str], provider: str) -> Any:
    """An ``onnxruntime.InferenceSession`` of a file that is what was looked into; kept for the next run.

    Parameters
    ----------
    path : Path
        The ONNX file.
    sha256 : str
        Over it.
    external : mapping of str to str
        Files of weights in its folder, with their sha256 or "".
    provider : str
        Where it runs, see `provider`.

    Raises
    ------
    ModelError
        A file has changed, asks for operators that are not run, or onnxruntime cannot open it.
    """
    key = (str(path), sha256, provider, *sorted(f"{name}:{digest}" for name, digest in external.items()))
    with _lock:
        if key in _warm:
            _warm.move_to_end(key)
            return _warm[key]
        session = _open(path, sha256, external, provider)
        if "" not in external.values():  # what has no hash may have changed by the next run
            _warm[key] = session
        while len(_warm) > MOST_SESSIONS:
            _warm.popitem(last=False)
        return session


def _open(path: Path, sha256: str, external: Mapping[str, str], provider: str) -> Any:
    runtime = _runtime()
    content = read_checked(path, sha256)
    found = read_onnx(path, content)
    if found.refused or set(found.external) != set(external):
        why = "; ".join(f"{where}: {reason}" for where, reason in found.refused) or "it names other files than before"
        raise ModelError(f"{path.name} is not run: {why}.")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    # never onnxruntime's own format, whose operators were not looked at
    options.add_session_config_entry("session.load_model_format", "ONNX")
    with in_words(path.name):
        if not external:
            return runtime.InferenceSession(content, options, providers=[provider])
        folder = Path(tempfile.mkdtemp(prefix="medai-onnx-"))
        try:
            (folder / "model.onnx").write_bytes(content)
            for name, digest in external.items():
                copy_checked(path.parent, name, digest, folder)
            return runtime.InferenceSession(str(folder / "model.onnx"), options, providers=[provider])
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def copy_checked(source: Path, name: str, sha256: str, target: Path) -> None:
    """Copy a file of a package, in pieces, and compare its hash if one is known.

    Raises
    ------
    ModelError
        It is not there or has changed.
    """
    digest = hashlib.sha256()
    place = target / name
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file_inside(source, name).open("rb") as file, place.open("wb") as copy:
            while piece := file.read(1 << 20):
                digest.update(piece)
                copy.write(piece)
    except OSError as error:
        raise ModelError(f"{name} cannot be copied to a private folder: {error.strerror}.") from error
    if sha256 and digest.hexdigest() != sha256:
        raise ModelError(
            f"{name} has the sha256 {digest.hexdigest()[:16]}…; {sha256[:16]}… was expected. The file is damaged or "
            "was changed; add the model again."
        )


def run_session(session: Any, arrays: Mapping[str, NDArray[Any]], name: str) -> list[NDArray[Any]]:
    """Every output of a session, in its order.

    Raises
    ------
    MemoryError
        There is not enough memory.
    ModelError
        onnxruntime fails; the message says on what.
    """
    sizes = ", ".join(f"{key} of {' x '.join(map(str, array.shape))}" for key, array in arrays.items())
    with in_words(name, sizes):
        return [np.asarray(value) for value in session.run(None, dict(arrays))]


@contextmanager
def in_words(name: str, sizes: str = "") -> Iterator[None]:
    """Errors of onnxruntime as `ModelError`, or as MemoryError where there is not enough of it."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    found = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    kinds: tuple[type[Exception], ...] = (*found, RuntimeError, ValueError)
    try:
        yield
    except kinds as error:
        text = " ".join(str(error).split())
        if any(phrase in text.lower() for phrase in _NO_MEMORY):
            raise MemoryError(f"onnxruntime: out of memory in {name}") from error
        what = f"run {name} on {sizes}" if sizes else f"open {name}"
        raise ModelError(f"onnxruntime cannot {what}: {text[:400].rstrip('.')}.") from error


def _runtime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise DependencyError(f"Running ONNX needs the package onnxruntime; install it with: {INSTALL}") from error
    return onnxruntime
