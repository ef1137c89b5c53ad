"""Gives mutated files to a process that opens them, and keeps what went wrong."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.mutate import Mutant
from tests.fuzz.seeds import identity

ROOT = Path(__file__).parents[2]
REGRESSIONS = Path(__file__).parent / "regressions"
# What an input of 1 MB may cost; larger ones in proportion. Seconds are those of the processor, because the machine may
# be shared; a file on which as many have passed on the clock as below hangs.
MOST_BYTES, MOST_SECONDS, HANG_SECONDS = 1 << 30, 5.0, 120.0
_MEGABYTE = 1_000_000
# Processes are renewed, so that what they keep of files does not add up.
_FILES_PER_PROCESS = 1500
KEPT_BYTES = 64_000
_GOODBYE_SECONDS = 20


class Opener:
    """A process that opens files, replaced when it crashes or hangs."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()
        self._done = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process

    def __enter__(self) -> Opener:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._errors.close()

    def examine(self, path: Path) -> dict[str, Any]:
        """How opening a file went; see `tests.fuzz.examine.examine`."""
        if self._process is None or self._done >= _FILES_PER_PROCESS:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        size = max(1.0, path.stat().st_size / _MEGABYTE)
        try:
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            line = self._answers.get(timeout=HANG_SECONDS * size)
        except queue.Empty:
            process.send_signal(signal.SIGABRT)  # it writes where its threads are
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            trace = self._said()
            self._stop()
            return {"outcome": "failed: hang", "trace": trace}
        except BrokenPipeError:
            line = ""
        self._done += 1
        if not line:
            code = process.wait()
            trace = self._said()
            self._stop()
            return {"outcome": f"failed: crash {code} {_crash(trace)}", "trace": trace}
        answer: dict[str, Any] = json.loads(line)
        if answer["outcome"].startswith("failed"):
            return answer
        if answer["grown"] > MOST_BYTES * size:
            return {**answer, "outcome": f"failed: memory ({answer['outcome']})"}
        if answer["cpu"] > MOST_SECONDS * size:
            return {**answer, "outcome": f"failed: slow ({answer['outcome']})"}
        return answer

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", "replace")[-5000:]

    def _start(self) -> None:
        self._stop()
        self._errors.seek(0)
        self._errors.truncate()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.examine"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._answers, self._done = queue.Queue(), 0
        threading.Thread(target=_collect, args=(self._process.stdout, self._answers), daemon=True).start()
        if self._answers.get(timeout=120) != "ready\n":
            raise RuntimeError("The process that opens files did not start.")

    def _stop(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            # it ends with its input, and removes what it unpacked
            try:
                self._process.wait(_GOODBYE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None


def _collect(stream: Any, answers: queue.Queue[str]) -> None:
    for line in stream:
        answers.put(line)
    answers.put("")


def _crash(trace: str) -> str:
    """Where a crashed process was, out of what faulthandler wrote."""
    lines = [line.strip() for line in trace.splitlines() if "napari_medai" in line and "File" in line]
    return lines[0].split("napari_medai/")[-1].replace('"', "") if lines else ""


@dataclass
class Outcomes:
    """What a campaign found: how often each outcome came, and the smallest file for each failure."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    smallest: dict[str, tuple[int, Mutant, str]] = field(default_factory=dict)
    slowest: float = 0.0
    largest: int = 0

    def add(self, number: int, mutant: Mutant, answer: dict[str, Any]) -> None:
        """Count an outcome."""
        outcome = answer["outcome"]
        self.counts[mutant.seed.kind, outcome] += 1
        self.slowest = max(self.slowest, answer.get("cpu", 0.0))
        self.largest = max(self.largest, answer.get("grown", 0))
        if outcome.startswith("failed"):
            known = self.smallest.get(outcome)
            if known is None or len(mutant.content) < len(known[1].content):
                self.smallest[outcome] = (number, mutant, answer.get("trace", ""))

    def table(self) -> str:
        """Outcomes by kind of file, the failures last."""
        kinds = ("dicom", "nifti", "archive", "other")
        outcomes = sorted({o for _, o in self.counts}, key=lambda o: (o.startswith("failed"), o))
        width = max(map(len, outcomes), default=0)
        lines = [" ".join([f"{'':{width}}", *(f"{kind:>8}" for kind in kinds)])]
        for outcome in outcomes:
            lines.append(" ".join([f"{outcome:{width}}", *(f"{self.counts[kind, outcome]:8}" for kind in kinds)]))
        lines.append(f"slowest {self.slowest:.2f} s of the processor, most memory {self.largest / 2**20:.0f} MiB")
        return "\n".join(lines)


def run(opener: Opener, mutants: Iterable[tuple[int, Mutant]]) -> Iterator[tuple[int, Mutant, dict[str, Any]]]:
    """Open each file in a folder of its own."""
    for number, mutant in mutants:
        answer = opened(opener, mutant.content, mutant.seed.suffix)
        if any(text in answer.get("said", "") for text in identity(mutant.seed)):
            answer |= {"outcome": "failed: who the patient is was said", "trace": ""}
        yield number, mutant, answer


def opened(opener: Opener, content: bytes, suffix: str) -> dict[str, Any]:
    """How opening a file of some content goes."""
    with tempfile.TemporaryDirectory(prefix="medai-fuzz-") as folder:
        path = Path(folder) / f"scan{suffix}"
        path.write_bytes(content)
        return opener.examine(path)


def reduced(opener: Opener, mutant: Mutant, outcome: str, tries: int = 150) -> bytes:
    """A smaller file with the same outcome: ever smaller stretches are left out as long as it fails alike."""
    content, step = mutant.content, max(1, len(mutant.content) // 2)
    while tries > 0 and step >= 1:
        at, shrunk = 0, False
        while at < len(content) and tries > 0:
            candidate = content[:at] + content[at + step :]
            tries -= 1
            if opened(opener, candidate, mutant.seed.suffix)["outcome"] == outcome:
                content, shrunk = candidate, True
            else:
                at += step
        if not shrunk:
            step //= 2
    return content
