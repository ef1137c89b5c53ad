"""Runner of TorchScript and torch.export archives; only in the process that was made for one whose owner allowed it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_medai.core.errors import ModelError, UntrustedError
from napari_medai.core.volume import Volume
from napari_medai.engine.exported import run_exported
from napari_medai.engine.isolated_limits import inside
from napari_medai.engine.memory import is_out_of_memory

if TYPE_CHECKING:
    from napari_medai.engine.run import Run


def run_program(volume: Volume, run: Run, params: Any) -> Any:
    """Run a program of torch; as `napari_medai.engine.exported.run_exported`.

    Raises
    ------
    UntrustedError
        Nobody allowed it, or this is not the process that was made for it.
    ModelError
        torch cannot open it, or it fails.
    """
    spec, file = run.spec, run.model.weights
    allowed = run.model.grant.capabilities if run.model.grant else frozenset()
    if not inside() or not spec.capabilities or not spec.capabilities <= allowed or file is None:
        raise UntrustedError(
            f"{spec.title!r} is a program that was not allowed to run; nothing of it was run.", spec.needs
        )
    network = _open(file, str(spec.details.get("kind")), run)
    run.precision = "float32"

    def call(arrays: list[NDArray[Any]]) -> list[tuple[str, NDArray[Any]]]:
        tensors = [torch.from_numpy(np.ascontiguousarray(array)).to(run.device) for array in arrays]
        try:
            with torch.inference_mode():
                found = network(*tensors)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            sizes = ", ".join(" x ".join(map(str, array.shape)) for array in arrays)
            # the first line is about torch's own code, the last one says what was wrong
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(f"The network failed on an input of {sizes}: {reason}.") from error
        return _arrays(found)

    return run_exported(volume, run, params, call, spec.details.get("shapes") or ())


def _open(file: Path, kind: str, run: Run) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is to be replaced is for those who export
        try:
            if kind == "torchscript":
                return torch.jit.load(str(file), map_location=run.device).eval()  # type: ignore[no-untyped-call]
            program = torch.export.load(str(file))
            if run.device.type != "cpu":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, run.device)
            return program.module()
        except (RuntimeError, ValueError, KeyError, AssertionError) as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"torch {torch.__version__} cannot open {file.name}: {reason}.") from error


def _arrays(found: Any) -> list[tuple[str, NDArray[Any]]]:
    """Every tensor that came out, by its place or its name."""
    items = (
        found.items() if isinstance(found, dict) else enumerate(found if isinstance(found, tuple | list) else [found])
    )
    return [(str(name), value.cpu().numpy()) for name, value in items if isinstance(value, torch.Tensor)]
