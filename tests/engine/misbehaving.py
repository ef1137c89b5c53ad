"""Functions for a process of its own that end it in every way but the right one. Nothing heavy is imported here."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time


def say(**message) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def exits(work, given_up) -> None:
    print("earlier\nlast \x1b[31mwords", file=sys.stderr, flush=True)
    os._exit(7)


def segfaults(work, given_up) -> None:
    ctypes.string_at(0)


def killed(work, given_up) -> None:
    os.kill(os.getpid(), 9)


def raises(work, given_up) -> None:
    raise KeyError("nobody catches it")


def hangs(work, given_up) -> None:
    """Never ends, and has started what would go on."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    say(note=f"processes: {os.getpid()} {child.pid}")
    say(progress=[1, 2, "hanging"], tiles=3)
    time.sleep(600)


def leaves(work, given_up) -> None:
    """Ends well, and leaves behind what holds the pipe."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=1)
    say(note=f"processes: {os.getpid()} {child.pid}")
    say(done={"x": 1}, tiles=2)
    os._exit(0)


def vanishes(work, given_up) -> None:
    """Ends without a word while what it started holds the pipe."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=1)
    say(note=f"processes: {os.getpid()} {child.pid}")
    os._exit(0)


def babbles(work, given_up) -> None:
    """Messages of wrong kinds do no harm; what is no message at all ends it."""
    say(progress="half", tiles=-3)
    say(progress=[1e308 * 10, None, {"a": 1}], tiles=True)
    say(progress=[2, 1, "x" * 1000 + "\x1b[2J"])
    say(note=["a", {"b": 1}])
    say(given_up="everything")
    say(unknown=1)
    os.write(1, b"[1, 2]\n")
    time.sleep(600)


def endless_line(work, given_up) -> None:
    os.write(1, b"{" + b" " * (1 << 22))
    time.sleep(600)


def floods(work, given_up) -> None:
    for n in range(5_000):
        say(note=f"{n} " + "x" * 3000)
    say(done={})


def orphan(work, given_up) -> None:
    """Says who it is, and waits as the true one does."""
    from napari_medai.engine.isolated_child import _end_with_parent

    say(note=str(os.getpid()))
    _end_with_parent()
