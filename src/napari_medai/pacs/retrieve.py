"""Instances by C-GET, or by C-MOVE to a port of this machine (PS3.4 C.4.2, C.4.3)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pynetdicom import build_context, build_role, evt
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelGet as StudyGet,
)
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelMove as StudyMove,
)

from napari_medai.core.errors import ArchiveError, MedaiError
from napari_medai.core.stage import Progress
from napari_medai.io.atomic import written
from napari_medai.pacs.archive import InstanceEntry, SeriesEntry
from napari_medai.pacs.association import MOST_CONTEXTS, application_entity, associated, ended, status_text
from napari_medai.pacs.node import Access, Node
from napari_medai.pacs.transfer import check_instance, instance_path, kind, missing

# implicit and explicit little endian, which every archive can turn into each other
UNCOMPRESSED = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
# Each is proposed in a context of its own, so that an archive can send each instance as it is stored:
# deflated, big endian, RLE; JPEG baseline, extended, lossless; JPEG-LS; JPEG 2000; HTJ2K; JPEG XL; MPEG-2, MPEG-4.
COMPRESSED = (
    "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203", "1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.112",
    "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.102",
)  # fmt: skip
# So many instances are asked for at once: a list of UIDs must stay below 64 KiB in explicit encoding.
_AT_ONCE = 200
_PENDING = (0xFF00, 0xFF01)
_NOT_OFFERED = (0x0122, 0x0211)


class _NotOfferedError(ArchiveError):
    """The archive knows the service not."""


def retrieve(
    node: Node,
    access: Access,
    series: SeriesEntry,
    instances: Sequence[InstanceEntry],
    folder: Path,
    progress: Progress,
) -> dict[str, str]:
    """Fetch instances of a series into its folder.

    Returns
    -------
    dict of str to str
        SOP Instance UID -> why it did not come.

    Raises
    ------
    ArchiveError
        None can be had; `BrokenOffError` if the archive broke off in the middle.
    WriteError
        The disk is full, or the folder cannot be written to.
    """
    inbox = _Inbox(series, instances, folder, progress)
    try:
        for part, classes in _parts(instances, folder, series):
            _get(node, access, part, classes, inbox)
    except _NotOfferedError as error:
        if not access.move_port:
            raise ArchiveError(
                f"{node} does not offer C-GET ({error}); give a port that it may send to (--port), and have our AE "
                f"title {access.ae_title}, host and port registered there."
            ) from None
        _move(node, access, list(instances), inbox)
    left = missing(folder, series.uid, instances)
    if left and access.move_port and not inbox.moved:
        # archives offer fewer kinds of objects for C-GET than for C-MOVE: label maps, say
        _move(node, access, left, inbox)
        left = missing(folder, series.uid, left)
    return {e.uid: inbox.failed.get(e.uid, inbox.reason or "the archive did not send it") for e in left}


class _Inbox:
    """Takes what the archive sends, if it was asked for."""

    def __init__(
        self, series: SeriesEntry, instances: Sequence[InstanceEntry], folder: Path, progress: Progress
    ) -> None:
        self.series, self.folder, self.progress = series, folder, progress
        self.wanted = {e.uid for e in instances}
        self.failed: dict[str, str] = {}
        self.reason = ""
        self.error: MedaiError | None = None
        self.done = 0
        self.moved = False
        self._lock = threading.Lock()

    def take(self, event: Any) -> int:
        """Write one instance; the status for the archive."""
        uid = str(event.request.AffectedSOPInstanceUID)
        if uid not in self.wanted or self.error is not None:
            return 0x0124
        try:
            with written(instance_path(self.folder, self.series.uid, uid)) as file:
                file.write(event.encoded_dataset())
                check_instance(file, uid)
        except ArchiveError as error:
            self.failed[uid] = str(error)
            return 0xC000
        except MedaiError as error:
            self.error = error  # a full disk ends it all
            return 0xA700
        with self._lock:
            self.done += 1
        return 0x0000

    def told(self) -> None:
        """Pass on how far it is, and stop where the disk did."""
        if self.error is not None:
            raise self.error
        total = len(self.wanted)
        self.progress.update(self.done, total, f"{self.done} of {total} instances")


def _parts(
    instances: Sequence[InstanceEntry], folder: Path, series: SeriesEntry
) -> Iterator[tuple[list[InstanceEntry], list[str]]]:
    """What to ask for in one association, and which SOP classes to propose in it: 128 contexts are not enough for all.

    An archive that does not say the classes is asked for what is missing with one group of classes after the other.
    """
    each = (MOST_CONTEXTS - 1) // (1 + len(COMPRESSED))
    known = sorted({e.sop_class for e in instances if e.sop_class})
    for n in range(0, len(known), each):
        classes = known[n : n + each]
        yield [e for e in instances if e.sop_class in classes], classes
    unknown = [e for e in instances if not e.sop_class]
    every = [str(cx.abstract_syntax) for cx in AllStoragePresentationContexts]
    # the frequent ones first: CT, MR, enhanced CT and MR, PET, SEG, CR
    first = [f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("2", "4", "2.1", "4.1", "128", "66.4", "1")]
    every = [*first, *(uid for uid in every if uid not in first)]
    for n in range(0, len(every), each):
        unknown = missing(folder, series.uid, unknown)
        if not unknown:
            return
        yield unknown, every[n : n + each]


def _identifiers(series: SeriesEntry, instances: Sequence[InstanceEntry]) -> Iterator[Dataset]:
    for n in range(0, len(instances), _AT_ONCE):
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "IMAGE"
        identifier.StudyInstanceUID, identifier.SeriesInstanceUID = series.study_uid, series.uid
        identifier.SOPInstanceUID = [e.uid for e in instances[n : n + _AT_ONCE]]
        yield identifier


def _get(node: Node, access: Access, instances: Sequence[InstanceEntry], classes: Sequence[str], inbox: _Inbox) -> None:
    contexts = [build_context(StudyGet)]
    for uid in classes:
        contexts += [build_context(uid, list(UNCOMPRESSED)), *(build_context(uid, [one]) for one in COMPRESSED)]
    roles = [build_role(uid, scp_role=True) for uid in classes]
    handlers = [(evt.EVT_C_STORE, inbox.take)]
    with associated(node, access, contexts, inbox.progress, roles, handlers) as association:
        if not any(cx.abstract_syntax == StudyGet for cx in association.accepted_contexts):
            raise _NotOfferedError("it rejects the service")
        offered = {str(cx.abstract_syntax) for cx in association.accepted_contexts if cx.as_scp}
        for entry in instances:
            if entry.sop_class and entry.sop_class not in offered:
                inbox.failed[entry.uid] = (
                    f"the archive does not give {kind(entry.sop_class)} by C-GET; give a port for C-MOVE (--port), or "
                    "use its DICOMweb address"
                )
        instances = [e for e in instances if e.uid not in inbox.failed]
        for identifier in _identifiers(inbox.series, instances):
            _follow(node, access, association.send_c_get(identifier, StudyGet), inbox)


def _move(node: Node, access: Access, instances: Sequence[InstanceEntry], inbox: _Inbox) -> None:
    inbox.moved, inbox.failed = True, {}
    with (
        _receiving(node, access, inbox),
        associated(node, access, [build_context(StudyMove)], inbox.progress) as association,
    ):
        for identifier in _identifiers(inbox.series, instances):
            _follow(node, access, association.send_c_move(identifier, access.ae_title, StudyMove), inbox)


@contextmanager
def _receiving(node: Node, access: Access, inbox: _Inbox) -> Iterator[None]:
    """A storage server on the port for C-MOVE, while it is needed; it takes only what was asked for."""
    entity = application_entity(access)
    entity.require_called_aet = True
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax, [*UNCOMPRESSED, *COMPRESSED])
    tls = access.tls_server() if node.is_encrypted else None
    address = "127.0.0.1" if node.is_local else ""
    try:
        server = entity.start_server(
            (address, access.move_port), block=False, evt_handlers=[(evt.EVT_C_STORE, inbox.take)], ssl_context=tls
        )
    except OSError as error:
        raise ArchiveError(
            f"Port {access.move_port} cannot be listened on ({error.strerror}); give another one with --port."
        ) from error
    try:
        yield
    finally:
        server.shutdown()


def _follow(node: Node, access: Access, answers: Any, inbox: _Inbox) -> None:
    for status, _ in answers:
        if "Status" not in status:
            if inbox.error is not None:
                raise inbox.error
            raise ended(node, access)
        code = int(status.Status)
        if code in _PENDING:
            inbox.told()
            continue
        if code in _NOT_OFFERED:
            raise _NotOfferedError(status_text(code))
        if code:
            inbox.reason = status_text(code)
        inbox.told()
