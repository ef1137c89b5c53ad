"""Samples for napari's File > Open Sample menu; one function per key of `napari_medai.samples.SAMPLES`.

A sample that is not in the cache raises `SampleError`, which napari shows as a notification: returning nothing
instead would make napari report an error of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_medai.ui.readers import layers_of

if TYPE_CHECKING:
    from napari_medai.ui.layers import LayerData


def head_mr() -> list[LayerData]:
    """T1-weighted MR of a whole head, 1 mm (Colin27)."""
    return _layers("head_mr")


def micronuclei_slide() -> list[LayerData]:
    """Fluorescence image with nuclei and micronuclei."""
    return _layers("micronuclei_slide")


def nuclei_3d() -> list[LayerData]:
    """Fluorescence stack of nuclei."""
    return _layers("nuclei_3d")


def dicomdir() -> list[LayerData]:
    """The series with the most files of a DICOMDIR study; opening its folder lets the user choose."""
    from napari_medai.io import list_series
    from napari_medai.samples import sample_path

    largest = max(list_series(sample_path("dicomdir")), key=lambda series: series.files)
    return _layers("dicomdir", largest.uid)


def head_ct() -> list[LayerData]:
    """One slice of a CT of a head, JPEG 2000."""
    return _layers("head_ct")


def fundus() -> list[LayerData]:
    """Colour photograph of a retina."""
    return _layers("fundus")


def ihc() -> list[LayerData]:
    """Immunohistochemistry in brightfield."""
    return _layers("ihc")


def _layers(name: str, series_uid: str = "") -> list[LayerData]:
    from napari_medai.samples import sample

    return layers_of([sample(name, series_uid)])
