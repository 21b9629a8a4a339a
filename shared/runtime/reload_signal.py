"""SIGHUP, which asks a process to read its configuration again."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType


class ReloadSignal:
    """Handles SIGHUP from the start of a process on. A signal that arrives before `connect` is kept."""

    def __init__(self) -> None:
        self._pending = False
        self._request: Callable[[], None] | None = None

    def install(self) -> None:
        """Handle the signal; its default action would end the process. Must be called in the main thread."""
        signal.signal(signal.SIGHUP, self._handle)

    def connect(self, request: Callable[[], None]) -> None:
        """Call `request` at each signal, in the main thread between two instructions; at once if one has arrived."""
        self._request = request
        if self._pending:
            self._pending = False
            request()

    def disconnect(self) -> None:
        """Ignore signals from now on."""
        self._request = lambda: None

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self._request is None:
            self._pending = True
        else:
            self._request()
