"""What stands in for the zoo's script of lung nodule detection: apply a RetinaNet detector to one image.

The script that a bundle brings along is not run. This does the same step, and is taken only where the script's bytes
are those that were read (`napari_medai.models.monai.reviewed.STAND_INS`).
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.inferers import Inferer
from torch import nn


class RetinaNetInferer(Inferer):
    """Boxes of images, by windows where an image is as large as the detector's window or larger.

    Parameters
    ----------
    detector : RetinaNetDetector
        With its settings made.
    force_sliding_window : bool
        Whether to go by windows however small the image is.
    """

    def __init__(self, detector: RetinaNetDetector, force_sliding_window: bool = False) -> None:
        self.detector, self.always = detector, force_sliding_window

    def __call__(self, inputs: list[torch.Tensor], network: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """One mapping of boxes, labels and scores for each image (c, x, y, z)."""
        self.detector.network = network
        self.detector.eval()
        window = prod(getattr(self.detector.inferer, "roi_size", None) or (0,))
        large = any(image[0].numel() >= window for image in inputs)
        return self.detector(inputs, use_inferer=self.always or bool(window and large), *args, **kwargs)  # noqa: B026
