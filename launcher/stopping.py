"""Handling of Ctrl-C, SIGTERM and a closed terminal."""

import signal
import time
from types import FrameType

from launcher.errors import StopRequested


class Stopping:
    """Counts stop requests. They take effect when the launcher waits, never in the middle of a step."""

    def __init__(self) -> None:
        self.requests = 0

    def install_handlers(self) -> None:
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sig, self._handle)

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

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self.requests += 1
