"""Linux process calls: end children with their parent, and identify processes."""

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1

_prctl: Callable[..., int] | None
try:
    # Loaded at import: between fork and exec a child should import and allocate as little as possible.
    _prctl = ctypes.CDLL(None).prctl
except AttributeError:  # not Linux: children outlive a killed launcher
    _prctl = None


@dataclass(frozen=True)
class Account:
    """A user and a group to run a process as."""

    uid: int
    gid: int


def die_with_parent(sig: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """Return a `preexec_fn` that makes the kernel send `sig` to the child when the parent thread ends.

    The child ignores SIGHUP until it handles it: a reload must not end a process that is starting.
    """
    parent = os.getpid()

    def preexec() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if _prctl is not None:
            _prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)
            if os.getppid() != parent:  # the parent died between fork and prctl
                os._exit(1)

    return preexec


def start_time(pid: int) -> str | None:
    """Return the start time in clock ticks since boot, unique together with the pid. None if the process has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # from field 3 of proc(5)
    return None if fields[0] == "Z" else fields[19]


def processes_in(folder: Path, program: str) -> list[int]:
    """Return the processes that run the program `program` with `folder` as their working directory."""
    folder = folder.resolve()
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            if Path(f"/proc/{pid}/cwd").readlink() == folder and _program(pid) == program:
                found.append(pid)
    return found


def users_of_processes() -> set[int]:
    """Return the user ids of all running processes."""
    users = set()
    for pid in _pids():
        with contextlib.suppress(OSError):
            users.add(os.stat(f"/proc/{pid}").st_uid)
    return users


def _pids() -> Iterator[int]:
    with contextlib.suppress(OSError):  # not Linux
        yield from (int(name) for name in os.listdir("/proc") if name.isdigit())


def _program(pid: int) -> str:
    # The kernel appends the suffix once the file has been replaced or removed.
    return Path(f"/proc/{pid}/exe").readlink().name.removesuffix(" (deleted)")
