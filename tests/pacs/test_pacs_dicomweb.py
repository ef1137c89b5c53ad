"""DICOMweb against Orthanc: what is found, opened, pulled and pushed."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import BasicTextSRStorage, RLELossless

import napari_medai as medai
from napari_medai.core.errors import ArchiveError, ParamsError, WriteError
from napari_medai.core.stage import Cancelled, Progress
from napari_medai.pacs import Access, Query, connect, open_remote
from napari_medai.pacs.archive import series_of
from tests.pacs.orthanc import (
    COMPRESSED,
    OTHER_STUDY,
    PATIENT,
    PATIENT_ID,
    PLAIN,
    SLICES,
    STUDY,
    Orthanc,
    ct_slice,
    free_ports,
    pixels,
    write_series,
)

pytestmark = pytest.mark.pacs


def series(archive, uid: str):
    return series_of(archive, Query(study_uid=STUDY, series_uid=uid))[0]


def test_studies_and_series_are_found(filled: Orthanc):
    web = connect(filled.web)
    (study,) = web.find_studies(Query(patient_id=PATIENT_ID))
    assert (study.uid, study.date, study.description, study.modalities) == (STUDY, "20240229", "Abdomen", ("CT",))
    assert (study.series, study.instances) == (2, 2 * SLICES)
    assert (study.identity.patient_name, study.identity.accession_number) == (PATIENT, "A-17")
    found = web.find_series(Query(accession_number="A-17", modality="CT"))
    assert [(s.uid, s.number, s.description, s.instances) for s in found] == [
        (PLAIN, 1, "Series 1", SLICES),
        (COMPRESSED, 2, "Series 2", SLICES),
    ]
    assert len(web.find_instances(STUDY, PLAIN)) == SLICES


@pytest.mark.parametrize(
    "query",
    [
        {"patient_id": "nobody"},
        {"date": "20240301-"},
        {"date": "-20240228"},
        {"study_uid": "1.2.3"},
        {"modality": "MR"},
    ],
)
def test_what_does_not_match_is_not_found(filled: Orthanc, query):
    web = connect(filled.web)
    assert web.find_series(Query(**query)) == []
    with pytest.raises(ArchiveError, match="has no"):
        series_of(web, Query(**query))


def test_a_range_of_dates(filled: Orthanc):
    assert [s.uid for s in connect(filled.web).find_studies(Query(date="20240201-20240229"))] == [STUDY]


@pytest.mark.parametrize("uid", [PLAIN, COMPRESSED])
def test_a_pulled_series_is_the_pushed_one(filled: Orthanc, study: Path, tmp_path: Path, uid):
    web = connect(filled.web)
    outcome = web.pull(series(web, uid), tmp_path, Progress())
    assert (outcome.done, outcome.skipped, outcome.failed) == (SLICES, 0, {})
    pulled = medai.open(outcome.folder)
    original = medai.open(study / ("plain" if uid == PLAIN else "compressed"))
    np.testing.assert_array_equal(pulled.numpy(), original.numpy())
    np.testing.assert_array_equal(pulled.numpy(), pixels().astype(int) - 1024)
    np.testing.assert_allclose(pulled.affine, original.affine, atol=1e-12)
    names = sorted(os.listdir(outcome.folder))
    assert names == sorted(f"{uid}.{n + 1}.dcm" for n in range(SLICES))
    if uid == COMPRESSED:  # as it is stored, not decompressed on the way
        assert dcmread(outcome.folder / names[0]).file_meta.TransferSyntaxUID == RLELossless


@pytest.mark.parametrize("uid", [PLAIN, COMPRESSED])
def test_lazy_opening_fetches_what_is_touched(filled: Orthanc, relay, tmp_path: Path, uid):
    counting = relay(filled.http_port)
    web = connect(f"http://127.0.0.1:{counting.port}/dicom-web")
    volume = open_remote(web, STUDY, uid)

    def fetched() -> list[str]:
        return [r.split()[1].rsplit("/", 1)[1] for r in counting.requests if "/instances/" in r]

    assert fetched() == []
    outcome = web.pull(series(web, uid), tmp_path, Progress())
    counting.requests.clear()
    pulled = medai.open(outcome.folder)
    assert volume.meta == pulled.meta
    np.testing.assert_array_equal(volume.affine, pulled.affine)
    assert (volume.dtype, volume.axes, volume.shape, volume.name) == (pulled.dtype, "zyx", pulled.shape, pulled.name)
    # slice n lies at 2.5 mm * n along the normal and has the UID n + 1
    np.testing.assert_array_equal(np.asarray(volume.array[4]), pixels()[4].astype(int) - 1024)
    assert f"{uid}.5" in fetched()
    assert len(fetched()) < SLICES
    np.testing.assert_array_equal(volume.numpy(), pulled.numpy())
    assert sorted(fetched()) == sorted(f"{uid}.{n + 1}" for n in range(SLICES)), "each instance is fetched once"
    web.close()


def test_instances_of_a_lazy_series_make_room_for_others(filled: Orthanc, tmp_path: Path):
    from napari_medai.io.dicom.remote import _KEPT, RemoteSeries

    folder = tmp_path / "headers"
    folder.mkdir()
    asked = []

    def fetch(name: str, target: Path) -> None:
        asked.append(name)
        target.write_bytes(bytes(100))

    (tmp_path / "pixels").mkdir()
    held = RemoteSeries(folder, tmp_path / "pixels", {}, fetch, cache_bytes=500)
    for n in range(_KEPT + 4):
        held.instance(str(n))
    assert len(os.listdir(tmp_path / "pixels")) == _KEPT
    held.instance(str(_KEPT + 3))
    held.instance("0")  # went first, comes again
    assert asked == [*(str(n) for n in range(_KEPT + 4)), "0"]


def test_pull_goes_on_after_it_was_broken_off(filled: Orthanc, relay, tmp_path: Path, monkeypatch):
    from napari_medai.pacs import dicomweb, transfer
    from napari_medai.pacs import web as http

    for module in (dicomweb, http):
        monkeypatch.setattr(module, "ATTEMPTS", 2)
    monkeypatch.setattr(transfer, "PAUSE_S", 0.01)
    cut = relay(filled.http_port)
    archive = connect(f"http://127.0.0.1:{cut.port}/dicom-web", Access(timeout_s=5))
    one = series(archive, PLAIN)
    before = cut.passed
    archive.find_instances(STUDY, PLAIN)
    cut.limit = cut.passed + (cut.passed - before) + 14_000  # some 2.3 kB for each instance
    with pytest.raises(ArchiveError, match=r"broke off; run the same again"):
        archive.pull(one, tmp_path, Progress())
    folder = tmp_path / PLAIN
    there = sorted(os.listdir(folder))
    assert 0 < len(there) < SLICES
    assert all(name.endswith(".dcm") for name in there), "nothing half-written is left"
    for name in there:
        assert dcmread(folder / name).pixel_array.shape == (24, 20)
    cut.limit = None
    outcome = archive.pull(one, tmp_path, Progress())
    assert (outcome.skipped, outcome.done) == (len(there), SLICES - len(there))
    np.testing.assert_array_equal(medai.open(folder).numpy(), pixels().astype(int) - 1024)
    archive.close()


def test_push_sends_what_is_missing(filled: Orthanc, tmp_path: Path):
    web = connect(filled.web)
    folder = write_series(tmp_path / "more", f"{OTHER_STUDY}.4", slices=5)
    web.push(sorted(folder.iterdir())[:2], Progress())
    outcome = web.push([folder], Progress())
    assert (outcome.done, outcome.skipped, outcome.failed) == (3, 2, {})
    assert len(web.find_instances(OTHER_STUDY, f"{OTHER_STUDY}.4")) == 5
    assert web.push([folder], Progress(), again=True).done == 5


def test_what_an_archive_refuses_is_said_by_file(filled: Orthanc, tmp_path: Path):
    web = connect(filled.web)
    folder = write_series(tmp_path / "some", f"{OTHER_STUDY}.5", slices=3)
    damaged = folder / "001.dcm"
    damaged.write_bytes(damaged.read_bytes()[:900])  # its header can be read, its pixels have gone
    broken = dcmread(folder / "002.dcm")
    broken.StudyInstanceUID = ""
    broken.save_as(folder / "002.dcm")
    outcome = web.push([folder], Progress(), again=True)
    assert (outcome.done, sorted(outcome.failed)) == (1, ["001.dcm", "002.dcm"])
    with pytest.raises(ArchiveError, match=r"2 of 3 instances were not pushed"):
        outcome.check("pushed to", web.node)


class _Impatient(Progress):
    def __init__(self, checks: int) -> None:
        self.left = checks

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Cancelled


@pytest.mark.parametrize("checks", [1, 6, 15])
def test_a_cancelled_pull_leaves_whole_files(filled: Orthanc, tmp_path: Path, checks):
    web = connect(filled.web)
    with pytest.raises(Cancelled):
        web.pull(series(web, PLAIN), tmp_path, _Impatient(checks))
    left = list((tmp_path / PLAIN).iterdir()) if (tmp_path / PLAIN).exists() else []
    assert len(left) < SLICES
    for path in left:
        assert path.suffix == ".dcm"
        assert dcmread(path).pixel_array.shape == (24, 20)


def test_basic_authentication_over_tls(guarded: Orthanc, certificates: Path, study: Path, monkeypatch):
    ca = str(certificates / "ca.pem")
    with pytest.raises(ArchiveError, match=r"asks who you are \(401\).*MEDAI_PACS_PASSWORD"):
        connect(guarded.web, Access(ca_file=ca)).echo()
    with pytest.raises(ArchiveError, match=r"does not accept") as refused:
        connect(guarded.web, Access(user="alice", password="rabbit hole", ca_file=ca)).echo()
    assert "rabbit" not in str(refused.value)
    with pytest.raises(ArchiveError, match=r"does not accept.*token"):
        connect(guarded.web, Access(token="abc", ca_file=ca)).echo()
    monkeypatch.setenv("MEDAI_PACS_USER", "alice")
    monkeypatch.setenv("MEDAI_PACS_PASSWORD", "wonder land")
    web = connect(guarded.web, Access(ca_file=ca))
    assert web.push([study / "plain"], Progress()).failed == {}
    assert [s.uid for s in web.find_series(Query(study_uid=STUDY))] == [PLAIN]
    assert open_remote(web, STUDY, PLAIN).numpy()[3, 12, 9] == pixels()[3, 12, 9] - 1024
    web.close()


def test_a_certificate_that_nobody_vouches_for(guarded: Orthanc, certificates: Path, monkeypatch):
    for access in (Access(), Access(ca_file=str(certificates / "other.pem"))):
        with pytest.raises(ArchiveError, match=r"TLS connection .* failed: .*certificate.*--ca-file"):
            connect(guarded.web, access).echo()
    # no variable of the environment takes the place of the file that was named
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates / "ca.pem"))
    with pytest.raises(ArchiveError, match="TLS"):
        connect(guarded.web, Access(ca_file=str(certificates / "other.pem"))).echo()
    with pytest.raises(ArchiveError, match="TLS"):
        connect(guarded.web.replace("127.0.0.1", "localhost"), Access(ca_file=str(certificates / "ca.pem"))).echo()


def test_a_token_goes_into_the_header_and_nowhere_else(caplog):
    """Orthanc knows no tokens: a server that looks at what is sent."""
    caplog.set_level(logging.DEBUG)
    heads = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            client, _ = server.accept()
            with client:
                heads.append(client.recv(65536).decode())
                body = b"[]"
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

        thread = threading.Thread(target=answer)
        thread.start()
        access = Access(token="s3cret-token")
        web = connect(f"http://127.0.0.1:{server.getsockname()[1]}", access)
        assert web.find_studies(Query(patient_id=PATIENT_ID)) == []
        thread.join()
        web.close()
    assert "Authorization: Bearer s3cret-token\r\n" in heads[0]
    assert "s3cret" not in caplog.text + repr(access)
    assert PATIENT_ID not in caplog.text, "who is looked for is not in a log"


def _once(server: socket.socket, answers: list[bytes]) -> threading.Thread:
    def serve() -> None:
        for answer in answers:
            client, _ = server.accept()
            with client:
                client.recv(65536)
                if answer:
                    client.sendall(answer)
                else:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_busy_archives_and_resets_are_tried_again(monkeypatch):
    from napari_medai.pacs import transfer

    monkeypatch.setattr(transfer, "PAUSE_S", 0.01)
    busy = b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]"
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = _once(server, [busy % b"503 Busy", b"", busy % b"429 Slow", good])
        web = connect(f"http://127.0.0.1:{server.getsockname()[1]}", Access(timeout_s=5))
        assert web.find_studies(Query()) == []
        thread.join()
        web.close()


def test_an_archive_that_never_answers():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ArchiveError, match=r"was silent for 0.3 s.*--timeout"):
            connect(address, Access(timeout_s=0.3)).echo()
        assert time.monotonic() - started < 3


def test_nobody_there_and_something_else_there(filled: Orthanc):
    with pytest.raises(ArchiveError, match="refused; check host and port"):
        connect(f"http://127.0.0.1:{free_ports(1)[0]}/dicom-web").echo()
    with pytest.raises(ArchiveError, match="is not known here"):
        connect("http://no-such-host.invalid/dicom-web").echo()
    with pytest.raises(ArchiveError, match="404"):
        connect(filled.web.replace("dicom-web", "elsewhere")).echo()


def test_a_full_disk_ends_a_pull(filled: Orthanc, tmp_path: Path):
    target = tmp_path / "file"
    target.write_text("no folder")
    web = connect(filled.web)
    with pytest.raises(WriteError, match="not written"):
        web.pull(series(web, PLAIN), target, Progress())


def test_another_instance_than_asked_for_is_refused(tmp_path: Path):
    from io import BytesIO

    from napari_medai.pacs.transfer import check_instance

    held = BytesIO()
    ct_slice(pixels()[0], 0, PLAIN).save_as(held, enforce_file_format=True)
    check_instance(held, f"{PLAIN}.1")
    with pytest.raises(ArchiveError, match="another instance"):
        check_instance(held, f"{PLAIN}.2")
    with pytest.raises(ArchiveError, match="no DICOM file"):
        check_instance(BytesIO(json.dumps([]).encode() * 100), f"{PLAIN}.1")


def test_only_uids_reach_paths_and_addresses():
    from napari_medai.pacs.transfer import instance_path

    with pytest.raises(ParamsError, match="no UID"):
        Query(study_uid="../../etc")
    path = instance_path(Path("out"), "../..", "/etc/passwd")
    assert path.resolve().is_relative_to(Path("out").resolve())
    assert instance_path(Path("out"), "..", "..").resolve().is_relative_to(Path("out").resolve())


def test_the_example_of_the_documentation(filled: Orthanc, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = (Path(__file__).parents[2] / "docs" / "pacs.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    assert "open_remote(" in code
    # a study of one CT slice and a report
    study = f"{OTHER_STUDY}.20"
    report = ct_slice(pixels()[1], 1, f"{study}.2")
    del report.PixelData
    report.Modality, report.SOPClassUID = "SR", BasicTextSRStorage
    report.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    for n, ds in enumerate((ct_slice(pixels()[0], 0, f"{study}.1"), report)):
        ds.StudyInstanceUID, ds.PatientID, ds.StudyDate = study, "ID-3", "20240302"
        ds.save_as(tmp_path / f"{n}.dcm", enforce_file_format=True)
    web = connect(filled.web)
    web.push([tmp_path], Progress()).check("pushed to", filled.web)
    assert {s.modality for s in web.find_series(Query(study_uid=study))} == {"CT", "SR"}
    exec(code.replace("http://127.0.0.1:8042/dicom-web", filled.web), {})
    shown = capsys.readouterr().out.splitlines()
    assert any(line.startswith("(24, 20) ") for line in shown)
    assert sum(line.startswith(f"({SLICES}, 24, 20) ") for line in shown) >= 2
