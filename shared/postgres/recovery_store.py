"""SQL that rescues: jobs of silent workers, jobs whose time is up, jobs whose message was lost."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, func, or_, select, type_coerce, update
from sqlalchemy.dialects.postgresql import JSONB

from shared.domain.job import RUNNING, AttemptOutcome, Job, JobStatus
from shared.domain.priorities import Hint
from shared.domain.result import JobResult
from shared.postgres.job_rows import (
    COLUMNS,
    LOST,
    JobRowStore,
    end_statement,
    live_workers,
    overdue,
    requeued,
    result_record,
)
from shared.postgres.prepared import Prepared
from shared.postgres.store import seconds
from shared.postgres.tables import IdempotencyKeyRow, JobRow, WorkerRow


@dataclass(frozen=True, slots=True, kw_only=True)
class RequeuedJob(Hint):
    """The hint for a job that was put back, and which attempt it was that `worker` lost."""

    attempt: int
    worker: str
    request_id: str | None


_END_QUEUED = Prepared(end_statement(JobRow.status == JobStatus.QUEUED.value))
_END_LOST = Prepared(end_statement(JobRow.status.in_(RUNNING), JobRow.worker.endswith(LOST)))


class RecoveryStore(JobRowStore):
    """Jobs that no live worker owns."""

    async def end_queued(self, job_id: str, attempt: int, ending: JobResult) -> bool:
        """End a job that waits. False: it does not wait any more, or was tried in between."""
        return (await self._end(_END_QUEUED, [result_record(job_id, attempt, ending)]))[0]

    async def revoke_claim(self, job_id: str, attempt: int) -> bool:
        """Take a running job from its worker, for good, so that it can be ended. False: its worker lives.

        Who condemns a job and dies leaves it as it was: lost.
        """
        statement = (
            update(JobRow)
            .where(
                JobRow.id == job_id,
                JobRow.attempt == attempt,
                JobRow.status.in_(RUNNING),
                JobRow.worker.not_in(live_workers()),
            )
            .values({JobRow.worker: func.regexp_replace(JobRow.worker, f"{LOST}$", "").concat(LOST)})
        )
        return await self._changes(statement)

    async def end_lost(self, job_id: str, attempt: int, ending: JobResult) -> bool:
        """End a job that was condemned. False: it was ended in between."""
        return (await self._end(_END_LOST, [result_record(job_id, attempt, ending)]))[0]

    async def requeue_stalled(self, max_attempts: int, limit: int = 500) -> list[RequeuedJob]:
        """Put the jobs of silent workers back into the queue, but for those that must end (`stalled_to_end`)."""
        lost = (
            select(JobRow.id)
            .where(
                JobRow.status == JobStatus.IN_PROGRESS.value,
                JobRow.worker.not_in(live_workers()),
                JobRow.deaths < max_attempts - 1,
                ~overdue(),
            )
            .limit(limit)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        statement = (
            update(JobRow)
            .where(JobRow.id.in_(lost))
            .values(requeued(0, AttemptOutcome.WORKER_LOST, deaths=1))
            .returning(
                JobRow.id,
                JobRow.model,
                JobRow.priority,
                JobRow.attempt,
                type_coerce(JobRow.attempts, JSONB)[-1]["worker"].astext.label("lost_by"),
                JobRow.request_id,
            )
        )
        async with self._engine.connect() as connection:
            return [
                RequeuedJob(
                    job_id=row.id,
                    model=row.model,
                    priority=row.priority,
                    attempt=row.attempt,
                    worker=row.lost_by,
                    request_id=row.request_id,
                )
                for row in await connection.execute(statement)
            ]

    async def stalled_to_end(self, max_attempts: int, limit: int = 100) -> list[Job]:
        """Jobs of silent workers that are not tried again: being cancelled, out of attempts, or out of time."""
        statement = (
            select(*COLUMNS)
            .where(
                JobRow.status.in_(RUNNING),
                JobRow.worker.not_in(live_workers()),
                or_(
                    JobRow.status == JobStatus.CANCELLING.value,
                    JobRow.deaths >= max_attempts - 1,
                    overdue(),
                ),
            )
            .limit(limit)
        )
        return await self._jobs(statement)

    async def overdue(self, limit: int = 500) -> list[Job]:
        """Queued jobs whose time is up: not started by `start_before`, or not finished by `finish_before`."""
        statement = select(*COLUMNS).where(JobRow.status == JobStatus.QUEUED.value, overdue()).limit(limit)
        return await self._jobs(statement)

    async def delete_idempotency_keys(self, older_than_s: int) -> None:
        """Free keys for another use."""
        statement = delete(IdempotencyKeyRow).where(IdempotencyKeyRow.created_at < func.now() - seconds(older_than_s))
        await self._changes(statement)

    async def delete_dead_workers(self, silent_for_s: int) -> None:
        """Delete the rows of workers that are long dead."""
        await self._changes(delete(WorkerRow).where(WorkerRow.lease_expires_at < func.now() - seconds(silent_for_s)))

    async def waiting(self, model: str, *, limit: int, older_than_s: float, priorities: range) -> list[Hint]:
        """The next queued jobs of a model that were released to the queue, in the order in which they are served."""
        statement = (
            select(JobRow.id, JobRow.model, JobRow.priority)
            .where(
                JobRow.status == JobStatus.QUEUED.value,
                JobRow.model == model,
                JobRow.dispatched_at.is_not(None),
                JobRow.priority.between(priorities[0], priorities[-1]),
                JobRow.created_at < func.now() - seconds(older_than_s),
            )
            .order_by(JobRow.priority, JobRow.id)
            .limit(limit)
        )
        async with self._engine.connect() as connection:
            return [Hint(*row) for row in await connection.execute(statement)]

    async def queued_before(self, model: str, priority: int, before: str, *, limit: int) -> list[Hint]:
        """Queued jobs of a priority that were released before one that was already served: their message is lost."""
        statement = (
            select(JobRow.id, JobRow.model, JobRow.priority)
            .where(
                JobRow.status == JobStatus.QUEUED.value,
                JobRow.model == model,
                JobRow.dispatched_at.is_not(None),
                JobRow.priority == priority,
                JobRow.id < before,
            )
            .order_by(JobRow.id)
            .limit(limit)
        )
        async with self._engine.connect() as connection:
            return [Hint(*row) for row in await connection.execute(statement)]
