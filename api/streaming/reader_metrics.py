"""Metrics of readers."""

from __future__ import annotations

import time
from collections.abc import Sequence

from shared.domain.events import Event, EventType
from shared.telemetry.metrics import STREAM_FIRST_TOKEN, STREAM_OPENS, STREAM_READERS


class EventReaderMetrics:
    """Counts a reader of events and measures the time from connect to first token.

    Readers that find text at their first read connected after it was generated and are not measured.
    """

    __slots__ = ("_after", "_done", "_opened_at", "_waited")

    def __init__(self, after: int) -> None:
        self._after = after
        self._done = after > 0
        self._waited = False
        self._opened_at = 0.0

    def opened(self) -> None:
        self._opened_at = time.monotonic()
        STREAM_OPENS.labels("cursor" if self._after else "start").inc()
        STREAM_READERS.labels("text").inc()

    def read(self, events: Sequence[Event]) -> None:
        """Record a read, which may have returned no events."""
        if self._done:
            return
        if any(event.type is EventType.DELTA for event in events):
            self._done = True
            if self._waited:
                STREAM_FIRST_TOKEN.observe(time.monotonic() - self._opened_at)
        self._waited = True

    def closed(self) -> None:
        STREAM_READERS.labels("text").dec()


class EndReaderMetrics:
    """Counts a reader that waits for a job's end."""

    __slots__ = ()

    def opened(self) -> None:
        STREAM_READERS.labels("end").inc()

    def closed(self) -> None:
        STREAM_READERS.labels("end").dec()
