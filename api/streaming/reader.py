"""Readers of a job's events: their cursors and their buffers of live events."""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from api.streaming.reader_metrics import EventReaderMetrics, ReaderMetrics
from api.streaming.stored_events import StoredEvents, StoredRead
from shared.domain.events import Event, EventType
from shared.telemetry.metrics import Metrics

# Maximum number of live events buffered for a slow reader, and of their bytes. Beyond it, the reader continues from the
# log.
BUFFER = 256
BUFFER_BYTES = 256 * 1024


class Reader(ABC):
    """A reader is `behind` until it has read the stored events, and whenever it may have missed a live event."""

    __slots__ = ("_live_bytes", "_metrics", "active_at", "after", "behind", "leader", "live", "wake")

    def __init__(self, after: int, metrics: ReaderMetrics) -> None:
        """`after` is the sequence number of the last event that the reader has received."""
        self.after = after
        # The job that the reader's job follows, whose events it receives.
        self.leader: str | None = None
        self.live: list[Event] = []
        self._live_bytes = 0
        self.behind = True
        self.wake = asyncio.Event()
        self.active_at = time.monotonic()
        self._metrics = metrics

    def opened(self) -> None:
        """The reader has been registered."""
        self._metrics.opened()

    def closed(self) -> None:
        """The reader has been removed."""
        self._metrics.closed()

    @abstractmethod
    async def catch_up(self, stored: StoredEvents, job_id: str) -> StoredRead | None:
        """Read the stored events; None if an outage prevented it."""

    @abstractmethod
    async def catch_up_with_leader(self, stored: StoredEvents, job_id: str, leader: str) -> StoredRead | None:
        """As `catch_up`, from the job that the reader's job follows."""

    def _take_buffered(self) -> list[Event]:
        """Empty the buffer of live events."""
        live, self.live = self.live, []
        self._live_bytes = 0
        return live

    @abstractmethod
    def take_live(self) -> list[Event]:
        """Return the buffered live events after the cursor; none if the reader must catch up first."""

    @abstractmethod
    def next_batch(self, events: list[Event]) -> list[Event]:
        """Return the batch to deliver after a read that returned these events, and advance the cursor."""

    @abstractmethod
    def is_stale(self, last_seq: int, *, ended: bool) -> bool:
        """Whether the reader has missed events, given the job's last sequence number and whether the job has ended."""

    @abstractmethod
    def _wanted(self, events: Sequence[Event]) -> Sequence[Event]:
        """Filter the live events that this reader receives."""

    @property
    def idle(self) -> bool:
        """Whether a keepalive is due."""
        return False

    def delivered(self) -> None:  # noqa: B027  # only readers of events keep track
        """The last batch has been sent."""

    @property
    def ready(self) -> bool:
        """Whether another read would return something."""
        return bool(self.live) or self.behind or self.idle

    def offer(self, job_id: str, events: Sequence[Event]) -> None:
        """Buffer live events of a job, or fall behind if the buffer is full.

        While the reader's job follows another one, it reads the stores after its own events, and after those of the
        other one with which it may have ended too, or not follow that one any more.
        """
        self.active_at = time.monotonic()
        if self.leader is not None and (job_id != self.leader or any(map(_may_release_followers, events))):
            self.fall_behind()
            return
        events = self._wanted(events)
        if not events:
            return
        self._live_bytes += sum([len(event.data) for event in events])
        if len(self.live) + len(events) > BUFFER or self._live_bytes > BUFFER_BYTES:
            if not self.behind:
                self._metrics.fell_behind("slow")
            self.fall_behind()
        elif not self.behind:
            self.live.extend(events)
        self.wake.set()

    def fall_behind(self) -> None:
        """Drop the buffered live events, which are in the log too."""
        self._take_buffered()
        self.behind = True
        self.wake.set()


def _may_release_followers(event: Event) -> bool:
    """Whether the followers of the job may not follow it any more: it has ended, or starts again on another model."""
    if event.type is EventType.STARTED:
        return bool(event.payload()["attempt"] > 1)
    return event.type.terminal


@dataclass(slots=True, eq=False)
class QueuedReader:
    """The queue of a reader's job.

    `position` is the last one reported, with whether the queue was `paused`; None if the reader has received an event
    since. `event_at` is the delivery time of the last event, on the monotonic clock.
    """

    model: str
    priority: int
    position: int | None
    paused: bool = False
    event_at: float = field(default_factory=time.monotonic)


class EventReader(Reader):
    """Reads a job's events, without gaps or duplicates; with `queued`, also its queue position while it waits."""

    __slots__ = ("_archive_position", "_delivered_at", "_idle", "_new", "_ping_s", "_timer", "position", "queued")

    _metrics: EventReaderMetrics

    def __init__(
        self,
        after: int,
        metrics: Metrics,
        *,
        ping_s: float = math.inf,
        queued: QueuedReader | None = None,
        new: bool = False,
    ) -> None:
        """`ping_s`: seconds without a batch after which the reader is idle.

        `new`: the job has just been submitted, so the first catch-up need not read its row.
        """
        super().__init__(after, EventReaderMetrics(metrics, after))
        self.queued = queued
        self.position: Event | None = None
        self._new = new
        self._archive_position = 0
        self._ping_s = ping_s
        self._idle = False
        self._delivered_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def opened(self) -> None:
        super().opened()
        self.delivered()
        if self._ping_s != math.inf:
            self._timer = asyncio.get_running_loop().call_later(self._ping_s, self._check_idle)

    def closed(self) -> None:
        super().closed()
        if self._timer is not None:
            self._timer.cancel()

    @property
    def idle(self) -> bool:
        return self._idle

    def delivered(self) -> None:
        self._idle, self._delivered_at = False, time.monotonic()

    def _check_idle(self) -> None:
        """Report the reader as idle, or check again when it may be: restarting a timer per batch would cost more."""
        left_s = self._delivered_at + self._ping_s - time.monotonic()
        if left_s <= 0:
            self._idle, left_s = True, self._ping_s
            self.wake.set()
        self._timer = asyncio.get_running_loop().call_later(left_s, self._check_idle)

    async def catch_up(self, stored: StoredEvents, job_id: str) -> StoredRead | None:
        new, self._new = self._new, False
        read = await stored.read(job_id, self.after, new=new, position=self._archive_position)
        self._archive_position = 0 if read is None else read.position
        return read

    async def catch_up_with_leader(self, stored: StoredEvents, job_id: str, leader: str) -> StoredRead | None:
        return await stored.read_leader(leader, job_id, self.after)

    def take_live(self) -> list[Event]:
        live, after = self._take_buffered(), self.after
        if live and live[0].seq <= after:
            live = [event for event in live if event.seq > after]
        if not live or (live[0].seq == after + 1 and live[-1].seq == after + len(live)):
            return live
        self._metrics.fell_behind("gap")  # a message was lost when the connection broke
        self.fall_behind()
        return []

    def next_batch(self, events: list[Event]) -> list[Event]:
        """The events; if there are none, a new queue position (an event without a number)."""
        self._metrics.read(events)
        position, self.position = self.position, None
        if events:
            if self.queued is not None:
                self.queued.position, self.queued.event_at = None, time.monotonic()
            self.after = events[-1].seq
            return events
        return [] if position is None else [position]

    def is_stale(self, last_seq: int, *, ended: bool) -> bool:
        return ended or last_seq > self.after

    def report_position(self, position: Event) -> None:
        """Deliver a queue position with the next batch, unless that has events."""
        self.position = position
        self.wake.set()

    @property
    def ready(self) -> bool:
        return super().ready or self.position is not None

    def _wanted(self, events: Sequence[Event]) -> Sequence[Event]:
        return events


class EndReader(Reader):
    """Waits for a job's end."""

    __slots__ = ()

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(0, ReaderMetrics(metrics, "end"))

    async def catch_up(self, stored: StoredEvents, job_id: str) -> StoredRead | None:
        return await stored.end(job_id)

    async def catch_up_with_leader(self, stored: StoredEvents, job_id: str, leader: str) -> StoredRead | None:
        return await stored.end_of_leader(leader, job_id)

    def take_live(self) -> list[Event]:
        return self._take_buffered()

    def next_batch(self, events: list[Event]) -> list[Event]:
        return events

    def is_stale(self, last_seq: int, *, ended: bool) -> bool:
        return ended

    def _wanted(self, events: Sequence[Event]) -> Sequence[Event]:
        return [event for event in events if event.type.terminal]
