"""The log of a job's events in Redis, and its live publication to readers.

Each job has a Redis Stream with all its events, and a set of followers: the API processes with a reader on the job.
Appending to the log publishes the same events, atomically, on the channel of each follower. An API process has one
channel for all jobs, and nothing is published for a job without readers. Registering as a follower and reading the log
is one transaction, so no event is missed in between. The last event deletes the set.

Every append carries its attempt's number and its first event's `seq`. Events of an earlier attempt than the log's owner
are refused (fencing), and events that the log already has are skipped, so a retry is harmless. A gap is reported: it
means that Redis has lost the log and its fence. The writer has all events in memory and writes them again after it has
checked in the row that it still owns the job.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from shared.domain.events import Event, EventType
from shared.redis import keys as redis_keys
from shared.redis.log_flushes import Flush, FlushReader
from shared.runtime.outages import is_redis_outage

logger = logging.getLogger(__name__)

RUNNING_TTL_S = 24 * 3600
FENCED = -1
# A page ends with the event that reaches one of these numbers.
PAGE_EVENTS = 256
PAGE_BYTES = 128 * 1024
# Events that are read in one step to find out when they were written.
PAGE_FLUSHES = 1000
# About how many events, and bytes of them, are written in one step of Redis and of the event loop.
CHUNK_EVENTS = 1000
CHUNK_BYTES = 1024 * 1024


def _script(name: str) -> str:
    return files("shared.redis").joinpath(f"event_log_{name}.lua").read_text(encoding="utf-8")


_APPEND, _TAKE_OVER = _script("append"), _script("take_over")
_FOLLOW, _FOLLOW_ALL = _script("follow"), _script("follow_all")


class Fenced(Exception):
    """A later attempt owns the job; this one may write no more."""


@dataclass(slots=True)
class Append:
    """Events for one job's log. An event with `seq` 0 gets the number after the last event's.

    `force` replaces the log, unless a later attempt owns it.
    """

    job_id: str
    attempt: int
    events: Sequence[Event]
    ttl_s: int = RUNNING_TTL_S
    force: bool = False


@dataclass(frozen=True, slots=True)
class LogPage:
    """Consecutive events of a log. `more`: others may follow."""

    events: list[Event]
    more: bool


@dataclass(frozen=True, slots=True)
class TakenLog:
    """A log that an attempt has taken over.

    `first_token_at`: when the first token of the output was written, by the clock of Redis; None without a token, and
    if that is not known any more because Redis had lost the log.
    """

    events: list[Event]
    first_token_at: datetime | None = None


class EventLog:
    """The logs of all jobs. Methods raise `redis.exceptions.RedisError` if Redis is unavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._append = redis.register_script(_APPEND)
        self._take_over = redis.register_script(_TAKE_OVER)
        self._follow = redis.register_script(_FOLLOW)
        self._follow_all = redis.register_script(_FOLLOW_ALL)

    async def append(self, appends: Sequence[Append]) -> list[int]:
        """Append to many logs in one round trip, and publish to the jobs' followers.

        Returns for each job the `seq` of its log's last event, or `FENCED` if a later attempt owns it. A `seq` lower
        than the last one sent means that there is a gap before the events sent, and nothing was written.
        """
        keys: list[str] = []
        args: list[Any] = []
        for item in appends:
            keys += (redis_keys.log(item.job_id), redis_keys.fence(item.job_id), redis_keys.followers(item.job_id))
            ends = item.events[-1].type.terminal
            args += (item.job_id, item.attempt, int(item.force), item.ttl_s, int(ends), len(item.events))
            for one in item.events:
                args += (one.seq, one.name, one.data, one.token_ids, one.cursor)
        result: list[int] = await self._append(keys=keys, args=args)
        return result

    async def replace(self, whole: Append) -> int:
        """Replace a log by all its events, in chunks. Returns what `append` does for the last chunk written."""
        start, last = 0, 0
        while start < len(whole.events):
            part = chunk(whole.events[start:])
            append = Append(whole.job_id, whole.attempt, part, whole.ttl_s, force=start == 0)
            (last,) = await self.append([append])
            if last < part[-1].seq:
                break  # a later attempt owns it, or it was lost again
            start += len(part)
        return last

    async def take_over(self, job_id: str, attempt: int) -> TakenLog:
        """Make `attempt` the owner of the log, which has the events of earlier attempts.

        Raises:
            Fenced: a later attempt owns the log.
        """
        keys = [redis_keys.log(job_id), redis_keys.fence(job_id)]
        try:
            entries = await self._take_over(keys=keys, args=[attempt, RUNNING_TTL_S])
        except ResponseError as error:
            if is_redis_outage(error):
                raise
            logger.warning("job=%s its log cannot be read, starting a new one: %s", job_id, error)
            await self.delete(job_id)
            entries = await self._take_over(keys=keys, args=[attempt, RUNNING_TTL_S])
        if entries is None:
            raise Fenced
        named = [(entry_id, _named(fields)) for entry_id, fields in entries]
        flushes = FlushReader()
        flushes.read(fields for _, fields in named)
        return TakenLog(_events(named), flushes.first_token_at())

    async def read(self, job_id: str, after: int = 0) -> list[Event]:
        """The events after the one with `seq` `after`."""
        entries: Any = await self._redis.xrange(redis_keys.log(job_id), min=f"({after}-0")
        return _events(entries)

    async def flushes(self, job_id: str, found: FlushReader | None = None) -> list[Flush]:
        """When a log was written. Empty if it does not exist any more, or if an earlier version wrote it.

        `found`: what an earlier call has read of the same log. The call continues there instead of reading all of a
        long log again, and adds to it.
        """
        found = found or FlushReader()
        if found.position and await self.last_seq(job_id) < found.position:
            found.clear()  # Redis has lost the log
        while True:
            entries: Any = await self._redis.xrange(
                redis_keys.log(job_id), min=f"({found.position}-0", count=PAGE_FLUSHES
            )
            found.read(fields for _, fields in entries)
            if entries:
                found.position = _seq(entries[-1][0])
            if len(entries) < PAGE_FLUSHES:
                return found.flushes
            await asyncio.sleep(0)

    async def last_seq(self, job_id: str) -> int:
        """The `seq` of the last event in a log, or 0 if it has none."""
        entries: Any = await self._redis.xrevrange(redis_keys.log(job_id), count=1)
        return _seq(entries[0][0]) if entries else 0

    async def generated(self, attempts: Iterable[tuple[str, int]]) -> set[str]:
        """Those of these jobs whose attempt, given by its number, has written a token to the log.

        A job whose fence cannot be read is not among them.
        """
        wanted = list(attempts)
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id, _ in wanted:
                pipe.hget(redis_keys.fence(job_id), "generated")
            found = await pipe.execute(raise_on_error=False)
        return {job_id for (job_id, attempt), value in zip(wanted, found, strict=True) if value == b"%d" % attempt}

    async def follow(self, job_id: str, api_id: str, after: int, *, new: bool = False) -> LogPage:
        """Register an API process as a follower and read a page of events after `after`, atomically.

        The log counts as shown from then on. If it has not begun, this needs `new`, which says that the job has not
        ended, or `mark_shown`.
        """
        keys = [redis_keys.log(job_id), redis_keys.followers(job_id), redis_keys.fence(job_id)]
        while True:
            args: list[Any] = [api_id, RUNNING_TTL_S, after, PAGE_EVENTS, PAGE_BYTES, int(new)]
            entries, more = await self._follow(keys=keys, args=args)
            events = _events(entries)
            if events or not more:
                return LogPage(events, more=bool(more))
            after = _seq(entries[-1][0])  # none of these entries is an event

    async def mark_shown(self, job_id: str) -> None:
        """Record that a reader waits for the first event of a job that has not ended."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(redis_keys.fence(job_id), "shown", 1)
            pipe.expire(redis_keys.fence(job_id), RUNNING_TTL_S, nx=True)
            await pipe.execute()

    async def shown(self, job_id: str) -> bool:
        """Whether a reader has read the log or waits for its first event; False if that is not known any more."""
        return bool(await self._redis.hexists(redis_keys.fence(job_id), "shown"))

    async def follow_all(self, job_ids: Sequence[str], api_id: str) -> list[int]:
        """Register an API process as a follower of many jobs. Returns for each the `seq` of its last event, or 0."""
        keys = [key for job_id in job_ids for key in (redis_keys.log(job_id), redis_keys.followers(job_id))]
        last: list[int] = await self._follow_all(keys=keys, args=[api_id, RUNNING_TTL_S])
        return last

    async def unfollow(self, job_id: str, api_id: str) -> None:
        await self._redis.srem(redis_keys.followers(job_id), api_id)

    async def delete(self, *job_ids: str) -> None:
        """Delete all that Redis has of the logs of jobs."""
        names = (redis_keys.log, redis_keys.fence, redis_keys.followers)
        if job_ids:
            await self._redis.delete(*(name(job_id) for job_id in job_ids for name in names))


def chunk(events: Sequence[Event]) -> Sequence[Event]:
    """The first of these events, as many as are written at once. A chunk does not end before a gap in the numbers:
    appending what follows would look as if the log had been lost."""
    size = 0
    for count, item in enumerate(events):
        size += len(item.data)
        full = count >= CHUNK_EVENTS or size > CHUNK_BYTES
        if count and full and item.seq == events[count - 1].seq + 1:
            return events[:count]
    return events


def _events(entries: Iterable[tuple[bytes, Sequence[bytes] | Mapping[bytes, bytes]]]) -> list[Event]:
    """The events of a log's entries. Those that are no events are skipped: others may have written to Redis.

    The fields of an entry are a mapping or, as scripts return them, a list of names and values.
    """
    events = []
    for entry_id, fields in entries:
        fields = _named(fields)
        try:
            kind = EventType(fields[b"t"].decode())
            events.append(Event(_seq(entry_id), kind, fields[b"e"], fields.get(b"k", b""), fields.get(b"c", b"")))
        except (ValueError, KeyError) as error:
            logger.warning("a log has an entry that is no event: %s", type(error).__name__)
    return events


def _named(fields: Sequence[bytes] | Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    return fields if isinstance(fields, Mapping) else dict(zip(fields[::2], fields[1::2], strict=True))


def _seq(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])
