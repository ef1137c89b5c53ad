"""The panels as napari finds them.

napari gives its viewer to classes of widgets by the annotation of a parameter, not to functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_medai.ui.browser import StudyBrowser
from napari_medai.ui.models import ModelsDock
from napari_medai.ui.pacs import ArchiveDock
from napari_medai.ui.panel import StagePanel

if TYPE_CHECKING:
    import napari.viewer

__all__ = [
    "archive_panel",
    "browser_panel",
    "classify_panel",
    "denoise_panel",
    "detect_panel",
    "explain_panel",
    "models_panel",
    "segment_panel",
]


class DenoisePanel(StagePanel):
    """Remove noise by a network that learns on the image itself."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer, "denoise")


class SegmentPanel(StagePanel):
    """Label organs, tissue or single nuclei."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer, "segment")


class ClassifyPanel(StagePanel):
    """Score an image and each of its slices."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer, "classify")


class DetectPanel(StagePanel):
    """Find objects: centres, sizes and scores."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer, "detect")


class ExplainPanel(StagePanel):
    """Show where a network looked, as a heatmap on the scan."""

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__(viewer, "explain")


# the names in the manifest
archive_panel = ArchiveDock
browser_panel = StudyBrowser
denoise_panel = DenoisePanel
segment_panel = SegmentPanel
classify_panel = ClassifyPanel
detect_panel = DetectPanel
explain_panel = ExplainPanel
models_panel = ModelsDock
