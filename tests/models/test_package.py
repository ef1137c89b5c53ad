"""Fingerprints, private copies, and archives that want out."""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from napari_medai.core.errors import ModelError, UntrustedError
from napari_medai.models import archive
from napari_medai.models.package import package_sha256, private_copy, unpacked


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(archive, "cache_folder", lambda: folder)
    return folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text("{}")
    (folder / "weights.bin").write_bytes(b"\x01" * 3_000_000)
    return folder


def zipped(path: Path, members: dict[str, bytes | str], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def one(path: Path, name: str, content: bytes = b"x", **attributes: int) -> Path:
    """An archive with a plain member, and one whose directory entry is as given."""
    info = zipfile.ZipInfo("placeholder")
    info.filename = info.orig_filename = name
    for key, value in attributes.items():
        setattr(info, key, value)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("plain.txt", b"plain")
        file.writestr(info, content)
    return path


# --- fingerprints


def test_a_fingerprint_is_of_names_and_bytes_wherever_the_package_lies(package: Path, tmp_path: Path) -> None:
    first = package_sha256(package)
    copy = shutil.copytree(package, tmp_path / "elsewhere" / "other name")
    assert package_sha256(copy) == first
    assert len(first) == 64
    (copy / "weights.bin").rename(copy / "weight.bin")
    assert package_sha256(copy) != first


def test_any_changed_byte_any_added_file_gives_another_fingerprint(package: Path) -> None:
    first = package_sha256(package)
    (package / "empty").touch()
    added = package_sha256(package)
    (package / "empty").unlink()
    assert package_sha256(package) == first != added
    with (package / "weights.bin").open("r+b") as file:
        file.seek(2_999_999)
        file.write(b"\x02")
    assert package_sha256(package) not in (first, added)


def test_bytes_that_move_from_one_file_to_the_next_count(tmp_path: Path) -> None:
    prints = set()
    for n, (a, b) in enumerate([("ab", "c"), ("a", "bc"), ("abc", "")]):
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / "a").write_text(a)
        (folder / "b").write_text(b)
        prints.add(package_sha256(folder))
    assert len(prints) == 3


def test_an_archive_has_the_fingerprint_of_its_folder(package: Path, tmp_path: Path) -> None:
    path = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "model"))
    assert package_sha256(path) == package_sha256(package)


def test_a_single_file_has_a_fingerprint_too(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"abc")
    first = package_sha256(path)
    path.write_bytes(b"abd")
    assert package_sha256(path) != first


@pytest.mark.skipif(os.name != "posix", reason="links and pipes as POSIX has them")
@pytest.mark.parametrize("kind", ["file", "folder", "dangling", "pipe"])
def test_links_and_pipes_have_no_fingerprint(package: Path, tmp_path: Path, kind: str) -> None:
    target = {"file": package / "weights.bin", "folder": tmp_path, "dangling": tmp_path / "nothing"}
    if kind == "pipe":
        os.mkfifo(package / "it")
    else:
        (package / "it").symlink_to(target[kind])
    with pytest.raises(ModelError, match=r"model/it is a link|it is no plain file"):
        package_sha256(package)


# --- private copies


def test_a_private_copy_is_what_was_hashed_and_goes_at_the_end(package: Path) -> None:
    with private_copy(package, package_sha256(package)) as copy:
        assert copy != package
        assert copy.name == "model"
        assert package_sha256(copy) == package_sha256(package)
        kept = copy
        if os.name == "posix":
            assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
            assert stat.S_IMODE((copy / "weights.bin").stat().st_mode) == 0o400
            assert stat.S_IMODE((copy / "configs").stat().st_mode) == 0o500
        # whoever changes the package now changes nothing of it
        (package / "weights.bin").write_bytes(b"evil")
        assert (copy / "weights.bin").stat().st_size == 3_000_000
    assert not kept.parent.exists()


def test_a_private_copy_of_a_changed_package_is_refused(package: Path) -> None:
    before = package_sha256(package)
    (package / "configs" / "more.json").write_text("{}")
    with pytest.raises(UntrustedError, match="Somebody changed it"), private_copy(package, before):
        pytest.fail("the copy was given out")


def test_a_private_copy_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"abc")
    with private_copy(path, package_sha256(path)) as copy:
        assert copy.read_bytes() == b"abc"
        assert copy.name == "model.pt"
    assert not copy.parent.exists()


# --- archives


def test_an_archive_becomes_a_folder_once(tmp_path: Path, cache: Path) -> None:
    path = zipped(tmp_path / "my model.zip", {"medai-model.yaml": "id: x", "sub/weights.bin": b"\0" * 1000})
    folder = unpacked(path)
    assert folder.is_relative_to(cache)
    assert folder.name == "my_model"
    assert (folder / "sub" / "weights.bin").read_bytes() == b"\0" * 1000
    assert sorted(p.name for p in folder.iterdir()) == ["medai-model.yaml", "sub"]
    before = (folder / "medai-model.yaml").stat().st_ino
    assert unpacked(path) == folder
    assert (folder / "medai-model.yaml").stat().st_ino == before
    if os.name == "posix":
        assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_an_unpacked_folder_that_was_changed_is_unpacked_again(tmp_path: Path) -> None:
    path = zipped(tmp_path / "model.zip", {"a.txt": "a", "b/c.txt": "c"})
    folder = unpacked(path)
    (folder / "b" / "c.txt").unlink()
    (folder / "d.txt").touch()
    assert sorted(p.name for p in unpacked(path).rglob("*")) == ["a.txt", "b", "c.txt"]


def test_an_archive_of_one_folder_is_that_folder(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"spleen/configs/metadata.json": "{}", "__MACOSX/._spleen": b"1", "spleen/": b""})
    assert unpacked(path).name == "spleen"


def test_folders_and_other_files_stay(tmp_path: Path) -> None:
    for name, content in {"a.onnx": b"\x08\x07", "b.zip": b"not one", "c.tar": b"\0" * 600, "d": b""}.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert unpacked(path) == path
    assert unpacked(tmp_path) == tmp_path


def test_files_of_torch_are_zip_archives_and_stay_files(tmp_path: Path) -> None:
    state = zipped(tmp_path / "w.pt", {"w/data.pkl": b"", "w/byteorder": b"little", "w/version": b"3", "w/data/0": b""})
    old = zipped(tmp_path / "o.pt2", {"serialized_exported_program.json": "{}", "version": "1"})
    assert unpacked(state) == state
    assert unpacked(old) == old


NAMES = [
    "../evil.txt",
    "a/../../evil.txt",
    "/tmp/evil.txt",
    "C:/evil.txt",
    "C:evil.txt",
    "..\\evil.txt",
    "a\\..\\..\\evil.txt",
    "\\\\server\\share\\evil.txt",
    "a/./b.txt",
    "a//b.txt",
    "nul",
    "sub/COM1.txt",
    "trailing. ",
    "trailing./x",
    "stream.txt:hidden",
    "new\nline",
    "~/../../x",
    "a" * 250,
    "/".join("a" * 30),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_makes_the_archive_be_refused(tmp_path: Path, name: str, cache: Path) -> None:
    path = one(tmp_path / "evil.zip", name)
    with pytest.raises(ModelError, match=r"The archive evil\.zip holds"):
        unpacked(path)
    assert not list(cache.rglob("*.txt"))
    assert {p.name for p in tmp_path.iterdir()} <= {"cache", "evil.zip"}


def test_a_name_cut_at_nul_is_refused(tmp_path: Path) -> None:
    path = one(tmp_path / "evil.zip", "good.txt_../evil")
    path.write_bytes(path.read_bytes().replace(b"good.txt_", b"good.txt\0"))
    with pytest.raises(ModelError, match="name that not every system"):
        unpacked(path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_devices_make_the_archive_be_refused(tmp_path: Path, kind: int) -> None:
    path = one(tmp_path / "evil.zip", "passwd", b"/etc/passwd", external_attr=(kind | 0o777) << 16)
    with pytest.raises(ModelError, match="link or a device"):
        unpacked(path)


@pytest.mark.parametrize(
    ("first", "second"),
    [("a.txt", "a.txt"), ("Model.json", "model.JSON"), ("caf\u00e9", "cafe\u0301"), ("x/Y/z", "X/y/Z"), ("a", "A/b")],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_make_the_archive_be_refused(tmp_path: Path, first: str, second: str) -> None:
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(first, "harmless")
        file.writestr(second, "evil")
    with pytest.raises(ModelError, match=r"twice|as a file and as a folder"):
        unpacked(path)


def test_a_bomb_is_refused_before_anything_is_written(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("zeros", "w") as member:
        for _ in range(300):
            member.write(bytes(1 << 20))
    with pytest.raises(ModelError, match="unpacks to 300 MB"):
        unpacked(path)
    assert not cache.exists()


def test_an_archive_whose_members_share_their_bytes_is_refused(tmp_path: Path) -> None:
    # the directory names one stored member many times, as the densest bombs do
    path = zipped(tmp_path / "bomb.zip", {"a": os.urandom(4096)}, zipfile.ZIP_STORED)
    content = path.read_bytes()
    at = content.rindex(b"PK\x01\x02")
    entry, end = content[at : content.rindex(b"PK\x05\x06")], bytearray(content[content.rindex(b"PK\x05\x06") :])
    entries = [entry[:46] + bytes([ord("a") + n]) for n in range(20)]
    struct.pack_into("<HHL", end, 8, 20, 20, sum(map(len, entries)))
    path.write_bytes(content[:at] + b"".join(entries) + end)
    with pytest.raises(ModelError, match=r"overlap|damaged"):
        unpacked(path)


def test_a_size_that_lies_gives_no_more_than_it_says(tmp_path: Path) -> None:
    path = zipped(tmp_path / "liar.zip", {"a": bytes(100_000)})
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        struct.pack_into("<L", content, content.index(signature) + offset, 10)
    path.write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        unpacked(path)


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_MEMBERS", 5)
    with pytest.raises(ModelError, match="has 6 files"):
        unpacked(zipped(tmp_path / "many.zip", {str(n): b"" for n in range(6)}))


def test_a_directory_that_takes_minutes_to_read_is_not_read(tmp_path: Path) -> None:
    path = zipped(tmp_path / "huge.zip", {"a": b"a"})
    content = bytearray(path.read_bytes())
    struct.pack_into("<L", content, content.rindex(b"PK\x05\x06") + 12, 1 << 30)
    path.write_bytes(content)
    with pytest.raises(ModelError, match="more than 20000 files"):
        unpacked(path)


def test_encrypted_and_unusually_compressed_members_are_refused(tmp_path: Path) -> None:
    path = one(tmp_path / "secret.zip", "a", b"aaa")
    content = bytearray(path.read_bytes())
    struct.pack_into("<H", content, content.rindex(b"PK\x01\x02") + 8, 1)
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is encrypted"):
        unpacked(path)
    with pytest.raises(ModelError, match="compressed in a way"):
        unpacked(zipped(tmp_path / "x.zip", {"a": b"a" * 99}, zipfile.ZIP_LZMA))


@pytest.mark.parametrize("keep", [10, 60, 120])
def test_a_cut_archive_is_damaged(tmp_path: Path, keep: int) -> None:
    path = zipped(tmp_path / "cut.zip", {"a": os.urandom(100)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"The archive cut\.zip is damaged"):
        unpacked(path)


def test_an_empty_archive_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "empty.zip"
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ModelError, match="is empty"):
        unpacked(path)


@pytest.mark.skipif(os.name != "posix", reason="rights as POSIX has them")
def test_a_cache_that_others_may_write_is_not_used(tmp_path: Path, cache: Path) -> None:
    cache.mkdir(mode=0o777)
    cache.chmod(0o777)
    with pytest.raises(ModelError, match="Others may write"):
        unpacked(zipped(tmp_path / "m.zip", {"a": b"a"}))
