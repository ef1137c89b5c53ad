"""An entry of the catalogue: what a model is, where it can be had, and how its bytes are known again."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from napari_medai.models.spec import Safety

# Names of folders on every system: no separators, nothing that a shell or Windows reads differently.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")

Status = Literal["verified", "unverified"]
# the best first
HASHES: tuple[Literal["sha256", "sha1", "md5"], ...] = ("sha256", "sha1", "md5")


def safe_name(name: str) -> bool:
    """Whether a name can be a folder on every system, and is no path."""
    return bool(SAFE_NAME.fullmatch(name)) and not name.endswith(".") and not _RESERVED.fullmatch(name)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class File(_Part):
    """A file of an entry.

    Attributes
    ----------
    name : str
        Its name in the package, and in a mirror.
    size : int, optional
        In bytes; none where the publisher does not say and the file could not be had.
    sha256, sha1, md5 : str
        Lower-case hexadecimal; those that are known. All empty: nobody has published one.
    urls : tuple of str
        Public addresses, tried in their order. Empty: it is not to be had by an address alone.
    """

    name: str
    size: int | None = Field(default=None, gt=0)
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    sha1: str = Field(default="", pattern=r"^([0-9a-f]{40})?$")
    md5: str = Field(default="", pattern=r"^([0-9a-f]{32})?$")
    urls: tuple[str, ...] = ()

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not safe_name(name):
            raise ValueError(f"{name!r} is no plain file name")
        return name

    @field_validator("urls")
    @classmethod
    def _web(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        if any(not url.startswith("https://") for url in urls):
            raise ValueError("addresses start with https://")
        return urls

    @property
    def known_hash(self) -> str:
        """The best hash that is known, as ``"sha256:…"``; empty if none is."""
        return next((f"{kind}:{getattr(self, kind)}" for kind in HASHES if getattr(self, kind)), "")


class Entry(_Part):
    """A model that can be had.

    Attributes
    ----------
    id : str
        What people type; a plain name.
    title, summary : str
        For lists.
    stage : str
        The stage that runs it; empty if none does.
    modality, body_part, stain : str
        What its images are: ``"CT"``, ``"abdomen"``, ``"H&E"``; several by commas, empty if any or not known.
    source : str
        Name of the row in `napari_medai.models.SOURCES` that reads it; ``"package"`` for a Python package.
    licence : str
        SPDX id of the weights' licence, or its name where SPDX has none.
    citation, intended_use, training_data, metrics : str
        For the card; empty if the publisher does not say.
    homepage : str
        Where people read about it.
    safety : {"data", "config", "code"}
        As in `ModelSpec`.
    status : {"verified", "unverified"}
        ``"verified"``: this program has run exactly these bytes. ``"unverified"``: they could not be had where the
        catalogue was made; addresses and hashes are the publisher's. ``medai models check`` settles it for a machine.
    install : str
        For a Python package: what ``pip install`` is given. Then there are no files.
    model : str
        For a Python package: the id of the model once it is installed.
    files : tuple of File
        What is downloaded. One ZIP archive, or the files of a folder.
    notes : str
        What else to know before downloading it.
    """

    id: str
    title: str
    summary: str
    stage: str = ""
    modality: str = ""
    body_part: str = ""
    stain: str = ""
    source: str
    licence: str
    citation: str = ""
    intended_use: str = ""
    training_data: str = ""
    metrics: str = ""
    homepage: str = ""
    safety: Safety
    status: Status = "unverified"
    install: str = ""
    model: str = ""
    files: tuple[File, ...] = ()
    notes: str = ""

    @field_validator("id")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not safe_name(name):
            raise ValueError(f"{name!r} is no plain name")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Entry:
        if bool(self.files) == bool(self.install):
            raise ValueError("an entry has either files or something to install")
        names = [file.name.lower() for file in self.files]
        if len(set(names)) != len(names):
            raise ValueError("two files have one name")
        if self.status == "verified" and any(not file.sha256 or file.size is None for file in self.files):
            raise ValueError("what is verified has the size and the sha256 of each file")
        return self

    @property
    def size(self) -> int | None:
        """Bytes to download; none if that is not known."""
        sizes = [file.size for file in self.files]
        return sum(s for s in sizes if s is not None) if sizes and None not in sizes else None

    @property
    def target(self) -> str:
        """Body part or stain."""
        return self.body_part or self.stain

    @property
    def add_command(self) -> str:
        """What to type to have it."""
        return f'pip install "{self.install}"' if self.install else f"medai models add {self.id}"


class Catalogue(_Part):
    """The file ``catalogue.json``."""

    date: str
    entries: tuple[Entry, ...]

    @model_validator(mode="after")
    def _unique(self) -> Catalogue:
        ids = [entry.id.lower() for entry in self.entries]
        if doubled := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"ids that stand twice: {', '.join(doubled)}")
        return self
