"""SQL for recovery: jobs of dead workers, overdue jobs, and jobs whose message was lost."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, func, or_, select, type_coerce, update
from sqlalchemy.dialects.postgresql import JSONB

from shared.domain.job import RUNNING, AttemptOutcome, Job, JobState, JobStatus
from shared.domain.priorities import Hint
from shared.domain.result import JobResult
from shared.postgres.job_statements import (
    COLUMNS,
    LOST,
    STATE_COLUMNS,
    JobRowStore,
    end_statement,
    live_workers,
    overdue,
    requeued,
    result_record,
    to_job,
    to_state,
)
from shared.postgres.prepared import Prepared
from shared.postgres.store import seconds
from shared.postgres.tables import IdempotencyKeyRow, JobRow, WorkerRow


@dataclass(frozen=True, slots=True, kw_only=True)
class RequeuedJob(Hint):
    """The queue message of a requeued job, and the attempt that ended when `worker` was lost."""

    attempt: int
    worker: str
    request_id: str | None


_END_QUEUED = Prepared(end_statement(JobRow.status == JobStatus.QUEUED.value))
_END_LOST = Prepared(end_statement(JobRow.status.in_(RUNNING), JobRow.worker.endswith(LOST)))


class RecoveryStore(JobRowStore):
    """Jobs that no live worker owns."""

    async def end_queued(self, job_id: str, attempt: int, result: JobResult) -> bool:
        """End a queued job. False: it is not queued any more, or another attempt was made."""
        return (await self._end(_END_QUEUED, [result_record(job_id, attempt, result)]))[0]

    async def revoke_claim(self, job_id: str, attempt: int) -> bool:
        """Revoke a dead worker's claim for good, so that the job can be ended. False: the worker is alive.

        If the caller dies before it ends the job, the job is still lost, and another process can end it.
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

    async def end_lost(self, job_id: str, attempt: int, result: JobResult) -> bool:
        """End a job whose claim was revoked. False: it was ended meanwhile."""
        return (await self._end(_END_LOST, [result_record(job_id, attempt, result)]))[0]

    async def requeue_stalled(self, max_attempts: int, limit: int = 500) -> list[RequeuedJob]:
        """Put the jobs of dead workers back into the queue, except those that must end (`stalled_to_end`)."""
        stalled = (
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
            .where(JobRow.id.in_(stalled))
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
        return await self._all(
            statement,
            lambda row: RequeuedJob(
                job_id=row.id,
                model=row.model,
                priority=row.priority,
                attempt=row.attempt,
                worker=row.lost_by,
                request_id=row.request_id,
            ),
        )

    async def stalled_to_end(
        self, max_attempts: int, limit: int = 100, *, without: Collection[str] = ()
    ) -> list[JobState]:
        """Return the jobs of dead workers that are not retried: being cancelled, out of attempts, or overdue.

        `without` are the ids of jobs to leave out.
        """
        statement = (
            select(*STATE_COLUMNS)
            .where(
                JobRow.id.not_in(without),
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
        return await self._readable(statement, to_state)

    async def overdue(self, limit: int = 500, *, without: Collection[str] = ()) -> list[JobState]:
        """Return queued jobs that were not started by `start_before` or not finished by `finish_before`.

        `without` are the ids of jobs to leave out.
        """
        statement = (
            select(*STATE_COLUMNS)
            .where(JobRow.id.not_in(without), JobRow.status == JobStatus.QUEUED.value, overdue())
            .limit(limit)
        )
        return await self._readable(statement, to_state)

    async def withheld_unreadable(
        self, older_than_s: float, limit: int = 100, *, without: Collection[str] = ()
    ) -> list[Job]:
        """Return those jobs that a worker withheld as unreadable but that this version can read.

        `without` are the ids of jobs to leave out.
        """
        statement = (
            select(*COLUMNS)
            .where(
                JobRow.id.not_in(without),
                JobRow.status == JobStatus.QUEUED.value,
                JobRow.unreadable_at < func.clock_timestamp() - seconds(older_than_s),
            )
            .order_by(JobRow.id)
            .limit(limit)
        )
        return await self._readable(statement, to_job)

    async def release_unreadable(self, job_id: str) -> bool:
        """Release a job to the queue that a worker withheld as unreadable. False: another process has released it."""
        statement = (
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.status == JobStatus.QUEUED.value, JobRow.unreadable_at.is_not(None))
            .values({JobRow.unreadable_at: None, JobRow.dispatched_at: func.clock_timestamp()})
        )
        return await self._changes(statement)

    async def delete_idempotency_keys(self, older_than_s: int) -> None:
        """Delete old keys, so that they can be used again."""
        statement = delete(IdempotencyKeyRow).where(IdempotencyKeyRow.created_at < func.now() - seconds(older_than_s))
        await self._changes(statement)

    async def delete_dead_workers(self, silent_for_s: int) -> None:
        """Delete the rows of workers whose lease expired at least `silent_for_s` ago."""
        await self._changes(delete(WorkerRow).where(WorkerRow.lease_expires_at < func.now() - seconds(silent_for_s)))

    async def waiting(self, model: str, *, limit: int, older_than_s: float, priorities: range) -> list[Hint]:
        """Return the next queued jobs of a model that were released to the queue, in the order of service."""
        return await self._released(
            model,
            JobRow.priority.between(priorities[0], priorities[-1]),
            JobRow.created_at < func.now() - seconds(older_than_s),
            limit=limit,
        )

    async def queued_before(self, model: str, priority: int, before: str, *, limit: int) -> list[Hint]:
        """Return released, queued jobs that precede the job `before`, which was served: their messages were lost."""
        return await self._released(model, JobRow.priority == priority, JobRow.id < before, limit=limit)

    async def _released(self, model: str, *conditions: ColumnElement[bool], limit: int) -> list[Hint]:
        """Return queued jobs of a model in the order of service. Jobs that a dispatcher withholds are not among them:
        they have no message that could be lost."""
        statement = (
            select(JobRow.id, JobRow.model, JobRow.priority)
            .where(
                JobRow.status == JobStatus.QUEUED.value,
                JobRow.model == model,
                JobRow.dispatched_at.is_not(None),
                *conditions,
            )
            .order_by(JobRow.priority, JobRow.id)
            .limit(limit)
        )
        return await self._all(statement, _hint)


def _hint(row: Row[Any]) -> Hint:
    return Hint(row.id, row.model, row.priority)
