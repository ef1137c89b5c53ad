"""Series dragged from the study browser and dropped on napari's canvas.

napari takes urls only, and a url cannot say which series of a folder is meant: a filter on the canvas takes what the
browser drags, and leaves all else to napari.
"""

from __future__ import annotations

import json
from typing import Any

from qtpy.QtCore import QEvent, QObject, Signal
from qtpy.QtWidgets import QWidget

from napari_medai.ui.browser_rows import MIME

_DRAGS = (QEvent.Type.DragEnter, QEvent.Type.DragMove)


class CanvasDrops(QObject):
    """Listens on a viewer's canvas for dragged series as long as it lives.

    Emits ``dropped`` with a list of (path, series UID).

    Parameters
    ----------
    viewer : napari.Viewer
        Whose canvas.
    parent : QObject
        With which it ends.
    """

    dropped = Signal(list)

    def __init__(self, viewer: Any, parent: QObject) -> None:
        super().__init__(parent)
        canvas = viewer.window._qt_viewer
        # over an empty canvas napari lays a welcome page, which takes drops of its own
        for widget in (canvas, *(w for w in canvas.findChildren(QWidget) if w.acceptDrops())):
            widget.installEventFilter(self)

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:  # noqa: N802  (Qt's name)
        """Take drags of ours."""
        if event is None or event.type() not in (*_DRAGS, QEvent.Type.Drop):
            return False
        data = event.mimeData()
        if data is None or not data.hasFormat(MIME):
            return False
        event.acceptProposedAction()
        if event.type() == QEvent.Type.Drop:
            self.dropped.emit([(path, uid) for path, uid in json.loads(bytes(data.data(MIME)))])
        return True
