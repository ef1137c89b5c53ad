"""Fewer powers for a process that runs what a package carries: Linux's seccomp and Landlock, limits, a poor rank.

Called before anything else is imported, in the process itself and while it has a single thread, for what is given up
here is given up by a thread and by all that it starts later. Neither needs rights of an administrator. Where the system
knows them not, less is given up, and the record of the run says so. None of this makes a permission needless: whoever
allows a program trusts who made it.

Sources: Linux's user-space API guide, "Landlock: unprivileged access control" and "Seccomp BPF".
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress

# What the process can no longer do, as it stands in the record of a run
NO_NETWORK = "no network"
OWN_FILES = "no files but its own"

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_EACCES, _EPERM, _ENOSYS = 13, 1, 38

# linux/landlock.h
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_ALL = (1 << 13) - 1
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_NET_BIND, _NET_CONNECT = 1, 2
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1, 2

# Where programs, libraries and their settings are; never anybody's home
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc", "/opt", "/nix", "/gnu", "/sys")
# Of /proc what libraries look at; not the folders of other processes, where their environment stands
_PROC = (
    "self", "cpuinfo", "meminfo", "stat", "version", "loadavg", "uptime", "filesystems", "devices", "modules", "driver",
    "sys", "cgroups", "zoneinfo", "vmstat",
)  # fmt: skip
# Devices that computing needs; the account's own rights hold on top
_DEVICES = ("null", "zero", "full", "random", "urandom", "shm", "dri", "kfd", "dxg")

# machine -> (number in linux/audit.h, numbers of the system calls of `_calls`)
_MACHINES = {
    "x86_64": (0xC000003E, (41, 425, (109, 112, 101, 310, 311, 248, 249, 250, 321))),
    "aarch64": (0xC00000B7, (198, 425, (154, 157, 117, 270, 271, 217, 218, 219, 280))),
}

_inside = False


def inside() -> bool:
    """Whether this process was started to run what a package carries."""
    return _inside


def enter(readable: Iterable[str], writable: Iterable[str]) -> list[str]:
    """Give up what the process does not need, for good.

    Parameters
    ----------
    readable, writable : iterable of str
        Folders and files that it may read, beside the system's, and those that it may write too.

    Returns
    -------
    list of str
        What it can no longer do.
    """
    global _inside
    _inside = True
    if sys.platform == "win32":
        return []
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what is in memory may be of a patient
    if sys.platform != "linux":
        return []
    # when memory runs out, this process goes and not the viewer
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("900")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return []
    given_up = []
    if _landlock(libc, readable, writable):
        given_up.append(OWN_FILES)
    if _seccomp(libc):
        given_up.insert(0, NO_NETWORK)
    return given_up


def _landlock(libc: ctypes.CDLL, readable: Iterable[str], writable: Iterable[str]) -> bool:
    """Nothing of the file system but what is named, no TCP, no signals to other processes."""
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    handled = _ALL | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    attributes = struct.pack("=Q", handled)
    if version >= 4:
        attributes += struct.pack("=Q", _NET_BIND | _NET_CONNECT)
    if version >= 6:
        attributes += struct.pack("=Q", _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS)
    rules = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        return False
    try:
        for path in (*_SYSTEM, *(f"/proc/{name}" for name in _PROC), *readable):
            _allow(libc, rules, path, _READ)
        for path in (*(f"/dev/{name}" for name in _DEVICES), *_accelerators(), *writable):
            _allow(libc, rules, path, handled)
        return bool(libc.syscall(_RESTRICT_SELF, rules, 0) == 0)
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not on this system
    try:
        kept = rights if os.path.isdir(path) else rights & _FILE_RIGHTS
        libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", kept, descriptor), 0)
    finally:
        os.close(descriptor)


def _accelerators() -> list[str]:
    with suppress(OSError):
        return [f"/dev/{name}" for name in os.listdir("/dev") if name.startswith("nvidia")]
    return []


def _seccomp(libc: ctypes.CDLL) -> bool:
    """No sockets, no io_uring (which has sockets of its own), no leaving the group, no looking into other processes."""
    if platform.machine() not in _MACHINES or sys.maxsize < 2**32:
        return False
    audit, (socket, ring, others) = _MACHINES[platform.machine()]
    refuse = [(socket, _EACCES), (ring, _ENOSYS), *((call, _EPERM) for call in others)]
    load, jump_equal, jump_over, give = 0x20, 0x15, 0x35, 0x06
    allow, kill, error = 0x7FFF0000, 0x80000000, 0x00050000
    code = [
        (load, 0, 0, 4),  # the architecture: another one has other numbers
        (jump_equal, 1, 0, audit),
        (give, 0, 0, kill),
        (load, 0, 0, 0),  # the number of the call
        (jump_over, 0, 1, 0x40000000),  # x32's numbers
        (give, 0, 0, error | _EPERM),
    ]
    for call, number in refuse:
        code += [(jump_equal, 0, 1, call), (give, 0, 0, error | number)]
    code.append((give, 0, 0, allow))
    filters = b"".join(struct.pack("=HBBI", *line) for line in code)
    buffer = ctypes.create_string_buffer(filters, len(filters))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    program = Program(len(code), ctypes.cast(buffer, ctypes.c_void_p))
    return bool(libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0) == 0)
