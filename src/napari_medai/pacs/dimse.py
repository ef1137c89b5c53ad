"""Archives that speak DIMSE (PS3.7): C-ECHO, C-FIND, C-GET with C-MOVE behind it, C-STORE."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pynetdicom import build_context
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind as StudyFind,
)
from pynetdicom.sop_class import Verification

from napari_medai.core.errors import ArchiveError
from napari_medai.core.stage import Progress
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
from napari_medai.pacs.association import MOST_CONTEXTS, BrokenOffError, associated, ended, status_text
from napari_medai.pacs.node import ATTEMPTS, Access, Node
from napari_medai.pacs.retrieve import UNCOMPRESSED, retrieve
from napari_medai.pacs.transfer import Item, items_of, kind, missing, pause, series_folder

_STUDY_KEYS = (
    "StudyInstanceUID", "StudyDate", "StudyDescription", "ModalitiesInStudy", "NumberOfStudyRelatedSeries",
    "NumberOfStudyRelatedInstances", "PatientID", "PatientName", "PatientBirthDate", "AccessionNumber",
)  # fmt: skip
_SERIES_KEYS = (
    "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription",
    "NumberOfSeriesRelatedInstances",
)  # fmt: skip
_INSTANCE_KEYS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_PENDING = (0xFF00, 0xFF01)


class DimseArchive:
    """See `Archive`."""

    def __init__(self, node: Node, access: Access) -> None:
        self.node, self.access = node, access

    def close(self) -> None:
        """See `Archive`: associations end with each call."""

    def echo(self) -> str:
        """See `Archive`: C-ECHO."""
        with associated(self.node, self.access, [build_context(Verification)]) as association:
            status = association.send_c_echo()
            if "Status" not in status:
                raise ended(self.node, self.access)
            if status.Status:
                raise ArchiveError(f"{self.node} answered the echo so: {status_text(status.Status)}.")
        return "DICOM answers an echo"

    def find_studies(self, query: Query) -> list[StudyEntry]:
        """See `Archive`: C-FIND at the study level."""
        keys = {
            "PatientID": query.patient_id,
            "AccessionNumber": query.accession_number,
            "StudyInstanceUID": query.study_uid,
            "ModalitiesInStudy": query.modality,
            "StudyDate": query.date,
        }
        return newest_first([study_entry(ds) for ds in self._find("STUDY", _STUDY_KEYS, keys)])

    def find_series(self, query: Query) -> list[SeriesEntry]:
        """See `Archive`: C-FIND at the series level, for each study."""
        named = bool(query.study_uid) and not (query.patient_id or query.accession_number or query.date)
        studies = [query.study_uid] if named else [s.uid for s in self.find_studies(query)]
        found: list[SeriesEntry] = []
        for uid in studies:
            keys = {"StudyInstanceUID": uid, "SeriesInstanceUID": query.series_uid, "Modality": query.modality}
            found += by_number([series_entry(ds, uid) for ds in self._find("SERIES", _SERIES_KEYS, keys)])
        return found

    def find_instances(self, study_uid: str, series_uid: str) -> list[InstanceEntry]:
        """See `Archive`: C-FIND at the image level."""
        found = self._find("IMAGE", _INSTANCE_KEYS, {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid})
        return [InstanceEntry(plain(ds, "SOPInstanceUID"), plain(ds, "SOPClassUID")) for ds in found]

    def pull(self, series: SeriesEntry, folder: Path, progress: Progress) -> Outcome:
        """See `Archive`: C-GET; C-MOVE where the archive knows no C-GET and a port was given."""
        folder = folder.expanduser()
        present = self.find_instances(series.study_uid, series.uid)
        if not present:
            raise ArchiveError(f"{self.node} has no such series; look with --list.")
        todo = missing(folder, series.uid, present)
        outcome = Outcome(series_folder(folder, series.uid), skipped=len({e.uid for e in present}) - len(todo))
        wanted = len(todo)
        for attempt in range(1, ATTEMPTS + 1):
            if not todo:
                break
            try:
                outcome.failed = retrieve(self.node, self.access, series, todo, folder, progress)
                break
            except BrokenOffError:
                left = missing(folder, series.uid, todo)
                if attempt == ATTEMPTS:
                    raise
                if len(left) == len(todo):
                    pause(attempt, progress)
                todo = left
        outcome.done = wanted - len(missing(folder, series.uid, todo))
        progress.update(1, 1, f"{outcome.done} instances")
        return outcome

    def push(self, paths: Sequence[Path], progress: Progress, *, again: bool = False) -> Outcome:
        """See `Archive`: C-STORE, each instance in its own transfer syntax."""
        items = items_of(paths)
        todo = items if again else self._absent(items, progress)
        outcome = Outcome(skipped=len(items) - len(todo))
        for group in _groups(todo):
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    self._store(group, outcome, len(todo), progress)
                    break
                except BrokenOffError:
                    if attempt == ATTEMPTS:
                        raise
                    pause(attempt, progress)
        progress.update(1, 1, f"{outcome.done} instances")
        return outcome

    def _absent(self, items: list[Item], progress: Progress) -> list[Item]:
        present: set[str] = set()
        for study, series in sorted({(i.study_uid, i.series_uid) for i in items}):
            progress.check()
            present |= {e.uid for e in self.find_instances(study, series)}
        return [i for i in items if i.uid not in present]

    def _store(self, items: list[Item], outcome: Outcome, total: int, progress: Progress) -> None:
        """Send the items of one association; what is done is taken out of the list."""
        contexts = [build_context(sop_class, list(syntaxes)) for sop_class, syntaxes in sorted(_pairs(items))]
        with associated(self.node, self.access, contexts, progress) as association:
            while items:
                item = items[0]
                progress.update(outcome.done, total, f"{outcome.done} of {total} instances")
                failure = self._send(association, item)
                items.pop(0)
                if failure:
                    outcome.failed[item.path.name] = failure
                else:
                    outcome.done += 1

    def _send(self, association: Any, item: Item) -> str:
        """Send one instance; why it was not taken, empty if it was."""
        try:
            with quietly():
                status = association.send_c_store(dcmread(item.path))
        except OSError as error:
            return f"it cannot be read: {error.strerror or error}"
        except RuntimeError as error:
            raise ended(self.node, self.access) from error
        except ValueError:
            return f"the archive does not take {kind(item.sop_class)} as {kind(item.syntax)}"
        except BROKEN_FILE as error:
            return f"it is damaged ({type(error).__name__})"
        if "Status" not in status:
            raise ended(self.node, self.access)
        # warnings (B000, B006, B007) mean that it was stored
        return "" if status.Status in (0x0000, 0xB000, 0xB006, 0xB007) else status_text(status.Status)

    def _find(self, level: str, names: Iterable[str], keys: dict[str, str]) -> list[Dataset]:
        identifier = Dataset()
        identifier.QueryRetrieveLevel = level
        for name in names:
            setattr(identifier, name, None if name.startswith("Number") else "")
        with quietly():
            for name, value in keys.items():
                setattr(identifier, name, value)
        # what was asked for may hold other than ASCII
        identifier.SpecificCharacterSet = "ISO_IR 192"
        found: list[Dataset] = []
        with associated(self.node, self.access, [build_context(StudyFind)]) as association:
            for status, answer in association.send_c_find(identifier, StudyFind):
                if "Status" not in status:
                    raise ended(self.node, self.access)
                if status.Status in _PENDING:
                    if answer is not None:
                        found.append(answer)
                elif status.Status:
                    raise ArchiveError(f"{self.node} answered the search so: {status_text(status.Status)}.")
        return found


def _pairs(items: Iterable[Item]) -> set[tuple[str, tuple[str, ...]]]:
    """Presentation contexts: SOP class and what it may be sent in; uncompressed ones can be turned into each other."""
    return {(i.sop_class, UNCOMPRESSED if i.syntax in UNCOMPRESSED else (i.syntax,)) for i in items}


def _groups(items: list[Item]) -> list[list[Item]]:
    """Items by association, each with as many presentation contexts as one may have."""
    groups: list[list[Item]] = []
    for item in items:
        if not groups or (len(_pairs(groups[-1])) == MOST_CONTEXTS and not _pairs([item]) <= _pairs(groups[-1])):
            groups.append([])
        groups[-1].append(item)
    return groups
