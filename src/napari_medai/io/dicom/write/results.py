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
