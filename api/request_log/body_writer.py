"""Writes the bodies of the request log: redacts, compresses and encrypts what the rows of ended jobs have.

The statement that ends a job only marks its row as waiting for its body. So the log takes no time of a request, needs
no memory, and loses nothing with a process: what is not written yet waits in the table. Every API process writes, in
small batches; a row is locked by one of them. The body of a job that is gone is lost: that is marked and counted. If
somebody deletes a job, that waits for a body which is being written, and deletes it (`shared.postgres.job_purge`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import orjson
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.request_log.content import BodyRedactor, BodyText, body_text
from api.request_log.data_keys import DataKey, DataKeys
from api.request_log.encryption import DecryptionFailed, UnknownMasterKey, seal
from api.request_log.redaction import takes_long
from api.request_log.store import PendingBody, PendingContent, RequestLogStore, SealedBody
from shared.domain.log_level import LogLevel
from shared.postgres.engine import keep_alive, transaction
from shared.runtime.aio import cancel_and_wait
from shared.runtime.offload import INLINE_BYTES, off_loop
from shared.runtime.periodic import run_periodically
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
# Rows per transaction, and about the bytes of content, compressed, that are in memory at once.
BATCH = 100
PAGE_BYTES = 2 * 1024 * 1024
# A transaction ends after the body at which it has taken so long: what it has locked can be dropped and erased then.
BATCH_S = 2.0
# The interval of statements that keep a transaction from being ended as idle while one body is being redacted.
KEEP_ALIVE_S = 2.0
# Most rounds read only the partitions of the last days. Older rows wait only after a long outage.
RECENT = timedelta(days=1)
RECHECK_S = 600.0
# How often the backlog is counted, for the metrics.
COUNT_S = 15.0
# So many rules of projects, as compiled redactors, are kept.
MOST_REDACTORS = 100

T = TypeVar("T")

# Makes the redactor for the rules of a project, as its options have them; None: the default rules.
RedactorFactory = Callable[[Mapping[str, Any] | None], BodyRedactor]


class BodyWriter:
    """Writes bodies until no row waits for one."""

    def __init__(
        self,
        engine: AsyncEngine,
        keys: DataKeys,
        metrics: Metrics,
        new_redactor: RedactorFactory,
        *,
        retention_days: int,
    ) -> None:
        """`retention_days`: no body of an older job is written."""
        self._engine = engine
        self._store = RequestLogStore(engine)
        self._keys = keys
        self._metrics = metrics
        self._new_redactor = new_redactor
        self._retention = timedelta(days=retention_days)
        self._redactors: dict[bytes, BodyRedactor] = {}
        # When the last round read all partitions, and when the backlog was counted, by the monotonic clock.
        self._rechecked_at = self._counted_at = float("-inf")
        # Days whose data key this process cannot read, until the next recheck.
        self._without: set[date] = set()

    async def run(self) -> None:
        """Write until cancelled."""
        await run_periodically(self.step, "writing of bodies", interval_s=INTERVAL_S, jitter=0.2, immediately=True)

    async def step(self) -> int:
        """Write all bodies that wait. Returns the number of rows that have one, or are known to have lost it, now."""
        now, started = datetime.now(UTC), time.monotonic()
        since = now - min(RECENT, self._retention)
        if started - self._rechecked_at >= RECHECK_S:
            self._rechecked_at, since = started, now - self._retention
            self._without.clear()
        written = 0
        while count := await self._batch(since):
            written += count
            # Also in a round that does not end, because more rows are added than written.
            await self._count_backlog()
            await asyncio.sleep(0)
        await self._count_backlog()
        return written

    async def _count_backlog(self) -> None:
        """Count the backlog, for the metrics, unless that was done just now."""
        if time.monotonic() - self._counted_at < COUNT_S:
            return
        self._counted_at, now = time.monotonic(), datetime.now(UTC)
        backlog = await self._store.backlog(now - self._retention)
        self._metrics.log_pending.set(backlog.count)
        age = (now - backlog.oldest).total_seconds() if backlog.oldest is not None else 0.0
        self._metrics.log_pending_age.set(max(0.0, age))

    async def _batch(self, since: datetime) -> int:
        async with transaction(self._engine) as connection:
            if not await self._store.may_write(connection):
                return 0
            pending = await self._store.lock_pending(connection, BATCH, since, self._without)
            written, deadline = 0, time.monotonic() + BATCH_S
            for page in _pages(pending):
                written += await self._write(connection, page, deadline)
                if time.monotonic() >= deadline:
                    break
        if pending and not written:  # the keys of their days cannot be used; others may be behind them
            return await self._batch(since)
        return written

    async def _write(self, connection: AsyncConnection, page: Sequence[PendingBody], deadline: float) -> int:
        """Write the bodies of a page, or the first ones, until a time by the monotonic clock. Returns their number."""
        contents = await self._store.contents(connection, [one.job_id for one in page])
        sealed = []
        for pending in page:
            found = contents.get(pending.job_id)
            if found is None:
                sealed.append(SealedBody(pending))
            elif (key := await self._key(pending.ended_at.astimezone(UTC).date())) is not None:
                sealed.append(await self._sealed(connection, pending, found, key))
                await asyncio.sleep(0)  # each takes up to a millisecond
            if sealed and time.monotonic() >= deadline:
                break
        if sealed:
            await self._store.keep(connection, sealed)
        for one in sealed:
            self._metrics.log_bodies.labels("lost" if one.body is None else "kept").inc()
        return len(sealed)

    async def _key(self, day: date) -> DataKey | None:
        """The data key of a day; None if this process cannot read it, but another one may."""
        if day in self._without:
            return None
        try:
            return await self._keys.of_day(day)
        except (UnknownMasterKey, DecryptionFailed) as error:
            logger.error("cannot write bodies of %s to the request log; check HEADRACE_LOG_KEY: %s", day, error)
            self._without.add(day)
            return None

    async def _sealed(
        self, connection: AsyncConnection, pending: PendingBody, found: PendingContent, key: DataKey
    ) -> SealedBody:
        content, job_id, rules = found.content, pending.job_id, found.project_options.get("redaction")
        try:
            redactor = None if pending.level is LogLevel.FULL else await self._redactor(connection, rules)
            call = partial(_seal, found, pending, redactor, key)
            body: BodyText
            if redactor is not None and takes_long(rules):
                # Not in the thread of `off_loop`, where requests would wait for it.
                body, sealed = await _kept_alive(connection, asyncio.to_thread(call))
            elif content.size > INLINE_BYTES:
                body, sealed = await _kept_alive(connection, off_loop(content.size, call))
            else:
                body, sealed = call()
        except Exception as error:  # what cannot be redacted must not be kept, nor keep others from being kept
            logger.error("job=%s its body is lost to the request log: %s", job_id, type(error).__name__)
            return SealedBody(pending)
        self._metrics.redacted(body.redactions)
        return SealedBody(pending, key.id, sealed)

    async def _redactor(self, connection: AsyncConnection, rules: Mapping[str, Any] | None) -> BodyRedactor:
        name = orjson.dumps(rules, option=orjson.OPT_SORT_KEYS)
        if name not in self._redactors:
            if len(self._redactors) >= MOST_REDACTORS:
                self._redactors.clear()
            # In a thread: the first one loads tables, which takes tenths of a second, and with Presidio many seconds.
            loading = asyncio.to_thread(self._new_redactor, rules)
            self._redactors[name] = await _kept_alive(connection, loading)
        return self._redactors[name]


def _seal(
    found: PendingContent, pending: PendingBody, redactor: BodyRedactor | None, key: DataKey
) -> tuple[BodyText, bytes]:
    body = body_text(found.content, pending.level, redactor)
    return body, seal(key.cipher, pending.job_id, body.text)


async def _kept_alive(connection: AsyncConnection, work: Awaitable[T]) -> T:
    """Wait for work in a thread that may take longer than a transaction may be idle."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=KEEP_ALIVE_S))[0]:
            await keep_alive(connection)
        return task.result()
    finally:
        await cancel_and_wait(task)


def _pages(pending: Sequence[PendingBody]) -> Iterator[list[PendingBody]]:
    """The rows in portions whose content fits in memory; each has at least one."""
    page: list[PendingBody] = []
    size = 0
    for one in pending:
        if page and size + one.size > PAGE_BYTES:
            yield page
            page, size = [], 0
        page.append(one)
        size += one.size
    if page:
        yield page
