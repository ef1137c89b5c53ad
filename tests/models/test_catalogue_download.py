"""Downloads from a real server on this machine: whole, broken, changed, without ranges, onto a disk that is full."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from napari_medai.core.errors import DownloadError, ModelError
from napari_medai.core.stage import Cancelled, Progress
from napari_medai.models.catalogue import download, fetching
from napari_medai.models.catalogue.download import Resuming
from napari_medai.models.catalogue.entry import Entry, File

CONTENT = bytes(range(256)) * 4096  # 1 MiB
CHUNK = download.CHUNK_BYTES
DESCRIPTION = """\
id: anything
title: A denoiser
summary: For tests.
stage: denoise
accepts:
  ndim: [2]
gives:
  kind: image
runner: self
"""
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What the server has and how it behaves; what it was asked."""

    files: dict[str, bytes]
    ranges: bool = True
    etag: str = '"one"'
    # bytes after which the connection is cut, one for each answer; none left: no cut
    cuts: list[int] = field(default_factory=list)
    # statuses to answer first
    statuses: list[int] = field(default_factory=list)
    extra: bytes = b""
    honest: bool = True
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "WAIT_S", 0.01)
    monkeypatch.delenv("MEDAI_MIRROR", raising=False)
    state = Server({"/model.bin": CONTENT})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            state.asked.append((self.path, wanted))
            if state.statuses:
                self.send_response(state.statuses.pop(0))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if self.path not in state.files:
                self.send_error(404)
                return
            content = state.files[self.path]
            start = 0
            if wanted and state.ranges and self.headers.get("If-Range", state.etag) == state.etag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                # a server that is not honest goes on from another byte than it says nothing about
                said = start if state.honest else start + 1
                self.send_header("Content-Range", f"bytes {said}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            body = content[start:] + state.extra
            self.send_header("Content-Length", str(len(body)))
            if state.etag:
                self.send_header("ETag", state.etag)
            self.end_headers()
            cut = state.cuts.pop(0) if state.cuts else None
            self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{web.server_address[1]}"
    yield state
    web.shutdown()
    web.server_close()
    thread.join()


def entry(*files: File) -> Entry:
    return Entry.model_construct(
        id="demo", title="Demo", summary="", stage="", source="manifest", licence="MIT", safety="data",
        status="unverified", install="", model="", homepage="", files=files,
    )  # fmt: skip


def file(server: Server, name: str = "model.bin", size: int | None = len(CONTENT), sha256: str = SHA256) -> File:
    # an address on this machine has no certificate, which the catalogue's own addresses must have
    return File.model_construct(name=name, size=size, sha256=sha256, sha1="", md5="", urls=(f"{server.url}/{name}",))


class Watch(Progress):
    """Keeps what it is told; stops after some of it."""

    def __init__(self, stop_after: float = 2.0) -> None:
        self.seen: list[float] = []
        self.stop_after = stop_after

    def update(self, done: float, total: float, message: str = "") -> None:
        self.seen.append(done / total)
        if done / total > self.stop_after:
            raise Cancelled


def bring(server: Server, folder: Path, progress: Progress | None = None, **changes: object) -> Path:
    one = file(server, **changes)  # type: ignore[arg-type]
    return fetching.bring(entry(one), one, folder, progress or Progress())


def test_a_whole_file_arrives_with_progress(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    watch = Watch()
    path = bring(server, tmp_path, watch)
    assert path.read_bytes() == CONTENT
    assert watch.seen == sorted(watch.seen)
    assert watch.seen[-1] == 1.0
    assert len(watch.seen) > 2
    assert [p.name for p in tmp_path.iterdir()] == ["model.bin"]
    assert capfd.readouterr() == ("", "")  # pooch's own lines are not for people
    bring(server, tmp_path)
    assert len(server.asked) == 1  # what is here and right is not asked for again


def test_a_cancelled_download_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        bring(server, tmp_path, Watch(stop_after=0.4))
    have = (tmp_path / "model.bin.part").stat().st_size
    assert 0 < have < len(CONTENT)
    assert not (tmp_path / "model.bin").exists()
    assert bring(server, tmp_path).read_bytes() == CONTENT
    assert server.asked[1] == ("/model.bin", f"bytes={have}-")


def test_a_line_that_breaks_is_gone_on_with_by_itself(server: Server, tmp_path: Path) -> None:
    server.cuts = [9 * CHUNK, 9 * CHUNK, CHUNK]
    assert bring(server, tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [
        "",
        f"bytes={9 * CHUNK}-",
        f"bytes={18 * CHUNK}-",
        f"bytes={19 * CHUNK}-",
    ]


def test_a_line_that_never_holds_is_given_up_and_what_came_is_kept(server: Server, tmp_path: Path) -> None:
    server.cuts = [6 * CHUNK] + [0] * 20
    with pytest.raises(DownloadError, match=r"196608 bytes have arrived and are kept; the same command goes on"):
        bring(server, tmp_path)
    assert (tmp_path / "model.bin.part").stat().st_size == 6 * CHUNK
    assert len(server.asked) == 1 + download.ATTEMPTS
    server.cuts = []
    assert bring(server, tmp_path).read_bytes() == CONTENT


def test_no_connection_at_all(server: Server, tmp_path: Path) -> None:
    one = file(server)
    gone = one.model_copy(update={"urls": ("http://127.0.0.1:9/model.bin",)})
    with pytest.raises(DownloadError, match="did not arrive whole"):
        fetching.bring(entry(gone), gone, tmp_path, Progress())


def test_without_ranges_it_begins_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [9 * CHUNK]
    assert bring(server, tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == ["", f"bytes={9 * CHUNK}-"]


def test_without_ranges_a_line_that_breaks_each_time_ends(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [9 * CHUNK] * 60
    with pytest.raises(DownloadError, match="did not arrive whole"):
        bring(server, tmp_path)
    assert len(server.asked) <= 2 + download.ATTEMPTS


def test_a_changed_file_is_not_mixed_with_the_old_one(server: Server, tmp_path: Path) -> None:
    """No hash is known: only the server's mark tells the two versions apart."""
    with pytest.raises(Cancelled):
        bring(server, tmp_path, Watch(0.4), sha256="", size=None)
    other = CONTENT[::-1]
    server.files["/model.bin"], server.etag = other, '"two"'
    assert bring(server, tmp_path, sha256="", size=None).read_bytes() == other


def test_without_hash_and_mark_nothing_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.etag = ""
    with pytest.raises(Cancelled):
        bring(server, tmp_path, Watch(0.4), sha256="", size=None)
    server.files["/model.bin"] = CONTENT[::-1]
    assert bring(server, tmp_path, sha256="", size=None).read_bytes() == CONTENT[::-1]
    assert server.asked[-1] == ("/model.bin", "")


def test_a_wrong_hash_removes_what_came(server: Server, tmp_path: Path) -> None:
    server.files["/model.bin"] = b"?" + CONTENT[1:]
    with pytest.raises(DownloadError, match=r"its sha256 is not .*It was removed"):
        bring(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_other_bytes_is_thrown_away_once(server: Server, tmp_path: Path) -> None:
    """Left by an earlier attempt and wrong: the whole file is fetched once more, without a person's doing."""
    (tmp_path / "model.bin.part").write_bytes(b"?" * 1000)
    assert bring(server, tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == ["bytes=1000-", ""]


def test_a_whole_part_is_taken_without_more_bytes(server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.bin.part").write_bytes(CONTENT)
    assert bring(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [("/model.bin", f"bytes={len(CONTENT)}-")]


def test_a_part_that_is_too_long_begins_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.bin.part").write_bytes(CONTENT + b"more")
    assert bring(server, tmp_path).read_bytes() == CONTENT


def test_a_truncated_file_on_the_server_is_told_at_once(server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.bin.part").write_bytes(CONTENT[:1000])
    server.files["/model.bin"] = CONTENT[:5000]
    with pytest.raises(DownloadError, match="has 5000 bytes on the server; the catalogue knows one of 1048576"):
        bring(server, tmp_path)
    assert (tmp_path / "model.bin.part").read_bytes() == CONTENT[:1000]  # still the beginning of the right file


def test_more_bytes_than_expected_are_not_taken(server: Server, tmp_path: Path) -> None:
    server.extra = b"more"
    with pytest.raises(DownloadError, match="has 1048580 bytes on the server"):
        bring(server, tmp_path)


def test_a_server_that_goes_on_from_another_byte(server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.bin.part").write_bytes(CONTENT[:1000])
    server.honest = False
    assert bring(server, tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == ["bytes=1000-", ""]


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    assert bring(server, tmp_path).read_bytes() == CONTENT


def test_a_file_that_is_not_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"the server answered 404 .*medai models add FILE"):
        bring(server, tmp_path, name="gone.bin")
    assert len(server.asked) == 1


def test_a_second_address_is_tried(server: Server, tmp_path: Path) -> None:
    one = file(server)
    one = one.model_copy(update={"urls": (f"{server.url}/gone", *one.urls)})
    assert fetching.bring(entry(one), one, tmp_path, Progress()).read_bytes() == CONTENT


def test_a_full_disk_keeps_what_came(server: Server, tmp_path: Path) -> None:
    """The system's own limit on the size of a file stands for a disk without room."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(DownloadError, match=r"cannot be kept: the file would be larger.*bytes have arrived"):
            bring(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert bring(server, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1][1].startswith("bytes=")


def test_a_disk_without_room_is_said_before(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDAI_MODELS", str(tmp_path))
    large = file(server, size=2**60)
    with pytest.raises(DownloadError, match=r"needs 1152921504607 MB and the disk has"):
        fetching.fetch_entry(entry(large), Progress())
    assert server.asked == []


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDAI_MODELS", str(tmp_path / "file" / "models"))
    with pytest.raises(DownloadError, match="cannot be kept in the folder of models"):
        fetching.fetch_entry(entry(file(server)), Progress())
    assert server.asked == []


def test_an_address_as_mirror(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDAI_MIRROR", f"{server.url}/mirror/")
    server.files["/mirror/models/demo/model.bin"] = CONTENT
    assert bring(server, tmp_path).read_bytes() == CONTENT
    assert [path for path, _ in server.asked] == ["/mirror/models/demo/model.bin"]


@pytest.mark.parametrize("as_address", [False, True])
def test_a_folder_as_mirror(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_address: bool) -> None:
    mirror = tmp_path / "the mirror"
    monkeypatch.setenv("MEDAI_MIRROR", mirror.as_uri() if as_address else str(mirror))
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(DownloadError, match=r"The mirror has no models/demo/model.bin"):
        bring(server, target)
    place = mirror / "models" / "demo" / "model.bin"
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT[:-1])
    with pytest.raises(DownloadError, match=r"is not the model.bin that the catalogue knows"):
        bring(server, target)
    assert list(target.iterdir()) == []
    place.write_bytes(CONTENT)
    watch = Watch()
    assert bring(server, target, watch).read_bytes() == CONTENT
    assert watch.seen[-1] == 1.0
    assert server.asked == []  # with a mirror nobody else is asked


def test_an_encrypted_address_does_not_lead_out_of_it_without_a_hash(tmp_path: Path) -> None:
    """What may be gone on with depends on the hash; the check of redirects needs a certificate and is read here."""
    part = tmp_path / "x.part"
    part.write_bytes(b"abc")
    (tmp_path / "x.part.from").write_text('https://a/x\n"one"')
    known = Resuming(part, Progress(), hashed=True)
    assert known._headers("https://a/x")["If-Range"] == '"one"'
    assert "If-Range" not in known._headers("https://b/x")
    assert known._headers("https://b/x")["Range"] == "bytes=3-"
    assert "Range" not in Resuming(part, Progress(), hashed=False)._headers("https://b/x")


def test_from_an_entry_to_a_model(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ZIP archive, and several files: both end in the store, and nothing is left of the download."""
    monkeypatch.setenv("MEDAI_MODELS", str(tmp_path / "store"))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("demo/medai-model.yaml", DESCRIPTION)
        out.writestr("demo/card.md", "# Demo\n")
    server.files["/demo.zip"] = archive.getvalue()
    one = file(server, "demo.zip", len(archive.getvalue()), hashlib.sha256(archive.getvalue()).hexdigest())
    watch = Watch()
    item = fetching.fetch_entry(entry(one), watch)
    assert item.model is not None
    assert item.id == "demo"
    assert (item.package / "card.md").read_text() == "# Demo\n"
    assert watch.seen[-1] == 1.0
    assert list((tmp_path / "store" / ".downloads").iterdir()) == []
    asked = len(server.asked)
    assert fetching.fetch_entry(entry(one), Progress()) == item  # it is here already
    assert len(server.asked) == asked

    server.files |= {"/medai-model.yaml": DESCRIPTION.encode(), "/card.md": b"# Two\n"}
    parts = [
        file(server, name[1:], len(c), hashlib.sha256(c).hexdigest()) for name, c in list(server.files.items())[-2:]
    ]
    two = entry(*parts).model_copy(update={"id": "two"})
    server.cuts = [len(DESCRIPTION.encode()), 0, 0, 0, 0, 0, 0]  # the first file arrives, the second does not
    with pytest.raises(DownloadError, match="did not arrive whole"):
        fetching.fetch_entry(two, Progress())
    server.cuts, server.asked = [], []
    item = fetching.fetch_entry(two, Progress())
    assert item.model is not None
    assert sorted(p.name for p in item.package.iterdir()) == ["card.md", "medai-model.yaml"]
    assert [path for path, _ in server.asked] == ["/card.md"]  # what had arrived whole was not asked for again


def test_what_arrives_and_is_no_model_is_kept_for_later(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDAI_MODELS", str(tmp_path / "store"))
    with pytest.raises(ModelError, match="no model package"):
        fetching.fetch_entry(entry(file(server)), Progress())
    assert (tmp_path / "store" / ".downloads" / "demo" / "model.bin").read_bytes() == CONTENT
