"""One file from an address or a folder, chunk by chunk: with progress, cancelled at any chunk, and gone on with later.

pooch asks for a file, compares its hash and gives it its name; it has no resuming, which `Resuming` adds.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_medai.core.errors import DownloadError, reason_of
from napari_medai.core.stage import Progress

# What a connection brought since the last whole chunk is lost when it breaks
CHUNK_BYTES = 2**15
# Between two signs of progress
_SHOWN_BYTES = 2**18
# Connect, and between two chunks; a cancelled download ends within the second one
TIMEOUTS_S = (10.0, 30.0)
# Connections in vain, one after the other, before it is given up; and in all, for a line that breaks again and again
ATTEMPTS, MOST_ATTEMPTS = 4, 50
# Before the second attempt; twice as long before each further one
WAIT_S = 0.5
# The server is busy or out of order and may be well again in a moment (RFC 9110, 15.5.9 and 15.6; RFC 6585, 4)
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class _BrokenError(Exception):
    """The connection ended before the file did; another attempt may go on."""


@dataclass
class Resuming:
    """A downloader for pooch that keeps what has arrived in a file of its own and asks only for the rest.

    Attributes
    ----------
    part : Path
        Where the bytes are kept until the file is whole; beside it, with the suffix ``.from``, stands where they came
        from and the server's mark of that version, so that two versions are never mixed.
    progress : Progress
        Told of every chunk.
    size : int, optional
        Bytes that the file must have, if they are known.
    hashed : bool
        Whether the caller compares a hash. If not, bytes of another address or version are never gone on with, and an
        encrypted connection is insisted upon.
    resumed : bool
        Set when bytes of an earlier attempt were used.
    """

    part: Path
    progress: Progress
    size: int | None = None
    hashed: bool = True
    resumed: bool = False

    def __call__(self, url: str, output_file: Any, pooch: Any = None, check_only: bool = False) -> None:
        """Bring a file; the signature is pooch's.

        Raises
        ------
        DownloadError
            It cannot be had; the message says why and whether trying again helps.
        Cancelled
            The person stopped it; what has arrived is kept.
        """
        try:
            self._bring(url)
            self.part.replace(output_file)
            self._origin.unlink(missing_ok=True)
        except OSError as error:  # requests' errors are OSErrors too; they do not get here
            raise DownloadError(f"{_name(url)} cannot be kept: {reason_of(error)}. {self._kept()}".rstrip()) from error

    @property
    def _origin(self) -> Path:
        return self.part.with_name(self.part.name + ".from")

    @property
    def _have(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _kept(self) -> str:
        if not self._have:
            return ""
        return f"{self._have} bytes have arrived and are kept; the same command goes on from there."

    def _bring(self, url: str) -> None:
        in_vain = 0
        for _ in range(MOST_ATTEMPTS):
            before = self._have
            try:
                self._receive(url)
                return
            except _BrokenError as broken:
                in_vain = 0 if self._have > before else in_vain + 1
                last = broken
            if in_vain >= ATTEMPTS:
                break
            self._wait(WAIT_S * 2**in_vain)
        raise DownloadError(f"{_name(url)} did not arrive whole: {last}. {self._kept()}")

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.progress.check()
            time.sleep(min(left, 0.1))

    def _headers(self, url: str) -> dict[str, str]:
        # a server that packs text on its way would send other bytes than the file has
        headers = {"Accept-Encoding": "identity"}
        if not self._have:
            return headers
        source, _, mark = self._origin.read_text("utf-8").partition("\n") if self._origin.is_file() else ("", "", "")
        if source == url and mark:
            return headers | {"Range": f"bytes={self._have}-", "If-Range": mark}
        if self.hashed:
            return headers | {"Range": f"bytes={self._have}-"}
        self.part.unlink()
        return headers

    def _receive(self, url: str) -> None:
        """One attempt: open a connection and write what comes.

        Raises
        ------
        _BrokenError
            The connection failed or broke.
        DownloadError
            The server says that there is no use in trying again.
        """
        import requests

        try:
            with requests.get(url, headers=self._headers(url), stream=True, timeout=TIMEOUTS_S) as response:
                if url.startswith("https:") and not response.url.startswith("https:") and not self.hashed:
                    raise DownloadError(f"{_name(url)} leads to an address that is not encrypted; it is not used.")
                start, total = self._answered(url, response)
                if start is not None:
                    self._write(response.iter_content(CHUNK_BYTES), start, total)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise _BrokenError(_said(error)) from error
        except requests.RequestException as error:
            raise DownloadError(f"{_name(url)} cannot be asked for: {_said(error)}.") from error
        if total is not None and self._have < total:
            raise _BrokenError(f"the connection ended after {self._have} of {total} bytes")

    def _answered(self, url: str, response: Any) -> tuple[int | None, int | None]:
        """From which byte the answer goes on, and the size of the whole file; none for the first if it is all here."""
        status = response.status_code
        if status == 416:  # what is asked for begins behind the end of the file
            total = _total(response.headers.get("Content-Range", ""))
            if total == self._have and (self.size is None or total == self.size):
                return None, total
            self.part.unlink()
            raise _BrokenError("the server's file is shorter than what had arrived, which was removed")
        if status in _PASSING:
            raise _BrokenError(f"the server answered {status} ({response.reason})")
        if status not in (200, 206):
            raise DownloadError(
                f"{_name(url)} cannot be had: the server answered {status} ({response.reason}). The address is not, "
                "or no longer, what the catalogue says; get the file in another way and add it: medai models add FILE"
            )
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadError(f"{_name(url)} cannot be had: the server packs it on its way, though asked not to.")
        start, total = 0, None
        if status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != self._have:
                self.part.unlink(missing_ok=True)
                raise _BrokenError("the server went on from another byte than it was asked for")
            start, total = int(found[1]), None if found[2] == "*" else int(found[2])
        elif response.headers.get("Content-Length", "").isdecimal():
            total = int(response.headers["Content-Length"])
        if total is not None and self.size is not None and total != self.size:
            raise DownloadError(
                f"{_name(url)} has {total} bytes on the server; the catalogue knows one of {self.size}. The server's "
                "file was changed or is damaged, and nothing of it was taken."
            )
        self.resumed = self.resumed or start > 0
        tag = response.headers.get("ETag", "")
        # a weak mark may stand for two versions, so that it is no condition for going on (RFC 9110, 13.1.5)
        mark = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
        self._origin.write_text(f"{url}\n{mark}", "utf-8")
        return start, total

    def _write(self, chunks: Any, start: int, total: int | None) -> None:
        most = self.size or total
        with self.part.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            done, shown = start, -1
            for chunk in chunks:
                done += file.write(chunk)
                if most is not None and done > most:
                    file.truncate(0)
                    raise DownloadError(f"The server sends more than the {most} bytes that were expected; it is ended.")
                self.progress.check()
                if done // _SHOWN_BYTES > shown or done == most:
                    shown = done // _SHOWN_BYTES
                    self.progress.update(done if most else 0, most or 1, amount(done, most))


def copy(source: Path, target: Path, progress: Progress) -> None:
    """Copy a file chunk by chunk, to a name that does not matter until it is whole.

    Raises
    ------
    OSError
        It cannot be read or written.
    Cancelled
        The person stopped it.
    """
    size = source.stat().st_size
    with source.open("rb") as reading, target.open("wb") as writing:
        done = 0
        while chunk := reading.read(2**22):
            done += writing.write(chunk)
            progress.update(done, size, amount(done, size))


def amount(done: int, total: int | None) -> str:
    """``"3.2 of 24.0 MB"``."""
    return f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"


def _total(content_range: str) -> int | None:
    found = re.fullmatch(r"bytes \*/(\d+)", content_range)
    return int(found[1]) if found else None


def _name(url: str) -> str:
    return url if len(url) < 160 else f"{url[:100]}…{url[-50:]}"


def _said(error: Exception) -> str:
    """The innermost reason of a library that wraps its errors."""
    inner: BaseException = error
    while True:
        below = inner.__cause__ or inner.__context__ or next((a for a in inner.args if isinstance(a, Exception)), None)
        if below is None or below is inner:
            break
        inner = below
    text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return text.rstrip(".")[:200]
