"""Delivers jobs' events to readers: first the stored events, then live ones, without gaps or duplicates.

Each API process has one subscriber, which receives the live events of every job that has a reader in the process (see
`shared.redis.event_log`). A reader subscribes to the job and reads its stored events in one step, then receives live
events. It reads the log again if its buffer overflows, if a live event is missing, and if the `IdleReaderCheck` finds
that it has missed events. The log is read in pages, the next one when the reader has taken the one before, so that a
reader holds a page and a buffer at most, however long the log is.

The reader of a job that follows another one, its leader, is registered with both, and receives the leader's events.

A reader of the native stream also receives the job's queue position while the job waits (`api.jobs.queue_positions`).

Events are delivered in batches: all that arrived while the reader was busy. An empty batch means that there was none
for `ping_s` seconds: the stream then sends a keepalive. Keepalives come from here because only the converter of a
stream knows which frame is valid at its current position.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import secrets
from collections.abc import AsyncIterator, Callable, Iterator

from redis.asyncio import Redis

from api.streaming.idle_reader_check import IdleReaderCheck
from api.streaming.reader import EndReader, EventReader, QueuedReader, Reader
from api.streaming.reader_metrics import EventReaderMetrics
from api.streaming.stored_events import RETRY_S, StoredEvents
from shared.domain.events import Event, parse_line
from shared.domain.priorities import Hint
from shared.postgres.job_store import JobStore
from shared.recovery.followers import report_changes
from shared.redis import keys as redis_keys
from shared.redis.event_log import EventLog
from shared.runtime.outages import is_redis_outage
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# Followers of ended jobs that are settled at a time.
SETTLEMENTS = 2
# Maximum number of events that are delivered together, and about their bytes: formatting them takes some milliseconds.
BATCH = 256
# Events of a replay that are delivered first.
FIRST = 8
BATCH_BYTES = 64 * 1024


class StreamHub:
    """The readers of this API process."""

    def __init__(
        self,
        redis: Redis,
        logs: EventLog,
        store: JobStore,
        metrics: Metrics,
        *,
        resync_s: float,
        ping_s: float = math.inf,
        send: Callable[[Hint], None] = lambda _: None,
    ) -> None:
        """`send` sends the messages of jobs whose leader is found to have ended; without it, redelivery does."""
        self._redis = redis
        self._metrics = metrics
        self._ping_s = ping_s
        self._id = secrets.token_hex(8)
        self._store = store
        self._send = send
        self._stored = StoredEvents(logs, store, self._id, self._settle)
        # Of many readers whose leader has ended, few use connections of the pool at a time.
        self._settling = asyncio.Semaphore(SETTLEMENTS)
        self._readers: dict[str, set[Reader]] = {}
        self._idle_reader_check = IdleReaderCheck(self._readers, self._stored, resync_s=resync_s)
        # Jobs with a reader that did not receive the end as a live event: it may have subscribed after the end.
        self._to_unsubscribe: set[str] = set()

    async def run(self) -> None:
        """Receive live events until cancelled."""
        checking = asyncio.create_task(self._idle_reader_check.run(), name="idle-reader-check")
        try:
            while True:
                try:
                    async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
                        await pubsub.subscribe(redis_keys.api_channel(self._id))
                        self._all_fall_behind()  # earlier events are in the logs
                        while not checking.done():
                            message = await pubsub.get_message(timeout=1)
                            if message is not None:
                                self._receive(message["data"])
                    checking.result()
                except Exception as error:
                    if not is_redis_outage(error):
                        raise
                    logger.warning("the live channel is unavailable, retrying: %s", error)
                    await asyncio.sleep(RETRY_S)
        finally:
            checking.cancel()

    def follow(
        self, job_id: str, after: int = 0, queued: QueuedReader | None = None, *, new: bool = False
    ) -> AsyncIterator[list[Event]]:
        """Yield a job's events after a cursor, in batches, up to and including its last; an empty batch is a keepalive.

        With `queued`, also yields its queue positions: batches of one event without a number. `new`: see `EventReader`.
        """
        return self._read(job_id, EventReader(after, self._metrics, ping_s=self._ping_s, queued=queued, new=new))

    async def replay(self, job_id: str, log_start: str | None = None) -> AsyncIterator[list[Event]]:
        """Yield the events of a job that has ended, from its row, in batches as `follow` does.

        `log_start`: the first page of its log, if it was read already.
        """
        metrics = EventReaderMetrics(self._metrics, 0)
        metrics.opened()
        try:
            page = self._stored.first_page(log_start) or await self._stored.ended_page(job_id)
            while True:
                metrics.read(page.events)
                events = [event for event in page.events if event.type.public]
                # The first ones are sent before the others are converted.
                for portion in filter(None, (events[:FIRST], *_portions(events[FIRST:]))):
                    yield portion
                    await asyncio.sleep(0)
                if not page.more:
                    return
                page = await self._stored.ended_page(job_id, page.position)
        finally:
            metrics.closed()

    async def wait_for_end(self, job_id: str) -> None:
        """Wait until a job has ended."""
        async for _ in self._read(job_id, EndReader(self._metrics)):
            pass

    async def last_seq(self, job_id: str) -> int:
        """The sequence number of a job's last event so far; 0 if there is none."""
        return await self._stored.last_seq(job_id)

    def queued_readers(self) -> list[tuple[str, QueuedReader]]:
        """The readers that receive queue positions, with the ids of the jobs that they wait for."""
        return [
            (job_id, reader.queued)
            for job_id, readers in self._readers.items()
            for reader in readers
            if isinstance(reader, EventReader) and reader.queued is not None and reader.leader in (None, job_id)
        ]

    def report_position(self, job_id: str, queued: QueuedReader, position: Event) -> None:
        """Deliver a queue position to a reader, if it is still registered."""
        for reader in self._readers.get(job_id, ()):
            if isinstance(reader, EventReader) and reader.queued is queued:
                reader.report_position(position)

    async def _read(self, job_id: str, reader: Reader) -> AsyncIterator[list[Event]]:
        """Register a reader, and yield its batches until the job's end."""
        self._readers.setdefault(job_id, set()).add(reader)
        reader.opened()
        end_was_live = False
        try:
            while True:
                reader.wake.clear()
                if reader.behind:
                    reader.behind = False
                    stored = await reader.catch_up(self._stored, job_id)
                    if stored is not None and stored.leader != reader.leader:
                        await self._use_leader(reader, stored.leader)
                    if reader.leader is not None and stored is not None:
                        stored = await reader.catch_up_with_leader(self._stored, job_id, reader.leader)
                    if stored is None:
                        reader.fall_behind()  # buffered live events may not follow its last event
                        events = []
                    elif stored.ended and not stored.events:
                        return
                    else:
                        events = stored.events
                        if stored.more:
                            reader.fall_behind()  # the next page comes before live events
                else:
                    events = reader.take_live()
                    end_was_live = bool(events) and events[-1].type.terminal
                batch = [event for event in reader.next_batch(events) if event.type.public]
                if not batch and reader.idle:
                    yield batch
                for position, portion in enumerate(_portions(batch)):
                    if position:
                        await asyncio.sleep(0)
                    yield portion
                if batch or reader.idle:
                    reader.delivered()
                if events and events[-1].type.terminal:
                    return
                if not reader.ready:
                    await reader.wake.wait()
        finally:
            reader.closed()
            # Both before the first await: a cancelled stream may be cancelled again at each one.
            left = [self._discard(job_id, reader, end_was_live=end_was_live)]
            if reader.leader is not None:
                left.append(self._discard(reader.leader, reader, end_was_live=False))
            for unread in filter(None, left):
                await self._stored.unsubscribe(unread)

    async def _use_leader(self, reader: Reader, leader: str | None) -> None:
        """Register a reader with the job that its own job follows now, instead of the one that it followed."""
        earlier, reader.leader = reader.leader, leader
        if leader is not None:
            self._readers.setdefault(leader, set()).add(reader)
        if earlier is not None and (unread := self._discard(earlier, reader, end_was_live=False)):
            await self._stored.unsubscribe(unread)

    async def _settle(self, follower: str) -> None:
        async with self._settling:
            report_changes(await self._store.settle_follower(follower), self._send, self._metrics)

    def _discard(self, job_id: str, reader: Reader, *, end_was_live: bool) -> str | None:
        """Remove a reader. Returns the job if it was the last one, and this process is to unsubscribe from the job.

        Publishing a job's end removes its subscribers, so readers that received it live need no unsubscribe.
        """
        if not end_was_live:
            self._to_unsubscribe.add(job_id)
        readers = self._readers[job_id]
        readers.discard(reader)
        if readers:
            return None
        del self._readers[job_id]
        if job_id not in self._to_unsubscribe:
            return None
        self._to_unsubscribe.discard(job_id)
        return job_id

    def _receive(self, message: bytes) -> None:
        """Dispatch a message. One that is malformed is dropped: readers that miss its events read them from the log."""
        try:
            self._dispatch(message)
        except (ValueError, KeyError) as error:
            self._metrics.malformed_messages.labels("events").inc()
            logger.warning("a malformed message was dropped: %s source=%s", type(error).__name__, "events")

    def _dispatch(self, message: bytes) -> None:
        """Pass the lines `<job> <seq> <type> <json>` of a message to the jobs' readers."""
        for job, lines in itertools.groupby(message.split(b"\n"), _job_of):
            job_id = job.decode()
            if readers := self._readers.get(job_id):
                events = [parse_line(line[len(job) + 1 :]) for line in lines]
                for reader in readers:
                    reader.offer(job_id, events)

    def _all_fall_behind(self) -> None:
        for readers in self._readers.values():
            for reader in readers:
                reader.fall_behind()


def _portions(events: list[Event]) -> Iterator[list[Event]]:
    """Divide events into those that are delivered together."""
    start = size = 0
    for position, event in enumerate(events):
        size += len(event.data)
        if position > start and (position - start == BATCH or size > BATCH_BYTES):
            yield events[start:position]
            start, size = position, len(event.data)
    if events:
        yield events[start:]


def _job_of(line: bytes) -> bytes:
    return line[: line.index(b" ")]
