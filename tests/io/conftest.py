"""What tests of files share."""

from __future__ import annotations

import numpy as np
import pytest

from napari_medai.core.result import Mask
from napari_medai.core.volume import Volume


@pytest.fixture
def mask(oblique_affine, provenance) -> Mask:
    """Two boxes, of 2 x 3 x 4 and 1 x 2 x 2 voxels of 4 x 1.5 x 2 mm, not symmetric in any axis."""
    labels = np.zeros((6, 20, 16), np.uint8)
    labels[1:3, 2:5, 3:7] = 1
    labels[4, 10:12, 1:3] = 2
    names = {1: "heart", 2: "lung"}
    return Mask(Volume(labels, "zyx", oblique_affine, "mm", meta={"is_labels": True}), provenance, names)
