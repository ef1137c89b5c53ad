"""Archives that speak DICOMweb (PS3.18): QIDO-RS to find, WADO-RS to pull, STOW-RS to push."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.web import DICOMwebClient
from pydicom import Dataset

from napari_medai.core.errors import ArchiveError
from napari_medai.core.stage import Cancelled, Progress
from napari_medai.io.atomic import written
from napari_medai.io.dicom.quiet import BROKEN_FILE, quietly
from napari_medai.pacs.archive import (
    InstanceEntry,
    Outcome,
    Query,
    SeriesEntry,
    StudyEntry,
    by_number,
    newest_first,
    plain,
    series_entry,
    study_entry,
)
from napari_medai.pacs.node import ATTEMPTS, Access, Node
from napari_medai.pacs.transfer import (
    Item,
    check_instance,
    instance_path,
    items_of,
    missing,
    pause,
    series_folder,
)
from napari_medai.pacs.web import BrokenOffError, Multipart, NotThereError, Session, receive, unlogged

_THREADS = 4
# One message holds as many files, so that a small series is sent at once and a broken-off one loses little.
_BATCH_FILES, _BATCH_BYTES = 32, 16 << 20
_ANY_SYNTAX = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_STUDY_FIELDS = ["StudyDescription", "ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"]
_SERIES_FIELDS = ["SeriesDescription", "SeriesNumber", "NumberOfSeriesRelatedInstances"]
# PS3.18 10.5.3.2 refers to the C-STORE statuses of PS3.4 and PS3.7
_REASONS = {
    0xA700: "the archive is out of room",
    0x0110: "the archive could not process it",
    0x0122: "the archive does not take this kind of object",
    0x0124: "not allowed",
    0xA900: "the data do not fit their kind of object",
    0xC000: "the archive cannot understand it",
    0xC122: "the archive does not take its transfer syntax",
}


class WebArchive:
    """See `Archive`; instances are kept byte for byte as the archive sends them."""

    def __init__(self, node: Node, access: Access) -> None:
        self.node = node
        self._session = Session(node, access)
        self._client = DICOMwebClient(str(node), session=self._session, permissive_uid=True)
        self._client.set_http_retry_params(retry=False)  # the session does

    def close(self) -> None:
        """See `Archive`."""
        self._session.close()

    def echo(self) -> str:
        """See `Archive`: DICOMweb knows no echo, so one study is asked for."""
        self._ask("search", lambda: self._client.search_for_studies(limit=1))
        return "DICOMweb answers a search"

    def find_studies(self, query: Query) -> list[StudyEntry]:
        """See `Archive`."""
        filters = {
            "PatientID": query.patient_id,
            "AccessionNumber": query.accession_number,
            "StudyInstanceUID": query.study_uid,
            "ModalitiesInStudy": query.modality,
            "StudyDate": query.date,
        }
        found = self._all(
            "StudyInstanceUID",
            lambda offset: self._client.search_for_studies(
                fields=_STUDY_FIELDS, search_filters=_given(filters), offset=offset
            ),
        )
        return newest_first([study_entry(ds) for ds in found])

    def find_series(self, query: Query) -> list[SeriesEntry]:
        """See `Archive`."""
        named = bool(query.study_uid) and not (query.patient_id or query.accession_number or query.date)
        studies = [query.study_uid] if named else [s.uid for s in self.find_studies(query)]
        filters = _given({"SeriesInstanceUID": query.series_uid, "Modality": query.modality})
        found: list[SeriesEntry] = []
        for uid in studies:

            def page(offset: int, uid: str = uid) -> Any:
                return self._client.search_for_series(uid, fields=_SERIES_FIELDS, search_filters=filters, offset=offset)

            try:
                found += by_number([series_entry(ds, uid) for ds in self._all("SeriesInstanceUID", page)])
            except NotThereError:
                continue
        return found

    def find_instances(self, study_uid: str, series_uid: str) -> list[InstanceEntry]:
        """See `Archive`."""

        def page(offset: int) -> Any:
            return self._client.search_for_instances(study_uid, series_uid, offset=offset)

        try:
            found = self._all("SOPInstanceUID", page)
        except NotThereError:
            return []
        return [InstanceEntry(plain(ds, "SOPInstanceUID"), plain(ds, "SOPClassUID")) for ds in found]

    def metadata(self, study_uid: str, series_uid: str) -> list[dict[str, Any]]:
        """The headers of a series as DICOM JSON (PS3.18 F), without the pixels."""
        found = self._ask("read headers", lambda: self._client.retrieve_series_metadata(study_uid, series_uid))
        if not found or not all(isinstance(one, dict) for one in found):
            raise NotThereError(f"{self.node} has no such series; look with --list.")
        return list(found)

    def bulk(self, url: str) -> bytes:
        """An element's value that is too long for the headers.

        The address that the archive gives may be one behind its proxy, or of someone who is not to get the password:
        only its path below the studies is used.
        """
        _, _, path = url.partition("/studies/")
        if not path:
            return b""
        parts = self._ask("read", lambda: self._client.retrieve_bulkdata(f"{self.node}/studies/{path}"))
        return bytes(parts[0]) if parts else b""

    def fetch(self, study_uid: str, series_uid: str, uid: str, target: Path, progress: Progress | None = None) -> None:
        """Fetch one instance into a file, whole or not at all.

        Raises
        ------
        ArchiveError
            It cannot be had; or what came is not it.
        WriteError
            The disk is full, or the folder cannot be written to.
        """
        progress = progress or Progress()
        url = f"{self.node}/studies/{study_uid}/series/{series_uid}/instances/{uid}"
        for attempt in range(1, ATTEMPTS + 1):
            with self._session.get(url, headers={"Accept": _ANY_SYNTAX}, stream=True, progress=progress) as answer:
                self._session.checked(answer, "retrieve an instance")
                try:
                    with written(target) as file:
                        receive(answer, file, progress)
                        check_instance(file, uid)
                    return
                except requests.exceptions.RequestException as error:
                    failure = self._session.failed(error)
                except BrokenOffError as error:
                    failure = error
            if attempt == ATTEMPTS or not isinstance(failure, BrokenOffError):
                raise failure
            pause(attempt, progress)

    def pull(self, series: SeriesEntry, folder: Path, progress: Progress) -> Outcome:
        """See `Archive`; four instances at a time."""
        present = self.find_instances(series.study_uid, series.uid)
        if not present:
            raise NotThereError(f"{self.node} has no such series; look with --list.")
        todo = missing(folder.expanduser(), series.uid, present)
        outcome = Outcome(series_folder(folder, series.uid), skipped=len({e.uid for e in present}) - len(todo))
        stop = _Stop(progress)

        def one(entry: InstanceEntry) -> str:
            target = instance_path(folder.expanduser(), series.uid, entry.uid)
            self.fetch(series.study_uid, series.uid, entry.uid, target, stop)
            return entry.uid

        waiting = iter(todo)
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="medai-pull") as pool:
            running = {pool.submit(one, entry): entry for entry in islice(waiting, _THREADS)}
            try:
                while running:
                    finished, _ = wait(running, 0.1, FIRST_COMPLETED)
                    progress.update(outcome.done, len(todo), f"{outcome.done} of {len(todo)} instances")
                    for future in finished:
                        _settle(future, running.pop(future), outcome)
                        running |= {pool.submit(one, entry): entry for entry in islice(waiting, 1)}
            except BaseException:
                stop.now.set()
                raise
        progress.update(1, 1, f"{outcome.done} instances")
        return outcome

    def push(self, paths: Sequence[Path], progress: Progress, *, again: bool = False) -> Outcome:
        """See `Archive`."""
        items = items_of(paths)
        todo = items if again else self._absent(items, progress)
        outcome = Outcome(skipped=len(items) - len(todo))
        for batch in _batches(todo):
            progress.update(outcome.done, len(todo), f"{outcome.done} of {len(todo)} instances")
            self._store(batch, outcome, progress)
        progress.update(1, 1, f"{outcome.done} instances")
        return outcome

    def _absent(self, items: list[Item], progress: Progress) -> list[Item]:
        present: set[str] = set()
        for study, series in sorted({(i.study_uid, i.series_uid) for i in items}):
            progress.check()
            present |= {e.uid for e in self.find_instances(study, series)}
        return [i for i in items if i.uid not in present]

    def _store(self, batch: list[Item], outcome: Outcome, progress: Progress) -> None:
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={Multipart.boundary}',
            "Accept": "application/dicom+json",
        }
        paths = [item.path for item in batch]
        url = f"{self.node}/studies"
        body = lambda: Multipart(paths, progress)  # noqa: E731
        answer = self._session.post(url, headers=headers, body=body, progress=progress)
        report = _report(answer) if answer.status_code in (200, 202, 400, 409) else None
        if report is None and answer.status_code not in (400, 409):
            self._session.checked(answer, "store")
        report = Dataset() if report is None else report
        stored = {plain(item, "ReferencedSOPInstanceUID") for item in report.get("ReferencedSOPSequence", ())}
        refused = {
            plain(item, "ReferencedSOPInstanceUID"): _reason(int(item.get("FailureReason", 0) or 0))
            for item in report.get("FailedSOPSequence", ())
        }
        unsaid = "the archive did not confirm that it has it" + (
            "" if answer.ok else f", and answered with status {answer.status_code}"
        )
        for item in batch:
            if item.uid in stored:
                outcome.done += 1
            elif item.uid in refused or len(batch) == 1:
                outcome.failed[item.path.name] = refused.get(item.uid, unsaid)
            else:  # some archives refuse a whole message for one instance in it, and do not say which
                self._store([item], outcome, progress)

    def _ask(self, what: str, call: Callable[[], Any]) -> Any:
        """A call of the client, with its errors in words."""
        try:
            with unlogged():
                return call()
        except requests.exceptions.HTTPError as error:
            self._session.checked(error.response, what)
            raise
        except requests.exceptions.JSONDecodeError as error:
            raise self._no_dicomweb() from error
        except requests.exceptions.RequestException as error:
            raise self._session.failed(error) from None
        except (ValueError, KeyError, LookupError) as error:
            raise self._no_dicomweb() from error

    def _no_dicomweb(self) -> ArchiveError:
        return ArchiveError(
            f"{self.node} answers, but not as DICOMweb does; check the path in the address (often /dicom-web)."
        )

    def _all(self, key: str, page: Callable[[int], Any]) -> list[Any]:
        """All matches, page by page, until nothing new comes: some archives do not know ``offset``."""
        found: dict[str, Any] = {}
        while True:
            answer = self._ask("search", lambda: page(len(found)))
            before = len(found)
            with quietly():
                for one in answer:
                    try:
                        dataset = Dataset.from_json(one)
                        found.setdefault(plain(dataset, key), dataset)
                    except BROKEN_FILE as error:
                        raise self._no_dicomweb() from error
            if len(found) == before:
                return [ds for uid, ds in found.items() if uid]


class _Stop(Progress):
    """Tells the threads of a pull that it is over."""

    def __init__(self, whole: Progress) -> None:
        self.whole, self.now = whole, threading.Event()

    def check(self) -> None:
        if self.now.is_set():
            raise Cancelled
        self.whole.check()


def _settle(future: Future[str], entry: InstanceEntry, outcome: Outcome) -> None:
    try:
        future.result()
        outcome.done += 1
    except NotThereError:
        outcome.failed[entry.uid] = "the archive lists it but does not give it"


def _given(filters: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in filters.items() if value}


def _batches(items: list[Item]) -> list[list[Item]]:
    batches: list[list[Item]] = []
    size = 0
    for item in items:
        if not batches or len(batches[-1]) >= _BATCH_FILES or size + item.size > _BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(item)
        size += item.size
    return batches


def _report(answer: Any) -> Any:
    """The archive's report on each instance; None if there is none to read."""
    try:
        decoded = json.loads(answer.content.decode("utf-8"))
        with quietly():
            return Dataset.from_json(decoded[0] if isinstance(decoded, list) else decoded)
    except BROKEN_FILE:
        return None


def _reason(status: int) -> str:
    known = _REASONS.get(status) or next((_REASONS[k] for k in (0xA700, 0xA900) if status & 0xFF00 == k), "")
    known = known or (_REASONS[0xC000] if status & 0xF000 == 0xC000 else "")
    return f"{known or 'refused'} (status {status:04X})"
