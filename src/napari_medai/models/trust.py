"""Who allowed what: permissions to run what a package carries, keyed by the sha256 over every byte of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grant:
    """A permission that the owner of this machine gave.

    Attributes
    ----------
    sha256 : str
        Over every file of the package (see `napari_medai.models.package.package_sha256`); any changed byte ends it.
    capabilities : frozenset of str
        What may be run: out of ``"torchscript"``, ``"pt2"``, ``"python"``, ``"pickle"``.
    given : str
        When, ISO 8601.
    title : str
        What the package called itself then.
    """

    sha256: str
    capabilities: frozenset[str]
    given: str = ""
    title: str = ""
