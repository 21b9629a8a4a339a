"""All SQL about jobs. Every change of a job's state is one guarded statement here: the row decides.

A guard names the states that may be left and, for a worker, the attempt and the worker that own the job, so
that a duplicate, a late or a fenced writer changes nothing and is told so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, and_, cast, delete, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import JSONB, JSONPATH
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.ending import Ending
from shared.job import RUNNING, TERMINAL, Attempt, Choice, Failure, Job, JobStatus, Usage
from shared.models import JobRow, WorkerRow
from shared.queue import Hint
from shared.sampling import GenerateRequest

POSITION_CAP = 1000

_COLUMNS = (
    JobRow.id,
    JobRow.key_id,
    JobRow.model,
    JobRow.status,
    JobRow.priority,
    JobRow.request,
    JobRow.job_metadata,
    JobRow.created_at,
    JobRow.attempt,
    JobRow.worker,
    JobRow.attempt_started_at,
    JobRow.attempts,
    JobRow.started_at,
    JobRow.first_token_at,
    JobRow.finished_at,
    JobRow.output,
    JobRow.usage,
    JobRow.error_code,
    JobRow.error_message,
)


@dataclass(frozen=True, slots=True)
class Held:
    """A running job and the attempt that holds it."""

    job_id: str
    attempt: int
    status: JobStatus


def _job(row: Row[Any]) -> Job:
    attempts = [_attempt(item) for item in row.attempts]
    if row.worker is not None and row.attempt_started_at is not None:
        attempts.append(Attempt(row.attempt, row.worker, row.attempt_started_at))
    return Job(
        id=row.id,
        key_id=row.key_id,
        model=row.model,
        status=JobStatus(row.status),
        priority=row.priority,
        request=GenerateRequest.model_validate(row.request),
        metadata=row.metadata,
        created_at=row.created_at,
        attempt=row.attempt,
        worker=row.worker,
        started_at=row.started_at,
        first_token_at=row.first_token_at,
        finished_at=row.finished_at,
        output=tuple(Choice(**choice) for choice in row.output or ()),
        usage=Usage(**row.usage) if row.usage is not None else None,
        error=Failure(row.error_code, row.error_message) if row.error_code is not None else None,
        attempts=tuple(attempts),
    )


def _attempt(item: dict[str, Any]) -> Attempt:
    return Attempt(
        number=item["number"],
        worker=item["worker"],
        started_at=datetime.fromisoformat(item["started_at"]),
        ended_at=datetime.fromisoformat(item["ended_at"]),
        tokens=item["tokens"],
        outcome=item["outcome"],
    )


def _ended_attempt(tokens: int, outcome: str) -> Any:
    """The running attempt, appended to the row's history."""
    entry = func.jsonb_build_object(
        "number",
        JobRow.attempt,
        "worker",
        JobRow.worker,
        "started_at",
        JobRow.attempt_started_at,
        "ended_at",
        func.clock_timestamp(),
        "tokens",
        tokens,
        "outcome",
        outcome,
    )
    return JobRow.attempts.op("||")(func.jsonb_build_array(entry, type_=JSONB))


def _ending_values(ending: Ending) -> dict[Any, Any]:
    return {
        JobRow.status: ending.status.value,
        JobRow.worker: None,
        JobRow.finished_at: ending.finished_at,
        JobRow.first_token_at: func.coalesce(JobRow.first_token_at, ending.first_token_at),
        JobRow.output: [asdict(choice) for choice in ending.output],
        JobRow.usage: asdict(ending.usage) if ending.usage else None,
        JobRow.error_code: ending.error.code if ending.error else None,
        JobRow.error_message: ending.error.message if ending.error else None,
        JobRow.log: ending.log,
    }


def _owned(job_id: str, attempt: int, worker: str) -> Any:
    return and_(
        JobRow.id == job_id,
        JobRow.attempt == attempt,
        JobRow.worker == worker,
        JobRow.status.in_(RUNNING),
    )


class JobStore:
    """Jobs and workers in PostgreSQL. Raises SQLAlchemy's errors where the database is away."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    # Submitting and reading

    async def insert(
        self,
        *,
        job_id: str,
        key_id: int,
        model: str,
        priority: int,
        request: GenerateRequest,
        metadata: dict[str, str],
    ) -> Job:
        """Commit a new job, `queued`. When this returns, the job is safe."""
        statement = (
            insert(JobRow)
            .values(
                id=job_id,
                key_id=key_id,
                model=model,
                status=JobStatus.QUEUED.value,
                priority=priority,
                request=request.model_dump(exclude_none=True, exclude_defaults=True),
                job_metadata=metadata,
            )
            .returning(JobRow.created_at)
        )
        async with self._engine.begin() as connection:
            created_at = (await connection.execute(statement)).scalar_one()
        return Job(
            id=job_id,
            key_id=key_id,
            model=model,
            status=JobStatus.QUEUED,
            priority=priority,
            request=request,
            metadata=metadata,
            created_at=created_at,
        )

    async def get(self, job_id: str, key_id: int | None = None) -> Job | None:
        """A job; with `key_id`, only if it is that key's."""
        statement = select(*_COLUMNS).where(JobRow.id == job_id, JobRow.deleted_at.is_(None))
        if key_id is not None:
            statement = statement.where(JobRow.key_id == key_id)
        row = await self._first(statement)
        return _job(row) if row is not None else None

    async def archived_log(self, job_id: str) -> str | None:
        """A finished job's events as lines; None while it is not finished."""
        statement = select(JobRow.log).where(JobRow.id == job_id, JobRow.status.in_(TERMINAL))
        row = await self._first(statement)
        return None if row is None else row.log

    async def page(
        self,
        key_id: int,
        *,
        status: JobStatus | None = None,
        model: str | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> list[Job]:
        """A key's jobs, newest first, older than `after`."""
        statement = (
            select(*_COLUMNS)
            .where(JobRow.key_id == key_id, JobRow.deleted_at.is_(None))
            .order_by(JobRow.id.desc())
            .limit(limit)
        )
        if status is not None:
            statement = statement.where(JobRow.status == status.value)
        if model is not None:
            statement = statement.where(JobRow.model == model)
        if after is not None:
            statement = statement.where(JobRow.id < after)
        async with self._engine.connect() as connection:
            return [_job(row) for row in await connection.execute(statement)]

    async def delete(self, job_id: str, key_id: int) -> bool:
        """Forget a finished job's input and output; the bare row stays for accounting."""
        statement = (
            update(JobRow)
            .where(
                JobRow.id == job_id,
                JobRow.key_id == key_id,
                JobRow.deleted_at.is_(None),
                JobRow.status.in_(TERMINAL),
            )
            .values(request={}, job_metadata={}, output=None, log=None, error_message=None, deleted_at=func.now())
        )
        return await self._changes(statement)

    async def queue_position(self, job: Job) -> int:
        """Jobs of the same model that are served before this one; counted up to `POSITION_CAP`."""
        ahead = (
            select(JobRow.id)
            .where(
                JobRow.status == JobStatus.QUEUED.value,
                JobRow.model == job.model,
                or_(
                    JobRow.priority < job.priority,
                    and_(JobRow.priority == job.priority, JobRow.id < job.id),
                ),
            )
            .limit(POSITION_CAP)
            .subquery()
        )
        row = await self._first(select(func.count().label("ahead")).select_from(ahead))
        return int(row.ahead) if row is not None else 0

    async def service_rate(self, model: str, window_s: int = 60) -> float:
        """Jobs of a model finished per second, over the last minute."""
        statement = select(func.count().label("done")).where(
            JobRow.model == model,
            JobRow.finished_at > func.now() - func.make_interval(0, 0, 0, 0, 0, 0, window_s),
        )
        row = await self._first(statement)
        return float(row.done) / window_s if row is not None else 0.0

    # A worker's transitions

    async def claim(self, job_id: str, worker: str) -> Job | None:
        """Take a queued job: attempt n+1 of `worker`. None: somebody else has it, or it has ended."""
        statement = (
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.status == JobStatus.QUEUED.value)
            .values(
                {
                    JobRow.status: JobStatus.IN_PROGRESS.value,
                    JobRow.attempt: JobRow.attempt + 1,
                    JobRow.worker: worker,
                    JobRow.attempt_started_at: func.clock_timestamp(),
                    JobRow.started_at: func.coalesce(JobRow.started_at, func.clock_timestamp()),
                }
            )
            .returning(*_COLUMNS)
        )
        async with self._engine.begin() as connection:
            row = (await connection.execute(statement)).first()
        return _job(row) if row is not None else None

    async def finish(self, job_id: str, attempt: int, worker: str, ending: Ending, *, tokens: int) -> bool:
        """End a job that this attempt owns. False: it does not own it any more; nothing was written."""
        values = _ending_values(ending) | {JobRow.attempts: _ended_attempt(tokens, ending.status.value)}
        return await self._changes(update(JobRow).where(_owned(job_id, attempt, worker)).values(values))

    async def give_back(
        self,
        job_id: str,
        attempt: int,
        worker: str,
        *,
        tokens: int,
        outcome: str,
        first_token_at: datetime | None = None,
    ) -> bool:
        """Put a job that this attempt owns back into the queue. False: it is not owned, or is being cancelled."""
        statement = (
            update(JobRow)
            .where(_owned(job_id, attempt, worker), JobRow.status == JobStatus.IN_PROGRESS.value)
            .values(
                {
                    JobRow.status: JobStatus.QUEUED.value,
                    JobRow.worker: None,
                    JobRow.first_token_at: func.coalesce(JobRow.first_token_at, first_token_at),
                    JobRow.attempts: _ended_attempt(tokens, outcome),
                }
            )
        )
        return await self._changes(statement)

    async def disown(self, job_id: str, attempt: int, worker: str) -> None:
        """Let a running job count as lost with its worker, though that worker lives."""
        statement = update(JobRow).where(_owned(job_id, attempt, worker)).values({JobRow.worker: f"{worker}/lost"})
        await self._changes(statement)

    # Cancelling, and jobs that nobody owns

    async def mark_cancelling(self, job_id: str) -> str | None:
        """Ask for a running job's cancellation. Returns its worker, or None where it is not running."""
        statement = (
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.status.in_(RUNNING))
            .values({JobRow.status: JobStatus.CANCELLING.value})
            .returning(JobRow.worker)
        )
        async with self._engine.begin() as connection:
            return (await connection.execute(statement)).scalar_one_or_none()

    async def end_queued(self, job_id: str, attempt: int, ending: Ending) -> bool:
        """End a job that waits. False: it does not wait any more, or was tried in between."""
        statement = (
            update(JobRow)
            .where(
                JobRow.id == job_id,
                JobRow.attempt == attempt,
                JobRow.status == JobStatus.QUEUED.value,
            )
            .values(_ending_values(ending))
        )
        return await self._changes(statement)

    async def end_lost(self, job_id: str, attempt: int, ending: Ending, *, tokens: int) -> bool:
        """End a job whose worker's lease is over. False: it was rescued or ended in between."""
        values = _ending_values(ending) | {JobRow.attempts: _ended_attempt(tokens, "worker_lost")}
        statement = (
            update(JobRow)
            .where(
                JobRow.id == job_id,
                JobRow.attempt == attempt,
                JobRow.status.in_(RUNNING),
                JobRow.worker.not_in(_live_workers()),
            )
            .values(values)
        )
        return await self._changes(statement)

    async def requeue_lost(self, max_attempts: int, limit: int = 500) -> list[Hint]:
        """Put the jobs of silent workers back into the queue, but for those that must end (`lost_to_end`)."""
        lost = (
            select(JobRow.id)
            .where(
                JobRow.status == JobStatus.IN_PROGRESS.value,
                JobRow.worker.not_in(_live_workers()),
                _deaths() < max_attempts - 1,
            )
            .limit(limit)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        statement = (
            update(JobRow)
            .where(JobRow.id.in_(lost))
            .values(
                {
                    JobRow.status: JobStatus.QUEUED.value,
                    JobRow.attempts: _ended_attempt(0, "worker_lost"),
                    JobRow.worker: None,
                }
            )
            .returning(JobRow.id, JobRow.model, JobRow.priority)
        )
        async with self._engine.begin() as connection:
            return [Hint(*row) for row in await connection.execute(statement)]

    async def lost_to_end(self, max_attempts: int, limit: int = 100) -> list[Job]:
        """Jobs of silent workers that are not tried again: being cancelled, or out of attempts."""
        statement = (
            select(*_COLUMNS)
            .where(
                JobRow.status.in_(RUNNING),
                JobRow.worker.not_in(_live_workers()),
                or_(
                    JobRow.status == JobStatus.CANCELLING.value,
                    _deaths() >= max_attempts - 1,
                ),
            )
            .limit(limit)
        )
        async with self._engine.connect() as connection:
            return [_job(row) for row in await connection.execute(statement)]

    async def waiting(self, model: str, *, limit: int, older_than_s: float) -> list[Hint]:
        """The next queued jobs of a model, in the order they are served."""
        statement = (
            select(JobRow.id, JobRow.model, JobRow.priority)
            .where(
                JobRow.status == JobStatus.QUEUED.value,
                JobRow.model == model,
                JobRow.created_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, older_than_s),
            )
            .order_by(JobRow.priority, JobRow.id)
            .limit(limit)
        )
        async with self._engine.connect() as connection:
            return [Hint(*row) for row in await connection.execute(statement)]

    async def overtaken(self, model: str, priority: int, before: str, *, limit: int) -> list[Hint]:
        """Queued jobs of a priority that are older than one already served: their message is lost."""
        statement = (
            select(JobRow.id, JobRow.model, JobRow.priority)
            .where(
                JobRow.status == JobStatus.QUEUED.value,
                JobRow.model == model,
                JobRow.priority == priority,
                JobRow.id < before,
            )
            .order_by(JobRow.id)
            .limit(limit)
        )
        async with self._engine.connect() as connection:
            return [Hint(*row) for row in await connection.execute(statement)]

    # Workers

    async def heartbeat(self, worker: str, model: str, *, slots: int, running: int, lease_s: float) -> list[Held]:
        """Renew a worker's lease, and tell it what it holds and what of that is being cancelled."""
        expires = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, lease_s)
        renew = upsert(WorkerRow).values(id=worker, model=model, slots=slots, running=running, lease_expires_at=expires)
        renew = renew.on_conflict_do_update(
            index_elements=[WorkerRow.id],
            set_={"running": renew.excluded.running, "lease_expires_at": renew.excluded.lease_expires_at},
        )
        held = select(JobRow.id, JobRow.attempt, JobRow.status).where(
            JobRow.worker == worker, JobRow.status.in_(RUNNING)
        )
        async with self._engine.begin() as connection:
            await connection.execute(renew)
            return [Held(row.id, row.attempt, JobStatus(row.status)) for row in await connection.execute(held)]

    async def forget_worker(self, worker: str) -> None:
        """End a worker's lease at once."""
        async with self._engine.begin() as connection:
            await connection.execute(delete(WorkerRow).where(WorkerRow.id == worker))

    async def live_workers(self) -> dict[str, int]:
        """Workers with a lease, by model."""
        statement = (
            select(WorkerRow.model, func.count().label("workers"))
            .where(WorkerRow.lease_expires_at > func.clock_timestamp())
            .group_by(WorkerRow.model)
        )
        async with self._engine.connect() as connection:
            return {row.model: row.workers for row in await connection.execute(statement)}

    async def _first(self, statement: Select[Any]) -> Row[Any] | None:
        async with self._engine.connect() as connection:
            row: Row[Any] | None = (await connection.execute(statement)).first()
        return row

    async def _changes(self, statement: Any) -> bool:
        async with self._engine.begin() as connection:
            return bool((await connection.execute(statement)).rowcount)


def _live_workers() -> Select[Any]:
    return select(WorkerRow.id).where(WorkerRow.lease_expires_at > func.clock_timestamp())


_DEATHS = '$[*] ? (@.outcome == "worker_lost")'


def _deaths() -> Any:
    """How many attempts ended with their worker's death."""
    entries = func.jsonb_path_query_array(JobRow.attempts, cast(_DEATHS, JSONPATH))
    return func.jsonb_array_length(entries)
