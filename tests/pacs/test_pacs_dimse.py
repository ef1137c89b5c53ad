"""DIMSE against Orthanc, and against a small archive of pynetdicom where Orthanc cannot be what is needed."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import RLELossless
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, StudyRootQueryRetrieveInformationModelFind, Verification

import napari_medai as medai
from napari_medai.core.errors import ArchiveError
from napari_medai.core.stage import Cancelled, Progress
from napari_medai.pacs import Access, Query, connect
from napari_medai.pacs.archive import series_of
from tests.pacs.orthanc import (
    COMPRESSED,
    OTHER_PATIENT,
    OTHER_STUDY,
    PATIENT_ID,
    PLAIN,
    SLICES,
    STUDY,
    Orthanc,
    free_ports,
    pixels,
    write_series,
)

pytestmark = pytest.mark.pacs


def series(archive, uid: str):
    return series_of(archive, Query(study_uid=STUDY, series_uid=uid))[0]


def test_echo_and_find(filled: Orthanc):
    archive = connect(filled.dimse)
    assert archive.echo() == "DICOM answers an echo"
    (study,) = archive.find_studies(Query(patient_id=PATIENT_ID))
    assert (study.uid, study.modalities, study.series, study.instances) == (STUDY, ("CT",), 2, 2 * SLICES)
    assert archive.find_studies(Query(patient_id="nobody")) == []
    assert [s.uid for s in archive.find_series(Query(study_uid=STUDY))] == [PLAIN, COMPRESSED]
    assert archive.find_series(Query(study_uid=STUDY, modality="MR")) == []
    assert archive.find_instances(STUDY, "1.2.3") == []


@pytest.mark.parametrize("uid", [PLAIN, COMPRESSED])
def test_a_series_by_c_get(filled: Orthanc, tmp_path: Path, uid):
    archive = connect(filled.dimse)
    outcome = archive.pull(series(archive, uid), tmp_path, Progress())
    assert (outcome.done, outcome.skipped, outcome.failed) == (SLICES, 0, {})
    np.testing.assert_array_equal(medai.open(outcome.folder).numpy(), pixels().astype(int) - 1024)
    if uid == COMPRESSED:
        first = dcmread(outcome.folder / f"{uid}.1.dcm")
        assert first.file_meta.TransferSyntaxUID == RLELossless
    (outcome.folder / f"{uid}.3.dcm").unlink()
    again = archive.pull(series(archive, uid), tmp_path, Progress())
    assert (again.done, again.skipped) == (1, SLICES - 1)


def test_a_series_by_c_move(filled: Orthanc, tmp_path: Path, monkeypatch):
    from napari_medai.pacs import retrieve

    def refused(*_: object) -> None:
        raise retrieve._NotOfferedError("it rejects the service")

    monkeypatch.setattr(retrieve, "_get", refused)  # Orthanc always offers C-GET
    archive = connect(filled.dimse, Access(move_port=filled.move_port))
    outcome = archive.pull(series(archive, COMPRESSED), tmp_path, Progress())
    assert (outcome.done, outcome.failed) == (SLICES, {})
    np.testing.assert_array_equal(medai.open(outcome.folder).numpy(), pixels().astype(int) - 1024)
    with pytest.raises(ArchiveError, match=r"does not offer C-GET.*--port.*MEDAI"):
        connect(filled.dimse).pull(series(archive, PLAIN), tmp_path, Progress())
    unknown = connect(filled.dimse, Access(ae_title="STRANGER", move_port=free_ports(1)[0]))
    assert set(unknown.pull(series(archive, PLAIN), tmp_path / "b", Progress()).failed) == {
        f"{PLAIN}.{n + 1}" for n in range(SLICES)
    }


def test_push_by_c_store(filled: Orthanc, tmp_path: Path):
    archive = connect(filled.dimse)
    uid = f"{OTHER_STUDY}.7"
    folder = write_series(tmp_path / "new", uid, compressed=True, slices=4)
    archive.push([folder / "000.dcm"], Progress())
    outcome = archive.push([folder], Progress())
    assert (outcome.done, outcome.skipped, outcome.failed) == (3, 1, {})
    (study,) = archive.find_studies(Query(patient_id=OTHER_PATIENT))
    assert study.uid == OTHER_STUDY
    assert len(archive.find_instances(OTHER_STUDY, uid)) == 4


class _After(Progress):
    """Cancelled some time after the start."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds

    def check(self) -> None:
        if time.monotonic() > self.until:
            raise Cancelled


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_an_archive_that_never_answers(silent: int):
    started = time.monotonic()
    with pytest.raises(ArchiveError, match=r"no answer within 0.5 s.*dicom\+tls"):
        connect(f"dicom://ANY@127.0.0.1:{silent}", Access(timeout_s=0.5)).echo()
    assert time.monotonic() - started < 5


def test_titles_and_ports_that_are_wrong(filled: Orthanc):
    with pytest.raises(ArchiveError, match="does not call itself WRONG"):
        connect(filled.dimse.replace("ORTHANC", "WRONG")).echo()
    with pytest.raises(ArchiveError, match="refused; check host and port"):
        connect(f"dicom://ANY@127.0.0.1:{free_ports(1)[0]}").echo()
    with pytest.raises(ArchiveError, match="is not known here"):
        connect("dicom://ANY@no-such-host.invalid:104").echo()


@pytest.fixture
def small_archive() -> Iterator[AE]:
    """An archive of pynetdicom; a test adds what it is to do and calls ``serve``."""
    entity = AE("SMALL")
    entity.add_supported_context(Verification)
    servers = []

    def serve(*handlers) -> str:
        servers.append(entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=list(handlers)))
        return f"dicom://SMALL@127.0.0.1:{servers[0].server_address[1]}"

    entity.serve = serve
    yield entity
    for server in servers:
        server.shutdown()


def test_a_calling_title_that_is_not_known(small_archive: AE):
    small_archive.require_calling_aet = ["FRIEND"]
    address = small_archive.serve()
    with pytest.raises(ArchiveError, match=r"does not know the AE title MEDAI.*--aet"):
        connect(address).echo()
    assert connect(address, Access(ae_title="FRIEND")).echo()


def test_user_and_token_as_the_identity_of_the_association(small_archive: AE):
    seen = []

    def look(event):
        seen.append((event.user_id_type, event.primary_field, event.secondary_field))
        return event.secondary_field in (b"wonder land", b"", None), None

    address = small_archive.serve((evt.EVT_USER_ID, look))
    assert connect(address, Access(user="alice", password="wonder land")).echo()
    assert connect(address, Access(token="a.b.c")).echo()
    with pytest.raises(ArchiveError, match="rejected the association") as refused:
        connect(address, Access(user="alice", password="rabbit hole")).echo()
    assert "rabbit" not in str(refused.value)
    assert [kind for kind, _, _ in seen] == [2, 5, 2]
    assert seen[1][1] == b"a.b.c"


def test_what_an_archive_does_not_take_is_said_by_file(small_archive: AE, tmp_path: Path):
    small_archive.add_supported_context(CTImageStorage, "1.2.840.10008.1.2.1")
    small_archive.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    statuses = iter([0x0000, 0xA700, 0xC123, 0x0124])
    address = small_archive.serve((evt.EVT_C_STORE, lambda event: next(statuses)), (evt.EVT_C_FIND, lambda event: []))
    plain = write_series(tmp_path / "plain", f"{OTHER_STUDY}.8", slices=4)
    packed = write_series(tmp_path / "packed", f"{OTHER_STUDY}.9", compressed=True, slices=1)
    outcome = connect(address).push([plain, packed], Progress())
    assert outcome.done == 1
    assert outcome.failed == {
        "001.dcm": "the archive is out of room (status A700)",
        "002.dcm": "the archive cannot understand or process it (status C123)",
        "003.dcm": "the archive does not allow it (status 0124)",
        "000.dcm": "the archive does not take CT Image Storage as RLE Lossless",
    }
    with pytest.raises(ArchiveError, match=r"4 of 5 instances were not pushed.*and 1 more"):
        outcome.check("pushed to", address)


def test_cancelled_while_the_archive_is_busy_with_one_instance(small_archive: AE, tmp_path: Path):
    small_archive.add_supported_context(CTImageStorage)

    def slow(_event) -> int:
        time.sleep(1.5)
        return 0

    address = small_archive.serve((evt.EVT_C_STORE, slow))
    folder = write_series(tmp_path / "some", f"{OTHER_STUDY}.10", slices=3)
    started = time.monotonic()
    with pytest.raises(Cancelled):
        connect(address).push([folder], _After(0.3), again=True)
    assert time.monotonic() - started < 1.4


def test_pull_goes_on_with_another_association(filled: Orthanc, relay, tmp_path: Path, monkeypatch):
    from napari_medai.pacs import dimse, transfer

    monkeypatch.setattr(transfer, "PAUSE_S", 0.01)
    monkeypatch.setattr(dimse, "ATTEMPTS", 1)
    cut = relay(filled.dicom_port)
    archive = connect(f"dicom://ORTHANC@127.0.0.1:{cut.port}", Access(timeout_s=5))
    one = series(archive, PLAIN)
    before = cut.passed
    archive.find_instances(STUDY, PLAIN)
    cut.limit = cut.passed + (cut.passed - before) + 12_000
    with pytest.raises(ArchiveError, match="run the same again to go on"):
        archive.pull(one, tmp_path, Progress())
    there = os.listdir(tmp_path / PLAIN)
    assert 0 < len(there) < SLICES
    cut.limit = None
    outcome = archive.pull(one, tmp_path, Progress())
    assert (outcome.skipped, outcome.done, outcome.failed) == (len(there), SLICES - len(there), {})
    np.testing.assert_array_equal(medai.open(outcome.folder).numpy(), pixels().astype(int) - 1024)


def test_tls(guarded: Orthanc, certificates: Path, tmp_path: Path, study: Path):
    trusted = connect(guarded.dimse, Access(ca_file=str(certificates / "ca.pem")))
    assert trusted.echo()
    assert trusted.push([study / "compressed"], Progress()).failed == {}
    assert trusted.pull(series(trusted, COMPRESSED), tmp_path, Progress()).failed == {}
    for access in (Access(), Access(ca_file=str(certificates / "other.pem"))):
        with pytest.raises(ArchiveError, match=r"TLS connection .* failed: .*--ca-file"):
            connect(guarded.dimse, access).echo()


# pynetdicom 3.0 leaves a socket open that the other side closes while the association is negotiated
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tls_that_is_not_spoken(guarded: Orthanc):
    with pytest.raises(ArchiveError, match=r"wants TLS|broke it off"):
        connect(guarded.dimse.replace("+tls", ""), Access(timeout_s=2)).echo()
    gc.collect()


def test_no_patient_in_a_log(filled: Orthanc, caplog):
    caplog.set_level("DEBUG")
    assert connect(filled.dimse).find_studies(Query(patient_id=PATIENT_ID))
    assert PATIENT_ID not in caplog.text
    assert "Doe" not in caplog.text


def test_presentation_contexts_stay_below_their_limit(tmp_path: Path):
    from napari_medai.pacs.archive import InstanceEntry, SeriesEntry
    from napari_medai.pacs.dimse import _groups, _pairs
    from napari_medai.pacs.retrieve import COMPRESSED as SYNTAXES
    from napari_medai.pacs.retrieve import _parts
    from napari_medai.pacs.transfer import Item

    items = [Item(tmp_path, "1", "2", str(n), f"1.2.{n}", "1.2.840.10008.1.2.5", 1) for n in range(300)]
    groups = _groups(items)
    assert [len(_pairs(group)) for group in groups] == [128, 128, 44]
    entries = [InstanceEntry(str(n), f"1.2.{n}") for n in range(15)]
    for part, classes in _parts(entries, tmp_path, SeriesEntry("1", "2")):
        assert 1 + len(classes) * (1 + len(SYNTAXES)) <= 128
        assert {e.sop_class for e in part} == set(classes)
    unsaid = list(_parts([InstanceEntry("1")], tmp_path, SeriesEntry("1", "2")))
    every = [uid for _, classes in unsaid for uid in classes]
    assert len(every) == len(set(every)) > 128
    assert every[:2] == ["1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"]


def test_instances_that_nobody_asked_for_are_refused(tmp_path: Path):
    from napari_medai.pacs.archive import InstanceEntry, SeriesEntry
    from napari_medai.pacs.retrieve import _Inbox

    class Event:
        request = Dataset()

    Event.request.AffectedSOPInstanceUID = "9.9"
    inbox = _Inbox(SeriesEntry("1", "2"), [InstanceEntry("1.1")], tmp_path, Progress())
    assert inbox.take(Event) == 0x0124
    assert list(tmp_path.iterdir()) == []
