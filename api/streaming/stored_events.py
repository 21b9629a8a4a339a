"""Reads stored events in pages: from the log in Redis, or from the row once the job has ended.

Each read also subscribes this process to the job's live events. An outage of Redis or of the database is not an error:
reads use the store that is available.
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
    """A page of events after a cursor. `ended`: the job has ended and no events follow; `more`: others may follow.

    `position` is that of the next page in the row; 0 if the page is from the log.
    """

    events: list[Event]
    ended: bool
    more: bool = False
    position: int = 0


class StoredEvents:
    """Reads stored events for a subscriber to live events."""

    def __init__(self, logs: EventLog, store: JobStore, subscriber: str) -> None:
        self._logs = logs
        self._store = store
        self._subscriber = subscriber

    async def read(self, job_id: str, after: int, *, new: bool, position: int = 0) -> StoredRead | None:
        """Return a page of a job's events after a cursor: from the log or, if that has none and the job has ended, from
        the row.

        With `new` the row is not read. A `position` in the row, from the previous read, is continued there. Returns
        None, after a pause, if an outage prevents the read.
        """
        outage: Exception | None = None
        if not position:
            try:
                page = await self._logs.follow(job_id, self._subscriber, after, new=new)
                if page.events:
                    return StoredRead(page.events, page.events[-1].type.terminal, page.more)
                if new:
                    return StoredRead([], ended=False)
            except (RedisError, OSError) as error:
                outage = error
        try:
            archived = await self._store.archive_page(job_id, after=after, start=position)
        except Exception as error:
            if not is_database_outage(error):
                raise
            archived, outage = None, error
        if archived is not None:
            events = [event for event in parse_archive(archived.text) if event.seq > after]
            more = archived.next_start is not None
            return StoredRead(events, ended=not more, more=more, position=archived.next_start or 0)
        if outage is not None:
            logger.warning("job=%s cannot read events, retrying: %s", job_id, outage)
            await asyncio.sleep(RETRY_S)
            return None
        try:
            await self._logs.mark_shown(job_id)
        except (RedisError, OSError) as error:
            logger.warning("job=%s cannot record that it has a reader: %s", job_id, error)
        return StoredRead([], ended=False)

    async def ended_page(self, job_id: str, position: int = 0) -> StoredRead:
        """Return a page of the events of a job that has ended, from its row: the first, or the one at a position.

        An outage of the database is waited out.
        """
        while True:
            try:
                page = await self._store.archive_page(job_id, start=position)
            except Exception as error:
                if not is_database_outage(error):
                    raise
                logger.warning("job=%s cannot read events, retrying: %s", job_id, error)
                await asyncio.sleep(RETRY_S)
            else:
                break
        if page is None:
            return StoredRead([], ended=True)
        more = page.next_start is not None
        return StoredRead(parse_archive(page.text), ended=not more, more=more, position=page.next_start or 0)

    async def has_ended(self, job_id: str) -> bool | None:
        """Whether a job has ended according to its row; if not, its end will be published to this subscriber.

        Returns None, after a pause, if an outage prevents the check.
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
            logger.warning("job=%s cannot check whether the job has ended, retrying: %s", job_id, outage)
            await asyncio.sleep(RETRY_S)
            return None
        return False

    async def states(self, job_ids: Sequence[str]) -> tuple[dict[str, int], set[str]]:
        """Return the jobs' last sequence numbers from their logs, and the ids of those that have ended from their rows.

        Either is empty if its store is unavailable.
        """
        last: dict[str, int] = {}
        ended: set[str] = set()
        try:
            last = dict(zip(job_ids, await self._logs.follow_all(job_ids, self._subscriber), strict=True))
        except (RedisError, OSError) as error:
            logger.warning("cannot check %d silent streams against their logs: %s", len(job_ids), error)
        try:
            ended = await self._store.ended(job_ids)
        except Exception as error:
            if not is_database_outage(error):
                raise
            logger.warning("cannot check %d silent streams against their rows: %s", len(job_ids), error)
        return last, ended

    async def last_seq(self, job_id: str) -> int:
        """Return the sequence number of a job's last event so far; 0 if there is none."""
        archived = await self._store.archived_last_seq(job_id)
        return await self._logs.last_seq(job_id) if archived is None else archived

    async def unsubscribe(self, job_id: str) -> None:
        """Stop receiving a job's live events."""
        try:
            await self._logs.unfollow(job_id, self._subscriber)
        except (RedisError, OSError) as error:
            logger.info("job=%s cannot unsubscribe; the subscription expires with the log: %s", job_id, error)
