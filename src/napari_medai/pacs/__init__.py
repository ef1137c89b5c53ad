"""Archives of images (PACS): find, pull and push over DICOMweb and DIMSE. Modules load on first use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari_medai.core.errors import DependencyError, ParamsError
from napari_medai.pacs.archive import Archive, InstanceEntry, Outcome, Query, SeriesEntry, StudyEntry
from napari_medai.pacs.node import Access, Node, parse_address

if TYPE_CHECKING:
    from napari_medai.core.volume import Volume

__all__ = [
    "Access", "Archive", "InstanceEntry", "Node", "Outcome", "Query", "SeriesEntry", "StudyEntry", "connect",
    "open_remote",
]  # fmt: skip

_INSTALL = 'pip install "napari-medai[pacs]"'


def connect(address: str | Node, access: Access | None = None) -> Archive:
    """An archive by its address; nothing is sent before it is asked for something.

    Parameters
    ----------
    address : str or Node
        ``https://host/dicom-web`` (DICOMweb), ``dicom://AET@host:port`` or ``dicom+tls://AET@host:port`` (DIMSE),
        or the name of an archive in the file of archives.
    access : Access, optional
        Credentials, certificates, timeout.

    Raises
    ------
    ParamsError
        The address is none, or its kind is not known.
    ArchiveError
        A certificate cannot be read, or a password would go over the network in clear text.
    DependencyError
        dicomweb-client or pynetdicom is not installed.
    """
    node = address if isinstance(address, Node) else parse_address(address)
    access = (access or Access()).completed(node)
    try:
        if node.is_web:
            from napari_medai.pacs.dicomweb import WebArchive

            return WebArchive(node, access)
        from napari_medai.pacs.dimse import DimseArchive

        return DimseArchive(node, access)
    except ImportError as error:
        raise DependencyError(f"Talking to an archive needs {error.name}; install it with: {_INSTALL}") from error


def open_remote(
    address: str | Node | Archive,
    study_uid: str,
    series_uid: str,
    *,
    access: Access | None = None,
    cache: Path | None = None,
) -> Volume:
    """Open a series of a DICOMweb archive; an instance is fetched when its pixels are first used.

    Parameters
    ----------
    address : str, Node or Archive
        As `connect`, or what `connect` gave.
    study_uid, series_uid : str
        Study and Series Instance UID; the latter with ``#n`` where a series holds several images.
    access : Access, optional
        As `connect`.
    cache : Path, optional
        Where instances are kept. Default: a folder that goes when the program ends.

    Returns
    -------
    Volume
        As `napari_medai.open` gives it for the pulled series, with the same findings.

    Raises
    ------
    ArchiveError
        The archive cannot be reached, refuses, or has no such series.
    ParamsError
        The archive speaks no DICOMweb; pull the series and open the folder.
    ReadError
        The series holds nothing that can be opened, or several images and none was named.
    """
    archive = connect(address, access) if isinstance(address, str | Node) else address
    from napari_medai.pacs.lazy import open_lazily

    if not archive.node.is_web:
        raise ParamsError(
            f"{archive.node} speaks DIMSE, which gives no single slices: pull the series and open the folder, or use "
            "the archive's DICOMweb address (https://…)."
        )
    return open_lazily(archive, study_uid, series_uid, cache)
