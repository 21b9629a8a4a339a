"""SQL about jobs as clients see them: submitting, reading, asking for a cancel, forgetting.

Every change of a job's state is one guarded statement, here, in `shared.postgres.claim_store` and in
`shared.postgres.recovery_store`: the row decides. A guard names the states that may be left and, for a worker, the
attempt and the worker that own the job, so that a duplicate, a late or a fenced writer changes nothing and is told so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Double,
    SmallInteger,
    Text,
    bindparam,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.domain.errors import ErrorCode, KeyReused
from shared.domain.job import RUNNING, TERMINAL, Job, JobStatus, WorkerState, new_job_id
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.request_context import REQUEST_CONTEXT, RequestContext
from shared.domain.response import ResponseFacts
from shared.postgres.engine import transaction
from shared.postgres.group_commit import GroupCommit
from shared.postgres.job_rows import COLUMNS, JobRowStore, forget_statement, insert_queued, to_job
from shared.postgres.prepared import Prepared
from shared.postgres.store import Records, seconds
from shared.postgres.tables import IdempotencyKeyRow, JobRow, ResponseRow, WorkerRow


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a job is made from. The two times are seconds from now."""

    owner: Owner
    model: str
    priority: int
    request: GenerateRequest
    metadata: dict[str, str] = field(default_factory=dict)
    start_within_s: float | None = None
    finish_within_s: float | None = None
    request_context: RequestContext = field(default_factory=REQUEST_CONTEXT.get)
    response: ResponseFacts | None = None


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's `Idempotency-Key`, and the digest of what it was sent with."""

    key: str
    request_sha256: str


@dataclass(frozen=True, slots=True)
class _Inserted:
    """What the database adds to a new job."""

    created_at: datetime
    start_before: datetime | None
    finish_before: datetime | None


_NEW = Records(
    "new",
    id=Text,
    project_id=BigInteger,
    key_id=BigInteger,
    end_user=Text,
    model=Text,
    priority=SmallInteger,
    request=JSON,
    metadata=JSON,
    start_within_s=Double,
    finish_within_s=Double,
    request_id=Text,
    traceparent=Text,
)
_INSERT = insert_queued(
    _NEW,
    {
        JobRow.project_id: _NEW.project_id,
        JobRow.key_id: _NEW.key_id,
        JobRow.end_user: _NEW.end_user,
        JobRow.priority: _NEW.priority,
        JobRow.start_before: func.now() + seconds(_NEW.start_within_s),
        JobRow.finish_before: func.now() + seconds(_NEW.finish_within_s),
        JobRow.request_id: _NEW.request_id,
        JobRow.traceparent: _NEW.traceparent,
    },
).returning(JobRow.id, JobRow.created_at, JobRow.start_before, JobRow.finish_before)

# The same, with the rows of those that are responses: one statement is one commit.
_RESPONSES = Records(
    "response", job_id=Text, asked=JSON, input=JSON, previous_id=Text, background=Boolean, stored=Boolean
)
_RESPONSE_COLUMNS = {
    ResponseRow.job_id: _RESPONSES.job_id,
    ResponseRow.asked: _RESPONSES.asked,
    ResponseRow.input: _RESPONSES.input,
    ResponseRow.previous_id: _RESPONSES.previous_id,
    ResponseRow.background: _RESPONSES.background,
    ResponseRow.stored: _RESPONSES.stored,
}
_INSERTED = _INSERT.cte("inserted")
_INSERT_WITH_RESPONSES = select(*_INSERTED.c).add_cte(
    insert(ResponseRow)
    .from_select(list(_RESPONSE_COLUMNS), select(*_RESPONSE_COLUMNS.values()))
    .cte("responses_inserted")
)
_PREPARED = {statement: Prepared(statement) for statement in (_INSERT, _INSERT_WITH_RESPONSES)}


class JobStore(JobRowStore):
    """Jobs in PostgreSQL."""

    def __init__(self, engine: AsyncEngine, region: str = "") -> None:
        super().__init__(engine, region)
        self._commit = GroupCommit(self._insert, weigh=_weight)

    async def insert(self, new: NewJob, idempotency: Idempotency | None = None) -> tuple[Job, bool]:
        """Commit a new job, `queued`. When this returns, the job is safe.

        With an idempotency key that was used before, the job of its first use is returned, and False: the key's
        row and the job's are committed together, and a second writer waits for the first.

        Raises:
            KeyReused: the key was used with another request.
        """
        job_id = new_job_id(self._region)
        record = _record(job_id, new)
        if idempotency is None:
            return _job(job_id, new, await self._commit(record)), True
        async with transaction(self._engine) as connection:
            first = await _first_use(connection, new.owner, idempotency, job_id)
            if first is None:
                statement, parameters = _to_insert([record])
                (inserted,) = _in_order(await connection.execute(statement, parameters), [record])
                return _job(job_id, new, inserted), True
            existing = select(*COLUMNS).where(JobRow.id == first, JobRow.deleted_at.is_(None))
            row = (await connection.execute(existing)).first()
        if row is None:
            raise KeyReused("The job of this Idempotency-Key was deleted.")
        return to_job(row), False

    async def _insert(self, new: Sequence[dict[str, Any]]) -> list[_Inserted]:
        statement, parameters = _to_insert(new)
        return _in_order(await _PREPARED[statement].run(self._engine, parameters), new)

    async def get(self, job_id: str, project_id: int | None = None) -> Job | None:
        """A job; with `project_id`, only if that project owns it."""
        statement = select(*COLUMNS).where(JobRow.id == job_id, JobRow.deleted_at.is_(None))
        if project_id is not None:
            statement = statement.where(JobRow.project_id == project_id)
        row = await self._first(statement)
        return to_job(row) if row is not None else None

    async def archived_log(self, job_id: str) -> str | None:
        """A finished job's events as lines; None while it is not finished."""
        statement = select(JobRow.log).where(JobRow.id == job_id, JobRow.status.in_(TERMINAL))
        row = await self._first(statement)
        return None if row is None else row.log or ""  # a deleted job's is forgotten

    async def ended(self, job_ids: Sequence[str]) -> set[str]:
        """Those of the jobs that have ended."""
        statement = select(JobRow.id).where(
            JobRow.id == func.any(bindparam("ids", list(job_ids), type_=ARRAY(Text))), JobRow.status.in_(TERMINAL)
        )
        async with self._engine.connect() as connection:
            return set((await connection.execute(statement)).scalars())

    async def page(
        self,
        project_id: int,
        *,
        status: JobStatus | None = None,
        model: str | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> list[Job]:
        """A project's jobs, newest first, older than `after`."""
        statement = (
            select(*COLUMNS)
            .where(JobRow.project_id == project_id, JobRow.deleted_at.is_(None))
            .order_by(JobRow.id.desc())
            .limit(limit)
        )
        if status is not None:
            statement = statement.where(JobRow.status == status.value)
        if model is not None:
            statement = statement.where(JobRow.model == model)
        if after is not None:
            statement = statement.where(JobRow.id < after)
        return await self._jobs(statement)

    async def delete(self, job_id: str, project_id: int) -> bool:
        """Forget a finished job's input and output; the bare row stays for accounting."""
        statement = forget_statement(JobRow.id == job_id, JobRow.project_id == project_id)
        async with self._engine.connect() as connection:
            return (await connection.execute(statement)).first() is not None

    async def mark_cancelling(self, job_id: str) -> str | None:
        """Ask for a running job's cancellation. Returns its worker, or None where it is not running."""
        statement = (
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.status.in_(RUNNING))
            .values({JobRow.status: JobStatus.CANCELLING.value})
            .returning(JobRow.worker)
        )
        async with self._engine.connect() as connection:
            return (await connection.execute(statement)).scalar_one_or_none()

    async def exhausted(self, limit: int = 1000) -> list[Job]:
        """Jobs that failed because their workers died, newest first."""
        statement = (
            select(*COLUMNS)
            .where(
                JobRow.status == JobStatus.FAILED.value,
                JobRow.error_code == ErrorCode.ATTEMPTS_EXHAUSTED.value,
                JobRow.deleted_at.is_(None),
            )
            .order_by(JobRow.id.desc())
            .limit(limit)
        )
        return await self._jobs(statement)

    async def live_workers(self) -> dict[str, int]:
        """Workers that are alive and ready, by model."""
        statement = (
            select(WorkerRow.model, func.count().label("workers"))
            .where(WorkerRow.lease_expires_at > func.clock_timestamp(), WorkerRow.state == WorkerState.READY.value)
            .group_by(WorkerRow.model)
        )
        async with self._engine.connect() as connection:
            return {row.model: row.workers for row in await connection.execute(statement)}


def _record(job_id: str, new: NewJob) -> dict[str, Any]:
    return {
        "id": job_id,
        "project_id": new.owner.project_id,
        "key_id": new.owner.key_id,
        "end_user": new.owner.end_user,
        "model": new.model,
        "priority": new.priority,
        "request": new.request.model_dump_json(exclude_none=True, exclude_defaults=True),
        "metadata": new.metadata,
        "start_within_s": new.start_within_s,
        "finish_within_s": new.finish_within_s,
        "request_id": new.request_context.request_id,
        "traceparent": new.request_context.traceparent,
        "response": None if new.response is None else {"job_id": job_id, **asdict(new.response)},
    }


def _weight(record: dict[str, Any]) -> int:
    response = record["response"]
    return len(record["request"]) * (1 if response is None else 2)  # its input is in both rows


def _job(job_id: str, new: NewJob, inserted: _Inserted) -> Job:
    return Job(
        id=job_id,
        owner=new.owner,
        model=new.model,
        status=JobStatus.QUEUED,
        priority=new.priority,
        request=new.request,
        metadata=new.metadata,
        created_at=inserted.created_at,
        start_before=inserted.start_before,
        finish_before=inserted.finish_before,
        request_context=new.request_context,
    )


def _to_insert(new: Sequence[dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
    """The statement for these records, and its parameters."""
    responses = [item["response"] for item in new if item["response"] is not None]
    if not responses:
        return _INSERT, _NEW.parameters(new)
    return _INSERT_WITH_RESPONSES, _NEW.parameters(new) | _RESPONSES.parameters(responses)


def _in_order(rows: Iterable[Any], new: Sequence[dict[str, Any]]) -> list[_Inserted]:
    """What was inserted, in the order of the records."""
    inserted = {row.id: _Inserted(row.created_at, row.start_before, row.finish_before) for row in rows}
    return [inserted[item["id"]] for item in new]


async def _first_use(connection: AsyncConnection, owner: Owner, idempotency: Idempotency, job_id: str) -> str | None:
    """Take an idempotency key for a job; where it is taken, the job that has it."""
    take = (
        upsert(IdempotencyKeyRow)
        .values(
            project_id=owner.project_id,
            key=idempotency.key,
            key_id=owner.key_id,
            request_sha256=idempotency.request_sha256,
            job_id=job_id,
        )
        .on_conflict_do_nothing()
    )
    if (await connection.execute(take)).rowcount:
        return None
    taken = select(IdempotencyKeyRow.request_sha256, IdempotencyKeyRow.job_id).where(
        IdempotencyKeyRow.project_id == owner.project_id, IdempotencyKeyRow.key == idempotency.key
    )
    row = (await connection.execute(taken)).one()
    if row.request_sha256 != idempotency.request_sha256:
        raise KeyReused
    return str(row.job_id)
