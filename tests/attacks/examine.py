"""Open packages as a user would, under the guard; a process of its own. ``python -m tests.attacks.examine JOB``.

A job is a JSON file: what is done (``probe`` or ``run``), packages by id, and the only folder that may be written to.
For each package one line of JSON goes to the file of results, written before the next package is opened.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.attacks.guard import Guard

_SECONDS = 60


class TooLongError(BaseException):
    """Not an Exception: nothing may take it for a broken file."""


@contextmanager
def limited(seconds: int):
    def stop(*_):
        raise TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def look(path: Path, guard: Guard, open_it) -> dict:
    """What became of one package."""
    from napari_medai.core.errors import MedaiError

    guard.seen.clear()
    # of this process alone: other tests may run beside it
    begun = time.process_time()
    try:
        with limited(_SECONDS):
            guard.armed = True
            outcome = open_it(path)
    except MedaiError as error:
        outcome = {"refused": type(error).__name__, "says": str(error)[:2000]}
    except TooLongError:
        outcome = {"wrong": f"not done after {_SECONDS} s"}
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is a finding
        import traceback

        where = " < ".join(
            f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-4:]
        )
        outcome = {"wrong": f"{type(error).__name__}: {str(error)[:500]} ({where})"}
    finally:
        guard.armed = False
    return outcome | {"seconds": time.process_time() - begun, "guarded": list(guard.seen)}


def probe(path: Path) -> dict:
    from napari_medai.models import probe

    spec = probe(path)
    spec.model_dump_json()
    needs = [[need.capability, need.where, need.why] for need in spec.needs]
    return {"needs": needs} if needs else {"clean": spec.source}


def run(path: Path, later) -> dict:
    import importlib

    import numpy as np

    from napari_medai.core.stage import Progress
    from napari_medai.core.volume import Volume
    from napari_medai.models import load_model
    from napari_medai.stages import STAGES

    model = load_model(path)
    accepts, stage = model.spec.accepts, STAGES[model.spec.stage]
    later()
    # as small as models take, so that hundreds of them run
    shape, axes = ((16, 16, 16), "zyx") if 3 in accepts.ndim else ((32, 32), "yx")
    pixels = np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)
    if accepts.channels > 1:
        pixels, axes = np.stack([pixels] * accepts.channels), "c" + axes
    volume = Volume(pixels, axes, units="mm", modality=(*accepts.modality, "")[0])
    # mirrored images show nothing more, and take eight times as long
    mirror = {"mirror": False} if model.spec.stage == "segment" else {}
    params = stage.params(device="cpu", override=True, **mirror)
    module, _, function = stage.function.partition(":")
    result = getattr(importlib.import_module(module), function)(volume, model, params, Progress())
    return {"ran": type(result).__name__}


def unwatched(guard: Guard, change, path: Path, marker: Path) -> None:
    """The attacker changes the package, which is no doing of ours."""
    if change is not None:
        guard.armed = False
        change(path, marker)
        guard.armed = True


def main(job: Path) -> None:
    order = json.loads(job.read_text())
    # so that a bomb ends itself and not the machine
    limit = (4 if order["do"] == "probe" else 24) << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    import napari_medai.models as models

    # the sources themselves are no part of what is timed
    for module in models.SOURCES.values():
        __import__(module)
    later = {}
    if order["do"] == "run":
        import tests.attacks.all
        from napari_medai.engine import RUNNERS
        from tests.attacks.corpus import ATTACKS

        for target in RUNNERS.values():
            __import__(target.partition(":")[0])
        for id, attack in ATTACKS.items():
            if attack.later is not None:
                later[id] = attack.later
        assert tests.attacks.all
    guard = Guard([Path(order["may_write"])])
    with Path(order["results"]).open("a") as results:
        for id, path, marker in order["packages"]:
            results.write(json.dumps({"begun": id}) + "\n")
            results.flush()
            if order["do"] == "probe":
                outcome = look(Path(path), guard, probe)
            else:
                change = partial(unwatched, guard, later.get(id), Path(path), Path(marker))
                outcome = look(Path(path), guard, partial(run, later=change))
            outcome["marker"] = Path(marker).exists()
            outcome["torch"] = "torch" in sys.modules
            results.write(json.dumps({"id": id} | outcome) + "\n")
            results.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
