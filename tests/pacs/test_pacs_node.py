"""Addresses, credentials, the file of archives, and the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from napari_medai.cli import app
from napari_medai.core.errors import ArchiveError, ParamsError
from napari_medai.pacs import Access, connect
from napari_medai.pacs.node import known_archives, parse_address
from tests.pacs.orthanc import PATIENT_ID, PLAIN, SLICES, STUDY, Orthanc


@pytest.mark.parametrize(
    ("text", "host", "port", "title"),
    [
        ("https://pacs.example.org/dicom-web/", "pacs.example.org", 443, ""),
        ("http://[::1]:8042/dicom-web", "::1", 8042, ""),
        ("dicom://MAIN@10.0.0.7:11112", "10.0.0.7", 11112, "MAIN"),
        ("dicom+tls://MAIN@host", "host", 2762, "MAIN"),
    ],
)
def test_addresses(text, host, port, title):
    node = parse_address(text)
    assert (node.host, node.port, node.ae_title) == (host, port, title)
    assert str(node) == text.rstrip("/")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("https://alice:secret@host/dicom-web", "holds a password"),
        ("dicom://A:secret@host", "holds a password"),
        ("dicom://host:104", "names no AE title"),
        ("dicom://SEVENTEEN_LETTERS@host", "no AE title"),
        ("ftp://host", "no address"),
        ("host", "no address"),
        ("http://host:99999/", "cannot be read"),
    ],
)
def test_what_is_no_address(text, why):
    with pytest.raises(ParamsError, match=why) as error:
        parse_address(text)
    assert "secret" not in str(error.value)


def test_passwords_do_not_go_out_in_clear_text(tmp_path: Path):
    secret = Access(user="alice", password="wonder land")
    assert "wonder" not in repr(secret)
    for address in ("http://pacs.example.org/dicom-web", "dicom://A@pacs.example.org"):
        with pytest.raises(ArchiveError, match=r"in clear text.*--plain"):
            connect(address, secret)
    connect("http://pacs.example.org", Access(user="alice", password="wonder land", allow_plain=True)).close()
    connect("http://127.0.0.1:1", secret).close()
    with pytest.raises(ArchiveError, match="does not exist"):
        connect("https://host", Access(ca_file=str(tmp_path / "none.pem")))
    (tmp_path / "no.pem").write_text("no certificate")
    with pytest.raises(ArchiveError, match="PEM"):
        connect("https://host", Access(ca_file=str(tmp_path / "no.pem")))


def test_the_file_of_archives(tmp_path: Path, monkeypatch):
    file = tmp_path / "archives.toml"
    monkeypatch.setenv("MEDAI_ARCHIVES", str(file))
    assert known_archives() == {}
    file.write_text('[research]\naddress = "dicom://MAIN@host"\nae_title = "US"\n')
    assert parse_address("research").ae_title == "MAIN"
    assert known_archives()["research"].access.ae_title == "US"
    file.write_text('[research]\naddress = "https://host"\npassword = "wonder land"\n')
    with pytest.raises(ParamsError, match=r"found: password.*MEDAI_PACS_PASSWORD") as error:
        known_archives()
    assert "wonder" not in str(error.value)


@pytest.mark.pacs
@pytest.mark.parametrize("protocol", ["web", "dimse"])
def test_commands(filled: Orthanc, tmp_path: Path, protocol):
    address = {"web": filled.web, "dimse": filled.dimse}[protocol]
    run = CliRunner()
    listed = run.invoke(app, ["pull", address, "--list", "--study", STUDY, "--series", PLAIN, "--json"])
    assert PATIENT_ID not in listed.stdout
    (study,) = json.loads(listed.stdout)
    assert [s["uid"] for s in study["series"]] == [PLAIN]
    shown = run.invoke(
        app, ["pull", address, "--list", "--patient-id", "-", "--show-identity"], input=f"{PATIENT_ID}\n"
    )
    assert PATIENT_ID in shown.stdout
    words = ["pull", address, "--study", STUDY, "--series", PLAIN, "--out", str(tmp_path), "--json"]
    pulled = json.loads(run.invoke(app, words).stdout)
    assert [(one["series"], one["done"], one["failed"]) for one in pulled] == [(PLAIN, SLICES, {})]
    pushed = json.loads(run.invoke(app, ["push", address, str(tmp_path), "--json"]).stdout)
    assert (pushed["done"], pushed["skipped"]) == (0, SLICES)
    nothing = run.invoke(app, ["pull", address])
    assert isinstance(nothing.exception, ParamsError)
    asked = run.invoke(app, ["echo", address, "--user", "alice"])
    assert "MEDAI_PACS_PASSWORD" in str(asked.exception)
