"""Followers outside of the database: their metrics and messages, their logs, and the sweep that settles them."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shared.domain.events import Event, EventType, parse_archive
from shared.domain.job import JobStatus, JobSummary
from shared.domain.priorities import Hint
from shared.postgres.followers import FollowerChange
from shared.postgres.job_row_store import JobRowStore
from shared.postgres.recovery_store import RecoveryStore
from shared.redis.event_log import EventLog
from shared.runtime.faulty_items import FaultyItems
from shared.runtime.outages import is_outage
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# Seconds that one sweep spends on the followers of ended jobs.
SETTLE_S = 1.0


def report_changes(changes: Iterable[FollowerChange], send: Callable[[Hint], None], metrics: Metrics) -> None:
    """Count followers that have ended or were released, and send the messages of the latter."""
    for change in changes:
        metrics.follower_changed(change.model, change.priority, change.status)
        if change.status.terminal:
            logger.info(
                "job=%s model=%s request=%s %s with the answer of %s ms=%d",
                change.job_id, change.model, change.request_id, change.status.value, change.leader,
                round(change.seconds * 1000),
            )  # fmt: skip
            continue
        logger.info(
            "job=%s model=%s request=%s no longer follows %s; %s",
            change.job_id, change.model, change.request_id, change.leader, change.status.value,
        )  # fmt: skip
        if change.status is JobStatus.QUEUED:
            send(change.hint)


class OrphanedFollowers:
    """Settles the followers of ended jobs that the processes which ended these have left: they died, or left others
    than the first portion."""

    def __init__(self, store: RecoveryStore, send: Callable[[Hint], None], metrics: Metrics) -> None:
        self._store = store
        self._send = send
        self._metrics = metrics
        # A timeout may concern one leader only.
        self._faulty = FaultyItems(
            "job", propagates=lambda error: is_outage(error) and not isinstance(error, TimeoutError)
        )

    async def settle(self) -> None:
        """Settle followers for about `SETTLE_S` seconds, a portion of each group after the other."""
        stop_at = time.monotonic() + SETTLE_S
        groups = await self._store.orphans(without=self._faulty.ids())
        random.shuffle(groups)  # other processes sweep too
        while groups:
            left = []
            for group in groups:
                if time.monotonic() >= stop_at:
                    return
                with self._faulty.isolated(group):
                    changes = await self._store.settle([group])
                    report_changes(changes, self._send, self._metrics)
                    if changes:
                        left.append(group)
            groups = left


@dataclass(frozen=True, slots=True)
class Beginning:
    """The events that a job's log begins with, and that its readers may have received: those of another job.

    `exact`: they have the tokens that they were generated from, so that a worker can continue them.
    """

    events: list[Event]
    exact: bool


async def read_beginning(logs: EventLog, store: JobRowStore, job: JobSummary) -> Beginning:
    """Read the events of the job that `job` follows or continues, without its end and the upstream's requests.

    The requests are not for this job: they end with the other one. There are no events if they were lost or deleted.
    """
    if not job.begins_with:
        return Beginning([], exact=False)
    events = await logs.read(job.begins_with)
    exact = bool(events)
    if not events:
        events = parse_archive(await store.archived_log(job.begins_with) or "")
    kept = [item for item in events if not item.type.terminal and item.type is not EventType.UPSTREAM]
    return Beginning([item._replace(cursor=b"") for item in kept], exact)
