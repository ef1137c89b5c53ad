"""Files out of the packages that carry the training data."""

from __future__ import annotations

from napari_medai.samples.packages import (
    PackageMissingError,
    cache_folder,
    package_member,
    package_members,
    package_path,
)

__all__ = ["PackageMissingError", "cache_folder", "package_member", "package_members", "package_path"]
