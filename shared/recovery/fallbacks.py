"""Moves jobs that no live worker owns to another model: to a fallback of the route that chose theirs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime

from shared.domain.fallback import FallbackReason, candidates_of, may_have_output, next_model
from shared.domain.job import AttemptOutcome, JobStatus, JobSummary
from shared.domain.priorities import Hint, to_front
from shared.domain.transcript import Transcript
from shared.postgres.recovery_store import RecoveryStore
from shared.postgres.rerouting import Move
from shared.recovery.followers import report_changes
from shared.redis.conversation_models import ConversationModels
from shared.redis.event_log import EventLog, Fenced
from shared.runtime.faulty_items import FaultyItems
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# Most jobs that one check moves.
LIMIT = 100


class Fallbacks:
    """Moves queued jobs, and jobs of dead workers. A worker moves the jobs that it runs itself (`JobAttempt`)."""

    def __init__(
        self,
        store: RecoveryStore,
        logs: EventLog,
        conversations: ConversationModels,
        send: Callable[[Hint], None],
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._logs = logs
        self._conversations = conversations
        self._send = send
        self._metrics = metrics
        self._faulty = FaultyItems("job")

    async def move_stranded(self) -> None:
        """Move jobs that no worker of their model starts in time: none lives, or the model's queue is paused."""
        models = await self._store.availability()
        for job in await self._store.stranded(LIMIT, models, without=self._faulty.ids()):
            with self._faulty.isolated(job.id):
                reason = FallbackReason.PAUSED if job.model in models.paused else FallbackReason.NO_WORKER
                await self._move(job, next_model(job, models, or_wait=False), reason)

    async def move_waiting(self, model: str) -> None:
        """Move queued jobs of a model whose upstream is unavailable."""
        models = await self._store.availability()
        for job in await self._store.movable(model, LIMIT, models.available, without=self._faulty.ids()):
            with self._faulty.isolated(job.id):
                await self._move(job, next_model(job, models, or_wait=False), FallbackReason.UPSTREAM_BUSY)

    async def move(self, job: JobSummary, reason: FallbackReason) -> bool:
        """Move a job that would fail otherwise, and that is queued or whose worker is dead; send the hint, unless
        a limit or a budget lets it start only later.

        False: it stays, because it has no fallback, or may have output, or has changed since it was read.

        Raises:
            redis.exceptions.RedisError: whether it has output cannot be read.
        """
        if not candidates_of(job) or job.status is JobStatus.CANCELLING:
            return False
        return await self._move(job, next_model(job, await self._store.availability(), or_wait=True), reason)

    async def _move(self, job: JobSummary, to: str | None, reason: FallbackReason) -> bool:
        running = job.status is not JobStatus.QUEUED
        # As in `JobTerminator.end`, the row first.
        if to is None or (running and not await self._store.revoke_claim(job.id, job.attempt)):
            return False
        try:
            events = (await self._logs.take_over(job.id, job.attempt + 1)).events if job.attempt else []
        except Fenced:
            return False
        if may_have_output(job, events):
            self._faulty.leave_out(job.id)  # otherwise the jobs behind it would never be among those that are read
            return False
        transcript = await Transcript.of(events, job.choices, model=job.model, after=job.begins_with)
        move = Move(job, to, reason, transcript.upstream)
        followers = await (self._store.reroute_lost if running else self._store.reroute_queued)(move)
        if followers is None:
            return False
        report_changes(followers, self._send, self._metrics)
        if running:
            self._metrics.attempts.labels(self._metrics.model_label(job.model), AttemptOutcome.REROUTED).inc()
        self._metrics.job_fallbacks.labels(job.model, to, reason).inc()
        logger.warning(
            "job=%s model=%s attempt=%d worker=%s request=%s moved to model %s: %s",
            job.id, job.model, job.attempt, job.worker, job.request_context.request_id, to, reason.value,
        )  # fmt: skip
        if job.not_before is None or job.deferred_since is not None or job.not_before <= datetime.now(UTC):
            self._send(to_front(Hint(job.id, to, job.priority)))
        # Otherwise no worker can claim it yet. Once one can, those of the model find its row.
        await self._conversations.move(move.conversation, to)
        return True
