"""nnU-Net beside this package: the whole predictor, and the way from logits to labels alone.

    MEDAI_NNUNET=.venv-nnunet/bin/python python -m benchmarks.nnunet_peer [stage|predictor] [key=value …]

Both sides run one after the other, each in a process of its own, on as many threads; weights are fabricated (fitted to
a phantom, by the code of the tests), mirroring is off. One JSON object a line is printed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
LABELS_FILE, RESULT_FILE = "labels.npy", "result.json"


def stage(
    channels: int = 117,
    shape: tuple[int, int, int] = (24, 273, 273),
    out_shape: tuple[int, int, int] = (24, 512, 512),
    kind: str = "organs",
    theirs: bool = True,
) -> dict[str, Any]:
    """From logits to labels: linear in planes on both sides, so that some of a scan's are enough.

    Parameters
    ----------
    channels : int
        Classes.
    shape, out_shape : tuple of 3 ints
        Of the network's grid and of the labels'.
    kind : {"organs", "smooth"}
        Logits of balls of one class each with noise; or smooth noise, where borders are everywhere.
    theirs : bool
        Whether nnU-Net is run, too; it holds channels x voxels in double precision.

    Returns
    -------
    dict
        ``ours``, ``theirs`` (seconds, cpu_seconds, peak_mb), ``ratio`` of seconds, and ``differ``, a share of voxels.
    """
    sys.path.insert(0, str(ROOT))
    from tests.engine.nnunet.fabricate import Made, plans

    job = {"channels": channels, "shape": shape, "out_shape": out_shape, "kind": kind, "plans": plans(Made())}
    found = _both("stage", job, theirs)
    del found["plans"]
    return found


def predictor(
    shape: tuple[int, int, int] = (160, 256, 256),
    spacing: tuple[float, float, float] = (1.5, 0.9, 0.9),
    patch: tuple[int, int, int] = (96, 96, 96),
    features: tuple[int, ...] = (32, 64, 128, 256, 320),
    classes: int = 24,
    folds: int = 1,
    theirs: bool = True,
    device: str = "cpu",
) -> dict[str, Any]:
    """The whole of a prediction: preparation, network, labels on the image's voxels.

    Parameters
    ----------
    shape, spacing : tuple
        Of the scan, z, y, x; the model's spacing is 1.5 mm.
    patch, features : tuple
        Of the network: a plain U-Net with two convolutions a stage.
    classes : int
        With background, from 4 on; the phantom shows 4 of them.
    folds : int
        How many are averaged.
    theirs : bool
        Whether nnU-Net is run, too.
    device : str
        ``"cpu"`` or ``"cuda"``.

    Returns
    -------
    dict
        As `stage`.
    """
    sys.path.insert(0, str(ROOT))
    from tests.engine.nnunet.fabricate import LABELS, Made, folder_of, make, phantom

    stages = len(features)
    extra = {f"class {n}": n for n in range(4, classes)}
    made = Made(
        patch=patch, features=features, labels={**LABELS, **extra}, kernels=((3, 3, 3),) * stages,
        strides=((1, 1, 1), *((2, 2, 2),) * (stages - 1)), folds=tuple(map(str, range(folds))),
        channel_names=("CT",), schemes=("CTNormalization",),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        data = make(Path(place), made)
        np.save(Path(place) / "image.npy", phantom(shape, spacing, 1, seed=3)[0])
        job = {
            "model": str(folder_of(Path(place), made, "3d_fullres")), "package": str(data), "folds": list(made.folds),
            "image": str(Path(place) / "image.npy"), "spacing": spacing, "device": device,
        }  # fmt: skip
        return _both("predictor", job, theirs)


def _both(what: str, job: dict[str, Any], theirs: bool) -> dict[str, Any]:
    sides: dict[str, Any] = {"ours": sys.executable}
    if theirs:
        sides["theirs"] = os.environ["MEDAI_NNUNET"]
    found: dict[str, Any] = {"what": what, **job}
    labels = {}
    for side, python in sides.items():
        with tempfile.TemporaryDirectory() as place:
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            command = [python, str(Path(__file__)), "--side", side, what, json.dumps(job), place]
            subprocess.run(command, check=True, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
            found[side] = json.loads((Path(place) / RESULT_FILE).read_text())
            labels[side] = np.load(Path(place) / LABELS_FILE)
    if theirs:
        found["ratio"] = found["ours"]["seconds"] / found["theirs"]["seconds"]
        found["differ"] = float(np.mean(labels["ours"] != labels["theirs"]))
    return found


def _logits(channels: int, shape: tuple[int, ...], kind: str) -> Any:
    """(channels, *shape) float16, the same on both sides."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    logits = np.empty((channels, *shape), dtype=np.float16)
    if kind == "smooth":
        for channel in logits:
            channel[...] = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), (2, 6, 6)) * 100
        return logits
    z, y, x = (np.arange(n, dtype=np.float32) for n in shape)
    z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
    for n, channel in enumerate(logits):
        centre = [rng.uniform(-20, shape[0] + 20), *(rng.uniform(0.2, 0.8) * size for size in shape[1:])]
        radius = rng.uniform(0.02, 0.1) * shape[1]
        distance = radius - np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2)
        noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 0.7)
        channel[...] = noise + (np.clip(2 * distance, -8, 8) if n else 0)
    return logits


def _our_stage(job: dict[str, Any], clock: _Clock) -> Any:
    from napari_medai.engine.slabs import Decide, Undo

    logits = _logits(job["channels"], tuple(job["shape"]), job["kind"])
    clock.start()
    undo = Undo(job["shape"], job["out_shape"], Decide(tuple(range(job["channels"]))), how="sampled", half=True)
    found = np.empty(job["out_shape"], dtype=np.uint8)
    for start in range(0, job["shape"][0], 4):
        for first, labels in undo.add(logits[:, start : start + 4]):
            found[first : first + len(labels)] = labels
    undo.finish()
    return found


def _their_stage(job: dict[str, Any], clock: _Clock) -> Any:
    import torch
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(job["plans"])
    spacing = plans.get_configuration("3d_fullres").spacing
    dataset = {"labels": {"background": 0} | {str(n): n for n in range(1, job["channels"])}}
    shape, out_shape = job["shape"], job["out_shape"]
    properties = {
        "spacing": [s * old / new for s, old, new in zip(spacing, shape, out_shape, strict=True)],
        "shape_before_cropping": out_shape, "shape_after_cropping_and_before_resampling": out_shape,
        "bbox_used_for_cropping": [[0, n] for n in out_shape],
    }  # fmt: skip
    logits = torch.from_numpy(_logits(job["channels"], tuple(shape), job["kind"]))
    clock.start()
    return convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans, plans.get_configuration("3d_fullres"), plans.get_label_manager(dataset), properties
    )


def _our_prediction(job: dict[str, Any], clock: _Clock) -> Any:
    import napari_medai as medai
    import napari_medai.engine.nnunet.run
    from napari_medai.core.geometry import scaling
    from napari_medai.core.volume import Volume
    from napari_medai.models import load, nnunet

    volume = Volume(np.load(job["image"])[0], "zyx", scaling(job["spacing"]), units="mm", modality="CT", name="phantom")
    model = load(nnunet.describe(Path(job["package"]), mirroring=False))
    clock.start()
    return medai.segment(volume, model, device=job["device"]).labels.numpy()


def _their_prediction(job: dict[str, Any], clock: _Clock) -> Any:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=False, device=torch.device(job["device"]),
        perform_everything_on_device=job["device"] != "cpu", allow_tqdm=False,
    )  # fmt: skip
    image = np.load(job["image"])
    clock.start()
    predictor.initialize_from_trained_model_folder(job["model"], [int(n) for n in job["folds"]], "checkpoint_final.pth")
    return predictor.predict_single_npy_array(image, {"spacing": job["spacing"]}, None)


class _Clock:
    """Seconds from `start` on, of the wall and of the processor."""

    def start(self) -> None:
        self.wall, self.processor = time.perf_counter(), time.process_time()
        self.before_mb = _peak_mb()

    def stop(self) -> dict[str, float]:
        return {
            "seconds": time.perf_counter() - self.wall,
            "cpu_seconds": time.process_time() - self.processor,
            "peak_mb": _peak_mb(),
            "before_mb": self.before_mb,
        }


def _peak_mb() -> float:
    """Largest resident size, MiB, by Linux: getrusage begins with that of the process that started this one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("Linux is needed to measure peak memory")


def _side(side: str, what: str, job: dict[str, Any], place: Path) -> None:
    import warnings

    warnings.simplefilter("ignore")
    run = {
        ("ours", "stage"): _our_stage, ("theirs", "stage"): _their_stage,
        ("ours", "predictor"): _our_prediction, ("theirs", "predictor"): _their_prediction,
    }[side, what]  # fmt: skip
    clock = _Clock()
    labels = run(job, clock)
    (place / RESULT_FILE).write_text(json.dumps(clock.stop()))
    np.save(place / LABELS_FILE, np.asarray(labels))


def main(arguments: list[str]) -> None:
    """What was asked for; both where nothing was."""
    if arguments[:1] == ["--side"]:
        _side(arguments[1], arguments[2], json.loads(arguments[3]), Path(arguments[4]))
        return
    options = {name: json.loads(value) for name, _, value in (a.partition("=") for a in arguments if "=" in a)}
    for name, function in (("stage", stage), ("predictor", predictor)):
        if name in arguments or not {"stage", "predictor"} & set(arguments):
            print(json.dumps(function(**options)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
