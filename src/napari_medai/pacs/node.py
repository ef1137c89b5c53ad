"""Where an archive is and how one gets in: addresses, credentials, certificates, the file of archives."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from napari_medai.core.errors import ArchiveError, ParamsError

TIMEOUT_S = 30.0
# how often a request is tried again after 429, 503 or a connection that broke, and the first pause
ATTEMPTS = 4
PAUSE_S = 0.5
AE_TITLE = "MEDAI"
_SCHEMES = {"http": 80, "https": 443, "dicom": 104, "dicom+tls": 2762}  # 2762: PS3.15 B.1
_FORMS = "https://host/dicom-web, dicom://AET@host:port or dicom+tls://AET@host:port"
USER_VARIABLE, PASSWORD_VARIABLE, TOKEN_VARIABLE = "MEDAI_PACS_USER", "MEDAI_PACS_PASSWORD", "MEDAI_PACS_TOKEN"
_FILE_KEYS = {"address", "user", "ca_file", "certificate", "key", "ae_title", "move_port", "timeout_s"}


@dataclass(frozen=True)
class Node:
    """The address of an archive.

    Attributes
    ----------
    scheme : {"http", "https", "dicom", "dicom+tls"}
        How it is talked to.
    host, port : str, int
        Where.
    path : str
        Root of the DICOMweb services, e.g. ``"/dicom-web"``.
    ae_title : str
        Called AE title, for DIMSE.
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    ae_title: str = ""

    @property
    def is_web(self) -> bool:
        """Whether it speaks DICOMweb."""
        return self.scheme.startswith("http")

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection is encrypted (TLS)."""
        return self.scheme in ("https", "dicom+tls")

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        title = f"{self.ae_title}@" if self.ae_title else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _SCHEMES[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{title}{host}{port}{self.path}"


@dataclass(frozen=True)
class Access:
    """How one gets in. Secrets are not part of its text.

    Attributes
    ----------
    user, password : str
        For basic authentication (DICOMweb), or as the user identity of an association (DIMSE).
    token : str
        Bearer token (DICOMweb), or JSON web token as the user identity (DIMSE).
    ca_file : str
        PEM file of the authority that signed the archive's certificate; empty: those of the system.
    certificate, key : str
        PEM files of this side's certificate and its private key, where the archive asks for one.
    timeout_s : float
        How long the archive may be silent.
    ae_title : str
        What this side calls itself, for DIMSE.
    move_port : int
        Port on which this side receives what C-MOVE sends; 0: only C-GET is used.
    allow_plain : bool
        Whether a password may go over the network without encryption.
    """

    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    ca_file: str = ""
    certificate: str = ""
    key: str = field(default="", repr=False)
    timeout_s: float = TIMEOUT_S
    ae_title: str = AE_TITLE
    move_port: int = 0
    allow_plain: bool = False

    @property
    def has_secret(self) -> bool:
        """Whether something secret is sent."""
        return bool(self.password or self.token)

    def completed(self, node: Node) -> Access:
        """With what the environment says, checked against the address.

        Raises
        ------
        ParamsError
            The timeout, AE title or port cannot be.
        ArchiveError
            A file is not there, or a password would go over the network in clear text.
        """
        access = self
        if not self.token and not self.password:
            user = self.user or os.environ.get(USER_VARIABLE, "")
            password = os.environ.get(PASSWORD_VARIABLE, "")
            token = "" if user and password else os.environ.get(TOKEN_VARIABLE, "")
            access = replace(self, user=user, password=password if user else "", token=token)
        if not 0 < access.timeout_s <= 3600:
            raise ParamsError(f"The timeout is {access.timeout_s} s; it goes from more than 0 to 3600.")
        if not 0 <= access.move_port <= 65535:
            raise ParamsError(f"The port for C-MOVE is {access.move_port}; it goes from 1 to 65535.")
        _check_title(access.ae_title)
        for path in (access.ca_file, access.certificate, access.key):
            if path and not Path(path).expanduser().is_file():
                raise ArchiveError(f"The certificate file {path} does not exist; check the path.")
        if access.has_secret and not (node.is_encrypted or node.is_local or access.allow_plain):
            raise ArchiveError(
                f"The password would go to {node} in clear text; use https:// or dicom+tls://, or allow it with "
                "--plain (allow_plain=True)."
            )
        return access

    def tls(self) -> ssl.SSLContext:
        """What a TLS connection is made with; the other side's certificate and name are always checked.

        Raises
        ------
        ArchiveError
            A certificate file is none.
        """
        try:
            context = ssl.create_default_context(cafile=_path(self.ca_file))
            if self.certificate:
                context.load_cert_chain(str(_path(self.certificate)), _path(self.key))
        except (ssl.SSLError, OSError) as error:
            raise _not_pem(error) from error
        return context

    def tls_server(self) -> ssl.SSLContext | None:
        """What instances that C-MOVE sends are received with; None without a certificate of this side."""
        if not self.certificate:
            return None
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=_path(self.ca_file))
            context.load_cert_chain(str(_path(self.certificate)), _path(self.key))
        except (ssl.SSLError, OSError) as error:
            raise _not_pem(error) from error
        context.verify_mode = ssl.CERT_REQUIRED
        return context


def _path(name: str) -> str | None:
    return str(Path(name).expanduser()) if name else None


def _not_pem(error: Exception) -> ArchiveError:
    reason = getattr(error, "reason", "") or getattr(error, "strerror", "") or "it is no PEM file"
    return ArchiveError(f"A certificate or key cannot be read ({reason}); give PEM files that belong together.")


def _check_title(title: str) -> None:
    # PS3.5 6.2: up to 16 characters of the default repertoire, without backslash and control characters
    if not re.fullmatch(r"[\x20-\x5b\x5d-\x7e]{1,16}", title) or not title.strip():
        raise ParamsError(f"{title!r} is no AE title: 1 to 16 characters, without a backslash.")


def parse_address(text: str) -> Node:
    """The node that an address or a name of the file of archives stands for.

    Raises
    ------
    ParamsError
        It is no address; the message shows the forms. A password in it is refused.
    """
    known = known_archives()
    if text in known:
        text = known[text].address
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError as error:
        raise ParamsError(f"The address of the archive cannot be read ({error}); write {_FORMS}.") from None
    if parts.password is not None:
        raise ParamsError(
            f"The address holds a password, which others on this machine could see; leave it out and set "
            f"{PASSWORD_VARIABLE}, or give --user and type it."
        )
    scheme = parts.scheme.lower()
    if scheme not in _SCHEMES or not parts.hostname:
        names = f" Archives in the file of archives: {', '.join(sorted(known))}." if known else ""
        raise ParamsError(f"{text!r} is no address of an archive; write {_FORMS}.{names}")
    title = parts.username or ""
    if scheme.startswith("http"):
        if title:
            raise ParamsError("The address holds a user name; leave it out and give it with --user.")
        if parts.query or parts.fragment:
            raise ParamsError("The address goes on after its path; write https://host/dicom-web.")
        return Node(scheme, parts.hostname, port or _SCHEMES[scheme], parts.path.rstrip("/"))
    if not title:
        raise ParamsError(f"{text!r} names no AE title; write dicom://AET@{parts.hostname}:{port or 104}.")
    _check_title(title)
    return Node(scheme, parts.hostname, port or _SCHEMES[scheme], "", title)


@dataclass(frozen=True)
class Known:
    """An entry of the file of archives: an address, and what `Access` takes but for secrets."""

    address: str
    access: Access


def archives_file() -> Path:
    """The file of archives: ``MEDAI_ARCHIVES``, or ``~/.config/napari-medai/archives.toml``."""
    named = os.environ.get("MEDAI_ARCHIVES", "")
    return Path(named).expanduser() if named else Path.home() / ".config" / "napari-medai" / "archives.toml"


def known_archives() -> dict[str, Known]:
    """The archives of the file of archives, by name; empty without one.

    Raises
    ------
    ParamsError
        The file is no TOML, or has keys that are not known, a password among them.
    """
    path = archives_file()
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ParamsError(f"{path} cannot be read ({error}).") from error
    found = {}
    for name, table in tables.items():
        unknown = sorted(set(table) - _FILE_KEYS) if isinstance(table, dict) else ["(no table)"]
        if unknown or not isinstance(table.get("address"), str):
            raise ParamsError(
                f"{path}: [{name}] needs an address and may have {', '.join(sorted(_FILE_KEYS - {'address'}))}; "
                f"found: {', '.join(unknown) or 'no address'}. Passwords belong into {PASSWORD_VARIABLE}."
            )
        try:
            found[name] = Known(table["address"], Access(**{k: v for k, v in table.items() if k != "address"}))
        except TypeError as error:
            raise ParamsError(f"{path}: [{name}] cannot be read ({error}).") from error
    return found
