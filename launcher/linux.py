"""Linux process calls: end children with their parent, and identify processes."""

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1

_prctl: Callable[..., int] | None
try:
    # Loaded at import: between fork and exec a child should import and allocate as little as possible.
    _prctl = ctypes.CDLL(None).prctl
except AttributeError:  # not Linux: children outlive a killed launcher
    _prctl = None


def die_with_parent(sig: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """Return a `preexec_fn` that makes the kernel send `sig` to the child when the parent thread ends."""
    parent = os.getpid()

    def preexec() -> None:
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


def works_in(pid: int, folder: Path) -> bool:
    """Return whether the process is alive with `folder` as its working directory."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == folder.resolve()
    except OSError:
        return False
