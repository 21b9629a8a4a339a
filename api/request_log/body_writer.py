"""Writes the bodies of the request log: redacts, compresses and encrypts what the rows of ended jobs have.

The statement that ends a job only marks its row as waiting for its body. So the log takes no time of a request, needs
no memory, and loses nothing with a process: what is not written yet waits in the table. Every API process writes, in
small batches; a row is locked by one of them. A job that was deleted meanwhile has no body: that is marked and counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import orjson
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.request_log.content import BodyRedactor, BodyText, body_text
from api.request_log.data_keys import DataKey, DataKeys
from api.request_log.encryption import DecryptionFailed, UnknownMasterKey, seal
from api.request_log.store import PendingBody, PendingContent, RequestLogStore, SealedBody
from shared.domain.log_level import LogLevel
from shared.postgres.engine import transaction
from shared.runtime.offload import off_loop
from shared.runtime.periodic import run_periodically
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
# Rows per transaction, and about the bytes of content, compressed, that are in memory at once.
BATCH = 100
PAGE_BYTES = 2 * 1024 * 1024
# Most rounds read only the partitions of the last days. Older rows wait only after a long outage.
RECENT = timedelta(days=1)
RECHECK_S = 600.0
# How often the backlog is counted, for the metrics.
COUNT_S = 15.0
# So many rules of projects, as compiled redactors, are kept.
MOST_REDACTORS = 100

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
            await asyncio.sleep(0)
        if started - self._counted_at >= COUNT_S:
            self._counted_at = started
            backlog = await self._store.backlog(now - self._retention)
            self._metrics.log_pending.set(backlog.count)
            age = (now - backlog.oldest).total_seconds() if backlog.oldest is not None else 0.0
            self._metrics.log_pending_age.set(max(0.0, age))
        return written

    async def _batch(self, since: datetime) -> int:
        async with transaction(self._engine) as connection:
            pending = await self._store.lock_pending(connection, BATCH, since, self._without)
            written = 0
            for page in _pages(pending):
                written += await self._write(connection, page)
        if pending and not written:  # the keys of their days cannot be used; others may be behind them
            return await self._batch(since)
        return written

    async def _write(self, connection: AsyncConnection, page: Sequence[PendingBody]) -> int:
        contents = await self._store.contents(connection, [one.job_id for one in page])
        sealed = []
        for pending in page:
            found = contents.get(pending.job_id)
            if found is None:
                sealed.append(SealedBody(pending))
            elif (key := await self._key(pending.ended_at.astimezone(UTC).date())) is not None:
                sealed.append(await self._sealed(pending, found, key))
                await asyncio.sleep(0)  # each takes up to a millisecond
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

    async def _sealed(self, pending: PendingBody, found: PendingContent, key: DataKey) -> SealedBody:
        content, job_id = found.content, pending.job_id
        try:
            redactor = None if pending.level is LogLevel.FULL else self._redactor(found.project_options)
            body: BodyText
            body, sealed = await off_loop(content.size, _seal, found, pending, redactor, key)
        except Exception as error:  # what cannot be redacted must not be kept, nor keep others from being kept
            logger.error("job=%s its body is lost to the request log: %s", job_id, type(error).__name__)
            return SealedBody(pending)
        self._metrics.log_redactions.inc(body.redactions)
        return SealedBody(pending, key.id, sealed)

    def _redactor(self, project_options: Mapping[str, Any]) -> BodyRedactor:
        rules = project_options.get("redaction")
        name = orjson.dumps(rules, option=orjson.OPT_SORT_KEYS)
        if name not in self._redactors:
            if len(self._redactors) >= MOST_REDACTORS:
                self._redactors.clear()
            self._redactors[name] = self._new_redactor(rules)
        return self._redactors[name]


def _seal(
    found: PendingContent, pending: PendingBody, redactor: BodyRedactor | None, key: DataKey
) -> tuple[BodyText, bytes]:
    body = body_text(found.content, pending.level, redactor)
    return body, seal(key.cipher, pending.job_id, body.text)


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
