"""Nothing that a package carries runs, whatever it is packed in: every attack of the corpus, opened as a user would.

All packages are built once, probed in one process that has no torch, and loaded and run in another; both are watched
by `guard`. Where an attack has to be understood, look at its function in the module named by its family.

Some of every kind are opened here; all of them by ``make attacks`` (``MEDAI_ATTACKS=all``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tests.attacks.all
from tests.attacks.archives import environment
from tests.attacks.corpus import ATTACKS, kind, representative

assert tests.attacks.all
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits, alarms and links as Linux has them"),
    pytest.mark.xdist_group("attacks"),
    pytest.mark.timeout(900),
]

# "probe takes under 2 s", on machines where other tests run beside this one
PROBE_SECONDS = 2.0
PROVEN = [attack for attack in ATTACKS.values() if attack.proof]
OPENED = ATTACKS if os.environ.get("MEDAI_ATTACKS") == "all" else representative(ATTACKS)


class Corpus:
    """The packages, built, and what became of them."""

    def __init__(self, root: Path) -> None:
        self.root, self.may_write = root, root / "may write"
        (root / "markers").mkdir()
        for folder in ("tmp", "cache"):
            (self.may_write / folder).mkdir(parents=True)
        self.paths: dict[str, tuple[Path, Path]] = {}
        for n, attack in enumerate(OPENED.values()):
            place = root / f"{n:03d}"
            place.mkdir()
            marker = root / "markers" / f"{n:03d}"
            self.paths[attack.id] = attack.make(place, marker), marker
        left = [path for path in (root / "markers").iterdir() if path.suffix == ""]
        assert not left, f"building left {left}"

    def environment(self) -> dict[str, str]:
        kept = {"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
        kept["PYTHONDONTWRITEBYTECODE"] = "1"
        own = {"TMPDIR": str(self.may_write / "tmp"), "XDG_CACHE_HOME": str(self.may_write / "cache")}
        return kept | environment(self.root) | own

    def examine(self, do: str) -> dict[str, dict]:
        """What became of each package; a process that dies is begun again after the package that killed it."""
        results, found = self.root / f"{do}.jsonl", {}
        waiting = [[id, str(path), str(marker)] for id, (path, marker) in self.paths.items()]
        while waiting:
            job = {"do": do, "packages": waiting, "may_write": str(self.may_write), "results": str(results)}
            (self.root / "job.json").write_text(json.dumps(job))
            ended = subprocess.run(
                [sys.executable, "-m", "tests.attacks.examine", str(self.root / "job.json")],
                env=self.environment(),
                capture_output=True,
                text=True,
                check=False,
            )
            lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
            found = {line["id"]: line for line in lines if "id" in line}
            last = [line["begun"] for line in lines if "begun" in line][-1:]
            if last and last[0] not in found:
                found[last[0]] = {"wrong": f"the process ended with {ended.returncode}: {ended.stderr[-500:]}"}
                with results.open("a") as file:
                    file.write(json.dumps({"id": last[0]} | found[last[0]]) + "\n")
            elif ended.returncode:
                raise AssertionError(ended.stderr[-3000:])
            waiting = [row for row in waiting if row[0] not in found]
        return found


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("attacks"))


@pytest.fixture(scope="session")
def probed(corpus: Corpus) -> dict[str, dict]:
    return corpus.examine("probe")


@pytest.fixture(scope="session")
def ran(corpus: Corpus, probed: dict[str, dict]) -> dict[str, dict]:
    return corpus.examine("run")


@pytest.mark.parametrize("id", OPENED)
def test_probe_runs_nothing(id: str, probed: dict[str, dict]) -> None:
    outcome = probed[id]
    assert "wrong" not in outcome, outcome
    assert not outcome["guarded"]
    assert not outcome["marker"]
    assert not outcome["torch"], "probe imported torch"
    assert outcome["seconds"] < PROBE_SECONDS


@pytest.mark.parametrize("id", OPENED)
def test_loading_and_running_runs_nothing_that_it_carries(id: str, ran: dict[str, dict]) -> None:
    outcome, attack = ran[id], ATTACKS[id]
    assert "wrong" not in outcome, outcome
    assert not outcome["guarded"]
    assert not outcome["marker"]
    if attack.control:
        assert "ran" in outcome, f"the control does not run, so that the others show nothing: {outcome}"
    if attack.refused:
        assert "refused" in outcome, f"must be refused: {outcome}"


def test_some_of_every_kind_are_opened() -> None:
    assert {kind(attack) for attack in OPENED.values()} == {kind(attack) for attack in ATTACKS.values()}
    assert {id for id, attack in ATTACKS.items() if attack.control or attack.proof or attack.later} <= OPENED.keys()


def test_no_attack_leaves_anything_anywhere(corpus: Corpus, ran: dict[str, dict]) -> None:
    assert ran
    left = [path.name for path in (corpus.root / "markers").iterdir() if path.suffix == ""]
    assert left == []
    assert [path.name for path in (corpus.may_write / "tmp").rglob("*")] == []
    # the environment named this folder as the account's settings; nothing was read from it or written to it
    home = corpus.root / "home of the attacker"
    assert {path.name for path in home.rglob("*") if path.is_file()} <= {"trust.json"}


# --- the attacks are real, and the guard sees them


GUARDED = "monai/target/run_cmd in a transform"


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Attacks in the hands of their own frameworks: the folder of their markers, and what the process said."""
    root = tmp_path_factory.mktemp("raw")
    (root / "allowed").mkdir()
    jobs = []
    for number, attack in enumerate([*PROVEN, ATTACKS[GUARDED]]):
        (root / str(number)).mkdir()
        last = number == len(PROVEN)
        path = attack.make(root / str(number), root / ("guarded" if last else f"marker {number}"))
        jobs.append([*(["guarded"] if last else []), attack.proof, str(path)])
    own = {"HOME": str(root), "TMPDIR": str(root / "allowed")}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.attacks.raw", json.dumps(jobs), str(root / "allowed")],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd()} | own,
        capture_output=True,
        text=True,
        check=False,
    )
    return root, ended


@pytest.mark.parametrize("attack", PROVEN, ids=lambda attack: f"{attack.id} by {attack.proof}")
def test_an_attack_works_where_its_own_framework_opens_it(raw, attack) -> None:
    root, ended = raw
    assert (root / f"marker {PROVEN.index(attack)}").exists(), ended.stderr[-2000:]


def test_the_guard_stops_an_attack_that_works(raw) -> None:
    root, ended = raw
    assert GUARDED in {attack.id for attack in PROVEN}
    assert not (root / "guarded").exists()
    assert "subprocess.Popen" in ended.stdout, ended.stderr[-2000:]


def test_the_guard_sees_what_it_is_to_see(tmp_path: Path) -> None:
    code = f"""
import os, socket, subprocess, urllib.request, pickle
from pathlib import Path
from tests.attacks.guard import Guard
from tests.attacks.weights import Runs
allowed = Path({str(tmp_path / "allowed")!r})
allowed.mkdir()
guard = Guard([allowed])
evil = pickle.dumps(Runs(os.system, "true"))
guard.armed = True
def attempt(f):
    before = len(guard.seen)
    try:
        f()
    except PermissionError:
        pass
    print(len(guard.seen) - before, end=" ")
attempt(lambda: socket.socket())
attempt(lambda: subprocess.run(["true"]))
attempt(lambda: os.system("true"))
attempt(lambda: open({str(tmp_path / "x")!r}, "w"))
attempt(lambda: os.mkdir({str(tmp_path / "y")!r}))
attempt(lambda: os.remove("/etc/hostname"))
attempt(lambda: pickle.loads(evil))
attempt(lambda: os.open(allowed / ".." / "up", os.O_CREAT | os.O_WRONLY))
attempt(lambda: (allowed / "mine").write_text("x"))
attempt(lambda: open("/etc/hostname").read())
"""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd()}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout.split() == ["1"] * 8 + ["0"] * 2, ended.stderr


def test_onnxruntime_keeps_no_identifier_and_reports_nothing(tmp_path: Path) -> None:
    """What it would leave in the home folder and the folder for temporary files is what it would send."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    for first, left in (("import os", True), ("import napari_medai", False)):
        code = f"{first}; import onnxruntime"
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
        assert any(tmp_path.rglob("*")) == left or (left and not _reports())
        for path in sorted(tmp_path.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


def _reports() -> bool:
    """Whether this onnxruntime is one that reports."""
    from importlib.metadata import version

    return tuple(int(part) for part in version("onnxruntime").split(".")[:2]) >= (1, 29)
