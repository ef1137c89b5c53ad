"""Run what a package carries, as its owner allowed: in a process of its own, on a copy known to be what was allowed.

A crash, endless loop or lack of memory there is an error here and nothing more. What keeps the program from reading and
writing elsewhere is in `isolated_limits`; what it gives back is read by `isolated_values` as something that a stranger
wrote. A permission still means trust: the program sees the image.
"""

from __future__ import annotations

import json
import re
import tempfile
from math import isfinite
from pathlib import Path
from typing import Any

from napari_medai.core import errors
from napari_medai.core.errors import MedaiError, ModelError, UntrustedError
from napari_medai.core.stage import Params
from napari_medai.core.volume import Volume
from napari_medai.engine import RUNNERS
from napari_medai.engine.isolated_limits import NO_NETWORK, OWN_FILES
from napari_medai.engine.isolated_process import Process, started
from napari_medai.engine.isolated_values import plain_text, read_result, write_array
from napari_medai.engine.run import Run
from napari_medai.models import probe
from napari_medai.models.package import private_copy, remove
from napari_medai.models.spec import ModelSpec
from napari_medai.models.trust import Grant

# Errors that keep their kind on the way here; any other is a ModelError
_KINDS = (
    "DependencyError", "DeviceError", "GeometryError", "InputError", "ModelError", "ModelFitError", "NotFiniteError",
    "ParamsError",
)  # fmt: skip
_MOST_NOTES = 100
_MOST_MB = 1e8
_DEVICE = re.compile(r"cpu|mps|cuda(:[0-9]{1,2})?")
# What decides which code runs is taken from the copy that runs, not from a description that was made of the package
# earlier; the rest (names, units, what a person answered) stays.
_OF_THE_COPY = ("runner", "network", "arguments", "weights", "details", "needs", "safety", "source", "sha256")


def run_isolated(volume: Volume, run: Run, params: Params) -> Any:
    """Run a granted model's own runner in a process of its own; gives what that runner gives.

    Raises
    ------
    UntrustedError
        The package is not what was allowed, or needs more than was allowed.
    ModelError
        The process failed or gave something that cannot be used.
    Cancelled
        The run was stopped; the process was ended.
    """
    return _isolated(volume, run, params, "")


def explain_isolated(volume: Volume, run: Run, params: Params) -> Any:
    """Explain a granted model in a process of its own; as `napari_medai.engine.explain.explain`."""
    return _isolated(volume, run, params, "napari_medai.engine.explain:explain")


def _isolated(volume: Volume, run: Run, params: Params, instead: str) -> Any:
    """Run ``instead``, or the model's runner."""
    grant, spec = run.model.grant, run.spec
    if grant is None or spec.path is None:
        raise ModelError(f"{spec.title!r} was not allowed to run; nothing of it was run.")
    run.progress.update(0, 1, "copying the model")
    with private_copy(spec.path, grant.sha256) as copy:
        spec = _of_the_copy(spec, copy, grant)
        if spec.runner not in RUNNERS:
            raise ModelError(f"The model asks for the runner {spec.runner!r}; there is none.")
        runner = instead or RUNNERS[spec.runner]
        work = Path(tempfile.mkdtemp(prefix="medai-run-"))
        try:
            _hand_over(work, volume, run, params, spec, copy, runner)
            modules = (runner.partition(":")[0], type(params).__module__)
            with started("napari_medai.engine.isolated_child:main", work, (copy.parent,), modules) as process:
                heard = _listen(process, run)
                end = process.end()
            if "done" not in heard:
                raise _failed(spec, heard.get("error"), end)
            result = read_result(work / "own", run.stage, volume, len(spec.gives.labels), _mapping(heard["done"]))
        finally:
            remove(work)
    _record(run, grant, heard)
    return result


def _of_the_copy(spec: ModelSpec, copy: Path, grant: Grant) -> ModelSpec:
    """The description, with what decides on code as the copy says; refused if that needs more than was allowed."""
    fresh = probe(copy)
    missing = sorted(fresh.capabilities - grant.capabilities)
    if missing or any(not need.capability for need in fresh.needs):
        raise UntrustedError(f"{spec.title!r} needs what was not allowed: {', '.join(missing)}.", fresh.needs)
    return spec.model_copy(update={name: getattr(fresh, name) for name in _OF_THE_COPY} | {"path": copy})


def _hand_over(work: Path, volume: Volume, run: Run, params: Params, spec: ModelSpec, copy: Path, runner: str) -> None:
    """Write the job. No names, no header, no source: what the program does not know it cannot tell."""
    write_array(work, "volume", volume.numpy())
    grant = run.model.grant
    assert grant is not None
    job = {
        "stage": run.stage,
        "runner": runner,
        "spec": spec.model_dump(mode="json"),
        "source": spec.source,
        "folder": str(copy if copy.is_dir() else copy.parent),
        "grant": {"sha256": grant.sha256, "capabilities": sorted(grant.capabilities)},
        "params": {"class": f"{type(params).__module__}:{type(params).__qualname__}", "values": params.as_dict()},
        "volume": {
            "axes": volume.axes,
            "affine": volume.affine.tolist(),
            "units": volume.units,
            "modality": volume.modality,
        },
    }
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")


def _listen(process: Process, run: Run) -> dict[str, Any]:
    """Pass on what the process says until it has a result, an error, or has ended; its last message, with
    ``given_up``."""
    given_up: list[str] = []
    before, notes = run.tiles, 0
    while True:
        message = process.message()
        if message is None:
            return {"given_up": given_up}
        run.progress.check()
        if "progress" in message:
            done, total, text = _progress(message["progress"])
            run.ran_elsewhere(tiles=before + _count(message.get("tiles")))
            run.progress.update(done, total, text)
        elif "note" in message and notes < _MOST_NOTES:
            notes += 1
            run.note(plain_text(message["note"], 1000))
        elif "given_up" in message:
            given_up = [text for text in (NO_NETWORK, OWN_FILES) if text in _sequence(message["given_up"])]
        elif "done" in message or "error" in message:
            run.ran_elsewhere(tiles=before + _count(message.get("tiles")))
            return message | {"given_up": given_up}


def _record(run: Run, grant: Grant, heard: dict[str, Any]) -> None:
    allowed = ", ".join(sorted(grant.capabilities))
    limits = ", ".join(heard["given_up"]) or "this system sets it no limits"
    run.note(f"ran what the package carries, as its owner allowed: {allowed}; package sha256 {grant.sha256}")
    run.note(f"ran in a process of its own: {limits}")
    device, precision = heard.get("device"), heard.get("precision")
    peak = heard.get("peak_memory_mb")
    run.ran_elsewhere(
        device=device if isinstance(device, str) and _DEVICE.fullmatch(device) else "",
        precision=precision if precision in ("float32", "float16 (autocast)") else "",
        peak_memory_mb=float(peak) if isinstance(peak, int | float) and 0 <= peak < _MOST_MB else 0.0,
    )


def _failed(spec: ModelSpec, error: Any, end: str) -> MedaiError:
    if error is None:
        return ModelError(f"The process that ran {spec.title!r} stopped without a result: {end}.")
    told = _mapping(error)
    text = plain_text(told.get("text", ""), 2000)
    kind = told.get("kind")
    if kind in _KINDS:
        found: MedaiError = getattr(errors, kind)(text)
        return found
    return ModelError(f"The model {spec.title!r} failed: {text}.")


def _progress(value: Any) -> tuple[float, float, str]:
    try:
        done, total, text = value
        done, total = float(done), float(total)
    except (TypeError, ValueError, OverflowError):
        return 0.0, 1.0, ""
    if not (isfinite(done) and isfinite(total) and 0 <= done <= total and total > 0):
        return 0.0, 1.0, plain_text(text)
    return done, total, plain_text(text)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 10**9 else 0


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _sequence(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
