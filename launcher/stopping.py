"""How Ctrl-C, SIGTERM and a closed terminal reach the launcher."""

import signal
import time
from types import FrameType

from launcher.errors import StopRequested


class Stopping:
    """Counts requests to stop. They take effect where the launcher waits, never in the middle of a step."""

    def __init__(self) -> None:
        self.requests = 0

    def listen(self) -> None:
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sig, self._handle)

    @property
    def at_once(self) -> bool:
        """Asked a second time: no more patience."""
        return self.requests > 1

    def pause(self, seconds: float = 0.1) -> None:
        """Wait; raises `StopRequested` when a request has come."""
        time.sleep(seconds)
        self.check()

    def check(self) -> None:
        if self.requests:
            raise StopRequested

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self.requests += 1
