"""The patient's sides in letters at the edges of the canvas: R, L, A, P, I, S (DICOM PS3.3, C.7.6.1.1.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from napari_medai.core.geometry import Affine

_LETTERS = (("I", "S"), ("A", "P"), ("R", "L"))
# A second letter where the edge is turned towards that side by more than 20 degrees.
_SECOND = np.sin(np.deg2rad(20))
_EDGES = ("top_center", "bottom_center", "middle_left", "middle_right")
_COLOR = (0.85, 0.75, 0.3, 1.0)


def side(direction: ArrayLike) -> str:
    """The side of the patient that a direction (z, y, x) points at: one letter, two where it is oblique."""
    vector = np.asarray(direction, dtype=float)
    vector = vector / np.linalg.norm(vector)
    order = np.argsort(-np.abs(vector), kind="stable")
    letters = [_LETTERS[n][int(vector[n] > 0)] for n in order[:2] if n == order[0] or abs(vector[n]) > _SECOND]
    return "".join(letters)


def edges(to_world: Affine, displayed: tuple[int, int], orientation: tuple[str, str]) -> dict[str, str]:
    """What stands at each edge of the canvas.

    Parameters
    ----------
    to_world : (4, 4) array
        Displayed -> world.
    displayed : tuple of 2 ints
        Which of z, y, x run along the screen's vertical and horizontal.
    orientation : tuple of 2 str
        ``"up"`` or ``"down"``, ``"left"`` or ``"right"``: where they grow to.

    Returns
    -------
    dict
        Text by napari's name of the place.
    """
    down = np.asarray(to_world)[:3, displayed[0]] * (1 if orientation[0] == "down" else -1)
    right = np.asarray(to_world)[:3, displayed[1]] * (1 if orientation[1] == "right" else -1)
    return dict(zip(_EDGES, (side(-down), side(down), side(-right), side(right)), strict=True))


def show_letters(viewer: Any, texts: dict[str, str]) -> None:
    """Write at the edges of a viewer's canvas; without texts nothing is shown."""
    from napari.components.overlays import TextOverlay

    overlays = viewer.canvas.overlays
    for edge in _EDGES:
        key = f"patient_{edge}"
        if key not in overlays:
            if not texts:
                continue
            overlays[key] = TextOverlay(position=edge, color=_COLOR, font_size=14, box=False)
        overlays[key].text = texts.get(edge, "")
        overlays[key].visible = bool(texts)
