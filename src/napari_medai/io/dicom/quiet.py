"""Collects what pydicom and the codecs say about a file, so that a broken file neither warns nor raises strangely.

Both report through Python's warnings, which are one list for the whole process, while slices are
decoded on many threads. So the hook is put in place once, counted, and hands each warning to the
thread that caused it.
"""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydicom.errors import BytesLengthException, InvalidDicomError

# What pydicom and its decoders raise on files that do not follow the standard.
BROKEN_FILE = (
    InvalidDicomError,
    BytesLengthException,
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    UnicodeError,
    ValueError,
    struct.error,
    zlib.error,
)

_READERS = r"(pydicom|pylibjpeg|openjpeg|rle|gdcm|jpeg_ls|_CharLS)(\.|$)"
_lock = threading.Lock()
_local = threading.local()
_users = 0
_saved: Any = None
_show_before: Any = None


def _hook(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None) -> None:
    heard = getattr(_local, "heard", None)
    if heard is not None:
        heard.append(str(message))
    elif _show_before is not None:
        _show_before(message, category, filename, lineno, file, line)


def _enter() -> None:
    global _users, _saved, _show_before
    with _lock:
        if _users == 0:
            _saved = warnings.catch_warnings()
            _saved.__enter__()
            _show_before = warnings.showwarning
            warnings.filterwarnings("always", module=_READERS)
            warnings.showwarning = _hook
        _users += 1


def _leave() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            _saved.__exit__(None, None, None)


@contextmanager
def quietly() -> Iterator[list[str]]:
    """Collect the warnings of the DICOM libraries on this thread instead of showing them.

    Yields
    ------
    list of str
        Grows as warnings come. Their text can quote the header: never show it as it is.
    """
    before = getattr(_local, "heard", None)
    heard: list[str] = []
    _local.heard = heard
    _enter()
    try:
        yield heard
    finally:
        _leave()
        _local.heard = before
