"""Follows jobs for readers: replay from the log, then live, with nothing missing and nothing twice.

One subscriber per API process gets the live events of every job that has a reader here (see
`shared.redis.event_log`). Each reader first registers and reads the log after its cursor in one step, then follows
live, dropping what it has seen. A reader that falls behind loses its live buffer, not its place: it reads on
from the log. So does one whose next live event is not the next in number: a message was lost with a
connection. Readers whose jobs are silent for a while are checked against the log and the row, all together, so
neither a lost message nor a lost Redis leaves one waiting for ever.

A reader of the native stream also receives its job's queue position while it waits (`api.jobs.queue_positions`), as an
event without a number.

Events come in batches: what has gathered while a reader was busy is given to it at once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.streaming.reader import QueuedReader, Reader
from api.streaming.reader_metrics import ReaderMetrics
from shared.domain.events import Event, parse_archive, parse_line
from shared.postgres.job_store import JobStore
from shared.redis import keys as redis_keys
from shared.redis.event_log import EventLog
from shared.runtime.outages import is_database_outage, is_redis_outage
from shared.telemetry.metrics import STREAM_READERS

logger = logging.getLogger(__name__)

RETRY_S = 0.5
# Silent readers are looked for so often within the time that makes them silent, and checked so many at a time.
LOOKS = 5
CHECKED = 500


class StreamHub:
    """All readers of this API process."""

    def __init__(self, redis: Redis, logs: EventLog, store: JobStore, *, resync_s: float) -> None:
        self._redis = redis
        self._logs = logs
        self._store = store
        self._resync_s = resync_s
        self._id = secrets.token_hex(8)
        self._readers: dict[str, set[Reader]] = {}
        # Jobs whose end not all of their readers here were told live: one may have followed the job after its end.
        self._to_unfollow: set[str] = set()

    async def run(self) -> None:
        """Receive live events for ever; cancel to stop."""
        checking = asyncio.create_task(self._check_the_silent(), name="check-the-silent")
        try:
            while True:
                try:
                    async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
                        await pubsub.subscribe(redis_keys.api_channel(self._id))
                        self._all_behind()  # what was published while nobody listened is in the logs
                        while not checking.done():
                            message = await pubsub.get_message(timeout=1)
                            if message is not None:
                                self._dispatch(message["data"])
                    checking.result()
                except Exception as error:
                    if not is_redis_outage(error):
                        raise
                    logger.warning("the live channel is away, trying again: %s", error)
                    await asyncio.sleep(RETRY_S)
        finally:
            checking.cancel()

    async def follow(
        self, job_id: str, after: int = 0, queued: QueuedReader | None = None, *, new: bool = False
    ) -> AsyncIterator[list[Event]]:
        """Yield a job's events after a cursor, in batches, up to and with its last one.

        With `queued` the reader is also told its place there: a batch of that alone, without a number. `new`: the job
        was made a moment ago, and its row need not be asked whether it has ended.
        """
        reader = Reader(after, queued=queued)
        self._readers.setdefault(job_id, set()).add(reader)
        meter = ReaderMetrics(after)
        told_end = False
        try:
            while True:
                reader.wake.clear()
                if reader.behind:
                    reader.behind = False
                    events, ended = await self._catch_up(reader, job_id, new=new)
                    new = False
                    if ended and not events:
                        return
                else:
                    events = reader.take_live()
                    told_end = bool(events) and events[-1].type.terminal
                if not meter.seen:
                    meter.look(events)
                place, reader.place = reader.place, None
                if events:
                    if queued is not None:
                        queued.told, queued.heard = None, time.monotonic()
                    reader.after = events[-1].seq
                    yield events
                    if events[-1].type.terminal:
                        return
                elif place is not None:
                    yield [place]
                if not (reader.live or reader.behind or reader.place):
                    await reader.wake.wait()
        finally:
            meter.left()
            await self._leave(job_id, reader, told_end=told_end)

    def queued_readers(self) -> list[tuple[str, QueuedReader]]:
        """Jobs that are followed by readers who want to know their places."""
        return [
            (job_id, reader.queued)
            for job_id, readers in self._readers.items()
            for reader in readers
            if reader.queued is not None
        ]

    def tell(self, job_id: str, queued: QueuedReader, place: Event) -> None:
        """Tell a reader its place, if it is still there and hears nothing else first."""
        for reader in self._readers.get(job_id, ()):
            if reader.queued is queued:
                reader.place = place
                reader.wake.set()

    async def ended(self, job_id: str) -> None:
        """Wait for a job's end, and nothing else of it."""
        reader = Reader(0, only_end=True)
        self._readers.setdefault(job_id, set()).add(reader)
        STREAM_READERS.labels("end").inc()
        told_end = False
        try:
            while True:
                reader.wake.clear()
                if reader.behind:
                    reader.behind = False
                    if await self._has_ended(reader, job_id):
                        return
                elif reader.take_live():
                    told_end = True
                    return
                if not (reader.live or reader.behind):
                    await reader.wake.wait()
        finally:
            STREAM_READERS.labels("end").dec()
            await self._leave(job_id, reader, told_end=told_end)

    async def last_seq(self, job_id: str) -> int:
        """The number of a job's last event so far; 0 where there is none."""
        archived = await self._store.archived_log(job_id)
        if archived is not None:
            return max((event.seq for event in parse_archive(archived)), default=0)
        return await self._logs.last_seq(job_id)

    async def _catch_up(self, reader: Reader, job_id: str, *, new: bool) -> tuple[list[Event], bool]:
        """Events after the cursor: from the log, or, where the log has none and the job has ended, from the row.

        The second value says that the job has ended, so that nothing will follow these.
        """
        away: Exception | None = None
        try:
            if events := await self._logs.follow(job_id, self._id, reader.after):
                return events, events[-1].type.terminal
            if new:
                return [], False
        except (RedisError, OSError) as error:
            away = error
        try:
            archived = await self._store.archived_log(job_id)
        except Exception as error:
            if not is_database_outage(error):
                raise
            archived, away = None, error
        if archived is not None:
            return [event for event in parse_archive(archived) if event.seq > reader.after], True
        if away is not None:
            logger.warning("job=%s cannot be read, its readers wait: %s", job_id, away)
            await asyncio.sleep(RETRY_S)
            reader.lose_place()  # what comes live does not follow what it has
        return [], False

    async def _has_ended(self, reader: Reader, job_id: str) -> bool:
        """Whether the row says so. Its end is published after that, to those who follow it by then."""
        away: Exception | None = None
        try:
            await self._logs.follow_all([job_id], self._id)
        except (RedisError, OSError) as error:
            away = error
        try:
            if job_id in await self._store.ended([job_id]):
                return True
        except Exception as error:
            if not is_database_outage(error):
                raise
            away = error
        if away is not None:
            logger.warning("job=%s its end cannot be looked for, trying again: %s", job_id, away)
            await asyncio.sleep(RETRY_S)
            reader.lose_place()
        return False

    async def _leave(self, job_id: str, reader: Reader, *, told_end: bool) -> None:
        """`told_end`: it was told the end live, and with that the job has no followers any more."""
        if not told_end:
            self._to_unfollow.add(job_id)
        readers = self._readers[job_id]
        readers.discard(reader)
        if readers:
            return
        del self._readers[job_id]
        if job_id not in self._to_unfollow:
            return
        self._to_unfollow.discard(job_id)
        try:
            await self._logs.unfollow(job_id, self._id)
        except (RedisError, OSError) as error:
            logger.info("job=%s still counts as followed, until its log expires: %s", job_id, error)

    def _dispatch(self, message: bytes) -> None:
        """Give the lines `<job> <seq> <type> <json>` of a message to their readers."""
        for job, lines in itertools.groupby(message.split(b"\n"), _job_of):
            if readers := self._readers.get(job.decode()):
                events = [parse_line(line[len(job) + 1 :]) for line in lines]
                for reader in readers:
                    reader.offer(events)

    def _all_behind(self) -> None:
        for readers in self._readers.values():
            for reader in readers:
                reader.lose_place()

    async def _check_the_silent(self) -> None:
        """Look, for ever, whether there is news for readers that have heard nothing for long."""
        while True:
            await asyncio.sleep(self._resync_s / LOOKS)
            now = time.monotonic()
            silent = [
                job_id
                for job_id, readers in self._readers.items()
                if any(now - reader.heard >= self._resync_s for reader in readers)
            ]
            for start in range(0, len(silent), CHECKED):
                await self._check(silent[start : start + CHECKED])

    async def _check(self, job_ids: Sequence[str]) -> None:
        ended: set[str] = set()
        last: dict[str, int] = {}
        try:
            last = dict(zip(job_ids, await self._logs.follow_all(job_ids, self._id), strict=True))
        except (RedisError, OSError) as error:
            logger.warning("%d silent streams cannot be checked against their logs: %s", len(job_ids), error)
        try:
            ended = await self._store.ended(job_ids)
        except Exception as error:
            if not is_database_outage(error):
                raise
            logger.warning("%d silent streams cannot be checked against their rows: %s", len(job_ids), error)
        now = time.monotonic()
        for job_id in job_ids:
            for reader in self._readers.get(job_id, ()):
                if job_id in ended or (last.get(job_id, 0) > reader.after and not reader.only_end):
                    reader.lose_place()
                else:
                    reader.heard = now


def _job_of(line: bytes) -> bytes:
    return line[: line.index(b" ")]
