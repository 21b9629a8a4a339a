"""All SQL about jobs. Every change of a job's state is one guarded statement here: the row decides.

A guard names the states that may be left and, for a worker, the attempt and the worker that own the job, so
that a duplicate, a late or a fenced writer changes nothing and is told so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, and_, delete, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.ending import Ending
from shared.errors import ErrorCode, HeadraceError
from shared.job import RUNNING, TERMINAL, Attempt, Choice, Failure, Job, JobStatus, Usage, WorkerState, new_job_id
from shared.models import IdempotencyKeyRow, JobRow, WorkerRow
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
    JobRow.start_before,
    JobRow.finish_before,
    JobRow.attempt,
    JobRow.deaths,
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
class NewJob:
    """What a job is made from. The two times are seconds from now."""

    key_id: int
    model: str
    priority: int
    request: GenerateRequest
    metadata: dict[str, str] = field(default_factory=dict)
    start_within_s: float | None = None
    finish_within_s: float | None = None


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's `Idempotency-Key`, and the digest of what it was sent with."""

    key: str
    request_sha256: str


class KeyReused(HeadraceError):
    """This Idempotency-Key was used with another request."""


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
        start_before=row.start_before,
        finish_before=row.finish_before,
        attempt=row.attempt,
        deaths=row.deaths,
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
        # A message may quote the prompt; `text` refuses U+0000.
        JobRow.error_message: ending.error.message.replace("\0", "\ufffd") if ending.error else None,
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

    async def insert(self, new: NewJob, idempotency: Idempotency | None = None) -> tuple[Job, bool]:
        """Commit a new job, `queued`. When this returns, the job is safe.

        With an idempotency key that was used before, the job of its first use is returned, and False: the key's
        row and the job's are committed together, and a second writer waits for the first.

        Raises:
            KeyReused: the key was used with another request.
        """
        job_id = new_job_id()
        statement = (
            insert(JobRow)
            .values(
                id=job_id,
                key_id=new.key_id,
                model=new.model,
                status=JobStatus.QUEUED.value,
                priority=new.priority,
                request=new.request.model_dump(exclude_none=True, exclude_defaults=True),
                job_metadata=new.metadata,
                start_before=_from_now(new.start_within_s),
                finish_before=_from_now(new.finish_within_s),
            )
            .returning(JobRow.created_at, JobRow.start_before, JobRow.finish_before)
        )
        async with self._engine.begin() as connection:
            if idempotency is not None:
                first = await _first_use(connection, new.key_id, idempotency, job_id)
                if first is not None:
                    existing = select(*_COLUMNS).where(JobRow.id == first, JobRow.deleted_at.is_(None))
                    row = (await connection.execute(existing)).first()
                    if row is None:
                        raise KeyReused("The job of this Idempotency-Key was deleted.")
                    return _job(row), False
            inserted = (await connection.execute(statement)).one()
        job = Job(
            id=job_id,
            key_id=new.key_id,
            model=new.model,
            status=JobStatus.QUEUED,
            priority=new.priority,
            request=new.request,
            metadata=new.metadata,
            created_at=inserted.created_at,
            start_before=inserted.start_before,
            finish_before=inserted.finish_before,
        )
        return job, True

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
        return None if row is None else row.log or ""  # a deleted job's is forgotten

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
        """Take a queued job: attempt n+1 of `worker`. None: it does not wait any more, or its time is up."""
        statement = (
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.status == JobStatus.QUEUED.value, ~_overdue())
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
        died: bool = False,
        first_token_at: datetime | None = None,
    ) -> bool:
        """Put a job that this attempt owns back into the queue. False: it is not owned, or is being cancelled.

        `died`: the engine died under it, which counts as its worker's death.
        """
        statement = (
            update(JobRow)
            .where(_owned(job_id, attempt, worker), JobRow.status == JobStatus.IN_PROGRESS.value)
            .values(
                {
                    JobRow.status: JobStatus.QUEUED.value,
                    JobRow.worker: None,
                    JobRow.deaths: JobRow.deaths + int(died),
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
                JobRow.deaths < max_attempts - 1,
                ~_overdue(),
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
                    JobRow.deaths: JobRow.deaths + 1,
                    JobRow.attempts: _ended_attempt(0, "worker_lost"),
                    JobRow.worker: None,
                }
            )
            .returning(JobRow.id, JobRow.model, JobRow.priority)
        )
        async with self._engine.begin() as connection:
            return [Hint(*row) for row in await connection.execute(statement)]

    async def lost_to_end(self, max_attempts: int, limit: int = 100) -> list[Job]:
        """Jobs of silent workers that are not tried again: being cancelled, out of attempts, or out of time."""
        statement = (
            select(*_COLUMNS)
            .where(
                JobRow.status.in_(RUNNING),
                JobRow.worker.not_in(_live_workers()),
                or_(
                    JobRow.status == JobStatus.CANCELLING.value,
                    JobRow.deaths >= max_attempts - 1,
                    _overdue(),
                ),
            )
            .limit(limit)
        )
        async with self._engine.connect() as connection:
            return [_job(row) for row in await connection.execute(statement)]

    async def overdue(self, limit: int = 500) -> list[Job]:
        """Queued jobs whose time is up: not started by `start_before`, or not finished by `finish_before`."""
        statement = select(*_COLUMNS).where(JobRow.status == JobStatus.QUEUED.value, _overdue()).limit(limit)
        async with self._engine.connect() as connection:
            return [_job(row) for row in await connection.execute(statement)]

    async def exhausted(self, limit: int = 1000) -> list[Job]:
        """Jobs that failed because their workers died, newest first."""
        statement = (
            select(*_COLUMNS)
            .where(
                JobRow.status == JobStatus.FAILED.value,
                JobRow.error_code == ErrorCode.ATTEMPTS_EXHAUSTED.value,
                JobRow.deleted_at.is_(None),
            )
            .order_by(JobRow.id.desc())
            .limit(limit)
        )
        async with self._engine.connect() as connection:
            return [_job(row) for row in await connection.execute(statement)]

    async def forget_idempotency_keys(self, older_than_s: int) -> None:
        """Free keys for another use."""
        statement = delete(IdempotencyKeyRow).where(
            IdempotencyKeyRow.created_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, older_than_s)
        )
        await self._changes(statement)

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

    async def heartbeat(
        self,
        worker: str,
        model: str,
        *,
        slots: int,
        running: int,
        lease_s: float,
        state: WorkerState = WorkerState.READY,
    ) -> list[Held]:
        """Renew a worker's lease, and tell it what it holds and what of that is being cancelled."""
        expires = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, lease_s)
        renew = upsert(WorkerRow).values(
            id=worker, model=model, slots=slots, running=running, state=state.value, lease_expires_at=expires
        )
        renew = renew.on_conflict_do_update(
            index_elements=[WorkerRow.id],
            set_={name: renew.excluded[name] for name in ("running", "state", "lease_expires_at")},
        )
        async with self._engine.begin() as connection:
            await connection.execute(renew)
            return await _held(connection, worker)

    async def held(self, worker: str) -> list[Held]:
        """The running jobs that a worker owns."""
        async with self._engine.connect() as connection:
            return await _held(connection, worker)

    async def forget_worker(self, worker: str) -> None:
        """End a worker's lease at once."""
        async with self._engine.begin() as connection:
            await connection.execute(delete(WorkerRow).where(WorkerRow.id == worker))

    async def live_workers(self) -> dict[str, int]:
        """Workers that are alive and ready, by model."""
        statement = (
            select(WorkerRow.model, func.count().label("workers"))
            .where(WorkerRow.lease_expires_at > func.clock_timestamp(), WorkerRow.state == WorkerState.READY.value)
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


async def _held(connection: AsyncConnection, worker: str) -> list[Held]:
    held = select(JobRow.id, JobRow.attempt, JobRow.status).where(JobRow.worker == worker, JobRow.status.in_(RUNNING))
    return [Held(row.id, row.attempt, JobStatus(row.status)) for row in await connection.execute(held)]


def _live_workers() -> Select[Any]:
    return select(WorkerRow.id).where(WorkerRow.lease_expires_at > func.clock_timestamp())


def _overdue() -> Any:
    """A job's time is up. Once it has been started, only its finish counts."""
    now = func.clock_timestamp()
    return or_(
        func.coalesce(and_(JobRow.start_before < now, JobRow.started_at.is_(None)), False),
        func.coalesce(JobRow.finish_before < now, False),
    )


def _from_now(seconds: float | None) -> Any:
    return None if seconds is None else func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


async def _first_use(connection: AsyncConnection, key_id: int, idempotency: Idempotency, job_id: str) -> str | None:
    """Take an idempotency key for a job; where it is taken, the job that has it."""
    take = (
        upsert(IdempotencyKeyRow)
        .values(key_id=key_id, key=idempotency.key, request_sha256=idempotency.request_sha256, job_id=job_id)
        .on_conflict_do_nothing()
    )
    if (await connection.execute(take)).rowcount:
        return None
    taken = select(IdempotencyKeyRow.request_sha256, IdempotencyKeyRow.job_id).where(
        IdempotencyKeyRow.key_id == key_id, IdempotencyKeyRow.key == idempotency.key
    )
    row = (await connection.execute(taken)).one()
    if row.request_sha256 != idempotency.request_sha256:
        raise KeyReused
    return str(row.job_id)
