"""Ends jobs that no live worker owns: cancelled while they waited, or lost with their workers for good."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from redis.exceptions import RedisError

from shared.domain.events import Event, EventType, event, seq_before
from shared.domain.job import AttemptOutcome, Failure, Job, JobStatus, Usage
from shared.domain.result import build_result
from shared.domain.transcript import Transcript, tokens_by_attempt
from shared.postgres.recovery_store import RecoveryStore
from shared.redis.event_log import Append, EventLog, Fenced
from shared.telemetry.metrics import ATTEMPTS, job_ended, model_label
from shared.telemetry.tracing import NO_TRACES, Traces

logger = logging.getLogger(__name__)


class JobTerminator:
    """Ends them, with what earlier attempts made as their output."""

    def __init__(self, store: RecoveryStore, logs: EventLog, log_ttl_s: int, traces: Traces = NO_TRACES) -> None:
        self._store = store
        self._logs = logs
        self._log_ttl_s = log_ttl_s
        self._traces = traces

    async def end(self, job: Job, status: JobStatus, failure: Failure) -> bool:
        """End a job as it was read. False: it has moved on since, and nothing was written.

        Raises:
            redis.exceptions.RedisError: its text so far cannot be read.
        """
        attempt = job.attempt + 1
        running = job.status is not JobStatus.QUEUED
        # The row first: a worker that turns out to live must find its log as it left it.
        if running and not await self._store.revoke_claim(job.id, job.attempt):
            return False
        try:
            events = await self._logs.take_over(job.id, attempt) if job.attempt else []
        except Fenced:
            return False
        news: list[Event] = []
        if job.attempt and not events:
            # Redis has lost the log. Readers may have seen text of it, which is not kept.
            news.append(event(seq_before(attempt) + 1, EventType.RESTARTED, {"attempt": job.attempt}))
            events = list(news)
        transcript = Transcript.of(events, job.request.sampling.n)
        seq = events[-1].seq + 1 if events else 1
        ending, last = build_result(
            job,
            events,
            seq,
            status=status,
            output=transcript.choices(),
            usage=Usage(completion_tokens=transcript.tokens),
            failure=failure,
            first_token_at=None,
            finished_at=datetime.now(UTC),
            outcome=AttemptOutcome.WORKER_LOST,
            tokens=tokens_by_attempt(events),
        )
        end = self._store.end_lost if running else self._store.end_queued
        ended = await end(job.id, job.attempt, ending)
        if ended:
            job_ended(job, ending)
            if running:
                ATTEMPTS.labels(model_label(job.model), AttemptOutcome.WORKER_LOST).inc()
            logger.info(
                "job=%s model=%s attempt=%d worker=%s request=%s %s: %s",
                job.id, job.model, job.attempt, job.worker, job.request_context.request_id, status.value, failure.code,
            )  # fmt: skip
            self._traces.ended_without_worker(job, status, ending.finished_at)
            await self._tell(Append(job.id, attempt, [*news, last], self._log_ttl_s, force=bool(news)))
        return ended

    async def _tell(self, append: Append) -> None:
        """Append the last events. Where Redis is away, readers learn it from the row."""
        try:
            await self._logs.append([append])
        except (RedisError, OSError) as error:
            logger.warning("job=%s Redis is away; readers will find the end in the row: %s", append.job_id, error)
