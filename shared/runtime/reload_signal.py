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
        """Call `request` at each signal, and now if one has arrived. Callable from any thread.

        `request` is called in the main thread between two instructions, so it may not take locks.
        """
        self._request = request
        self._pass_on()

    def disconnect(self) -> None:
        """Ignore signals from now on."""
        self._request = lambda: None

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self._pending = True
        self._pass_on()

    def _pass_on(self) -> None:
        if self._pending and self._request is not None:
            self._pending = False
            self._request()
