"""Runners of the two models for fluorescence: instances of nuclei, and boxes of micronuclei.

Both bring the image to a typical nucleus of `Prepare.object_diameter` pixels and to the percentiles
`Prepare.low` and `Prepare.high`, run the network in tiles, and come back to the image's own grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_medai.core.volume import Volume
from napari_medai.engine.explain import Probe
from napari_medai.engine.instances import decode_instances
from napari_medai.engine.objectsize import estimate_diameter, rescale, rescaled_to_original, resize, scale_for
from napari_medai.engine.peaks import detect_peaks
from napari_medai.engine.results import Found
from napari_medai.nets.nuclei import SquareRootUNet

if TYPE_CHECKING:
    from napari_medai.engine.run import Run

# Grad-CAM++ weighs features by sums over its input: only what goes through at once can be compared. Two gigabytes.
LARGEST_AT_ONCE = (1536, 1536)


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
    if not diameter:
        estimate = estimate_diameter(image)
        if estimate is None:
            run.note("no object stands out: the image is taken at its own size")
        else:
            run.note(f"typical diameter estimated from the image: {estimate:.1f} pixels")
        diameter = estimate or 0.0
    scale = scale_for(diameter or None, prepare.object_diameter or diameter or 1.0)
    low, high = np.percentile(image, (prepare.low, prepare.high))
    normal = (image - np.float32(low)) / np.float32(max(float(high - low), 1e-6))
    return rescale(normal[None], scale)


def segment_nuclei(volume: Volume, run: Run, params: Any) -> NDArray[np.int32]:
    """Instances on a 2-D image (y, x), numbered from 1."""
    image = volume.numpy()
    maps = run.predict(at_object_size(image, run, params.diameter))
    options = run.spec.options
    foreground, depth = resize(maps, (image.shape[0], image.shape[1]))
    return decode_instances(
        foreground,
        depth,
        foreground_threshold=params.threshold or float(options["foreground_threshold"]),
        seed_threshold=float(options["seed_threshold"]),
        saddle=float(options["saddle"]),
        min_area=params.min_size or int(options["min_area"]),
    )


def detect_micronuclei(volume: Volume, run: Run, params: Any) -> Found:
    """Centres and boxes on a 2-D image (y, x)."""
    image = volume.numpy()
    small = at_object_size(image, run, params.diameter)
    maps = run.predict(small)
    options = run.spec.options
    peaks = detect_peaks(
        maps[0],
        maps[1:3],
        threshold=params.threshold or float(options["threshold"]),
        min_distance=float(options["min_distance"]),
    )
    shape, own = (maps.shape[1], maps.shape[2]), (image.shape[0], image.shape[1])
    centres = rescaled_to_original(peaks.centres, shape, own)
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
