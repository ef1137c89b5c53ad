"""What runs in the process of its own: read the job, run the model's own runner, say how far it is, write the result.

The process is started by `isolated_process`; it has given up its powers before this module is imported.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from napari_medai.core.errors import MedaiError
from napari_medai.core.stage import Params, Progress
from napari_medai.core.volume import Volume
from napari_medai.engine.isolated_values import write_result
from napari_medai.engine.run import Run, start
from napari_medai.models.spec import Model, ModelSpec
from napari_medai.models.trust import Grant

# Said more often, progress costs more than it tells
_SECONDS_BETWEEN = 0.05


class Voice(Progress):
    """Tells the process that waits, one line of JSON for each thing said. It is stopped by being ended."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._said = 0.0
        self.run: Run | None = None

    def say(self, **message: Any) -> None:
        """Write one message."""
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._descriptor, line) :]

    def update(self, done: float, total: float, message: str = "") -> None:
        """See `Progress.update`."""
        now = time.monotonic()
        if now - self._said >= _SECONDS_BETWEEN or done >= total:
            self._said = now
            tiles = self.run.tiles if self.run is not None else 0
            self.say(progress=[float(done), float(total), message[:200]], tiles=tiles)

    def note(self, message: str) -> None:
        """See `Progress.note`."""
        self.say(note=message[:1000])


def main(work: str, given_up: list[str]) -> None:
    """Run the job in a folder, and end the process."""
    # Messages go where standard output went; what the model prints goes to standard error.
    voice = Voice(os.dup(1))
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        voice.say(given_up=given_up)
        voice.say(**_run(Path(work), voice))
    except MedaiError as error:
        voice.say(error={"kind": type(error).__name__, "text": str(error)[:4000]})
    except Exception as error:  # noqa: BLE001  # whatever a package's program raises is told, and nothing goes on
        voice.say(error={"kind": "", "text": f"{type(error).__name__}: {str(error)[:1000]}"})
    sys.stderr.flush()
    os._exit(0)  # threads and handlers of the program are not waited for


def _run(work: Path, voice: Voice) -> dict[str, Any]:
    job = json.loads((work / "job.json").read_text(encoding="utf-8"))
    array = np.load(work / "volume.npy", allow_pickle=False)
    volume = Volume(array, name="image", **job["volume"])
    grant = Grant(job["grant"]["sha256"], frozenset(job["grant"]["capabilities"]))
    model = Model(
        spec=ModelSpec.model_validate(job["spec"]), folder=Path(job["folder"]), source=job["source"], grant=grant
    )
    params: Params = _load(job["params"]["class"])(**job["params"]["values"])
    with start(job["stage"], volume, model, params, voice) as run:
        voice.run = run
        result = _load(job["runner"])(volume, run, params)
        rest = write_result(work / "own", result)
        record = run.provenance()
    return {
        "done": rest,
        "device": record.device,
        "precision": record.precision,
        "tiles": record.tiles,
        "peak_memory_mb": record.peak_memory_mb,
    }


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def _end_with_parent() -> None:
    """The pipe ends when the process that waits has gone, however it went."""
    while os.read(0, 4096):
        pass
    os._exit(1)
