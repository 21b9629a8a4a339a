"""The jobs' rows as SQL: what is read of them, and the pieces that the stores' statements share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Select,
    SmallInteger,
    Text,
    and_,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from shared.domain.job import RUNNING, TERMINAL, Attempt, AttemptOutcome, Choice, Failure, Job, JobStatus, Usage
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.request_context import RequestContext
from shared.domain.result import JobResult
from shared.postgres.prepared import Prepared
from shared.postgres.store import Records, Store
from shared.postgres.tables import JobRow, ResponseRow, Timestamp, WorkerRow

# What an attempt's worker is called in the row once it has lost the job.
LOST = "/lost"

COLUMNS = (
    JobRow.id,
    JobRow.project_id,
    JobRow.key_id,
    JobRow.end_user,
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
    JobRow.request_id,
    JobRow.traceparent,
)


def to_job(row: Any) -> Job:
    """The job of a row of `COLUMNS`."""
    attempts = [_attempt(item) for item in row.attempts]
    if row.worker is not None and row.attempt_started_at is not None:
        attempts.append(Attempt(row.attempt, row.worker.removesuffix(LOST), row.attempt_started_at))
    return Job(
        id=row.id,
        owner=Owner(row.project_id, row.key_id, row.end_user),
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
        output=tuple(Choice.of(choice) for choice in row.output or ()),
        usage=Usage(**row.usage) if row.usage is not None else None,
        error=Failure(row.error_code, row.error_message) if row.error_code is not None else None,
        attempts=tuple(attempts),
        request_context=RequestContext(row.request_id, row.traceparent),
    )


def _attempt(item: dict[str, Any]) -> Attempt:
    return Attempt(
        number=item["number"],
        worker=item["worker"],
        started_at=datetime.fromisoformat(item["started_at"]),
        ended_at=datetime.fromisoformat(item["ended_at"]),
        tokens=item["tokens"],
        outcome=item["outcome"],
        fingerprint=item.get("fingerprint"),
    )


def ended_attempt(tokens: int, outcome: AttemptOutcome) -> Any:
    """The running attempt, appended to the row's history."""
    entry = func.jsonb_build_object(
        "number",
        JobRow.attempt,
        "worker",
        func.regexp_replace(JobRow.worker, f"{LOST}$", ""),
        "started_at",
        JobRow.attempt_started_at,
        "ended_at",
        func.clock_timestamp(),
        "tokens",
        tokens,
        "outcome",
        outcome.value,
    )
    return JobRow.attempts.op("||")(func.jsonb_build_array(entry, type_=JSONB))


def requeued(tokens: int, outcome: AttemptOutcome, *, deaths: int) -> dict[Any, Any]:
    """A running job's attempt is over, and it waits again. `deaths`: 1 where its worker's or its engine's ended it."""
    return {
        JobRow.status: JobStatus.QUEUED.value,
        JobRow.worker: None,
        JobRow.deaths: JobRow.deaths + deaths,
        JobRow.attempts: ended_attempt(tokens, outcome),
    }


_RESULTS = Records(
    "endings",
    id=Text,
    attempt=SmallInteger,
    status=Text,
    finished_at=Timestamp,
    first_token_at=Timestamp,
    output=JSON,
    usage=JSONB,
    error_code=Text,
    error_message=Text,
    attempts=JSONB,
    log=Text,
)


def insert_queued(new: Records, values: Mapping[Any, Any]) -> Any:
    """Insert a `queued` job for each record, which has at least an id, a model, a request and metadata."""
    columns = {
        JobRow.id: new.id,
        JobRow.model: new.model,
        JobRow.status: literal(JobStatus.QUEUED.value),
        JobRow.request: new.request,
        JobRow.job_metadata: new.metadata,
        # Every job is released to the queue at once. A dispatcher that withholds jobs overrides this with NULL.
        JobRow.dispatched_at: func.now(),
        **values,
    }
    return insert(JobRow).from_select(list(columns), select(*columns.values()))


def end_statement(*guards: ColumnElement[bool]) -> Any:
    """Give endings (`result_record`) to the jobs whose attempt they name and for which the guards hold.

    Returns ids. The guards leave a job's history of attempts no way to have grown since it was read.
    """
    ending = _RESULTS
    return (
        update(JobRow)
        .where(JobRow.id == ending.id, JobRow.attempt == ending.attempt, *guards)
        .values(
            {
                JobRow.status: ending.status,
                JobRow.worker: None,
                JobRow.finished_at: ending.finished_at,
                JobRow.first_token_at: func.coalesce(JobRow.first_token_at, ending.first_token_at),
                JobRow.output: ending.output,
                JobRow.usage: ending.usage,
                JobRow.error_code: ending.error_code,
                JobRow.error_message: ending.error_message,
                JobRow.attempts: ending.attempts,
                JobRow.log: ending.log,
            }
        )
        .returning(JobRow.id)
    )


def result_record(job_id: str, attempt: int, ending: JobResult) -> dict[str, Any]:
    """An ending as `end_statement` takes it."""
    error = ending.error
    return {
        "id": job_id,
        "attempt": attempt,
        "status": ending.status.value,
        "finished_at": ending.finished_at,
        "first_token_at": ending.first_token_at,
        "output": [choice.stored() for choice in ending.output],
        "usage": asdict(ending.usage),
        "error_code": error.code if error else None,
        # A message may quote anything; `text` refuses U+0000.
        "error_message": error.message.replace("\0", "\ufffd") if error else None,
        "attempts": [asdict(attempt) for attempt in ending.attempts],
        "log": ending.log,
    }


def forget_statement(*guards: ColumnElement[bool]) -> Any:
    """Forget the input and output of ended jobs for which the guards hold, and of the responses that they are.

    Returns ids. The bare row of the job stays, for accounting.
    """
    forgotten = (
        update(JobRow)
        .where(*guards, JobRow.deleted_at.is_(None), JobRow.status.in_(TERMINAL))
        .values(request={}, job_metadata={}, output=None, log=None, error_message=None, deleted_at=func.now())
        .returning(JobRow.id)
        .cte("forgotten")
    )
    response = delete(ResponseRow).where(ResponseRow.job_id.in_(select(forgotten.c.id)))
    return select(forgotten.c.id).add_cte(response.cte("response"))


def owned(job_id: str, attempt: int, worker: str) -> ColumnElement[bool]:
    """A job runs, and this is the attempt and the worker that own it."""
    return and_(
        JobRow.id == job_id,
        JobRow.attempt == attempt,
        JobRow.worker == worker,
        JobRow.status.in_(RUNNING),
    )


def live_workers() -> Select[str]:
    return select(WorkerRow.id).where(WorkerRow.lease_expires_at > func.clock_timestamp())


def overdue() -> ColumnElement[bool]:
    """A job's time is up. Once it has been started, only its finish counts."""
    now = func.clock_timestamp()
    return or_(
        func.coalesce(and_(JobRow.start_before < now, JobRow.started_at.is_(None)), False),
        func.coalesce(JobRow.finish_before < now, False),
    )


class JobRowStore(Store):
    """What the stores of jobs share."""

    async def _jobs(self, statement: Select[Any]) -> list[Job]:
        async with self._engine.connect() as connection:
            return [to_job(row) for row in await connection.execute(statement)]

    async def _end(self, statement: Prepared, endings: Sequence[dict[str, Any]], **values: object) -> list[bool]:
        """Run an `end_statement`: which of the endings were written."""
        ended = {row.id for row in await statement.run(self._engine, {**_RESULTS.parameters(endings), **values})}
        return [item["id"] in ended for item in endings]
