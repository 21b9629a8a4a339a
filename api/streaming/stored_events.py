"""Reads stored events in pages: from the log in Redis, or from the row once the job has ended.

Each read also subscribes this process to the job's live events. An outage of Redis or of the database is not an error:
reads use the store that is available.

While a job follows another one, its leader, its events are those of the leader, with the same numbers, except the last.
Its own end is in its own log or row, as are all events once it does not follow the leader any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from redis.exceptions import RedisError

from shared.domain.events import Event, parse_archive
from shared.postgres.job_rows import ARCHIVE_PAGE
from shared.postgres.job_store import ArchivePage, JobStore
from shared.redis.event_log import EventLog
from shared.runtime.outages import is_database_outage

logger = logging.getLogger(__name__)

RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class StoredRead:
    """A page of events after a cursor. `ended`: the job has ended and no events follow; `more`: others may follow.

    `position` is that of the next page in the row; 0 if the page is from the log. `leader` is the job that the job
    follows.
    """

    events: list[Event]
    ended: bool
    more: bool = False
    position: int = 0
    leader: str | None = None


class StoredEvents:
    """Reads stored events for a subscriber to live events."""

    def __init__(
        self, logs: EventLog, store: JobStore, subscriber: str, settle: Callable[[str], Awaitable[None]]
    ) -> None:
        """`settle` ends or releases a follower that is open although its leader has ended."""
        self._logs = logs
        self._store = store
        self._subscriber = subscriber
        self._settle = settle

    async def read(self, job_id: str, after: int, *, new: bool, position: int = 0) -> StoredRead | None:
        """Return a page of a job's events after a cursor: from the log or, if that has none and the job has ended, from
        the row.

        With `new` the row is not read. A `position` in the row, from the previous read, is continued there. Of a job
        with a `leader`, the events are to be read with `read_leader`. Returns None, after a pause, if an outage
        prevents the read.
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
            archived = await self._store.archive_page_or_leader(job_id, after=after, start=position)
        except Exception as error:
            if not is_database_outage(error):
                raise
            archived, outage = None, error
        if isinstance(archived, ArchivePage):
            events = [event for event in parse_archive(archived.text) if event.seq > after]
            more = archived.next_start is not None
            return StoredRead(events, ended=not more, more=more, position=archived.next_start or 0)
        if outage is not None:
            await self._pause(job_id, outage)
            return None
        try:
            await self._logs.mark_shown(job_id)
        except (RedisError, OSError) as error:
            logger.warning("job=%s cannot record that it has a reader: %s", job_id, error)
        return StoredRead([], ended=False, leader=archived)

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
                await self._pause(job_id, error)
            else:
                break
        return StoredRead([], ended=True) if page is None else _of_ended(page)

    @staticmethod
    def first_page(log_start: str | None) -> StoredRead | None:
        """The events in the first `ARCHIVE_PAGE` characters of the log of a job that has ended; None if they have to be
        read."""
        page = ArchivePage.of(log_start, 1, ARCHIVE_PAGE) if log_start else None
        return None if page is None else _of_ended(page)

    async def read_leader(self, leader: str, follower: str, after: int) -> StoredRead | None:
        """Return a page of the events of the job that a job follows, without its last: that is not the follower's.

        `more` also if the leader has ended: then the follower has ended too, or does not follow it any more. Returns
        None, after a pause, if an outage prevents the read.
        """
        try:
            page = await self._logs.follow(leader, self._subscriber, after)
            ended = bool(page.events) and page.events[-1].type.terminal
            events = page.events[:-1] if ended else page.events
            if events:
                return StoredRead(events, ended=False, more=page.more or ended, leader=leader)
            settled = await self._is_settled(leader, follower)
            if not settled:
                await self._logs.mark_shown(leader)
            return StoredRead([], ended=False, more=settled, leader=leader)
        except (RedisError, OSError) as error:
            await self._pause(leader, error)
        except Exception as error:
            if not is_database_outage(error):
                raise
            await self._pause(leader, error)
        return None

    async def _is_settled(self, leader: str, follower: str) -> bool:
        """Whether a leader has ended; if so, make sure that this follower does not wait for it."""
        ended, _ = await self._store.has_ended(leader)
        if ended:
            await self._settle(follower)
        return ended

    async def _pause(self, job_id: str, outage: Exception) -> None:
        logger.warning("job=%s cannot read events, retrying: %s", job_id, outage)
        await asyncio.sleep(RETRY_S)

    async def end(self, job_id: str) -> StoredRead | None:
        """Whether a job has ended according to its row; if not, its end will be published to this subscriber.

        Of a job with a `leader`, this has to be checked with `end_of_leader` too. Returns None, after a pause, if an
        outage prevents the check.
        """
        return await self._end(job_id, self._store.has_ended)

    async def end_of_leader(self, leader: str, follower: str) -> StoredRead | None:
        """As `read_leader`, without events."""

        async def settled(leader: str) -> tuple[bool, str | None]:
            return await self._is_settled(leader, follower), leader

        read = await self._end(leader, settled)
        return read and replace(read, ended=False, more=read.ended)

    async def _end(
        self, job_id: str, has_ended: Callable[[str], Awaitable[tuple[bool, str | None]]]
    ) -> StoredRead | None:
        outage: Exception | None = None
        try:
            await self._logs.follow_all([job_id], self._subscriber)
        except (RedisError, OSError) as error:
            outage = error
        try:
            ended, leader = await has_ended(job_id)
            if ended or outage is None:
                return StoredRead([], ended, leader=leader)
        except Exception as error:
            if not is_database_outage(error):
                raise
            outage = error
        logger.warning("job=%s cannot check whether the job has ended, retrying: %s", job_id, outage)
        await asyncio.sleep(RETRY_S)
        return None

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


def _of_ended(page: ArchivePage) -> StoredRead:
    more = page.next_start is not None
    return StoredRead(parse_archive(page.text), ended=not more, more=more, position=page.next_start or 0)
