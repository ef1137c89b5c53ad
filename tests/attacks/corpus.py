"""The attack corpus: packages that try to run code, leave their folder or take the machine down; built by each run.

An attack is a function ``f(place, marker)`` that makes a package in the empty folder ``place`` and returns its path. If
anything of it runs, it leaves the file ``marker``. `ATTACKS` holds them by their ids, ``family/what``; names such as
CVE-2025-32434 in an id say which published one it is (facts from the advisories; no code of theirs is used).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Make = Callable[[Path, Path], Path]


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes
    ----------
    id : str
        ``family/what``.
    make : callable
        ``make(place, marker) -> path`` of the package.
    control : bool
        No attack: a package of the same shape that must run, so that the others are not refused for lack of a comma.
    refused : bool
        Running it as if nothing were is not enough: it must be refused. For attacks that read what is not theirs,
        which leaves no trace.
    later : callable or None
        ``later(path, marker)`` changes the package after it was loaded and before it runs.
    proof : str
        Name of the function in `raw` that runs it as its framework would; with it the marker must appear.
    """

    id: str
    make: Make
    control: bool = False
    refused: bool = False
    later: Callable[[Path, Path], None] | None = None
    proof: str = ""


ATTACKS: dict[str, Attack] = {}

# One line more in a description: each ends a reader of YAML, or keeps it busy, or raises what no reader of it expects
YAML_LINES = {
    "brackets that libyaml falls over": "evil: " + "[" * 200_000,
    "merges": "".join(
        f"a{n}: &a{n} {{x: 1, <<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" if n else "a0: &a0 {x: 1}\n" for n in range(9)
    ),
    "base sixty": "evil: " + "1:" * 100_000 + "1",
    "base sixty, beyond every number": "evil: " + "1:" * 1000 + "1.5",
    "no number": "evil: !!int ''",
    "no truth": "evil: !!bool x",
    "no date": "evil: !!timestamp x",
}


def attack(id: str, **more: Any) -> Callable[[Make], Make]:
    """Add a function to the corpus."""

    def add(make: Make) -> Make:
        assert id not in ATTACKS, id
        ATTACKS[id] = Attack(id, make, **more)
        return make

    return add


def kind(attack: Attack) -> tuple[str, str]:
    """What an attack goes for (``"monai/target"``), and the function that makes its package."""
    made = attack.make.args[0] if isinstance(attack.make, functools.partial) else attack.make
    named = made.__name__ if made.__name__ != "<lambda>" else ""
    return "/".join(attack.id.split("/")[:2]) if attack.id.count("/") > 1 else attack.id.split("/")[0], named


def representative(attacks: dict[str, Attack], every: int = 6) -> dict[str, Attack]:
    """Of each kind the first and every ``every``-th; all that are controls, are proven, or change a package later."""
    count: dict[tuple[str, str], int] = {}
    chosen = {}
    for id, attack in attacks.items():
        number = count.setdefault(kind(attack), 0)
        count[kind(attack)] += 1
        if number % every == 0 or attack.control or attack.proof or attack.later:
            chosen[id] = attack
    return chosen


def table(family: str, make: Callable[..., Path], rows: dict[str, Any], **more: Any) -> None:
    """Add one attack for each row: ``make(place, marker, row)``."""
    for name, row in rows.items():
        attack(f"{family}/{name}", **more)(functools.partial(_row, make, row))


def _row(make: Callable[..., Path], row: Any, place: Path, marker: Path) -> Path:
    return make(place, marker, row)


def filled(value: Any, marker: Path) -> Any:
    """A value with ``MARKER`` replaced by the path of the marker, in all texts within."""
    if isinstance(value, str):
        return value.replace("MARKER", str(marker))
    if isinstance(value, dict):
        return {filled(key, marker): filled(item, marker) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, marker) for item in value]
    return value
