"""Metrics of readers."""

from __future__ import annotations

import time
from collections.abc import Sequence

from shared.domain.events import Event, EventType
from shared.telemetry.metrics import Metrics


class ReaderMetrics:
    """Counts a reader, and how often it falls back to the event log."""

    __slots__ = ("_kind", "_metrics")

    def __init__(self, metrics: Metrics, kind: str) -> None:
        self._metrics = metrics
        self._kind = kind

    def opened(self) -> None:
        self._metrics.stream_readers.labels(self._kind).inc()

    def fell_behind(self, reason: str) -> None:
        self._metrics.stream_catch_ups.labels(reason).inc()

    def closed(self) -> None:
        self._metrics.stream_readers.labels(self._kind).dec()


class EventReaderMetrics(ReaderMetrics):
    """Counts a reader of events and measures the time from connect to first token.

    Readers that find text at their first read connected after it was generated and are not measured.
    """

    __slots__ = ("_after", "_done", "_opened_at", "_waited")

    def __init__(self, metrics: Metrics, after: int) -> None:
        super().__init__(metrics, "text")
        self._after = after
        self._done = after > 0
        self._waited = False
        self._opened_at = 0.0

    def opened(self) -> None:
        self._opened_at = time.monotonic()
        self._metrics.stream_opens.labels("cursor" if self._after else "start").inc()
        super().opened()

    def read(self, events: Sequence[Event]) -> None:
        """Record a read, which may have returned no events."""
        if self._done:
            return
        if any(event.type is EventType.DELTA for event in events):
            self._done = True
            if self._waited:
                self._metrics.stream_first_token.observe(time.monotonic() - self._opened_at)
        self._waited = True
