"""Measures one reader of a job: that it is there, and how long its first text takes to reach it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from shared.domain.events import Event, EventType
from shared.telemetry.metrics import STREAM_FIRST_TOKEN, STREAM_OPENS, STREAM_READERS


class ReaderMetrics:
    """`seen`: there is nothing more to look for in the events that the reader is given."""

    __slots__ = ("_began", "_waited", "seen")

    def __init__(self, after: int) -> None:
        self.seen = after > 0
        self._began = time.monotonic()
        self._waited = False
        STREAM_OPENS.labels("cursor" if after else "start").inc()
        STREAM_READERS.labels("text").inc()

    def look(self, events: Sequence[Event]) -> None:
        """The reader is given these. Text that is there at the first look was there before the reader came."""
        if any(event.type is EventType.DELTA for event in events):
            self.seen = True
            if self._waited:
                STREAM_FIRST_TOKEN.observe(time.monotonic() - self._began)
        self._waited = True

    def left(self) -> None:
        """The reader is gone."""
        STREAM_READERS.labels("text").dec()
