"""napari's way in: files and folders become layers.

`dicom_reader`, `nifti_reader` and `ome_reader` answer at once and never raise: they look at a name, and at 132
bytes where the name says nothing. Formats, geometry and errors are `napari_medai.io`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_medai.core.volume import Volume
    from napari_medai.ui.layers import LayerData

Paths = str | Sequence[str]
ReaderFunction = Callable[[Paths], "list[Any]"]

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_ARCHIVE_SUFFIXES = (".zip", ".tar")
_NIFTI_SUFFIXES = (".nii", ".nii.gz")
_PAIR_SUFFIXES = (".hdr", ".img", ".hdr.gz", ".img.gz")
_OME_SUFFIXES = (".ome.tif", ".ome.tiff", ".ome.zarr")
_ZARR_SIGNS = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
_DICM_END = 132
_HEADER_BYTES = 540
# what a napari reader returns when all went well and there is nothing to show
_NOTHING: list[Any] = [(None,)]


def dicom_reader(path: Paths) -> ReaderFunction | None:
    """napari's ``get_reader`` for DICOM: files by name or by ``DICM``, folders, DICOMDIR, archives of studies.

    Parameters
    ----------
    path : str or list of str
        What was dropped or opened.

    Returns
    -------
    function or None
        `read_dicom`; None if some path is not for us. A folder counts as DICOM unless it is a Zarr.
    """
    paths = _listed(path)
    return read_dicom if paths and all(_may_be_dicom(p) for p in paths) else None


def nifti_reader(path: Paths) -> ReaderFunction | None:
    """napari's ``get_reader`` for NIfTI.

    Parameters
    ----------
    path : str or list of str
        What was dropped or opened.

    Returns
    -------
    function or None
        `read_nifti`; None if some name does not end in ``.nii`` or ``.nii.gz``, and is no file of a pair either.
    """
    paths = _listed(path)
    return read_nifti if paths and all(_may_be_nifti(p) for p in paths) else None


def ome_reader(path: Paths) -> ReaderFunction | None:
    """napari's ``get_reader`` for OME-TIFF and OME-Zarr.

    Parameters
    ----------
    path : str or list of str
        What was dropped or opened.

    Returns
    -------
    function or None
        `read_ome`; None if some name does not end in ``.ome.tif``, ``.ome.tiff`` or ``.ome.zarr``.
    """
    paths = _listed(path)
    return read_ome if paths and all(p.rstrip("/\\").lower().endswith(_OME_SUFFIXES) for p in paths) else None


def read_dicom(path: Paths) -> list[LayerData]:
    """Layers of what lies at a path; the user chooses where there are several series.

    One file opens its whole series. The files of a series that arrive one after another, as dropped files do,
    open it once: a file beside those of a layer that shows its series already adds none.

    Parameters
    ----------
    path : str or list of str
        Files, folders or DICOMDIR.

    Raises
    ------
    ReadError
        Nothing can be opened, or there are several series and no window to ask in.
    """
    opened: list[Volume] = []
    for one in _listed(path):
        if os.path.isfile(one) and _shown_already(one, opened):
            continue
        opened += [v for v in _open_chosen(one) if not (os.path.isfile(one) and _among(v, one, opened))]
    return _layers(opened) or _NOTHING


def read_nifti(path: Paths) -> list[LayerData]:
    """Layers of NIfTI files: images, or labels where the values are whole and few.

    Raises
    ------
    ReadError
        A file is damaged or not NIfTI.
    """
    from napari_medai.io import open as open_image

    return _layers([open_image(one) for one in _listed(path)])


def read_ome(path: Paths) -> list[LayerData]:
    """Layers of OME-TIFF and OME-Zarr, with pixel size and pyramid; the user chooses where there are several images.

    Raises
    ------
    ReadError
        A file is damaged, or there are several images and no window to ask in.
    """
    return _layers([volume for one in _listed(path) for volume in _open_chosen(one)]) or _NOTHING


def open_volumes(viewer: Any, volumes: Sequence[Volume]) -> list[Any]:
    """Show opened images in a viewer: placed beside what it shows already, their findings said.

    Returns
    -------
    list of napari Layers
        Those that were added, in order.
    """
    from napari.layers import Layer

    from napari_medai.ui.viewing import attach

    attach(viewer)
    return [viewer.add_layer(Layer.create(*data)) for data in _layers(volumes)]


def choose_series(path: str, series: Sequence[Any]) -> list[Any]:
    """Ask the user; see `napari_medai.ui.choose.choose_series`."""
    from napari_medai.ui.choose import choose_series as ask

    return ask(path, series)


def _listed(path: Paths) -> list[str]:
    paths: list[Any] = list(path) if isinstance(path, list | tuple) else [path]
    return [os.fspath(p) for p in paths] if all(isinstance(p, str | os.PathLike) for p in paths) else []


def _may_be_dicom(path: str) -> bool:
    name = os.path.basename(path).lower()
    if name.endswith(_DICOM_SUFFIXES):
        return True
    if name.endswith(_ARCHIVE_SUFFIXES):
        from napari_medai.io.archive import holds_images

        return holds_images(Path(path))
    try:
        if os.path.isdir(path):
            return not name.endswith(".zarr") and not any(os.path.exists(os.path.join(path, s)) for s in _ZARR_SIGNS)
        with open(path, "rb") as file:
            return file.read(_DICM_END)[128:] == b"DICM"
    except (OSError, ValueError):  # unreadable, or a name that no file can have
        return False


def _may_be_nifti(path: str) -> bool:
    name = os.path.basename(path).lower()
    if name.endswith(_NIFTI_SUFFIXES) or not name.endswith(_PAIR_SUFFIXES):
        return name.endswith(_NIFTI_SUFFIXES)
    from napari_medai.io.nifti import sniff

    try:
        with open(path, "rb") as file:
            head = file.read(_HEADER_BYTES)
    except (OSError, ValueError):
        return False
    return sniff(head, Path(path))  # other formats have headers of this name too


def _open_chosen(path: str) -> list[Volume]:
    from napari_medai.core.errors import SeriesChoiceError
    from napari_medai.io import open as open_image

    try:
        return [open_image(path)]
    except SeriesChoiceError as several:
        return [open_image(path, series_uid=one.uid) for one in choose_series(path, several.series)]


def _on_show() -> list[Volume]:
    """The volumes of the layers in the current viewer."""
    from napari_medai.ui.placement import record
    from napari_medai.ui.scans import is_scan, viewer_layers

    return [record(layer)["volume"] for layer in viewer_layers() if is_scan(layer)]


def _shown_already(path: str, opened: list[Volume]) -> bool:
    """Whether a file belongs to a series that a layer shows which came from another file of the same folder."""
    beside = [v for v in (*_on_show(), *opened) if _beside(v, path)]
    if not beside:
        return False
    from napari_medai.core.errors import MedaiError
    from napari_medai.io.dicom.headers import read_header

    try:
        uid = read_header(Path(path)).text("SeriesInstanceUID")
    except MedaiError:
        return False  # opening it says what is wrong
    return bool(uid) and any(v.meta.get("series_uid") == uid for v in beside)


def _among(volume: Volume, path: str, opened: list[Volume]) -> bool:
    """The same for one image of a series that holds several, which is known only once it is open."""
    uid = volume.meta.get("series_uid")
    return bool(uid) and any(v.meta.get("series_uid") == uid for v in (*_on_show(), *opened) if _beside(v, path))


def _beside(volume: Volume, path: str) -> bool:
    source = os.path.abspath(volume.source) if volume.source else ""
    return os.path.dirname(source) == os.path.dirname(os.path.abspath(path)) and source != os.path.abspath(path)


def _layers(volumes: Sequence[Volume]) -> list[LayerData]:
    for volume in volumes:
        _tell(volume)
    return layers_of(volumes)


def layers_of(volumes: Sequence[Volume]) -> list[LayerData]:
    """The layers that show volumes beside those of the current viewer, which learns how patients lie.

    Parameters
    ----------
    volumes : sequence of Volume
        Each is shown on the display's axes of the first scan in whose space it lies; see
        `napari_medai.ui.scans.shared_space`. Overlays of DICOM files become layers of labels; segmentations of some
        slices of a scan that is shown get all of its slices.
    """
    from napari_medai.ui.layers import volume_to_layers
    from napari_medai.ui.placement import METADATA_KEY, record
    from napari_medai.ui.scans import is_scan, on_its_scan, on_its_slice, shared_space, viewer_layers
    from napari_medai.ui.viewing import attach_current

    attach_current()
    shown = [record(layer) for layer in viewer_layers() if is_scan(layer)]
    made: list[LayerData] = []
    for volume in volumes:
        for one in (volume, *_overlays(volume)):
            one = on_its_scan(on_its_slice(one, shown), shown)
            layers = volume_to_layers(one, to_world=shared_space(one, shown))
            shown += [layer[1]["metadata"][METADATA_KEY] for layer in layers]
            made += layers
    return made


def _overlays(volume: Volume) -> list[Volume]:
    """What is drawn over an image in its files; damaged drawings do not keep the image from being shown."""
    if not volume.meta.get("overlays"):
        return []
    from napari.utils.notifications import show_info

    from napari_medai.core.errors import MedaiError
    from napari_medai.io.dicom.overlays import overlay_volumes

    found = []
    for overlay in overlay_volumes(volume):
        try:
            found.append(overlay.replace(array=overlay.numpy()))
        except MedaiError as error:
            show_info(str(error))
    return found


def _tell(volume: Volume) -> None:
    """Say what was split, left out or repaired while reading."""
    findings = volume.meta.get("findings", ())
    if findings:
        from napari.utils.notifications import show_info

        show_info(f"{volume.name}: " + " ".join(findings))
