"""Permissions: who gives them, where they are kept, what ends them, and what never counts as one."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from napari_medai import models
from napari_medai.core.errors import ModelError, UntrustedError
from napari_medai.models import trust
from napari_medai.models.package import package_sha256
from napari_medai.models.trust import find_grant, give, grants, revoke

posix = pytest.mark.skipif(os.name != "posix", reason="rights as POSIX has them")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the test's own: no test looks at the account's."""
    path = tmp_path / "settings" / "napari-medai" / "trust.json"
    monkeypatch.setattr(trust, "store_path", lambda: path)
    monkeypatch.setitem(models.SOURCES, "carried", "tests.engine.carried")
    return path


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return make(tmp_path / "package")


def make(folder: Path, *needs: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "carried.json").write_text(json.dumps({"runner": "labels", "needs": needs or ("python",)}))
    (folder / "code.py").write_text("print('code')\n")
    return folder


def test_what_was_allowed_loads_until_a_byte_changes(package: Path, tmp_path: Path) -> None:
    with pytest.raises(UntrustedError, match="medai models trust package --allow python"):
        models.load_model(package)
    given = give(package, models.probe(package), ["python"])
    assert given.title == "Carried"
    assert given.given.endswith("+00:00")
    model = models.load_model(package)
    assert model.grant == given
    # wherever it lies
    package.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    assert models.load_model(moved).grant == given
    code = moved / "code.py"
    code.write_text("print('Code')\n")
    with pytest.raises(UntrustedError):
        models.load_model(moved)
    code.write_text("print('code')\n")
    assert models.load_model(moved).grant == given
    (moved / "__init__.py").touch()
    with pytest.raises(UntrustedError):
        models.load_model(moved)


def test_a_permission_can_be_taken_back(package: Path) -> None:
    sha256 = give(package, models.probe(package), ["python"]).sha256
    assert find_grant(sha256) is not None
    assert revoke(sha256[:12])
    assert not revoke(sha256)
    assert find_grant(sha256) is None
    with pytest.raises(UntrustedError):
        models.load_model(package)
    with pytest.raises(ModelError, match="too short"):
        revoke("ab")


def test_a_permission_is_for_the_bytes_it_was_given_for(package: Path, tmp_path: Path) -> None:
    given = give(package, models.probe(package), ["python"])
    other = make(tmp_path / "other", "python")
    (other / "code.py").write_text("evil")
    with pytest.raises(UntrustedError, match="another package's"):
        models.load(models.probe(other), given)


@pytest.mark.parametrize(
    ("needs", "allowed", "why"),
    [
        (("python",), ["python", "everything"], "everything cannot be allowed; there are: torchscript, pt2, python"),
        (("python", "pickle"), ["pickle"], "also needs python; allow all that it needs, or nothing"),
        (("",), ["python"], "cannot be run here, whatever is allowed"),
        (("python",), [], "also needs python"),
    ],
)
def test_half_permissions_and_unknown_ones_are_not_kept(
    tmp_path: Path, needs: tuple[str, ...], allowed: list[str], why: str
) -> None:
    place = make(tmp_path / "package", *needs)
    with pytest.raises(ModelError, match=why):
        give(place, models.probe(place), allowed)
    assert grants() == []


def test_nothing_is_allowed_where_nothing_is_needed(package: Path) -> None:
    spec = models.probe(package).model_copy(update={"needs": ()})
    with pytest.raises(ModelError, match="runs without any permission"):
        give(package, spec, ["python"])


def test_a_package_that_changes_while_it_is_looked_at_is_not_allowed(package: Path) -> None:
    seen = models.probe(package)
    record = json.loads((package / "carried.json").read_text())
    (package / "carried.json").write_text(json.dumps(record | {"needs": ["python", "pickle"]}))
    with pytest.raises(ModelError, match="changed while you looked"):
        give(package, seen, ["python", "pickle"])
    assert grants() == []


def test_the_file_is_the_accounts_own(package: Path, store: Path) -> None:
    give(package, models.probe(package), ["python"])
    assert [p.name for p in store.parent.iterdir()] == ["trust.json"]
    record = json.loads(store.read_text())
    assert record == {
        "version": 1,
        "grants": [
            {
                "sha256": package_sha256(package),
                "capabilities": ["python"],
                "given": grants()[0].given,
                "title": "Carried",
            }
        ],
    }
    if os.name == "posix":
        assert stat.S_IMODE(store.stat().st_mode) == 0o600
        assert stat.S_IMODE(store.parent.stat().st_mode) == 0o700


def test_another_permission_for_the_same_bytes_takes_its_place(package: Path) -> None:
    spec = models.probe(package)
    give(package, spec, ["python"])
    give(package, spec, ["python", "pickle"])
    assert [grant.capabilities for grant in grants()] == [frozenset({"python", "pickle"})]


@posix
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_counts_for_nothing(package: Path, store: Path, mode: int) -> None:
    give(package, models.probe(package), ["python"])
    store.chmod(mode)
    with pytest.raises(ModelError, match=r"Others may write to .*chmod go-w"):
        models.load_model(package)
    with pytest.raises(ModelError, match="Others may write"):
        give(package, models.probe(package), ["python"])


@posix
def test_a_folder_that_others_may_write_counts_for_nothing(package: Path, store: Path) -> None:
    give(package, models.probe(package), ["python"])
    store.parent.chmod(0o777)
    with pytest.raises(ModelError, match="Others may write"):
        models.load_model(package)


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_account_counts_for_nothing(package: Path, store: Path) -> None:
    give(package, models.probe(package), ["python"])
    os.chown(store, 65534, 65534)
    with pytest.raises(ModelError, match="belongs to another account"):
        models.load_model(package)


@posix
@pytest.mark.parametrize("kind", ["link", "second name", "pipe", "folder"])
def test_what_is_no_plain_file_counts_for_nothing(package: Path, store: Path, tmp_path: Path, kind: str) -> None:
    give(package, models.probe(package), ["python"])
    elsewhere = tmp_path / "elsewhere.json"
    if kind == "second name":
        os.link(store, elsewhere)
    else:
        store.rename(elsewhere)
    if kind == "link":
        store.symlink_to(elsewhere)
    elif kind == "pipe":
        os.mkfifo(store, 0o600)
    elif kind == "folder":
        store.mkdir(0o700)
    with pytest.raises(ModelError, match=r"is a link|second name|no plain file|cannot be read"):
        models.load_model(package)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 2, "grants": []}',
        b'{"version": 1}',
        b'{"version": 1, "grants": [{"sha256": "*"}]}',
        b'{"version": 1, "grants": [{"sha256": "*", "capabilities": ["python"], "given": "", "title": ""}]}',
        b'{"version": 1, "grants": [{"sha256": "%s", "capabilities": "python", "given": "", "title": ""}]}'
        % (b"a" * 64),
        b'{"version": 1, "grants": [{"sha256": "%s", "capabilities": ["all"], "given": "", "title": ""}]}'
        % (b"a" * 64),
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_counts_for_nothing(package: Path, store: Path, content: bytes) -> None:
    give(package, models.probe(package), ["python"])
    store.write_bytes(content)
    with pytest.raises(ModelError, match="is damaged or of another version; nothing in it counts"):
        models.load_model(package)


def test_permissions_given_at_once_are_all_kept(tmp_path: Path) -> None:
    places = [make(tmp_path / str(n)) for n in range(6)]
    for n, place in enumerate(places):
        (place / "code.py").write_text(str(n))
    specs = [models.probe(place) for place in places]
    threads = [
        threading.Thread(target=give, args=(place, spec, ["python"])) for place, spec in zip(places, specs, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {grant.sha256 for grant in grants()} == {package_sha256(place) for place in places}


def test_a_permission_beside_or_in_a_package_is_none(package: Path, tmp_path: Path, store: Path) -> None:
    """Whoever packs a permission into a package has packed bytes, no more."""
    for place in (package, package / ".config" / "napari-medai", package / "napari-medai", tmp_path):
        place.mkdir(parents=True, exist_ok=True)
        for _ in range(2):  # the fingerprint changes with what is written; once more with the one that it had
            entry = {"sha256": package_sha256(package), "capabilities": ["python"], "given": "", "title": ""}
            (place / "trust.json").write_text(json.dumps({"version": 1, "grants": [entry]}))
    with pytest.raises(UntrustedError):
        models.load_model(package)
    assert not store.exists()


@posix
def test_no_environment_variable_moves_the_store(tmp_path: Path) -> None:
    """In a process of its own, with every variable that programs look for their settings by."""
    names = ["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CONFIG_DIRS", "XDG_CACHE_HOME", "USER", "LOGNAME"]
    names += ["APPDATA", "LOCALAPPDATA", "USERPROFILE", "MEDAI_HOME", "MEDAI_TRUST", "MEDAI_TRUST_STORE", "MEDAI_ALLOW"]
    environment = dict.fromkeys(names, str(tmp_path)) | {"PATH": os.environ["PATH"]}
    code = "from napari_medai.models.trust import store_path; print(store_path())"
    said = [
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.strip()
        for env in (environment, {})
    ]
    assert said[0] == said[1]
    import pwd

    home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    assert Path(said[0]).is_relative_to(home)
    assert not Path(said[0]).is_relative_to(tmp_path)


@posix
def test_an_account_without_a_home_has_no_permissions(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(models.SOURCES, "carried", "tests.engine.carried")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    assert grants() == []
    with pytest.raises(UntrustedError):
        models.load_model(package)
    with pytest.raises(ModelError, match="no home folder"):
        give(package, models.probe(package), ["python"])
