"""Recovers the jobs of dead workers. Every API and worker process runs a sweeper, so none of them is essential."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from shared.domain.fallback import FallbackReason
from shared.domain.job import AttemptOutcome, JobStatus
from shared.domain.priorities import Hint, to_front
from shared.domain.result import CANCELLED, LATE, NOT_STARTED, exhausted
from shared.postgres.lost_jobs import out_of_attempts
from shared.postgres.message_store import Withheld
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.fallbacks import Fallbacks
from shared.recovery.followers import OrphanedFollowers
from shared.recovery.terminator import JobTerminator
from shared.runtime.faulty_items import FaultyItems
from shared.runtime.periodic import run_periodically
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# How long idempotency keys are kept; a day is common among APIs.
IDEMPOTENCY_KEY_S = 24 * 3600
# How long a dead worker's row is kept: until its jobs are recovered, and for operators to see.
DEAD_WORKER_S = 3600
# How long workers try to cancel an upstream's request. No upstream runs one for longer.
CANCELLATION_S = 24 * 3600
# How long a job that a worker could not read is withheld from the queue at least.
WITHHELD_S = 10
# How many such jobs one sweep reads.
WITHHELD_LIMIT = 10
# How often rows that have become too old are deleted: an idle process spends a good part of its time on sweeps.
CLEAN_UP_INTERVAL_S = 60.0


class Sweeper:
    """Requeues or ends jobs whose worker's lease has expired, and ends queued jobs whose deadline has passed.

    It also ends or releases the followers of ended jobs that the processes which ended these have left.
    """

    def __init__(
        self,
        store: RecoveryStore,
        terminator: JobTerminator,
        send: Callable[[Hint], None],
        metrics: Metrics,
        *,
        interval_s: float,
        lease_s: float,
        max_attempts: int,
        fallbacks: Fallbacks | None = None,
    ) -> None:
        self._store = store
        self._terminator = terminator
        self._send = send
        self._metrics = metrics
        self._interval_s = interval_s
        self._lease_s = lease_s
        self._max_attempts = max_attempts
        self._fallbacks = fallbacks
        self._orphaned_followers = OrphanedFollowers(store, send, metrics)
        self._faulty = FaultyItems("job")
        self._last_withheld: Withheld | None = None
        self._steady_since = time.monotonic()
        self._cleaned_up_at = float("-inf")

    async def run(self) -> None:
        """Sweep until cancelled. Many processes may sweep concurrently: the SQL guards every change."""
        self._steady_since = time.monotonic()
        await run_periodically(self._sweep_steadily, "sweep", interval_s=self._interval_s, jitter=0.2)

    async def _sweep_steadily(self) -> None:
        """Sweep; take jobs from workers only if no sweep has failed or been slow for the length of a lease."""
        began = time.monotonic()
        steady = False
        try:
            await self.sweep(recover=began - self._steady_since >= self._lease_s)
            steady = time.monotonic() - began <= self._lease_s / 2
        finally:
            if not steady:
                self._steady_since = time.monotonic()

    async def sweep(self, *, recover: bool = True) -> int:
        """Run one sweep. Returns the number of jobs that were requeued.

        Without `recover`, no job is taken from a worker. A sweeper that has just started, or whose last sweep failed
        or was slow, cannot distinguish a dead worker from one that could not renew its lease in the same outage.
        """
        requeued = 0
        # One query is all that a process needs while there is nothing to do, as nearly always.
        if await self._store.has_work(recover=recover, withheld_for_s=WITHHELD_S):
            requeued = await self._do_work(recover=recover)
        else:
            self._last_withheld = None
        if time.monotonic() - self._cleaned_up_at >= CLEAN_UP_INTERVAL_S:
            await self._clean_up()
            self._cleaned_up_at = time.monotonic()
        return requeued

    async def _do_work(self, *, recover: bool) -> int:
        """Do all that there is to do. Returns the number of jobs that were requeued."""
        requeued = await self._recover() if recover else 0
        for job in await self._store.overdue(without=self._faulty.ids()):
            with self._faulty.isolated(job.id):
                if job.missed_start:
                    await self._terminator.end(job, JobStatus.EXPIRED, NOT_STARTED)
                else:
                    await self._terminator.end(job, JobStatus.CANCELLED, LATE)
        if self._fallbacks is not None:
            await self._fallbacks.move_stranded()
        await self._orphaned_followers.settle()
        await self._release_unreadable()
        return requeued

    async def _clean_up(self) -> None:
        """Delete rows that have become too old."""
        await self._store.delete_idempotency_keys(IDEMPOTENCY_KEY_S)
        await self._store.delete_dead_workers(DEAD_WORKER_S)
        for one in await self._store.abandon_cancellations(CANCELLATION_S):
            model = self._metrics.model_label(one.model)
            self._metrics.upstream_cancellations.labels(model, "abandoned").inc()
            logger.error(
                "job=%s model=%s the upstream's request %.100s could not be cancelled, and may still run",
                one.job_id, one.model, one.state.id,
            )  # fmt: skip

    async def _recover(self) -> int:
        """Requeue the jobs of dead workers, or end them. Returns the number of jobs that were requeued."""
        lost = await self._store.lost()
        if not lost:
            return 0
        generated = await self._terminator.generated(lost)
        requeued = await self._store.requeue_stalled(self._max_attempts, lost, generated)
        for hint in requeued:
            model = self._metrics.model_label(hint.model)
            self._metrics.rescues.labels(model).inc()
            self._metrics.attempts.labels(model, AttemptOutcome.WORKER_LOST).inc()
            logger.warning(
                "job=%s model=%s attempt=%d worker=%s request=%s lost its worker; queued again%s",
                hint.job_id, hint.model, hint.attempt, hint.worker, hint.request_id,
                ", to run alone until it has a token" if hint.suspect else "",
            )  # fmt: skip
            self._send(to_front(hint))
        dead = out_of_attempts(lost, generated, self._max_attempts)
        to_end = await self._store.stalled_to_end(self._max_attempts, lost, generated, without=self._faulty.ids())
        for job in to_end:
            with self._faulty.isolated(job.id):
                if job.status is JobStatus.CANCELLING:
                    await self._terminator.end(job, JobStatus.CANCELLED, CANCELLED)
                elif job.id in dead:
                    failure = exhausted(self._max_attempts)
                    await self._terminator.fail(job, failure, FallbackReason.ATTEMPTS_EXHAUSTED)
                else:
                    await self._terminator.end(job, JobStatus.CANCELLED, LATE)
        return len(requeued)

    async def _release_unreadable(self) -> None:
        """Release some of the jobs that workers of another version could not read but this version can.

        The next sweep continues with the others: reading them takes time and memory. If a worker that cannot read a
        released job takes it again, it withholds it again, for `WITHHELD_S` seconds.
        """
        withheld = await self._store.withheld(WITHHELD_S, after=self._last_withheld, limit=WITHHELD_LIMIT)
        self._last_withheld = withheld[-1] if len(withheld) == WITHHELD_LIMIT else None
        for job in withheld:
            hint = await self._store.release_if_readable(job.job_id)
            if hint is not None:
                logger.warning(
                    "job=%s model=%s is readable by this version; released to the queue", hint.job_id, hint.model
                )
                self._send(to_front(hint))
