"""The attempts that run on one worker: which jobs it claims, and which it stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator

from shared.domain.job import Job, JobStatus
from shared.domain.priorities import is_batch
from shared.postgres.claim_store import Claim
from shared.runtime.aio import cancel_and_wait
from shared.runtime.outages import is_outage
from workers.execution.attempt import RETRY_S, AttemptContext, InterruptReason, JobAttempt
from workers.execution.slots import SlotPool

logger = logging.getLogger(__name__)


class Runner:
    """Claims and runs jobs for messages; stops, preempts and requeues running jobs. Lives on one event loop."""

    def __init__(self, context: AttemptContext, slot_pool: SlotPool) -> None:
        self.slot_pool = slot_pool
        # The job claimed last, by priority.
        self.last_claimed: dict[int, str] = {}
        # When the last message arrived, on the monotonic clock.
        self.last_message = time.monotonic()
        self._context = context
        self._attempts: dict[str, JobAttempt] = {}
        self._paused = False
        self._messages = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._grace_over = asyncio.Event()

    @property
    def running(self) -> int:
        return len(self._attempts)

    @property
    def accepting(self) -> bool:
        """Whether messages lead to claims; they are dropped otherwise."""
        return not self._paused

    async def run(self, job_id: str) -> JobStatus | None:
        """Run a job. Returns its final status; None if it was not claimed, lost its claim or was requeued."""
        self.last_message = time.monotonic()
        if self._paused:
            return None
        with self._counted():
            job = await self._claim(job_id)
            if job is None:
                return None
            with self._registered(JobAttempt(job, self._context)) as attempt:
                self._preempt_batch_jobs()
                return await attempt.run()

    def stop(self, job_id: str, reason: InterruptReason, attempt: int | None = None) -> None:
        """Stop a job, or that attempt of it, if it runs here."""
        running = self._attempts.get(job_id)
        if running is not None and attempt in (None, running.job.attempt):
            running.stop(reason)

    def pause(self) -> None:
        """Accept no messages; running jobs continue."""
        self._paused = True

    def resume(self) -> None:
        """Accept messages again."""
        self._paused = False

    async def drain(self, grace_s: float) -> None:
        """Accept no messages, let running jobs finish for `grace_s` seconds, then requeue the rest."""
        self.pause()
        waits = [asyncio.create_task(event.wait()) for event in (self._idle, self._grace_over)]
        try:
            await asyncio.wait(waits, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(*waits)
        await self.requeue_all()

    def end_grace(self) -> None:
        """End the grace period of a drain now."""
        self._grace_over.set()

    async def requeue_all(self) -> None:
        """Return all running jobs to the queue; returns when that is done."""
        for attempt in list(self._attempts.values()):
            attempt.stop(InterruptReason.REQUEUED)
        await self._idle.wait()

    def not_running(self, claims: list[Claim]) -> list[Claim]:
        """Those of this worker's claims whose attempts do not run here."""
        return [
            claim
            for claim in claims
            if claim.job_id not in self._attempts or self._attempts[claim.job_id].job.attempt != claim.attempt
        ]

    def claimed_before(self, moment: float) -> list[tuple[str, int]]:
        """Running jobs, with their attempts' numbers, that were claimed before a moment of the monotonic clock."""
        return [
            (job_id, attempt.job.attempt) for job_id, attempt in self._attempts.items() if attempt.claimed_at < moment
        ]

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a message as being handled: the runner is idle when there is none."""
        self._messages += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._messages -= 1
            if not self._messages:
                self._idle.set()

    async def _claim(self, job_id: str) -> Job | None:
        """Claim a job. Returns None if it is not queued any more, or if the runner is paused.

        A message waits here while the database is unavailable: otherwise a worker would empty its queue.
        """
        delay = RETRY_S[0]
        while not self._paused:
            try:
                job = await self._context.store.claim(job_id)
            except Exception as error:
                if not is_outage(error):
                    raise
                logger.warning("job=%s claim failed, retrying: %s", job_id, error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_S[1])
            else:
                if job is not None:
                    self.last_claimed[job.priority] = job.id
                return job
        return None

    @contextlib.contextmanager
    def _registered(self, attempt: JobAttempt) -> Iterator[JobAttempt]:
        """Keep a running attempt where `stop` finds it."""
        job_id = attempt.job.id
        # An earlier attempt may still run here: its lease expired before this worker noticed.
        self.stop(job_id, InterruptReason.CLAIM_LOST)
        self._attempts[job_id] = attempt
        if self._paused:
            attempt.stop(InterruptReason.REQUEUED)  # paused during the claim
        try:
            yield attempt
        finally:
            if self._attempts.get(job_id) is attempt:
                del self._attempts[job_id]

    def _preempt_batch_jobs(self) -> None:
        """Requeue batch jobs if more jobs run than the engine has slots for.

        The new request need not wait for the abort: the engine itself holds it back, for one step at most. Jobs whose
        output would have to be regenerated are preempted last; of the others, the most recently claimed go first.
        """
        active = [attempt for attempt in self._attempts.values() if attempt.active]
        excess = len(active) - self.slot_pool.slots
        if excess <= 0 or not self.slot_pool.yields:
            return
        batch = [attempt for attempt in active if is_batch(attempt.job.priority)]
        resume_mode = self._context.engine.resume_mode
        batch.sort(key=lambda attempt: (-resume_mode(attempt.job.request), -attempt.claimed_at))
        for attempt in batch[:excess]:
            logger.info("job=%s preempted by an urgent job", attempt.job.id)
            attempt.stop(InterruptReason.PREEMPTED)
