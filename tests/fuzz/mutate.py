"""Damage as it happens, and as an attacker would do it: seeded, so that a number gives the same file again."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from pydicom import Dataset, Sequence, dcmread, dcmwrite
from pydicom.dataelem import DataElement
from pydicom.uid import AllTransferSyntaxes

from tests.fuzz.seeds import MUTATED_BYTES, Seed, seeds

# numbers that break sizes, counts and offsets
_NUMBERS = (0, 1, 2, 3, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, -1)
_REALS = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, 1e300, float("nan"), float("inf"), float("-inf"))
_TEXTS = ("", "nan", "1e400", "-1", "0", "99999999999", "1\\2\\3\\4\\5\\6\\7", "x" * 70, "\\" * 5, "1.5", "\x00\xff")
_VRS = (b"US", b"SS", b"UL", b"FD", b"DS", b"IS", b"SQ", b"UN", b"OB", b"OW", b"UT", b"AT", b"PN", b"XX", b"\0\0")
# NIfTI-1's fields: offset, format and count
_NIFTI_FIELDS = (
    (0, "i", 1), (40, "h", 8), (68, "h", 1), (70, "h", 1), (72, "h", 1), (76, "f", 8), (108, "f", 1), (112, "f", 2),
    (123, "B", 1), (136, "f", 1), (252, "h", 2), (256, "f", 6), (280, "f", 12), (344, "B", 4), (348, "B", 4),
)  # fmt: skip
_NAMES = (
    "../../x",
    "/etc/x",
    "C:\\x",
    "..\\x",
    "a/../../x",
    "",
    ".",
    "/",
    "CON",
    "x" * 300,
    "\x00",
    "a/b/c",
    "ä\ud7ff",
)

Mutation = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Mutant:
    """A damaged file and how it came about."""

    seed: Seed
    how: str
    content: bytes


def kind_of(master: int, number: int) -> str:
    """What kind of file a number gives."""
    return _chosen(random.Random(master * 1_000_003 + number))


def _chosen(rng: random.Random) -> str:
    return rng.choices(("dicom", "nifti", "archive", "other"), (55, 25, 12, 8))[0]


def mutant(master: int, number: int) -> Mutant:
    """The file of a number; the same one for the same seeds."""
    rng = random.Random(master * 1_000_003 + number)
    kind = _chosen(rng)
    seed = rng.choice([s for s in seeds() if s.kind == kind and s.size <= MUTATED_BYTES])
    content, how = seed.content, []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        mutation = rng.choice((*_GENERIC, *_SPECIAL[kind] * 2))
        how.append(mutation.__name__)
        content = mutation(content, rng)[:MUTATED_BYTES]
    return Mutant(seed, "+".join(how), content)


def truncated(data: bytes, rng: random.Random) -> bytes:
    """Cut off at any byte, early ones more often."""
    return data[: int(len(data) * rng.random() ** rng.choice((1, 3)))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, mostly in the header."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 30)) if changed else 0):
        changed[_somewhere(changed, rng)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed)


def numbered(data: bytes, rng: random.Random) -> bytes:
    """A number of 2, 4 or 8 bytes, or a real one, written over something."""
    changed = bytearray(data)
    at = _somewhere(changed, rng) if changed else 0
    order = rng.choice("<>")
    if rng.random() < 0.3:
        piece = struct.pack(order + "d", rng.choice(_REALS))
    else:
        size = rng.choice((2, 4, 4, 8))
        piece = (rng.choice(_NUMBERS) % 2 ** (8 * size)).to_bytes(size, "little" if order == "<" else "big")
    changed[at : at + len(piece)] = piece
    return bytes(changed)


def removed(data: bytes, rng: random.Random) -> bytes:
    """A stretch taken out."""
    at = _somewhere(data, rng) if data else 0
    return data[:at] + data[at + rng.choice((1, 2, 4, 8, 100, 1000)) :]


def repeated(data: bytes, rng: random.Random) -> bytes:
    """A stretch put in again, once or often."""
    at, length = (_somewhere(data, rng), rng.choice((1, 4, 16, 200, 2000))) if data else (0, 0)
    return data[:at] + data[at : at + length] * rng.choice((1, 2, 50, 500)) + data[at:]


def padded(data: bytes, rng: random.Random) -> bytes:
    """Zeros or noise put in somewhere."""
    at, length = _somewhere(data, rng) if data else 0, rng.choice((1, 2, 3, 128, 5000))
    return data[:at] + (bytes(length) if rng.random() < 0.5 else rng.randbytes(length)) + data[at:]


def _somewhere(data: bytes | bytearray, rng: random.Random) -> int:
    """A place in a file, mostly near its start."""
    return min(len(data) - 1, int(len(data) * rng.random() ** 2) if rng.random() < 0.4 else rng.randrange(1600))


def _dataset(data: bytes, rng: random.Random, change: Callable[[Dataset], None]) -> bytes:
    """A data set read, changed and written; bytes are flipped instead where that fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = dcmread(io.BytesIO(data), force=True)
            change(dataset)
            out = io.BytesIO()
            dcmwrite(out, dataset, enforce_file_format=False, overwrite=True)
            return out.getvalue()
    except Exception:  # noqa: BLE001 - a damaged file may break the library anywhere
        return flipped(data, rng)


def _tags(dataset: Dataset) -> list[int]:
    tags = dataset.keys()  # going through the data set itself would parse every element
    return [int(tag) for tag in tags if int(tag) >> 16 > 2]


def without_tags(data: bytes, rng: random.Random) -> bytes:
    """Some elements taken out, in sequences too."""

    def change(dataset: Dataset) -> None:
        for _ in range(rng.choice((1, 1, 3, 10))):
            place = _inner(dataset, rng)
            if tags := _tags(place):
                del place[rng.choice(tags)]

    return _dataset(data, rng, change)


def with_values(data: bytes, rng: random.Random) -> bytes:
    """Elements that the reader works with, given values that it does not expect."""

    def change(dataset: Dataset) -> None:
        for _ in range(rng.choice((1, 1, 2, 5))):
            place = _inner(dataset, rng) if rng.random() < 0.5 else dataset
            tags = [t for t in _tags(place) if t >> 16 in (0x0008, 0x0018, 0x0020, 0x0028, 0x0054, 0x5200, 0x3004)]
            if not tags:
                continue
            tag = rng.choice(tags)
            vr = place[tag].VR
            value: object
            if vr in ("US", "UL", "SS", "SL"):
                value = rng.choice(_NUMBERS) % (2**15 if vr == "SS" else 2**16 if vr == "US" else 2**31)
            elif vr in ("FD", "FL"):
                value = [rng.choice(_REALS) for _ in range(rng.choice((1, 2, 3, 6)))]
            elif vr == "SQ":
                value = Sequence([*place[tag].value] * rng.choice((0, 2, 20)))
            else:
                value = None
            if value is None:
                text = rng.choice(_TEXTS).encode("latin-1")
                place[tag] = _raw(tag, vr, text)
            else:
                place[tag] = DataElement(tag, vr, value)

    return _dataset(data, rng, change)


def _raw(tag: int, vr: str, content: bytes) -> DataElement:
    """An element with bytes that its representation does not allow."""
    return DataElement(tag, "UN" if vr in ("UI", "PN") else "OB", content + b" " * (len(content) % 2))


def with_sizes(data: bytes, rng: random.Random) -> bytes:
    """Rows, columns, frames and bits that do not fit the pixels."""

    def change(dataset: Dataset) -> None:
        numbers = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit")
        for _ in range(rng.choice((1, 2, 3))):
            word = rng.choice((*numbers, "NumberOfFrames", "PixelRepresentation", "PlanarConfiguration"))
            if word == "NumberOfFrames":
                dataset.NumberOfFrames = rng.choice((0, 1, 2, 1000, 2**31 - 1, -5))
            else:
                setattr(dataset, word, rng.choice((0, 1, 2, 7, 8, 12, 16, 32, 64, 512, 65535)))
        if rng.random() < 0.3:
            kinds = ("RGB", "YBR_FULL_422", "YBR_RCT", "PALETTE COLOR", "MONOCHROME1", "MONOCHROME2", "XYZ", "")
            dataset.PhotometricInterpretation = rng.choice(kinds)

    return _dataset(data, rng, change)


def with_syntax(data: bytes, rng: random.Random) -> bytes:
    """Another transfer syntax than the pixels have."""
    try:
        meta = dcmread(io.BytesIO(data), force=True, stop_before_pixels=True).file_meta
        old = str(meta.TransferSyntaxUID).encode()
    except Exception:  # noqa: BLE001 - as above
        return flipped(data, rng)
    new = rng.choice([str(s).encode() for s in AllTransferSyntaxes])[: len(old)].ljust(len(old), b"\0")
    return data.replace(old, new, 1)


def with_representation(data: bytes, rng: random.Random) -> bytes:
    """A value representation written over that of some element."""
    known = [at for at in range(132, min(len(data) - 8, 6000), 2) if data[at + 4 : at + 6] in _VRS[:13]]
    if not known:
        return flipped(data, rng)
    at = rng.choice(known) + 4
    return data[:at] + rng.choice(_VRS) + data[at + 2 :]


def nested(data: bytes, rng: random.Random) -> bytes:
    """Sequences in sequences, up to thousands deep; ended or not."""
    depth, tag = rng.choice((3, 50, 400, 5000)), rng.choice((0x00081140, 0x52009229, 0x00400555, 0x00280301))
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    start = head + b"SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\x00\xe0" + b"\xff" * 4
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    at = data.find(b"\x08\x00\x16\x00", 132)
    at = at if at > 0 else min(len(data), 132)
    return data[:at] + start * depth + (end * depth if rng.random() < 0.7 else b"") + data[at:]


def _inner(dataset: Dataset, rng: random.Random) -> Dataset:
    """The data set or an item somewhere in it."""
    while rng.random() < 0.6:
        items = [i for tag in _tags(dataset) if dataset[tag].VR == "SQ" for i in dataset[tag].value or ()]
        if not items:
            break
        dataset = rng.choice(items)
    return dataset


def nifti_fields(data: bytes, rng: random.Random) -> bytes:
    """Fields of a NIfTI header with values that they must not have, behind gzip too."""
    packed = data[:2] == b"\x1f\x8b"
    try:
        content = bytearray(gzip.decompress(data) if packed else data)
    except (OSError, EOFError, zlib.error):
        return flipped(data, rng)
    second = content[4:7] in (b"n+2", b"ni2")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, form, count = rng.choice(_NIFTI_FIELDS)
        if second:
            at, form, count = rng.choice(((0, "i", 1), (12, "h", 2), (16, "q", 8), (104, "d", 8), (168, "q", 1),
                                          (176, "d", 2), (344, "i", 2), (352, "d", 18), (500, "i", 2)))  # fmt: skip
        size = struct.calcsize(form)
        at += size * rng.randrange(count)
        if form in "fd":
            piece = struct.pack("<" + form, rng.choice([r for r in _REALS if form == "d" or abs(r) != 1e300]))
        else:
            small = rng.choice((*_NUMBERS, 4, 5, 6, 8, 16, 64, 128, 256, 512, 1003, 1006, 1536, 2048, 2304))
            piece = (small % 2 ** (8 * size)).to_bytes(size, "little")
        content[at : at + size] = piece
    return gzip.compress(bytes(content), 1, mtime=0) if packed else bytes(content)


def gzip_again(data: bytes, rng: random.Random) -> bytes:
    """Compressed where it was not, in members, with something behind it, or as a bomb."""
    way = rng.randrange(4)
    if way == 0:
        return gzip.compress(data, 1, mtime=0)
    if way == 1:
        at = rng.randrange(len(data) + 1)
        return gzip.compress(data[:at], 1, mtime=0) + gzip.compress(data[at:], 1, mtime=0)
    if way == 2:
        return data + rng.choice((bytes(100), b"garbage", data[:50]))
    plain = data if data[:2] != b"\x1f\x8b" else data[:100]
    return gzip.compress(plain + bytes(50_000_000), 1, mtime=0)


def _members(data: bytes) -> list[tuple[str, bytes]]:
    try:
        if data[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            files = [(entry.name, archive.extractfile(entry)) for entry in archive]
            return [(name, file.read()) for name, file in files if file is not None]
    except Exception:  # noqa: BLE001 - as above
        return []


def repacked(data: bytes, rng: random.Random) -> bytes:
    """An archive with members of bad names, doubled, damaged or grown to bombs, or with archives in it."""
    members = _members(data)
    if not members:
        return flipped(data, rng)
    out = io.BytesIO()
    way = rng.randrange(6)
    bomb = bytes(rng.choice((5_000_000, 300_000_000 if rng.random() < 0.2 else 5_000_000)))
    method = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(out, "w", method) as archive:
            for name, content in members:
                if way == 0:
                    name = rng.choice(_NAMES) + name[-4:]
                elif way == 1:
                    content = flipped(content, rng)
                archive.writestr(_entry(name, method), content)
            if way == 2:
                archive.writestr(_entry("bomb.nii", zipfile.ZIP_DEFLATED), bomb)
            elif way == 3:
                archive.writestr(_entry("inner.zip", method), data)
            elif way == 4:
                for number in range(1000):
                    archive.writestr(_entry(f"{number}", zipfile.ZIP_STORED), members[0][1][:200])
            elif way == 5:
                archive.writestr(_entry(members[0][0], method), members[-1][1])
    return out.getvalue()


def _entry(name: str, method: int) -> zipfile.ZipInfo:
    """An entry with a time that does not change."""
    entry = zipfile.ZipInfo(name.encode("utf-8", "replace").decode() or "x")
    entry.compress_type = method
    return entry


def directory_flipped(data: bytes, rng: random.Random) -> bytes:
    """Numbers in the directory of a ZIP, or in the block of a tar member, changed."""
    changed = bytearray(data)
    start = max(0, data.find(b"PK\1\2")) if data[:2] == b"PK" else 0
    for _ in range(rng.choice((1, 2, 4)) if changed else 0):
        at = rng.randrange(start, min(len(changed), start + 600)) if start < len(changed) else 0
        changed[at] = rng.choice((0, 1, 6, 8, 9, 12, 14, 0x7F, 0xFF, ord("7"), rng.randrange(256)))
    return bytes(changed)


_GENERIC: tuple[Mutation, ...] = (truncated, flipped, numbered, removed, repeated, padded)
_DICOM = (without_tags, with_values, with_sizes, with_syntax, with_representation, nested)
_SPECIAL: dict[str, tuple[Mutation, ...]] = {
    "dicom": _DICOM,
    "nifti": (nifti_fields, nifti_fields, nifti_fields, gzip_again),
    "archive": (repacked, repacked, directory_flipped),
    "other": (gzip_again,),
}
