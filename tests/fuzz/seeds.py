"""What the fuzzer starts from: files of installed packages, a few made here, and real ones where they are present."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from PIL import Image

# Larger files are opened whole, but mutated ones are about what an input of 1 MB may cost.
MUTATED_BYTES = 1_000_000


@dataclass(frozen=True)
class Seed:
    """A file to start from.

    Attributes
    ----------
    name : str
        Where it is from, for the report.
    suffix : str
        That a mutated copy keeps.
    kind : {"dicom", "nifti", "archive", "other"}
        What it is.
    public : bool
        Whether what is made of it may be kept beside the tests.
    """

    name: str
    suffix: str
    kind: str
    public: bool
    _content: Path | bytes

    @property
    def content(self) -> bytes:
        """The file."""
        return self._content if isinstance(self._content, bytes) else self._content.read_bytes()

    @property
    def path(self) -> Path | None:
        """Where it lies, if it is a file."""
        return self._content if isinstance(self._content, Path) else None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._content) if isinstance(self._content, bytes) else self._content.stat().st_size


@lru_cache(maxsize=512)
def identity(seed: Seed) -> tuple[str, ...]:
    """Names and numbers of the patient in a DICOM seed, long enough not to be found by chance."""
    if seed.kind != "dicom":
        return ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = pydicom.dcmread(io.BytesIO(seed.content), force=True, specific_tags=["PatientName", "PatientID"])
            texts = [str(found.get(word, "") or "") for word in ("PatientName", "PatientID")]
    except Exception:  # noqa: BLE001 - some seeds are damaged already
        return ()
    return tuple(text for text in texts if len(text) > 5 and text.isascii())


def _below(folder: Path, origin: str, public: bool = True) -> Iterator[Seed]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            name = f"{origin}/{path.relative_to(folder)}"
            yield Seed(name, _suffix(path), _kind(path), public, path)


def _suffix(path: Path) -> str:
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(132)
    name = path.name.lower()
    if head[128:] == b"DICM" or name.endswith(".dcm") or head[:1] in (b"\x08", b"\x02"):
        return "dicom"
    return "nifti" if name.endswith((".nii", ".nii.gz", ".hdr", ".img")) else "other"


@lru_cache
def seeds() -> tuple[Seed, ...]:
    """All seeds, in an order that does not change."""
    found = [*_below(Path(pydicom.__file__).parent / "data", "pydicom")]
    extra = importlib.util.find_spec("data_store")
    if extra is not None and extra.origin:
        found += _below(Path(extra.origin).parent, "pydicom-data")
    for folder in sorted(Path(nibabel.__file__).parent.rglob("tests/data")):
        found += _below(folder, "nibabel")
    found += [*_niftis(), *_pictures()]
    found += _archives([seed for seed in found if seed.kind in ("dicom", "nifti") and seed.size < 100_000])
    corpus = os.environ.get("MEDAI_CORPUS")
    if corpus:
        found += _below(Path(corpus), "corpus", public=False)
    return tuple(found)


def _niftis() -> Iterator[Seed]:
    ramp = np.arange(5 * 6 * 7 * 3).reshape(5, 6, 7, 3)
    colour = np.zeros((4, 5, 6), np.dtype([(c, "u1") for c in "RGB"]))
    arrays = {
        "int16": ramp[..., 0].astype(np.int16),
        "time": ramp.astype(np.float32),
        "vectors": ramp[:, :, :, None].astype(np.float64),
        "complex": ramp[..., 0].astype(np.complex64),
        "rgb": colour,
        "labels": (ramp[..., 0] > 300).astype(np.uint8),
    }
    for name, array in arrays.items():
        for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
            content = kind(array, np.diag([-1, -1, 2, 1.0])).to_bytes()
            title = f"made/{name}-{kind.__name__}"
            yield Seed(f"{title}.nii", ".nii", "nifti", True, content)
            yield Seed(f"{title}.nii.gz", ".nii.gz", "nifti", True, gzip.compress(content, 1, mtime=0))


def _pictures() -> Iterator[Seed]:
    picture = Image.fromarray(np.arange(20 * 30, dtype=np.uint16).reshape(20, 30))
    for kind, suffix in (("PNG", ".png"), ("TIFF", ".tif")):
        out = io.BytesIO()
        picture.save(out, kind)
        yield Seed(f"made/ramp{suffix}", suffix, "other", True, out.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        import nrrd

        path = Path(folder) / "a.nrrd"
        nrrd.write(str(path), np.arange(60, dtype=np.int16).reshape(3, 4, 5), {"space": "LPS"})
        # the library writes the time into the file; what changes would make other mutations
        lines = [line for line in path.read_bytes().split(b"\n", 12) if not line.startswith(b"#")]
        yield Seed("made/ramp.nrrd", ".nrrd", "other", True, b"\n".join(lines))


def _archives(members: list[Seed]) -> Iterator[Seed]:
    for first in range(0, len(members), max(1, len(members) // 6)):
        some = members[first : first + 3]
        packed, plain = io.BytesIO(), io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
            for number, seed in enumerate(some):
                out.writestr(zipfile.ZipInfo(f"study/{number}{seed.suffix}"), seed.content)
        with tarfile.open(fileobj=plain, mode="w") as bundle:
            for number, seed in enumerate(some):
                entry = tarfile.TarInfo(f"study/{number}{seed.suffix}")
                entry.size = seed.size
                bundle.addfile(entry, io.BytesIO(seed.content))
        yield Seed(f"made/{first}.zip", ".zip", "archive", True, packed.getvalue())
        yield Seed(f"made/{first}.tar", ".tar", "archive", True, plain.getvalue())
