"""Reads jobs' events where they are stored: in the log, and in the row once the job has ended.

Each read also subscribes this process to the jobs' live events. An outage of Redis or of the database is not an error:
whatever the other store knows is returned.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from redis.exceptions import RedisError

from shared.domain.events import Event, parse_archive
from shared.postgres.job_store import JobStore
from shared.redis.event_log import EventLog
from shared.runtime.outages import is_database_outage

logger = logging.getLogger(__name__)

RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class StoredRead:
    """Events after a cursor. `ended`: the job has ended, so that nothing will follow them."""

    events: list[Event]
    ended: bool


class StoredEvents:
    """The stored events of all jobs, for one subscriber to live events."""

    def __init__(self, logs: EventLog, store: JobStore, subscriber: str) -> None:
        self._logs = logs
        self._store = store
        self._subscriber = subscriber

    async def read(self, job_id: str, after: int, *, new: bool) -> StoredRead | None:
        """A job's events after a cursor: from the log, or, if the log has none and the job has ended, from the row.

        With `new` the row is not read. Returns None after a pause if an outage leaves the answer open.
        """
        outage: Exception | None = None
        try:
            if events := await self._logs.follow(job_id, self._subscriber, after):
                return StoredRead(events, events[-1].type.terminal)
            if new:
                return StoredRead([], ended=False)
        except (RedisError, OSError) as error:
            outage = error
        try:
            archived = await self._store.archived_log(job_id)
        except Exception as error:
            if not is_database_outage(error):
                raise
            archived, outage = None, error
        if archived is not None:
            return StoredRead([event for event in parse_archive(archived) if event.seq > after], ended=True)
        if outage is not None:
            logger.warning("job=%s events cannot be read, retrying: %s", job_id, outage)
            await asyncio.sleep(RETRY_S)
            return None
        return StoredRead([], ended=False)

    async def has_ended(self, job_id: str) -> bool | None:
        """Whether the row says that a job has ended; if not, its end will be published to this subscriber.

        Returns None after a pause if an outage leaves the answer open.
        """
        outage: Exception | None = None
        try:
            await self._logs.follow_all([job_id], self._subscriber)
        except (RedisError, OSError) as error:
            outage = error
        try:
            if job_id in await self._store.ended([job_id]):
                return True
        except Exception as error:
            if not is_database_outage(error):
                raise
            outage = error
        if outage is not None:
            logger.warning("job=%s its end cannot be checked, retrying: %s", job_id, outage)
            await asyncio.sleep(RETRY_S)
            return None
        return False

    async def states(self, job_ids: Sequence[str]) -> tuple[dict[str, int], set[str]]:
        """The jobs' last event numbers according to their logs, and the jobs that have ended according to their rows.

        During an outage either is empty.
        """
        last: dict[str, int] = {}
        ended: set[str] = set()
        try:
            last = dict(zip(job_ids, await self._logs.follow_all(job_ids, self._subscriber), strict=True))
        except (RedisError, OSError) as error:
            logger.warning("%d silent streams cannot be checked against their logs: %s", len(job_ids), error)
        try:
            ended = await self._store.ended(job_ids)
        except Exception as error:
            if not is_database_outage(error):
                raise
            logger.warning("%d silent streams cannot be checked against their rows: %s", len(job_ids), error)
        return last, ended

    async def last_seq(self, job_id: str) -> int:
        """The number of a job's last event so far; 0 if there is none."""
        archived = await self._store.archived_log(job_id)
        if archived is not None:
            return max((event.seq for event in parse_archive(archived)), default=0)
        return await self._logs.last_seq(job_id)

    async def unsubscribe(self, job_id: str) -> None:
        """Stop the live events of a job."""
        try:
            await self._logs.unfollow(job_id, self._subscriber)
        except (RedisError, OSError) as error:
            logger.info("job=%s still counts as followed until its log expires: %s", job_id, error)
