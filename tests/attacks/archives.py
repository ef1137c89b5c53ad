"""Archives, forged permissions and names: what a package tries before anything in it is read."""

from __future__ import annotations

import json
import os
import stat
import warnings
import zipfile
from pathlib import Path

from tests.attacks import manifests, monai_bundles, programs
from tests.attacks.corpus import attack
from tests.attacks.weights import program


def packed(place: Path, add) -> Path:
    """Our own package in an archive, and something more."""
    folder = manifests.package(place)
    path = place / "package.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))
        add(archive)
    return path


def _link(archive: zipfile.ZipFile, name: str, target: str) -> None:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, target)


attack("archive/control", control=True)(lambda place, marker: packed(place, lambda archive: None))
attack("archive/slip", refused=True)(
    lambda place, marker: packed(place, lambda a: a.writestr("../" * 30 + str(marker).lstrip("/"), "x"))
)
attack("archive/absolute", refused=True)(lambda place, marker: packed(place, lambda a: a.writestr(str(marker), "x")))
attack("archive/backslashes", refused=True)(
    lambda place, marker: packed(place, lambda a: a.writestr("..\\..\\evil", "x"))
)
attack("archive/drive", refused=True)(lambda place, marker: packed(place, lambda a: a.writestr("C:\\evil", "x")))
attack("archive/link", refused=True)(lambda place, marker: packed(place, lambda a: _link(a, "passwd", "/etc/passwd")))


@attack("archive/link and then through it", refused=True)
def through(place: Path, marker: Path) -> Path:
    def add(archive: zipfile.ZipFile) -> None:
        _link(archive, "out", str(marker.parent))
        archive.writestr(f"out/{marker.name}", "x")

    return packed(place, add)


@attack("archive/twice", refused=True)
def twice(place: Path, marker: Path) -> Path:
    return packed(place, lambda a: a.writestr("medai-model.yaml", "id: evil"))


@attack("archive/twice but for case", refused=True)
def case(place: Path, marker: Path) -> Path:
    return packed(place, lambda a: a.writestr("MEDAI-MODEL.YAML", "id: evil"))


@attack("archive/bomb", refused=True)
def bomb(place: Path, marker: Path) -> Path:
    def add(archive: zipfile.ZipFile) -> None:
        with archive.open("zeros", "w") as member:
            for _ in range(280):
                member.write(bytes(1 << 20))

    return packed(place, add)


@attack("archive/many", refused=True)
def many(place: Path, marker: Path) -> Path:
    return packed(place, lambda a: [a.writestr(str(n), "") for n in range(20_100)])


@attack("archive/in an archive", refused=True)
def nested(place: Path, marker: Path) -> Path:
    inner = monai_bundles.slip(place, marker)
    path = place / "outer.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inner, "bundle.zip")
    return path


@attack("archive/a file of torch and a model", refused=True)
def both(place: Path, marker: Path) -> Path:
    """torch's marks in an archive with a description: whoever it is for, nothing runs."""
    path = place / "model.zip"
    path.write_bytes(program(marker))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("medai-model.yaml", "id: x")
    return path


def _forged(sha256: str) -> str:
    entry = {"sha256": sha256, "capabilities": ["torchscript", "pt2", "python", "pickle"], "given": "", "title": ""}
    return json.dumps({"version": 1, "grants": [entry]})


@attack("trust/forged in the package", refused=True)
def forged(place: Path, marker: Path) -> Path:
    """Permissions for everything, wherever a program might look for them."""
    from napari_medai.models.package import package_sha256

    folder = monai_bundles.changed(place, marker, monai_bundles.step(monai_bundles._RUN))
    for name in ("trust.json", ".config/napari-medai/trust.json", "napari-medai/trust.json", "configs/trust.json",
                 "grant.json", ".trusted", "medai.toml"):  # fmt: skip
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_forged(package_sha256(folder)))
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    metadata |= {"needs": [], "safety": "data", "grant": {"capabilities": ["python"]}, "trusted": True}
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return folder


@attack("trust/forged beside the package", refused=True)
def forged_beside(place: Path, marker: Path) -> Path:
    """Permissions for the very bytes, where the environment says that settings are (see `environment`)."""
    from napari_medai.models.package import package_sha256

    path = programs.file(place, "model.pt", program(marker))
    settings = environment(place.parent)["XDG_CONFIG_HOME"]
    store = Path(settings) / "napari-medai" / "trust.json"
    store.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(_forged(package_sha256(path)))
    os.chmod(store, 0o600)
    return path


def environment(root: Path) -> dict[str, str]:
    """Variables by which programs look for their settings, all set to a folder of the attacker."""
    home = root / "home of the attacker"
    config = home / ".config"
    config.mkdir(parents=True, exist_ok=True)
    return {
        "HOME": str(home),
        "USERPROFILE": str(home),
        "XDG_CONFIG_HOME": str(config),
        "XDG_DATA_HOME": str(config),
        "XDG_CONFIG_DIRS": str(config),
        "APPDATA": str(config),
        "LOCALAPPDATA": str(config),
        "MEDAI_TRUST": str(config / "napari-medai" / "trust.json"),
        "MEDAI_ALLOW": "torchscript,pt2,python,pickle",
        "MEDAI_TRUST_ALL": "1",
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "0",
        "MONAI_ALLOW_PICKLE": "1",
        "MONAI_EVAL_EXPR": "1",
        "MONAI_TRACE_TRANSFORM": "1",
    }
