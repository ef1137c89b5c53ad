"""Runner of ONNX files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import ModelError
from napari_medai.core.volume import Volume
from napari_medai.engine.exported import run_exported
from napari_medai.engine.onnx_session import open_session, provider, run_session

if TYPE_CHECKING:
    from napari_medai.engine.run import Run

_DTYPES = {
    "float16", "float32", "float64", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "bool",
}  # fmt: skip


def run_onnx(volume: Volume, run: Run, params: Any) -> Any:
    """Run an ONNX file by onnxruntime; as `napari_medai.engine.exported.run_exported`.

    Raises
    ------
    DependencyError
        onnxruntime is not installed.
    ModelError
        The file has changed, or onnxruntime cannot run it; the message says on what.
    """
    spec, file = run.spec, run.model.weights
    if file is None or spec.needs:
        why = "; ".join(need.why for need in spec.needs) or "it has no file"
        raise ModelError(f"{spec.title!r} cannot be run: {why}.")
    details = spec.details
    session = open_session(file, spec.sha256, details.get("external", {}), provider(run))
    ports = details.get("inputs") or [
        {"name": value.name, "shape": [], "dtype": "float32"} for value in session.get_inputs()
    ]
    outputs = [value.name for value in session.get_outputs()]
    run.precision = "float32"

    def call(arrays: list[NDArray[Any]]) -> list[tuple[str, NDArray[Any]]]:
        given = {
            port["name"]: _as_type(array, np.dtype(port["dtype"] if port["dtype"] in _DTYPES else np.float32))
            for port, array in zip(ports, arrays, strict=True)
        }
        found = run_session(session, given, file.name)
        return list(zip(outputs, found, strict=True))

    chosen = str(spec.options.get("output", "")) or outputs[0]
    kinds = {port["name"]: port["dtype"] for port in details.get("outputs", [])}
    whole = spec.stage == "segment" and kinds.get(chosen, "").startswith(("int", "uint", "bool"))
    return run_exported(volume, run, params, call, [port["shape"] for port in ports], whole)


def _as_type(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Pixels of the type that the network takes.

    Raises
    ------
    ModelError
        Values lie outside of that type: turned into it they would wrap around.
    """
    if dtype.kind in "iu" and array.size:
        lowest, highest, kinds = float(array.min()), float(array.max()), np.iinfo(dtype)
        if lowest < kinds.min or highest > kinds.max:
            raise ModelError(
                f"The network takes {dtype.name}, {kinds.min} to {kinds.max}; the image has values from {lowest:g} to "
                f"{highest:g}. Scale the image to that range first."
            )
    return array.astype(dtype, copy=False)
