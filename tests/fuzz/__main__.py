"""``python -m tests.fuzz --count 20000 --seed 1``: mutated files, a table of what became of them, and what to keep."""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from itertools import chain

from tests.fuzz.campaign import KEPT_BYTES, REGRESSIONS, Opener, Outcomes, reduced, run
from tests.fuzz.mutate import Mutant, kind_of, mutant
from tests.fuzz.seeds import seeds


def main() -> int:
    """Run a campaign; the exit code says whether anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="mutated files")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers")
    parser.add_argument("--kinds", default="", help="only these, e.g. nifti,archive")
    parser.add_argument("--no-walk", action="store_true", help="leave out the files as they are")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of pydicom, about the files that are being damaged
    kinds = arguments.kinds.split(",") if arguments.kinds else []
    outcomes = Outcomes()
    start = time.monotonic()
    with Opener() as opener:
        walked = () if arguments.no_walk else (s for s in seeds() if not kinds or s.kind in kinds)
        numbers = range(arguments.first, arguments.first + arguments.count)
        chosen = (n for n in numbers if not kinds or kind_of(arguments.seed, n) in kinds)
        whole = ((-1, Mutant(s, "whole", s.content)) for s in walked)
        mutants = ((n, mutant(arguments.seed, n)) for n in chosen)
        for done, (number, one, answer) in enumerate(run(opener, chain(whole, mutants)), 1):
            known = answer["outcome"] in outcomes.smallest
            outcomes.add(number, one, answer)
            if answer["outcome"].startswith("failed") and not known:
                print(f"{number} {one.seed.name} {one.how}: {answer['outcome']}\n{answer.get('trace', '')}", flush=True)
            if done % 1000 == 0:
                print(f"{done} files, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        print(outcomes.table(), flush=True)
        for outcome, (number, one, _) in outcomes.smallest.items():
            print(f"{outcome}: number {number}, {one.seed.name}, {one.how}, {len(one.content)} bytes")
            # nothing of a real patient's file is kept
            content = reduced(opener, one, outcome) if one.seed.public else b""
            if content and len(content) <= KEPT_BYTES:
                name = re.sub(r"\W+", "-", outcome.removeprefix("failed: ")).strip("-")
                (REGRESSIONS / f"{name}{one.seed.suffix or '.bin'}").write_bytes(content)
    return 1 if outcomes.smallest else 0


if __name__ == "__main__":
    sys.exit(main())
