"""Runners of the two models for fluorescence: instances of nuclei, and boxes of micronuclei.

Both bring the image to a typical nucleus of `Prepare.object_diameter` pixels and to the percentiles
`Prepare.low` and `Prepare.high`, run the network in tiles, and come back to the image's own grid. Images of more than
`LARGEST_WHOLE` pixels are never held at once: they are read, computed and written from their top to their bottom.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from napari_medai.core.volume import Volume
from napari_medai.engine.blocks import Blocks, rows_of_band
from napari_medai.engine.explain import Probe
from napari_medai.engine.instances import Decoding, decode_part
from napari_medai.engine.objectsize import estimate_diameter, rescale, rescaled_to_original, resize, scale_for
from napari_medai.engine.peaks import PeakRows, detect_peaks, detections
from napari_medai.engine.results import Found
from napari_medai.engine.slide import LARGEST_WHOLE, Rescaled, SlideRows, survey
from napari_medai.engine.store import choose_store, fingerprint
from napari_medai.nets.nuclei import SquareRootUNet

if TYPE_CHECKING:
    from napari_medai.engine.run import Run

# Grad-CAM++ weighs features by sums over its input: only what goes through at once can be compared. Two gigabytes.
LARGEST_AT_ONCE = (1536, 1536)


# Margin of a block in typical diameters: the depth of a nucleus depends on nothing further away
MARGIN_DIAMETERS, LEAST_MARGIN = 4, 64
# Labels of a slide are kept in memory up to this share of what is free, and never more than so many MiB
FREE_SHARE, MOST_LABELS_MB = 0.25, 1024.0


def at_object_size(image: NDArray[np.float32], run: Run, diameter: float) -> NDArray[np.float32]:
    """The network's input (1, y', x'): percentiles at 0 and 1, objects at the model's size.

    Parameters
    ----------
    image : (y, x) float32 array
        As acquired.
    run : Run
        Its description tells the percentiles and the size.
    diameter : float
        Typical diameter in pixels; 0 estimates it from the image.
    """
    prepare = run.spec.prepare
    scale = _scale(run, diameter, diameter or estimate_diameter(image))
    low, high = np.percentile(image, (prepare.low, prepare.high))
    normal = (image - np.float32(low)) / np.float32(max(float(high - low), 1e-6))
    return rescale(normal[None], scale)


def _scale(run: Run, given: float, found: float | None) -> float:
    """Size of the network's pixels, with a note of how it was found."""
    if not given and found is None:
        run.note("no object stands out: the image is taken at its own size")
    elif not given:
        run.note(f"typical diameter estimated from the image: {found:.1f} pixels")
    return scale_for(found or None, run.spec.prepare.object_diameter or found or 1.0)


def is_slide(volume: Volume) -> bool:
    """Whether an image goes from its top to its bottom, for it is too large to be held at once."""
    return int(np.prod(volume.spatial_shape[-2:], dtype=np.int64)) > LARGEST_WHOLE


def segment_nuclei(volume: Volume, run: Run, params: Any) -> Any:
    """Instances on a 2-D image (y, x), numbered from 1: int32, lazy where they do not fit into memory."""
    if is_slide(volume) or _store(run) is not None:
        return segment_slide(volume, run, params)
    image = volume.numpy()
    maps = run.predict(at_object_size(image, run, params.diameter))
    foreground, depth = resize(maps, (image.shape[0], image.shape[1]))
    return decode_part(foreground, depth, _decoding(run, params)).labels


def _store(run: Run) -> Path | None:
    """Where labels go; a folder holds those of one image, not of a series."""
    return None if "t" in run.volume.axes else run.progress.store


def _decoding(run: Run, params: Any) -> Decoding:
    options = run.spec.options
    return Decoding(
        params.threshold or float(options["foreground_threshold"]),
        float(options["seed_threshold"]),
        float(options["saddle"]),
        params.min_size or int(options["min_area"]),
    )


def _rescaled(volume: Volume, run: Run, diameter: float) -> tuple[Rescaled, float]:
    """The network's input, read when it is needed, and its size over the image's."""
    rows, prepare = SlideRows(volume.array), run.spec.prepare
    seen = survey(rows, prepare.low, prepare.high, diameter, run.progress.check)
    scale = _scale(run, diameter, diameter or seen.diameter)
    shape = (max(1, round(rows.shape[0] * scale)), max(1, round(rows.shape[1] * scale)))
    return Rescaled(rows, shape, seen.low, seen.high), scale


def segment_slide(volume: Volume, run: Run, params: Any, block: tuple[int, int] = (0, 0)) -> Any:
    """As `segment_nuclei`, in memory that grows with the image's width and not with its height.

    Parameters
    ----------
    volume : Volume
        Axes ``yx``; read as it is needed.
    run, params
        Of the stage.
    block : tuple of 2 ints
        Rows and columns that are decoded at once; 0 chooses. The result does not depend on it.
    """
    seen, scale = _rescaled(volume, run, params.diameter)
    shape, grid = seen.rows.shape, (seen.shape[1], seen.shape[2])
    how = _decoding(run, params)
    typical = (run.spec.prepare.object_diameter or 1.0) / scale
    margin = int(max(LEAST_MARGIN, MARGIN_DIAMETERS * typical, 3 * how.min_area**0.5))
    block = (block[0] or rows_of_band(shape, grid, margin), block[1])
    identity = {
        "image": fingerprint(volume),
        "model": f"{run.spec.id} {run.spec.sha256}",
        "maps": json.dumps([grid, seen.low, seen.high, run.params.tile, run.precision]),
        "objects": json.dumps([vars(how), margin, block]),
    }
    free = min(MOST_LABELS_MB, FREE_SHARE * psutil.virtual_memory().available / 2**20)
    store = choose_store(shape, np.int32, _store(run), identity, free, run.note)
    complete = False
    try:
        blocks = Blocks(
            shape, grid, how, store, margin, block, lambda found, where: run.progress.partial(found, where), run.note
        )
        if store.finished:
            run.note(f"went on at row {store.finished} of {shape[0]}, where an earlier run ended")
        if store.finished < shape[0]:
            run.stream(seen, blocks.take, begin=blocks.begin, after=lambda channels: blocks.memory_mb)
        blocks.close()
        complete = True
    finally:
        store.close(complete)
    return store.labels()


def detect_micronuclei(volume: Volume, run: Run, params: Any) -> Found:
    """Centres and boxes on a 2-D image (y, x)."""
    options = run.spec.options
    threshold, apart = params.threshold or float(options["threshold"]), float(options["min_distance"])
    own = volume.spatial_shape
    if is_slide(volume):
        seen, _ = _rescaled(volume, run, params.diameter)
        shape = (seen.shape[1], seen.shape[2])
        found = PeakRows(threshold, shape)
        run.stream(seen, lambda first, scores: found.take(first, scores[:3]))
        peaks = detections(*found.result(), min_distance=apart)
    else:
        maps = run.predict(at_object_size(volume.numpy(), run, params.diameter))
        shape = (maps.shape[1], maps.shape[2])
        peaks = detect_peaks(maps[0], maps[1:3], threshold=threshold, min_distance=apart)
    centres = rescaled_to_original(peaks.centres, shape, (own[0], own[1]))
    sizes = peaks.sizes * (np.array(own) / np.array(shape))
    return Found(centres, sizes, [run.spec.gives.labels[0].name] * len(peaks), peaks.scores)


def probe_nuclei(volume: Volume, run: Run) -> Probe:
    """What explains the segmenter: the foreground logit, summed over the pixels that are foreground."""
    image = volume.numpy()
    network = run.network()
    inputs = torch.from_numpy(at_object_size(image, run, 0.0))[None].to(run.device)

    def score(x: torch.Tensor, _target: int) -> torch.Tensor:
        foreground: torch.Tensor = network(x)[:, 0]
        return (torch.logit(foreground, eps=1e-6) * (foreground.detach() > 0.5)).sum()

    return Probe(
        inputs=inputs,
        score=score,
        layer=network.get_submodule(SquareRootUNet.cam_layer),
        evidence=np.ones(1),
        attention=None,
        back=lambda heat: resize(heat, (image.shape[0], image.shape[1]))[0],
        tile=LARGEST_AT_ONCE,
        multiple=run.spec.tiling.multiple,
    )
