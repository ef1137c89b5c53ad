"""Runners of the two models for fluorescence: instances of nuclei, and boxes of micronuclei.

Both bring the image to a typical nucleus of `Prepare.object_diameter` pixels and to the percentiles `Prepare.low` and
`Prepare.high`, run the network in tiles, and come back to the image's own grid. An image is read, computed and written
from its top to its bottom, so that a slide takes the memory of its width and not of its height.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from napari_medai.core.volume import Volume
from napari_medai.engine.blocks import Blocks
from napari_medai.engine.explain import Probe
from napari_medai.engine.instances import Decoding
from napari_medai.engine.objectsize import rescaled, rescaled_to_original, scale_for
from napari_medai.engine.peaks import PeakRows, detections
from napari_medai.engine.planes import Planes
from napari_medai.engine.planning import Made
from napari_medai.engine.resample import resample
from napari_medai.engine.results import Found
from napari_medai.engine.sink import identity
from napari_medai.engine.slide import SlideRows, survey
from napari_medai.engine.store import choose_store
from napari_medai.nets.nuclei import SquareRootUNet

if TYPE_CHECKING:
    from napari_medai.engine.run import Run

# Grad-CAM++ weighs features by sums over its input: only what goes through at once can be compared. Two gigabytes.
LARGEST_AT_ONCE = (1536, 1536)
# Margin of a block in typical diameters: the depth of a nucleus depends on nothing further away
MARGIN_DIAMETERS, LEAST_MARGIN = 4, 64
# Labels are kept in memory up to this share of what is free, and never more than so many MiB
FREE_SHARE, MOST_LABELS_MB = 0.25, 1024.0


def at_object_size(image: Any, run: Run, diameter: float) -> tuple[Planes, float]:
    """The network's input (1, y', x'), made when it is looked at: percentiles at 0 and 1, objects at the model's size.

    Parameters
    ----------
    image : (y, x) array
        As acquired: numpy, dask or Zarr.
    run : Run
        Its description tells the percentiles and the size.
    diameter : float
        Typical diameter in pixels; 0 estimates it from the image.

    Returns
    -------
    Planes, float
        The input, and its size over the image's.
    """
    rows, prepare = SlideRows(image), run.spec.prepare
    seen = survey(rows, prepare.low, prepare.high, diameter, run.progress.check)
    if seen.diameter is None:
        run.note("no object stands out: the image is taken at its own size")
    elif not diameter:
        run.note(f"typical diameter estimated from the image: {seen.diameter:.1f} pixels")
    scale = scale_for(seen.diameter, prepare.object_diameter or seen.diameter or 1.0)
    shape = rescaled(rows.shape[1:], scale)
    return Planes(rows, None, shape, (seen.low,), (max(seen.high - seen.low, 1e-6),)), scale


def segment_nuclei(volume: Volume, run: Run, params: Any) -> Any:
    """Instances on a 2-D image (y, x), numbered from 1: int32, lazy where they do not fit into memory."""
    seen, scale = at_object_size(volume.array, run, params.diameter)
    options = run.spec.options
    how = Decoding(
        params.threshold or float(options["foreground_threshold"]),
        float(options["seed_threshold"]),
        float(options["saddle"]),
        params.min_size or int(options["min_area"]),
    )
    typical = (run.spec.prepare.object_diameter or 1.0) / scale
    margin = int(max(LEAST_MARGIN, MARGIN_DIAMETERS * typical, 3 * how.min_area**0.5))
    height, width = volume.spatial_shape
    # a folder holds the labels of one image, not of a series
    folder = None if "t" in run.volume.axes else run.progress.store
    most = min(MOST_LABELS_MB, FREE_SHARE * run.room().free_mb)
    same = identity(run) if folder is not None else None
    store = choose_store((height, width), np.int32, folder, same, most, run.note)
    try:
        grid = (seen.shape[1], seen.shape[2])
        blocks = Blocks((height, width), grid, how, store, margin, tell=run.progress.partial, note=run.note)
        if store.finished:
            run.note(f"went on at row {store.finished} of {height}, where an earlier run ended")
        if store.finished < height:
            made = Made(store.held_bytes / 2**20, between_mb=blocks.memory_mb)
            run.decided = partial(_found, threshold=how.foreground_threshold)
            run.stream(seen, blocks.take, begin=blocks.begin, made=lambda channels: made, empty=run.spec.tiling.empty)
        blocks.close()
    finally:
        store.close()
    return store.labels()


def detect_micronuclei(volume: Volume, run: Run, params: Any) -> Found:
    """Centres and boxes on a 2-D image (y, x)."""
    options = run.spec.options
    threshold, apart = params.threshold or float(options["threshold"]), float(options["min_distance"])
    seen, _ = at_object_size(volume.array, run, params.diameter)
    own, grid = (volume.size("y"), volume.size("x")), (seen.shape[1], seen.shape[2])
    found = PeakRows(threshold, grid)
    run.decided = partial(_found, threshold=threshold)
    run.stream(seen, lambda first, scores: found.take(first, scores[:3]), empty=run.spec.tiling.empty)
    peaks = detections(*found.result(), min_distance=apart)
    centres = rescaled_to_original(peaks.centres, grid, own)
    sizes = peaks.sizes * (np.array(own) / np.array(grid))
    return Found(centres, sizes, [run.spec.gives.labels[0].name] * len(peaks), peaks.scores)


def _found(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Where there may be objects: the first channel comes half way to the threshold."""
    return scores[0] >= threshold / 2


def probe_nuclei(volume: Volume, run: Run) -> Probe:
    """What explains the segmenter: the foreground logit, summed over the pixels that are foreground."""
    image = volume.numpy()
    network = run.network()
    inputs = torch.from_numpy(np.asarray(at_object_size(image, run, 0.0)[0]))[None].to(run.device)

    def score(x: torch.Tensor, _target: int) -> torch.Tensor:
        foreground: torch.Tensor = network(x)[:, 0]
        return (torch.logit(foreground, eps=1e-6) * (foreground.detach() > 0.5)).sum()

    return Probe(
        inputs=inputs,
        score=score,
        layer=network.get_submodule(SquareRootUNet.cam_layer),
        evidence=np.ones(1),
        attention=None,
        back=lambda heat: resample(heat, image.shape)[0],
        tile=LARGEST_AT_ONCE,
        multiple=run.spec.tiling.multiple,
    )
