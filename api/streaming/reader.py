"""One reader's position in one job's events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.domain.events import Event
from shared.telemetry.metrics import STREAM_CATCH_UPS

# Live events that wait for a slow reader; beyond, it goes on from the log.
BUFFER = 256


@dataclass(slots=True, eq=False)
class QueuedReader:
    """A queue that a reader's job may wait in. `told` is the place it was told last; None: it ran, when last heard of.

    `heard` is when that was, on the monotonic clock.
    """

    model: str
    priority: int
    told: int | None
    heard: float = field(default_factory=time.monotonic)


class Reader:
    """One reader's place in one job: `after` is the last event that it has been given."""

    __slots__ = ("after", "behind", "heard", "live", "only_end", "place", "queued", "wake")

    def __init__(self, after: int, *, only_end: bool = False, queued: QueuedReader | None = None) -> None:
        self.after = after
        self.only_end = only_end
        self.queued = queued
        self.place: Event | None = None
        self.live: list[Event] = []
        self.behind = True
        self.wake = asyncio.Event()
        self.heard = time.monotonic()

    def offer(self, events: Sequence[Event]) -> None:
        self.heard = time.monotonic()
        if self.only_end:
            events = [event for event in events if event.type.terminal]
            if not events:
                return
        if len(self.live) + len(events) > BUFFER:
            if not self.behind:
                STREAM_CATCH_UPS.labels("slow").inc()
            self.lose_place()
        elif not self.behind:
            self.live.extend(events)
        self.wake.set()

    def take_live(self) -> list[Event]:
        """The live events after the cursor; where they do not follow it without a gap, the log has to be read."""
        live, self.live = self.live, []
        after = self.after
        if live and live[0].seq <= after:
            live = [event for event in live if event.seq > after]
        if self.only_end or not live or (live[0].seq == after + 1 and live[-1].seq == after + len(live)):
            return live
        STREAM_CATCH_UPS.labels("gap").inc()
        self.lose_place()
        return []

    def lose_place(self) -> None:
        """Forget what waits: the log has it."""
        self.live.clear()
        self.behind = True
        self.wake.set()
