"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from napari_medai.core.errors import WriteError, reason_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Looks at a file that is whole but has not taken its name yet: its temporary path, and the name it will have.
Look = Callable[[Path, str], None]
_LOOK: ContextVar[Look | None] = ContextVar("look", default=None)


@contextmanager
def checked(look: Look) -> Iterator[None]:
    """Files that are written inside the block take their name only after ``look`` has seen them and raised nothing."""
    token = _LOOK.set(look)
    try:
        yield
    finally:
        _LOOK.reset(token)


def look_at(temporary: Path, name: str) -> None:
    """Show a file or folder that is whole to whoever `checked` was given, before it takes its name.

    Raises
    ------
    WriteError
        It is not what it should be.
    """
    look = _LOOK.get()
    if look is not None:
        look(temporary, name)


def write_error(path: Path, error: OSError) -> WriteError:
    """What the system said, in words."""
    return WriteError(f"{path} was not written: {reason_of(error)}. Nothing partial is left.")


class _Target(io.FileIO):
    """The temporary file. What goes wrong in it is told apart from errors of whoever computes the content."""

    def __init__(self, temporary: Path, path: Path) -> None:
        super().__init__(temporary, "x+")
        self.target = path

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise write_error(self.target, error) from error

    def fileno(self) -> int:
        # numpy and tifffile would otherwise write past this object, to the descriptor itself
        raise io.UnsupportedOperation("fileno")

    def sync(self) -> None:
        os.fsync(super().fileno())


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write; it takes its name when the block ends without an error.

    Until then the content lies beside the target under a temporary name that starts with a dot. It
    is synchronised to the disk and renamed over the target; on any error, an interrupt from the
    keyboard too, it is removed and an older file of that name stays as it was.

    Raises
    ------
    WriteError
        The disk is full, the folder is missing, there is no permission, or the target is a folder.
    """
    path = Path(path).expanduser()
    target = path.resolve()  # a link keeps being one: what it points to is replaced
    if target.is_dir():
        raise WriteError(f"{path} was not written: it is a folder. Give the name of a file.")
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        raw = _Target(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    file = io.BufferedRandom(raw, buffer_size=1 << 20)
    try:
        yield cast(BinaryIO, file)
        try:
            file.flush()
            raw.sync()
            file.close()
        except OSError as error:
            raise write_error(path, error) from error
        look_at(temporary, target.name)
        try:
            os.replace(temporary, target)
            _sync_folder(target.parent)
        except OSError as error:
            raise write_error(path, error) from error
    except BaseException:
        with suppress(OSError, WriteError):
            file.close()  # tries to flush again what could not be written
        with suppress(OSError):
            raw.close()
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where the system lets a folder be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network file systems know no such call
            raise
    finally:
        os.close(descriptor)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a small file whole or not at all.

    Raises
    ------
    WriteError
        As `written`.
    """
    with written(path) as file:
        file.write(content)
    return Path(path)
