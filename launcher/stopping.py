"""Handling of Ctrl-C, SIGTERM, a closed terminal, and SIGHUP without one, which reloads models.yaml."""

import os
import signal
import time
from types import FrameType

from launcher.errors import StopRequested


class Stopping:
    """Counts stop requests, and keeps a request to reload. They take effect when the launcher waits, never in the
    middle of a step."""

    def __init__(self) -> None:
        self.requests = 0
        self._reload = False
        self._had_terminal = False

    def install_handlers(self) -> None:
        self._had_terminal = _has_terminal()
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, self._handle)
        signal.signal(signal.SIGHUP, self._handle_hangup)

    @property
    def forced(self) -> bool:
        """Whether a second request was received: kill instead of waiting."""
        return self.requests > 1

    def sleep(self, seconds: float = 0.1) -> None:
        """Sleep; raises `StopRequested` if a stop was requested."""
        time.sleep(seconds)
        self.check()

    def check(self) -> None:
        if self.requests:
            raise StopRequested

    def take_reload(self) -> bool:
        """Return whether a reload was requested since the last call."""
        requested, self._reload = self._reload, False
        return requested

    def _handle_hangup(self, _signal: int, _frame: FrameType | None) -> None:
        if self._had_terminal and not _has_terminal():
            self.requests += 1
        else:
            self._reload = True

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self.requests += 1


def _has_terminal() -> bool:
    """Whether the process has a controlling terminal. When that is closed, the kernel takes it away with SIGHUP."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
