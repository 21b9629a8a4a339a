"""SQL about the jobs of a batch's lines: inserts them, with what they reserve of budgets, and reads their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Integer,
    LargeBinary,
    Select,
    SmallInteger,
    Text,
    bindparam,
    func,
    literal,
    null,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from api.batches.batch import Batch
from shared.domain.answer_options import NO_REQUEST_OPTIONS, RequestOptions
from shared.domain.budgets import WindowReservation
from shared.domain.decisions import NO_DECISIONS, Decisions
from shared.domain.job import Job, JobSummary, new_job_id
from shared.domain.log_level import LogLevel, level_to_store
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.priorities import BATCH_PRIORITY, Hint
from shared.domain.request import GenerateRequest
from shared.postgres.budgets import RESERVATIONS, Reserving, refusals, reservation_records
from shared.postgres.job_inserts import insert_answered, insert_queued
from shared.postgres.job_rows import CHARGE, COLUMNS, LOG, to_summary
from shared.postgres.store import Records
from shared.postgres.tables import JobRow, Timestamp
from shared.runtime.offload import off_loop

# Bytes of outputs and logs, compressed, that one statement reads.
PAGE_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class BatchJob:
    """The job of a line, before it is stored."""

    line: int
    model: str
    request: GenerateRequest
    metadata: dict[str, str]
    end_user: str | None = None
    requested_model: str | None = None
    decisions: Decisions = NO_DECISIONS
    options: RequestOptions = NO_REQUEST_OPTIONS
    cache_key: bytes | None = None
    reservations: tuple[WindowReservation, ...] = ()
    log_level: LogLevel | None = None

    def new(self, batch: Batch) -> NewJob:
        """The job to admit."""
        owner = Owner(batch.project_id, batch.key_id, self.end_user)
        return NewJob(owner, self.model, BATCH_PRIORITY, self.request, self.metadata, options=self.options)


@dataclass(frozen=True, slots=True)
class SubmittedLines:
    """The jobs that were stored: the ids of all in their order, the hints for those that are queued, and those that the
    response cache answered, with the keys of their answers."""

    ids: Sequence[str]
    hints: Sequence[Hint]
    answered: Sequence[JobSummary]
    keys: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Nothing was written, because budgets have no room for the job of this line; they have for those before it."""

    line: int


@dataclass(frozen=True, slots=True)
class LineResult:
    """The job of a line. `log` is the archive of its events, if requested."""

    line: int
    job: Job
    log: str | None


_NEW = Records(
    "new",
    id=Text,
    project_id=BigInteger,
    model=Text,
    request=JSON,
    prompt_bytes=Integer,
    choices=SmallInteger,
    metadata=JSON,
    end_user=Text,
    line=Integer,
    requested_model=Text,
    decisions=JSONB,
    log_level=Text,
    cache_key=LargeBinary,
    max_age_s=Integer,
)
_VALUES = {
    JobRow.project_id: _NEW.project_id,
    JobRow.key_id: bindparam("key", type_=BigInteger),
    JobRow.end_user: _NEW.end_user,
    JobRow.priority: literal(BATCH_PRIORITY),
    JobRow.finish_before: bindparam("expires_at", type_=Timestamp),
    JobRow.batch_id: bindparam("batch", type_=Text),
    JobRow.batch_line: _NEW.line,
    JobRow.prompt_bytes: _NEW.prompt_bytes,
    JobRow.requested_model: _NEW.requested_model,
    JobRow.decisions: _NEW.decisions,
    JobRow.log_level: _NEW.log_level,
}
# A line neither leads nor follows a job with the same request. With a key, its answer is stored in the response cache.
_QUEUED_VALUES: dict[Any, Any] = {**_VALUES, JobRow.entry_key: _NEW.cache_key}
_SUBMIT = insert_queued(_NEW, _QUEUED_VALUES).returning(JobRow.id)


@cache
def _submit_within_budgets() -> Any:
    """As `_SUBMIT`, for jobs that reserve in the windows of budgets."""
    reserving = Reserving()

    def admitted(records: Select[Any]) -> Select[Any]:
        return records.where(reserving.admitted(_NEW.id))

    inserted = insert_queued(_NEW, _QUEUED_VALUES, admitted).returning(JobRow.id).cte("inserted")
    return reserving.with_reservations(inserted)


_, _ANSWER = insert_answered(_NEW, _VALUES)


async def job_records(batch: Batch, jobs: Sequence[BatchJob], region: str) -> list[dict[str, Any]]:
    """The rows of new jobs, in their order, for `insert_jobs`."""
    return [
        {
            "id": new_job_id(region),
            "project_id": batch.project_id,
            "model": job.model,
            "request": await _request_json(job.request),
            "prompt_bytes": job.request.prompt_bytes,
            "choices": job.request.sampling.n,
            "metadata": job.metadata,
            "end_user": job.end_user,
            "line": job.line,
            "requested_model": job.requested_model,
            "decisions": job.decisions.stored(),
            "log_level": level_to_store(job.log_level),
            "cache_key": job.cache_key,
            "max_age_s": None,
        }
        for job in jobs
    ]


async def insert_jobs(
    connection: AsyncConnection, batch: Batch, jobs: Sequence[BatchJob], records: Sequence[dict[str, Any]]
) -> SubmittedLines | NoRoom:
    """Insert jobs, whose rows are `records`: as completed, if the response cache has their answers.

    After `NoRoom`, the transaction must be rolled back.
    """
    # In an order that all statements with several entries of the cache follow.
    keyed = sorted((item for item in records if item["cache_key"] is not None), key=lambda item: item["cache_key"])
    common = {"key": batch.key_id, "expires_at": batch.expires_at, "batch": batch.id}
    rows = (await connection.execute(_ANSWER, {**_NEW.parameters(keyed), **common})).all() if keyed else []
    answered = {row.id for row in rows}
    queued = [item for item in records if item["id"] not in answered]
    reservations = [
        one
        for place, (item, job) in enumerate(zip(records, jobs, strict=True))
        if item["id"] not in answered
        for one in reservation_records(item["id"], job.reservations, place)
    ]
    parameters = {**_NEW.parameters(queued), **common}
    if reservations:
        parameters |= RESERVATIONS.parameters(reservations)
        refused = refusals(await connection.execute(_submit_within_budgets(), parameters))
        if refused:
            return NoRoom(next(item["line"] for item in queued if item["id"] in refused))
    elif queued:
        await connection.execute(_SUBMIT, parameters)
    hints = [Hint(item["id"], item["model"], BATCH_PRIORITY) for item in queued]
    keys = [item["cache_key"] for item in keyed if item["id"] in answered]
    return SubmittedLines([item["id"] for item in records], hints, [to_summary(row) for row in rows], keys)


def results_statement(batch_id: str, after_line: int, limit: int, *, log: bool) -> Select[Any]:
    """Select the jobs of the next lines after `after_line`, in order: at least one, and fewer if they are large."""
    answer = aliased(JobRow, name="answer")
    shared = (
        select(_stored_bytes(answer.output, answer.log))
        .where(answer.id == JobRow.answered_by)
        .correlate(JobRow)
        .scalar_subquery()
    )
    size = _stored_bytes(JobRow.output, JobRow.log) + func.coalesce(shared, 0)
    lines = (
        select(JobRow.batch_line, func.sum(size).over(order_by=JobRow.batch_line).label("total"))
        .where(JobRow.batch_id == batch_id, JobRow.batch_line > after_line)
        .order_by(JobRow.batch_line)
        .limit(limit)
        .subquery()
    )
    first = select(func.min(lines.c.batch_line)).scalar_subquery()
    return (
        select(*COLUMNS, CHARGE, JobRow.batch_line, (LOG if log else null()).label("log"))
        .join(lines, lines.c.batch_line == JobRow.batch_line)
        .where(JobRow.batch_id == batch_id, or_(lines.c.total <= PAGE_BYTES, lines.c.batch_line == first))
        .order_by(JobRow.batch_line)
    )


def _stored_bytes(output: Any, log: Any) -> Any:
    """The bytes of a row's output and log."""
    return func.coalesce(func.pg_column_size(output), 0) + func.coalesce(func.pg_column_size(log), 0)


async def _request_json(request: GenerateRequest) -> str:
    size = request.size + request.options_size
    return await off_loop(size, request.model_dump_json, exclude_none=True, exclude_defaults=True)
