from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from training.packages import PackageMissingError, package_member, package_members, package_path


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDAI_CACHE", str(tmp_path))
    folder = tmp_path / "packages"
    folder.mkdir()
    return folder


def _ar(members: dict[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, content in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        out += content + b"\n" * (len(content) % 2)
    return out


def _tar_xz(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_a_wheel(packages: Path) -> None:
    with zipfile.ZipFile(packages / "thing-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("thing/data/a.bin", b"abc")
    (packages / "thing_extra-2.0-py3-none-any.whl").touch()
    assert package_path("thing").name == "thing-1.0-py3-none-any.whl"
    assert package_members("thing") == ["thing/data/a.bin"]
    assert package_member("thing", "thing/data/a.bin") == b"abc"
    with pytest.raises(KeyError):
        package_member("thing", "nothing")


def test_a_debian_package(packages: Path) -> None:
    data = _tar_xz({"./usr/share/b.txt": b"bee", "./usr/share/c.txt": b"sea"})
    content = _ar({"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data})
    (packages / "some-data_1.0_all.deb").write_bytes(content)
    assert package_members("some-data") == ["usr/share/b.txt", "usr/share/c.txt"]
    assert package_member("some-data", "usr/share/c.txt") == b"sea"
    with pytest.raises(KeyError, match="nothing"):
        package_member("some-data", "nothing")


def test_broken_debian_packages(packages: Path) -> None:
    (packages / "bad_1.0_all.deb").write_bytes(b"PK")
    with pytest.raises(ValueError, match="not an ar archive"):
        package_members("bad")
    (packages / "empty_1.0_all.deb").write_bytes(_ar({"debian-binary": b"2.0\n"}))
    with pytest.raises(ValueError, match=r"without data\.tar"):
        package_members("empty")


def test_a_missing_package_says_how_to_get_it(packages: Path) -> None:
    with pytest.raises(PackageMissingError, match="pip download --no-deps wanting"):
        package_path("wanting")
