"""Follows jobs for readers: replay from the log, then live, with nothing missing and nothing twice.

One subscriber per API process gets the live events of every job that has a reader here (see
`shared.stream`). Each reader first registers and reads the log after its cursor in one step, then follows
live, dropping what it has seen. A reader that falls behind loses its live buffer, not its place: it reads on
from the log. So does one whose next live event is not the next in number: a message was lost with a
connection. A reader whose job is silent for a while looks at the log and the row again, so neither a lost
message nor a lost Redis leaves it waiting for ever.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator

from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared import redis_keys
from shared.events import Event, parse_archive, parse_line
from shared.job_store import JobStore
from shared.outage import database_is_away, redis_is_away
from shared.stream import JobLogs

logger = logging.getLogger(__name__)

# Live events that wait for a slow reader; beyond, it goes on from the log.
BUFFER = 256
RETRY_S = 0.5


class _Reader:
    """One reader's place in one job."""

    def __init__(self) -> None:
        self.live: deque[Event] = deque()
        self.behind = False
        self.wake = asyncio.Event()

    def offer(self, events: list[Event]) -> None:
        if len(self.live) + len(events) > BUFFER:
            self.lose_place()
        elif not self.behind:
            self.live.extend(events)
        self.wake.set()

    def take_live(self, after: int) -> list[Event]:
        """The live events after a cursor; where they do not follow it without a gap, the log has to be read."""
        events = [event for event in self.live if event.seq > after]
        self.live.clear()
        if all(event.seq == seq for seq, event in enumerate(events, after + 1)):
            return events
        self.lose_place()
        return []

    def lose_place(self) -> None:
        """Forget what waits: the log has it."""
        self.live.clear()
        self.behind = True
        self.wake.set()


class Streams:
    """All readers of this API process."""

    def __init__(self, redis: Redis, logs: JobLogs, store: JobStore, *, resync_s: float) -> None:
        self._redis = redis
        self._logs = logs
        self._store = store
        self._resync_s = resync_s
        self._id = secrets.token_hex(8)
        self._readers: dict[str, set[_Reader]] = {}

    async def run(self) -> None:
        """Receive live events for ever; cancel to stop."""
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await pubsub.subscribe(redis_keys.api_channel(self._id))
                    self._all_behind()  # what was published while nobody listened is in the logs
                    while True:
                        message = await pubsub.get_message(timeout=1)
                        if message is not None:
                            self._dispatch(message["data"])
            except Exception as error:
                if not redis_is_away(error):
                    raise
                logger.warning("the live channel is away, trying again: %s", error)
                await asyncio.sleep(RETRY_S)

    async def follow(self, job_id: str, after: int = 0) -> AsyncIterator[Event]:
        """Yield a job's events after a cursor, up to and with its last one."""
        reader = _Reader()
        self._readers.setdefault(job_id, set()).add(reader)
        try:
            reader.behind = True
            while True:
                if reader.behind:
                    reader.behind = False
                    events, ended = await self._catch_up(reader, job_id, after)
                    if ended and not events:
                        return
                else:
                    events = reader.take_live(after)
                for event in events:
                    if event.seq > after:
                        after = event.seq
                        yield event
                        if event.type.terminal:
                            return
                if reader.live or reader.behind:
                    continue
                reader.wake.clear()
                try:
                    await asyncio.wait_for(reader.wake.wait(), self._resync_s)
                except TimeoutError:
                    reader.behind = True
        finally:
            await self._leave(job_id, reader)

    async def last_seq(self, job_id: str) -> int:
        """The number of a job's last event so far; 0 where there is none."""
        archived = await self._store.archived_log(job_id)
        if archived is not None:
            return max((event.seq for event in parse_archive(archived)), default=0)
        return await self._logs.last_seq(job_id)

    async def _catch_up(self, reader: _Reader, job_id: str, after: int) -> tuple[list[Event], bool]:
        """Events after a cursor: from the log, or, where the log has none and the job has ended, from the row.

        The second value says that the job has ended, so that nothing will follow these.
        """
        away: Exception | None = None
        try:
            if events := await self._logs.follow(job_id, self._id, after):
                return events, False
        except (RedisError, OSError) as error:
            away = error
        try:
            archived = await self._store.archived_log(job_id)
        except Exception as error:
            if not database_is_away(error):
                raise
            archived, away = None, error
        if archived is not None:
            return [event for event in parse_archive(archived) if event.seq > after], True
        if away is not None:
            logger.warning("job=%s cannot be read, its readers wait: %s", job_id, away)
            await asyncio.sleep(RETRY_S)
            reader.lose_place()  # what comes live does not follow what it has
        return [], False

    async def _leave(self, job_id: str, reader: _Reader) -> None:
        readers = self._readers[job_id]
        readers.discard(reader)
        if readers:
            return
        del self._readers[job_id]
        try:
            await self._logs.unfollow(job_id, self._id)
        except (RedisError, OSError) as error:
            logger.info("job=%s still counts as followed, until its log expires: %s", job_id, error)

    def _dispatch(self, message: bytes) -> None:
        """Give the lines `<job> <seq> <type> <json>` of a message to their readers."""
        by_job: dict[bytes, list[Event]] = {}
        for line in message.split(b"\n"):
            job_id, _, rest = line.partition(b" ")
            by_job.setdefault(job_id, []).append(parse_line(rest))
        for job_id, events in by_job.items():
            for reader in self._readers.get(job_id.decode(), ()):
                reader.offer(events)

    def _all_behind(self) -> None:
        for readers in self._readers.values():
            for reader in readers:
                reader.lose_place()
