"""HTTP as DICOMweb needs it: credentials, certificates, timeouts, another try, and errors in words."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import requests
import urllib3
from requests.auth import AuthBase, HTTPBasicAuth

from napari_medai.core.errors import ArchiveError
from napari_medai.core.stage import Progress
from napari_medai.pacs.node import ATTEMPTS, PASSWORD_VARIABLE, TOKEN_VARIABLE, Access, Node
from napari_medai.pacs.transfer import pause

BUSY = (429, 502, 503, 504)
CHUNK = 1 << 16


_local = threading.local()


def _loggable(_record: logging.LogRecord) -> bool:
    return not getattr(_local, "hidden", 0)


# They log addresses with what is looked for in them, which can be a patient, and tracebacks of what is said in words.
for _name in ("dicomweb_client.web", "urllib3.connectionpool", "retrying"):
    logging.getLogger(_name).addFilter(_loggable)


@contextmanager
def unlogged() -> Iterator[None]:
    """Keep the libraries below from logging what is asked on this thread."""
    _local.hidden = getattr(_local, "hidden", 0) + 1
    try:
        yield
    finally:
        _local.hidden -= 1


class NotThereError(ArchiveError):
    """The archive answered 404."""


class BrokenOffError(ArchiveError):
    """An answer ended before its end."""


class _Bearer(AuthBase):  # type: ignore[misc]
    """A token; as an object, so that a .netrc of the same host does not replace it."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _NoAuth(AuthBase):  # type: ignore[misc]
    """Nothing; keeps a .netrc from being used unasked."""

    def __call__(self, request: Any) -> Any:
        return request


class Session(requests.Session):  # type: ignore[misc]
    """A session whose every request has a timeout, is tried again where that can help, and can be cancelled.

    Parameters
    ----------
    node : Node
        For messages.
    access : Access
        Credentials, certificates, timeout.
    """

    def __init__(self, node: Node, access: Access) -> None:
        super().__init__()
        self.node, self.access = node, access
        if access.token:
            self.auth: AuthBase = _Bearer(access.token)
        elif access.password:
            self.auth = HTTPBasicAuth(access.user.encode(), access.password.encode())
        else:
            self.auth = _NoAuth()
        if node.is_encrypted:
            access.tls()  # says what is wrong with the files
            self.verify = str(Path(access.ca_file).expanduser()) if access.ca_file else True
            if access.certificate:
                own = str(Path(access.certificate).expanduser())
                self.cert = (own, str(Path(access.key).expanduser())) if access.key else own

    def request(self, method: Any, url: Any, *args: Any, **options: Any) -> Any:
        """As `requests.Session.request`; ``body``, a function, makes what is sent, anew for each try.

        Raises
        ------
        ArchiveError
            No answer; an answer with an error status is given back.
        """
        progress: Progress = options.pop("progress", None) or Progress()
        body: Callable[[], Any] | None = options.pop("body", None)
        options["timeout"] = self.access.timeout_s
        options.setdefault("verify", self.verify)  # said here, or REQUESTS_CA_BUNDLE would replace it
        for attempt in range(1, ATTEMPTS + 1):
            progress.check()
            if body is not None:
                options["data"] = body()
            try:
                with unlogged():
                    answer = super().request(method, url, *args, **options)
            except requests.exceptions.RequestException as error:
                if attempt == ATTEMPTS or not _broke_off(error):
                    raise self.failed(error) from None
                pause(attempt, progress)
                continue
            if answer.status_code in BUSY and attempt < ATTEMPTS:
                asked = answer.headers.get("Retry-After", "")
                answer.close()
                pause(attempt, progress, float(asked) if asked.isdigit() else 0.0)
                continue
            return answer
        raise AssertionError  # the last attempt returns or raises

    def failed(self, error: Exception) -> ArchiveError:
        """What went wrong with the connection, in words; nothing of the request is quoted, it may name a patient."""
        causes = list(_causes(error))
        seconds = f"{self.access.timeout_s:g} s"
        if isinstance(error, requests.exceptions.ConnectTimeout):
            return ArchiveError(f"{self.node} did not answer within {seconds}; check address and port, or --timeout.")
        if isinstance(error, requests.exceptions.Timeout) or any(isinstance(c, TimeoutError) for c in causes):
            return ArchiveError(f"{self.node} was silent for {seconds}; try again, or allow more with --timeout.")
        if isinstance(error, requests.exceptions.SSLError):
            why = next((str(c.args[-1]) for c in causes if type(c).__module__ == "ssl" and c.args), "no reason given")
            return ArchiveError(
                f"The TLS connection to {self.node} failed: {_short(why)}; give the authority's certificate with "
                "--ca-file, and check the name in the address."
            )
        if any(isinstance(c, socket.gaierror | urllib3.exceptions.NameResolutionError) for c in causes):
            return ArchiveError(f"{self.node.host} is not known here; check the name of the host.")
        if any(isinstance(c, ConnectionRefusedError | urllib3.exceptions.NewConnectionError) for c in causes):
            return ArchiveError(f"Nothing answers at {self.node}: the connection was refused; check host and port.")
        if isinstance(error, requests.exceptions.TooManyRedirects):
            return ArchiveError(f"{self.node} sends from one address to the next without end; check the address.")
        return BrokenOffError(f"The connection to {self.node} broke off; run the same again to go on.")

    def checked(self, answer: Any, what: str) -> Any:
        """The answer, if it is a good one.

        Raises
        ------
        ArchiveError
            It is not; `NotThereError` for 404.
        """
        if answer.ok:
            return answer
        status = answer.status_code
        answer.close()
        if status == 401:
            if not self.access.has_secret:
                raise ArchiveError(
                    f"{self.node} asks who you are (401): give --user and a password ({PASSWORD_VARIABLE}), or a "
                    f"token ({TOKEN_VARIABLE})."
                )
            raise ArchiveError(f"{self.node} does not accept the user name and password, or the token (401).")
        if status == 403:
            raise ArchiveError(f"{self.node} does not allow it (403): ask for the right to {what}.")
        if status == 404:
            raise NotThereError(f"{self.node} has it not (404), or has no DICOMweb there: asked to {what}.")
        raise ArchiveError(f"{self.node} answered with status {status} ({answer.reason}) when asked to {what}.")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that stand behind it; requests and urllib3 wrap them as arguments and reasons."""
    seen: set[int] = set()
    open_: list[Any] = [error]
    while open_:
        one = open_.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            open_ += [*one.args, one.__cause__, one.__context__, getattr(one, "reason", None)]


def _broke_off(error: Exception) -> bool:
    """Whether a connection stood and broke, so that a second try is worth it."""
    lost = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError, urllib3.exceptions.ProtocolError)
    return not isinstance(error, requests.exceptions.SSLError) and any(isinstance(c, lost) for c in _causes(error))


def _short(text: str) -> str:
    return text.split(" (_ssl.c")[0].replace("[SSL: CERTIFICATE_VERIFY_FAILED] ", "")[:160]


class Multipart:
    """Files as one multipart message, read from the disk while it is sent."""

    boundary = "medai-7d3f0c5e9b1a4826"

    def __init__(self, paths: Sequence[Path], progress: Progress) -> None:
        head = f"--{self.boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._parts: list[bytes | Path] = []
        for path in paths:
            self._parts += [head, path, b"\r\n"]
        self._parts.append(f"--{self.boundary}--\r\n".encode())
        self._sizes = [len(p) if isinstance(p, bytes) else os.path.getsize(p) for p in self._parts]
        self._progress = progress
        self._chunks = self._read()

    def __len__(self) -> int:
        return sum(self._sizes)

    def __iter__(self) -> Iterator[bytes]:
        return self._read()

    def _read(self) -> Iterator[bytes]:
        for part, size in zip(self._parts, self._sizes, strict=True):
            if isinstance(part, bytes):
                yield part
                continue
            left = size
            with part.open("rb") as file:
                while left:
                    self._progress.check()
                    chunk = file.read(min(CHUNK, left))
                    if not chunk:
                        raise ArchiveError(f"{part.name} became shorter while it was sent.")
                    left -= len(chunk)
                    yield chunk

    def read(self, _size: int = -1) -> bytes:
        """The next chunk; empty at the end."""
        return next(self._chunks, b"")


def receive(answer: Any, target: BinaryIO, progress: Progress) -> None:
    """Write the file that an answer holds, multipart (PS3.18 8.6.1.2.1) or bare, as it comes.

    Raises
    ------
    BrokenOffError
        The answer ends early.
    """
    kind, _, parameters = answer.headers.get("Content-Type", "").partition(";")
    chunks = answer.iter_content(CHUNK)
    if kind.strip().lower() != "multipart/related":
        for chunk in chunks:
            progress.check()
            target.write(chunk)
        return
    words = (p.strip().partition("=") for p in parameters.split(";"))
    boundary = next((v.strip('"') for k, _, v in words if k.lower() == "boundary"), "").encode()
    buffer, end = bytearray(), b"\r\n--" + boundary
    in_head = True
    for chunk in chunks:
        progress.check()
        buffer += chunk
        if in_head:
            start = buffer.find(b"\r\n\r\n")
            if start < 0:
                continue
            del buffer[: start + 4]
            in_head = False
        stop = buffer.find(end)
        if stop >= 0:
            target.write(buffer[:stop])
            return
        keep = len(end) - 1
        if len(buffer) > keep:
            target.write(buffer[:-keep])
            del buffer[:-keep]
    raise BrokenOffError("The answer of the archive ended early.")
