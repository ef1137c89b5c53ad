"""A share of the fuzzer's files, and every file that ever failed: each opens, or is refused by a `MedaiError`."""

from __future__ import annotations

import io
import random
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.campaign import REGRESSIONS, Opener, Outcomes, opened, reduced, run
from tests.fuzz.mutate import Mutant, mutant
from tests.fuzz.seeds import MUTATED_BYTES, Seed, seeds

MASTER_SEED = 1
# Enough for every mutation on every kind of file; the rest is for `make fuzz`.
COUNT, MOST_SECONDS = 250, 15.0


@pytest.fixture(scope="module")
def opener() -> Iterator[Opener]:
    with Opener() as process:
        yield process


@pytest.mark.parametrize("path", sorted(REGRESSIONS.glob("*.*")), ids=lambda p: p.name)
def test_what_once_failed(path: Path, opener: Opener) -> None:
    answer = opened(opener, path.read_bytes(), "".join(path.suffixes[-2:] if path.suffix == ".gz" else [path.suffix]))
    assert answer["outcome"].startswith(("opened", "refused")), answer


def test_a_share_of_the_mutations(opener: Opener) -> None:
    outcomes = Outcomes()
    start = time.monotonic()
    for number, one, answer in run(opener, ((n, mutant(MASTER_SEED, n)) for n in range(COUNT))):
        outcomes.add(number, one, answer)
        if time.monotonic() - start > MOST_SECONDS:
            break
    assert not outcomes.smallest, outcomes.table()
    # a fuzzer whose files are all refused at the door, or none, tries nothing
    assert sum(n for (_, outcome), n in outcomes.counts.items() if outcome == "opened") > 10
    assert sum(n for (_, outcome), n in outcomes.counts.items() if outcome.startswith("refused")) > 10


def test_a_number_gives_the_same_file_again() -> None:
    for number in range(0, 60, 3):
        first, again = mutant(7, number), mutant(7, number)
        assert (first.how, first.content) == (again.how, again.content)
        assert len(first.content) <= MUTATED_BYTES
    assert mutant(7, 1).content != mutant(8, 1).content


def test_seeds_come_from_every_place() -> None:
    origins = {seed.name.split("/")[0] for seed in seeds()}
    assert {"pydicom", "pydicom-data", "nibabel", "made"} <= origins
    assert {seed.kind for seed in seeds()} == {"dicom", "nifti", "archive", "other"}
    assert not any(seed.public for seed in seeds() if seed.name.startswith("corpus/"))


class TestTheFuzzerItself:
    """It notices what it is there to notice."""

    def test_an_error_of_another_kind_a_crash_and_a_hang(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        # a stand-in for the opener's process that misbehaves as its input says
        package = tmp_path / "tests" / "fuzz"
        package.mkdir(parents=True)
        (package / "examine.py").write_text(
            "import json, os, pathlib, sys, time\n"
            "print('ready', flush=True)\n"
            "for line in sys.stdin:\n"
            "    what = pathlib.Path(line.strip()).read_text()\n"
            "    if 'crash' in what: os.abort()\n"
            "    if 'hang' in what: time.sleep(100)\n"
            "    grown, cpu = (1 << 31) * ('large' in what), 9.0 * ('slow' in what)\n"
            "    print(json.dumps({'outcome': 'opened', 'grown': grown, 'cpu': cpu}), flush=True)\n"
        )
        monkeypatch.setattr("tests.fuzz.campaign.ROOT", tmp_path)
        monkeypatch.setattr("tests.fuzz.campaign.HANG_SECONDS", 1.0)
        with Opener() as process:
            for what, outcome in (
                ("fine", "opened"),
                ("crash", "failed: crash -6 "),
                ("fine", "opened"),
                ("hang", "failed: hang"),
                ("large", "failed: memory (opened)"),
                ("slow", "failed: slow (opened)"),
            ):
                assert opened(process, what.encode(), ".txt")["outcome"] == outcome
            one = Mutant(Seed("made/x", ".txt", "other", True, b""), "", b"much that " * 9 + b"large" + b" is not")
            assert reduced(process, one, "failed: memory (opened)") == b"large"

    def test_archives_that_are_made_hold_what_they_say(self) -> None:
        for seed in seeds():
            if seed.kind == "archive" and seed.suffix == ".zip":
                with zipfile.ZipFile(io.BytesIO(seed.content)) as packed:
                    assert len(packed.namelist()) >= 1
            elif seed.kind == "archive":
                with tarfile.open(fileobj=io.BytesIO(seed.content)) as plain:
                    assert len(plain.getnames()) >= 1

    def test_damage_never_lets_the_fuzzer_down(self) -> None:
        from tests.fuzz import mutate

        rng = random.Random(0)
        for kind, mutations in mutate._SPECIAL.items():
            for mutation in (*mutations, *mutate._GENERIC):
                for content in (b"", b"x", b"\x1f\x8b", bytes(200), b"PK\3\4" + bytes(50)):
                    assert isinstance(mutation(content, rng), bytes), kind
