"""Ends jobs that no live worker owns."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from redis.exceptions import RedisError

from shared.domain.events import Event, EventType, event, seq_before
from shared.domain.fallback import FallbackReason
from shared.domain.job import AttemptOutcome, Failure, JobStatus, JobSummary, Usage
from shared.domain.ledger import EngineOf, unknown_engine
from shared.domain.priorities import Hint
from shared.domain.result import build_result
from shared.domain.transcript import Transcript
from shared.postgres.lost_jobs import LostJob
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.fallbacks import Fallbacks
from shared.recovery.followers import read_beginning, report_changes
from shared.redis.event_log import Append, EventLog, Fenced, TakenLog
from shared.telemetry.metrics import Metrics
from shared.telemetry.tracing import NO_TRACES, Traces

logger = logging.getLogger(__name__)

# Jobs that end at a time, of those whose log begins with that of another job.
COPIES = 4


class JobTerminator:
    """Ends lost jobs with the output of their earlier attempts, which their logs have."""

    def __init__(
        self,
        store: RecoveryStore,
        logs: EventLog,
        log_ttl_s: int,
        metrics: Metrics,
        traces: Traces = NO_TRACES,
        send: Callable[[Hint], None] = lambda _: None,
        fallbacks: Fallbacks | None = None,
        engine_of: EngineOf = unknown_engine,
    ) -> None:
        """`send` sends the messages of jobs that followed an ended one; without it, redelivery does. Without
        `fallbacks`, no job moves to another model. `engine_of` is for the entries of the ledger."""
        self._store = store
        self._fallbacks = fallbacks
        self._logs = logs
        self._log_ttl_s = log_ttl_s
        self._metrics = metrics
        self._traces = traces
        self._engine_of = engine_of
        self._send = send
        # Of many followers that are cancelled at once, a few copy the log of their leader at a time.
        self._copying = asyncio.Semaphore(COPIES)

    async def generated(self, lost: Sequence[LostJob]) -> set[str]:
        """The lost jobs that had a token since their last start. If Redis is unavailable, that is unknown of all."""
        try:
            return await self._logs.generated((job.job_id, job.attempt) for job in lost)
        except (RedisError, OSError) as error:
            logger.warning("cannot read which of %d lost jobs had tokens: %s", len(lost), error)
            return set()

    async def fail(self, job: JobSummary, failure: Failure, reason: FallbackReason) -> bool:
        """Move a job to another model, or end it as failed if it cannot move. Otherwise as `end`."""
        if self._fallbacks is not None and await self._fallbacks.move(job, reason):
            return True
        return await self.end(job, JobStatus.FAILED, failure)

    async def end(self, job: JobSummary, status: JobStatus, failure: Failure) -> bool:
        """End a job. Returns False, and writes nothing, if it has changed since it was read.

        Raises:
            redis.exceptions.RedisError: its output so far cannot be read.
        """
        if job.begins_with is None:
            return await self._end(job, status, failure)
        async with self._copying:
            return await self._end(job, status, failure)

    async def _end(self, job: JobSummary, status: JobStatus, failure: Failure) -> bool:
        attempt = job.attempt + 1
        running = job.status is not JobStatus.QUEUED
        # The row first: if its worker turns out to be alive, the log must be unchanged.
        if running and not await self._store.revoke_claim(job.id, job.attempt):
            return False
        try:
            taken = await self._logs.take_over(job.id, attempt) if job.attempt else TakenLog([])
        except Fenced:
            return False
        events = taken.events
        new: list[Event] = []
        seq = 0
        if not events and job.begins_with is not None:
            # Its readers have events of the job that it follows, perhaps more than those that are read here.
            events, seq = await self._beginning(job), seq_before(1, after_leader=True)
            new = list(events)
        if job.attempt and not events:
            # Redis has lost the log. Readers may have seen text from it that is not in the result.
            before = seq_before(attempt, after_leader=job.begins_with is not None)
            new.append(event(before + 1, EventType.RESTARTED, {"attempt": job.attempt}))
            events = list(new)
        transcript = await Transcript.of(events, job.choices, model=job.model, after=job.begins_with)
        seq = max(seq, events[-1].seq if events else 0) + 1
        result, last = await build_result(
            job,
            events,
            seq,
            status=status,
            output=transcript.choices(),
            usage=Usage(completion_tokens=transcript.tokens),
            failure=failure,
            first_token_at=taken.first_token_at and max(taken.first_token_at, job.created_at),
            finished_at=datetime.now(UTC),
            outcome=AttemptOutcome.WORKER_LOST,
            runs=transcript.runs,
            upstream=transcript.upstream,
            engine_of=self._engine_of,
        )
        if running:
            ended = await self._store.end_lost(job.id, job.attempt, result)
        else:
            ended = await self._store.end_queued(job.id, job.attempt, result, follows=job.follows)
        if ended is not None:
            report_changes(ended.followers, self._send, self._metrics)
            self._metrics.job_ended(job, result)
            if running:
                self._metrics.attempts.labels(self._metrics.model_label(job.model), AttemptOutcome.WORKER_LOST).inc()
            logger.info(
                "job=%s model=%s attempt=%d worker=%s request=%s %s: %s",
                job.id, job.model, job.attempt, job.worker, job.request_context.request_id, status.value, failure.code,
            )  # fmt: skip
            self._traces.ended_without_worker(job, status, result.finished_at)
            whole = bool(new) or job.begins_with is not None
            await self._append(Append(job.id, attempt, [*new, last], self._log_ttl_s), whole=whole)
        return ended is not None

    async def _beginning(self, job: JobSummary) -> list[Event]:
        """The events that the log of a job begins with; none if they cannot be read, or may not be its last."""
        try:
            beginning = await read_beginning(self._logs, self._store, job)
        except (RedisError, OSError) as error:
            if job.attempt:
                raise
            logger.warning(
                "job=%s cannot read the log of %s, ending without its events: %s", job.id, job.begins_with, error
            )
            return []
        return beginning.events if beginning.exact or not job.attempt else []

    async def _append(self, append: Append, *, whole: bool) -> None:
        """Append the last events. If Redis is unavailable, readers find the end in the row."""
        try:
            await (self._logs.replace(append) if whole else self._logs.append([append]))
        except (RedisError, OSError) as error:
            logger.warning(
                "job=%s cannot publish the last event, readers will read it from the row: %s", append.job_id, error
            )
