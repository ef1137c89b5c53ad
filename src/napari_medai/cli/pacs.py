"""Archives of images (PACS): ask whether one is there, look, pull and push."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, replace
from getpass import getpass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column
from rich.table import Table as RichTable

from napari_medai.cli.options import Json
from napari_medai.core.errors import ParamsError
from napari_medai.pacs import Access, Outcome, Query, SeriesEntry, StudyEntry, connect
from napari_medai.pacs.archive import Archive, series_of
from napari_medai.pacs.node import AE_TITLE, PASSWORD_VARIABLE, TIMEOUT_S, TOKEN_VARIABLE, known_archives
from napari_medai.terminal import Shown, console, print_json, say

_HOW = "Connection"
Address = Annotated[
    str,
    typer.Argument(help="https://host/dicom-web, dicom://AET@host:port, dicom+tls://…, or a name from archives.toml."),
]
User = Annotated[
    str,
    typer.Option(
        "--user", help=f"User; the password comes from {PASSWORD_VARIABLE} or is asked.", rich_help_panel=_HOW
    ),
]
CaFile = Annotated[str, typer.Option("--ca-file", help="Certificate of the authority (PEM).", rich_help_panel=_HOW)]
Certificate = Annotated[str, typer.Option("--certificate", help="This side's certificate (PEM).", rich_help_panel=_HOW)]
Key = Annotated[str, typer.Option("--key", help="Its private key (PEM).", rich_help_panel=_HOW)]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", help=f"Seconds the archive may be silent. [{TIMEOUT_S:g}]", rich_help_panel=_HOW),
]
Title = Annotated[
    str, typer.Option("--aet", help=f"DIMSE: what this side calls itself. [{AE_TITLE}]", rich_help_panel=_HOW)
]
Plain = Annotated[bool, typer.Option("--plain", help="Let a password go without encryption.", rich_help_panel=_HOW)]


def echo(
    address: Address,
    user: User = "",
    ca_file: CaFile = "",
    certificate: Certificate = "",
    key: Key = "",
    timeout: Timeout = None,
    aet: Title = "",
    plain: Plain = False,
) -> None:
    """Ask an archive (PACS) whether it is there and lets you in."""
    print(_archive(address, user, ca_file, certificate, key, timeout, aet, plain).echo())


def pull(
    address: Address,
    study: Annotated[str, typer.Option("--study", help="Study Instance UID.")] = "",
    series: Annotated[str, typer.Option("--series", help="Series Instance UID.")] = "",
    patient_id: Annotated[
        str, typer.Option("--patient-id", help="Patient ID; - reads it from standard input, where no one sees it.")
    ] = "",
    accession: Annotated[str, typer.Option("--accession", help="Accession number; - as for the patient.")] = "",
    modality: Annotated[str, typer.Option("--modality", help="Only series of this modality, e.g. CT.")] = "",
    date: Annotated[str, typer.Option("--date", help="Study date: YYYYMMDD, or YYYYMMDD-YYYYMMDD.")] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; each series gets one of its own in it.")] = Path(
        "."
    ),
    only_list: Annotated[bool, typer.Option("--list", help="Show what there is; fetch nothing.")] = False,
    show_identity: Annotated[bool, typer.Option("--show-identity", help="List the patients' names too.")] = False,
    as_json: Json = False,
    port: Annotated[int, typer.Option("--port", help="DIMSE: port for C-MOVE where C-GET is not offered.")] = 0,
    user: User = "",
    ca_file: CaFile = "",
    certificate: Certificate = "",
    key: Key = "",
    timeout: Timeout = None,
    aet: Title = "",
    plain: Plain = False,
) -> None:
    """Fetch series from an archive (PACS) into a folder; what is there already is not fetched again."""
    query = Query(_said(patient_id), _said(accession), study, series, modality, date)
    archive = _archive(address, user, ca_file, certificate, key, timeout, aet, plain, port)
    if only_list:
        _list(archive, query, show_identity, as_json)
        return
    if query.is_empty:
        raise ParamsError("Say what to pull (--study, --patient-id, …), or look first with --list.")
    results: list[tuple[SeriesEntry, Outcome]] = []
    for entry in series_of(archive, query):
        with Shown(f"pull {entry.modality or 'series'} {entry.number if entry.number is not None else ''}") as shown:
            results.append((entry, archive.pull(entry, out, shown)))
    if as_json:
        print_json([{"study": e.study_uid, "series": e.uid, **_plain(o)} for e, o in results])
    else:
        for _, outcome in results:
            print(f"{outcome.folder}  {outcome.done} fetched, {outcome.skipped} there already")
    for _, outcome in results:
        outcome.check("fetched from", archive.node)


def push(
    address: Address,
    paths: Annotated[list[Path], typer.Argument(help="DICOM files, or folders with some.")],
    again: Annotated[bool, typer.Option("--again", help="Send what the archive has already, too.")] = False,
    as_json: Json = False,
    user: User = "",
    ca_file: CaFile = "",
    certificate: Certificate = "",
    key: Key = "",
    timeout: Timeout = None,
    aet: Title = "",
    plain: Plain = False,
) -> None:
    """Send DICOM files to an archive (PACS); what it has already is left out."""
    archive = _archive(address, user, ca_file, certificate, key, timeout, aet, plain)
    with Shown("push") as shown:
        outcome = archive.push(paths, shown, again=again)
    if as_json:
        print_json(_plain(outcome))
    else:
        print(f"{outcome.done} stored, {outcome.skipped} there already")
    outcome.check("stored in", archive.node)


def _archive(
    address: str,
    user: str,
    ca_file: str,
    certificate: str,
    key: str,
    timeout: float | None,
    aet: str,
    plain: bool,
    port: int = 0,
) -> Archive:
    """The archive, with what the file of archives says of it and the options in place of that."""
    known = known_archives().get(address)
    given: dict[str, Any] = {"user": user, "ca_file": ca_file, "certificate": certificate, "key": key}
    given |= {"timeout_s": timeout, "ae_title": aet, "move_port": port, "allow_plain": plain}
    access = replace(known.access if known else Access(), **{k: v for k, v in given.items() if v not in ("", None, 0)})
    if access.user and not (os.environ.get(PASSWORD_VARIABLE) or os.environ.get(TOKEN_VARIABLE)):
        if not sys.stdin.isatty():
            raise ParamsError(
                f"There is no terminal to ask for the password of {access.user}: set {PASSWORD_VARIABLE}."
            )
        access = replace(access, password=getpass(f"Password of {access.user}: "))
    return connect(address, access)


def _said(text: str) -> str:
    return sys.stdin.readline().strip() if text == "-" else text


def _plain(outcome: Outcome) -> dict[str, Any]:
    found = asdict(outcome)
    return (
        found | {"folder": str(outcome.folder)} if outcome.folder else {k: v for k, v in found.items() if v is not None}
    )


def _list(archive: Archive, query: Query, show_identity: bool, as_json: bool) -> None:
    studies = archive.find_studies(query)
    within = {
        s.uid: archive.find_series(Query(study_uid=s.uid, series_uid=query.series_uid, modality=query.modality))
        for s in studies
    }
    if as_json:
        print_json([_study(s, show_identity) | {"series": [asdict(e) for e in within[s.uid]]} for s in studies])
        return
    table = RichTable(
        *(["patient", "born", "accession"] if show_identity else []),
        "date", "study", Column("series", overflow="fold"), "modality", "description", "instances",
    )  # fmt: skip
    for study in studies:
        who = study.identity
        for entry in within[study.uid]:
            table.add_row(
                *(
                    [f"{who.patient_id} {who.patient_name}", who.birth_date, who.accession_number]
                    if show_identity
                    else []
                ),
                study.date,
                f"{study.description}\n{study.uid}".strip(),
                entry.uid,
                entry.modality or "?",
                f"{'' if entry.number is None else entry.number} {entry.description}".strip(),
                "?" if entry.instances is None else str(entry.instances),
            )
    if table.row_count:
        console().print(table)
    else:
        say(f"medai: {archive.node} has nothing that matches.")


def _study(study: StudyEntry, show_identity: bool) -> dict[str, Any]:
    found = asdict(study)
    identity = found.pop("identity")
    found["number_of_series"] = found.pop("series")
    return found | (identity if show_identity else {})
