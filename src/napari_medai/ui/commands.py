"""Menu entries that open what napari's own dialogs cannot: DICOM folders and files without extension.

napari picks readers by file name. A folder opened from a script or a dropped one has to be told which reader
to take, and a file called ``IM_0001`` has none; these commands ask for a path and read it.
"""

from __future__ import annotations

from typing import Any

from napari_medai.core.errors import InputError


def open_dicom_folder() -> None:
    """Ask for a folder and open what the user chooses of its series."""
    viewer = _viewer()
    path = ask_folder(viewer)
    if path:
        open_paths(viewer, [path])


def open_dicom_files() -> None:
    """Ask for files, with any extension or none, and open the series they belong to."""
    viewer = _viewer()
    paths = ask_files(viewer)
    if paths:
        open_paths(viewer, paths)


def open_paths(viewer: Any, paths: list[str]) -> list[Any]:
    """Read DICOM files or folders into a viewer.

    Returns
    -------
    list of napari Layers
        Those that were added.

    Raises
    ------
    ReadError
        Nothing can be opened.
    """
    from napari.layers import Layer

    from napari_medai.ui.readers import read_dicom
    from napari_medai.ui.viewing import attach

    attach(viewer)
    return [viewer.add_layer(Layer.create(*layer)) for layer in read_dicom(paths) if layer[0] is not None]


def ask_folder(viewer: Any) -> str:
    """A folder from the system's dialog; empty if the user changed their mind."""
    from qtpy.QtWidgets import QFileDialog

    return str(QFileDialog.getExistingDirectory(_window(viewer), "Open DICOM folder"))


def ask_files(viewer: Any) -> list[str]:
    """Files from the system's dialog; empty if the user changed their mind."""
    from qtpy.QtWidgets import QFileDialog

    found, _ = QFileDialog.getOpenFileNames(
        _window(viewer), "Open DICOM files", "", "All files (*);;DICOM (*.dcm *.dicom *.ima DICOMDIR)"
    )
    return [str(path) for path in found]


def _viewer() -> Any:
    import napari

    viewer = napari.current_viewer()
    if viewer is None:
        raise InputError("No viewer is open; start napari first.")
    return viewer


def _window(viewer: Any) -> Any:
    return viewer.window._qt_window
