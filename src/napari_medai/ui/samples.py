"""Samples for napari's File > Open Sample menu; one function per key of `napari_medai.samples.SAMPLES`.

A sample that is not in the cache raises `SampleError`, which napari shows as a notification: returning nothing
instead would make napari report an error of its own.
"""

from __future__ import annotations

from napari_medai.ui.layers import LayerData, volume_to_layers


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
    """A series of a DICOMDIR study."""
    return _layers("dicomdir")


def head_ct() -> list[LayerData]:
    """A slice of a head CT, DICOM with JPEG 2000."""
    return _layers("head_ct")


def fundus() -> list[LayerData]:
    """Colour photograph of a retina."""
    return _layers("fundus")


def ihc() -> list[LayerData]:
    """Immunohistochemistry in brightfield."""
    return _layers("ihc")


def _layers(name: str) -> list[LayerData]:
    from napari_medai.samples import sample

    return volume_to_layers(sample(name))
