"""DICOM associations (PS3.8): opened, watched for cancelling, and what goes wrong with them in words."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pynetdicom import AE, _config, evt
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.pdu_primitives import UserIdentityNegotiation

from napari_medai.core.errors import ArchiveError, MedaiError
from napari_medai.core.stage import Progress
from napari_medai.pacs.node import PASSWORD_VARIABLE, Access, Node

# Identifiers name patients: they must not reach a log.
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False

# An association can propose 128 presentation contexts (PS3.8 7.1.1.13: odd numbers up to 255).
MOST_CONTEXTS = 128
_LOOK_S = 0.1
# As large as archives take; small ones cost a turn for each
_MAX_PDU = 1 << 17


class BrokenOffError(ArchiveError):
    """The association ended early; another one may go on."""


@contextmanager
def associated(
    node: Node,
    access: Access,
    contexts: Sequence[Any],
    progress: Progress | None = None,
    roles: Sequence[Any] = (),
    handlers: Sequence[Any] = (),
) -> Iterator[Any]:
    """An association, released at the end; aborted at once when cancelled, even while waiting for the archive.

    Parameters
    ----------
    node, access : Node, Access
        With whom, and how.
    contexts : sequence of pynetdicom presentation contexts
        At most 128.
    progress : Progress, optional
        Asked ten times a second whether to go on.
    roles : sequence of role selections
        For C-GET.
    handlers : sequence of (event, handler)
        For instances that come.

    Raises
    ------
    ArchiveError
        There is no association to be had; the message says why.
    """
    refusals: list[Any] = []

    def look(event: Any) -> None:
        if isinstance(event.pdu, A_ASSOCIATE_RJ):
            refusals.append(event.pdu)

    # before pynetdicom tries, which only says that it failed
    address = _resolved(node)
    unreachable = probe(node, access)
    if unreachable is not None:
        raise unreachable
    entity = application_entity(access)
    association = entity.associate(
        address,
        node.port,
        contexts=list(contexts),
        ae_title=node.ae_title,
        max_pdu=_MAX_PDU,
        ext_neg=[*roles, *_identity(access)],
        tls_args=(access.tls(), node.host) if node.is_encrypted else None,
        evt_handlers=[*handlers, (evt.EVT_PDU_RECV, look)],
    )
    if not association.is_established:
        if association.dul.socket is not None:
            association.dul.socket.close()
        raise _refused(node, access, refusals, association)
    stopped: list[BaseException] = []
    over = threading.Event()
    watch = threading.Thread(
        target=_watch, args=(association, progress or Progress(), stopped, over), name="medai-pacs-watch", daemon=True
    )
    watch.start()
    try:
        yield association
    except BaseException:
        _abort(association)
        if stopped:
            raise stopped[0] from None
        raise
    else:
        if stopped:
            raise stopped[0]
        if association.is_established:
            association.release()
    finally:
        over.set()
        watch.join()
        association.join(access.timeout_s)


def application_entity(access: Access) -> Any:
    """This side, with its title and timeouts."""
    entity = AE(access.ae_title)
    entity.connection_timeout = entity.acse_timeout = access.timeout_s
    entity.dimse_timeout = entity.network_timeout = access.timeout_s
    return entity


def _watch(association: Any, progress: Progress, stopped: list[BaseException], over: threading.Event) -> None:
    while not over.wait(_LOOK_S):
        try:
            progress.check()
        except (MedaiError, KeyboardInterrupt) as error:  # handed on to the thread that waits
            stopped.append(error)
            _abort(association)
            return


def _abort(association: Any) -> None:
    association.abort()
    association.dimse.msg_queue.put((None, None))  # wakes a thread that waits for an answer


def _resolved(node: Node) -> str:
    try:
        found = socket.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise ArchiveError(f"{node.host} is not known here; check the name of the host.") from None
    found.sort(key=lambda one: one[0] != socket.AF_INET)
    return str(found[0][4][0])


def _identity(access: Access) -> list[Any]:
    """User and password, or token, as the identity of the association (PS3.7 D.3.3.7)."""
    if not access.has_secret:
        return []
    item = UserIdentityNegotiation()
    item.user_identity_type = 5 if access.token else 2
    item.primary_field = (access.token or access.user).encode()
    item.secondary_field = b"" if access.token else access.password.encode()
    return [item]


def _refused(node: Node, access: Access, refusals: Sequence[Any], association: Any) -> ArchiveError:
    if refusals:
        reason = str(refusals[0].reason_str)
        lower = reason.lower()
        if "called ae title" in lower:
            return ArchiveError(f"{node} does not call itself {node.ae_title}; give the archive's own AE title.")
        if "calling ae title" in lower:
            return ArchiveError(
                f"{node} does not know the AE title {access.ae_title}; have it registered there, or give one that is "
                "with --aet."
            )
        who = f"; check the user and {PASSWORD_VARIABLE}" if access.has_secret else "; it may ask for a user"
        return ArchiveError(f"{node} rejected the association ({reason}){who if 'no reason' in lower else ''}.")
    if association.rejected_contexts and not association.accepted_contexts:
        return ArchiveError(f"{node} takes none of what was proposed to it: it does not offer this service.")
    return BrokenOffError(
        f"{node} took the connection but gave no answer within {access.timeout_s:g} s, or broke it off; check that it "
        "is a DICOM port, and whether it wants TLS (dicom+tls://)."
    )


def probe(node: Node, access: Access) -> ArchiveError | None:
    """Why no connection can be made; None if one can."""
    try:
        with socket.create_connection((node.host, node.port), access.timeout_s) as raw:
            if node.is_encrypted:
                with access.tls().wrap_socket(raw, server_hostname=node.host):
                    pass
    except ConnectionRefusedError:
        return ArchiveError(f"Nothing answers at {node}: the connection was refused; check host and port.")
    except ssl.SSLCertVerificationError as error:
        return ArchiveError(
            f"The TLS connection to {node} failed: {error.verify_message}; give the authority's certificate with "
            "--ca-file, and check the name in the address."
        )
    except TimeoutError:
        return ArchiveError(
            f"{node} did not answer within {access.timeout_s:g} s; check address and port, or --timeout."
        )
    except ssl.SSLError as error:
        return ArchiveError(f"The TLS connection to {node} failed ({error.reason}); check that its port speaks TLS.")
    except OSError as error:
        return ArchiveError(f"{node} cannot be reached: {error.strerror or error}.")
    return None


def ended(node: Node, access: Access) -> BrokenOffError:
    """The error for an association that ended in the middle."""
    return BrokenOffError(
        f"{node} broke off, or was silent for {access.timeout_s:g} s; run the same again to go on, or allow more time "
        "with --timeout."
    )


def status_text(status: int) -> str:
    """A status (PS3.4 B.2.3 and C.4, PS3.7 C) in words. The archive's comment is left out: it may name a patient."""
    known = {
        0xA700: "the archive is out of room",
        0xA701: "the archive cannot count the matches",
        0xA702: "the archive could not send what it has",
        0xA801: "the archive does not know where to send to: its list must have our AE title, host and port",
        0xA900: "the data do not fit their kind of object, or the archive cannot match what was asked",
        0xB000: "parts could not be transferred",
        0xFE00: "cancelled",
        0x0110: "the archive could not process it",
        0x0117: "the instance is not valid",
        0x0122: "the archive does not take this kind of object, or this service",
        0x0124: "the archive does not allow it",
        0x0211: "the archive does not know this service",
    }
    words = known.get(status) or known.get(status & 0xFF00) if status else ""
    words = words or ("the archive cannot understand or process it" if status & 0xF000 == 0xC000 else "it failed")
    return f"{words} (status {status:04X})"
