"""Which DICOM object a result becomes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari_medai.core.errors import WriteError
from napari_medai.core.volume import Volume
from napari_medai.io.dicom.write.source import source_of


def write(
    volume: Volume, path: Path, record: Mapping[str, Any], against: Any = None, check: bool = True, **options: Any
) -> Path:
    """Write labels as a Segmentation, heat as a Parametric Map, any other image as a derived series.

    Raises
    ------
    WriteError
        As the writers; or an option is not one of the writer's.
    """
    source = source_of(volume, against)
    labels = bool(volume.meta.get("is_labels"))
    if options and not (labels and set(options) == {"kind"}):
        raise WriteError(f"DICOM objects of this kind are not written with the options {', '.join(sorted(options))}.")
    if labels or record.get("kind") == "Heatmap":
        if not path.suffix:
            raise WriteError(f"{path.name} has no suffix; end the name in .dcm.")
        if labels:
            from napari_medai.io.dicom.write.seg import save_segmentation

            save_segmentation(volume, source, path, record, options.get("kind", ""))
        else:
            from napari_medai.io.dicom.write.parametric import save_map

            save_map(volume, source, path, record)
        return path
    from napari_medai.io.dicom.write.derived import save_derived

    return save_derived(volume, source, path, record, check)


def foresee(volume: Volume, path: Path, against: Any = None, *, series: bool = False) -> None:
    """Refuse what cannot become a DICOM object, before anything is computed for it.

    Parameters
    ----------
    volume : Volume
        The scan that a result is to be made of.
    path : Path
        The file, or for a derived series the folder.
    against : Volume or path, optional
        As for `write`.
    series : bool
        Whether the result is an image, which becomes a derived series.

    Raises
    ------
    WriteError
        The scan is not DICOM or not there, or a series of several files was to go into one.
    """
    source = source_of(volume, against)
    files = 1 if source.is_multiframe else volume.size("z") * volume.size("t")
    if series and path.suffix and files > 1:
        raise WriteError(
            f"{files} slices make as many DICOM files; give the name of a folder, which has no suffix, in place of "
            f"{path.name}."
        )
