"""What the launcher asks of Linux: children that die with it, and who owns a process."""

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1

_prctl: Callable[..., int] | None
try:
    # Loaded here, once: between fork and exec a child should import and allocate as little as possible.
    _prctl = ctypes.CDLL(None).prctl
except AttributeError:  # not Linux: a child outlives a killed launcher
    _prctl = None


def die_with_parent(sig: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """A `preexec_fn` that has the kernel send `sig` to the child when its parent's thread ends."""
    parent = os.getpid()

    def preexec() -> None:
        if _prctl is not None:
            _prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)
            if os.getppid() != parent:  # it died between fork and prctl
                os._exit(1)

    return preexec


def start_time(pid: int) -> str | None:
    """When the process began, in clock ticks since boot: with the pid it names one process for ever. None: ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # from the third on, as proc(5) counts them
    return None if fields[0] == "Z" else fields[19]


def works_in(pid: int, folder: Path) -> bool:
    """Whether the process lives and has `folder` as its working directory."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == folder.resolve()
    except OSError:
        return False
