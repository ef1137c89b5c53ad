"""Opens one file after another as a user would, and tells how each went; runs in a process of its own.

Reads paths from standard input, a line each, and answers each with a line of JSON.
"""

from __future__ import annotations

import faulthandler
import json
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

# Beyond what the process has, so that a file that asks for too much fails here and does not take the machine along.
SPARE_BYTES = 3 << 30
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MOST_IMAGES = 4


def examine(path: Path) -> dict[str, Any]:
    """List what a file holds, open it, compute the first, middle and last plane.

    Returns
    -------
    dict
        ``outcome``: ``"opened"``, ``"refused: …"`` with the kind of MedaiError, or ``"failed: …"`` with what else was
        raised and where. ``trace`` for those that failed.
    """
    from napari_medai.core.errors import MedaiError
    from napari_medai.core.volume import Volume
    from napari_medai.io import list_series
    from napari_medai.io import open as open_volume

    said: list[str] = []
    try:
        outcome = ""
        try:
            uids = [series.uid for series in list_series(path)]
        except MedaiError as error:
            outcome, uids = f"refused: {type(error).__name__}", [""]
            said.append(str(error))
        for uid in uids[:MOST_IMAGES]:
            try:
                volume = open_volume(path, series_uid=uid)
                if not isinstance(volume, Volume):
                    raise TypeError(f"{type(volume).__name__} is no Volume")
                if not all(isinstance(finding, str) for finding in volume.meta.get("findings", ())):
                    raise TypeError("a finding is no text")
                said += [*volume.meta.get("findings", ()), volume.name, repr(volume)]
                _planes(volume)
                outcome = outcome or "opened"
            except MedaiError as error:
                outcome = outcome or f"refused: {type(error).__name__}"
                said.append(str(error))
    except Exception as error:  # noqa: BLE001 - anything else is what is looked for
        return {"outcome": f"failed: {type(error).__name__} {_where(error)}", "trace": traceback.format_exc()[-3000:]}
    return {"outcome": outcome, "said": " ".join(said)[:100_000]}


def _planes(volume: Any) -> None:
    """Compute the first, the middle and the last plane."""
    leading = [n for n, axis in enumerate(volume.axes) if axis not in "yxs"]
    for part in (0.0, 0.5, 1.0):
        index = tuple(int(part * (volume.shape[n] - 1)) for n in leading)
        plane = np.asarray(volume.array[index])
        if plane.shape != volume.shape[len(leading) :] or plane.dtype != volume.dtype:
            raise TypeError(f"a plane is {plane.shape} {plane.dtype}, not {volume.shape} {volume.dtype}")


def _where(error: BaseException) -> str:
    """The innermost line of ours that an error came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "napari_medai" in f.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "elsewhere"


def _memory(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Answer each path until standard input ends."""
    faulthandler.enable()
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer
    import napari_medai.io.dicom
    import napari_medai.io.nifti  # noqa: F401

    measured = _CLEAR.exists()
    if measured:
        limit = _memory("VmSize") + SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        before = 0
        if measured:
            _CLEAR.write_text("5")  # the highest resident size counts from here
            before = _memory("VmRSS")
        wall, cpu = time.perf_counter(), time.process_time()
        answer = examine(Path(line.rstrip("\n")))
        answer["wall"], answer["cpu"] = time.perf_counter() - wall, time.process_time() - cpu
        answer["grown"] = _memory("VmHWM") - before if measured else 0
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
