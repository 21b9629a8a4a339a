"""SQL for the rows of jobs: the columns to read, and the statements and conditions that stores share.

Two statements here are seams, where everything that must happen once per job belongs: `insert_queued` is the only SQL
that creates a job, and `end_statement` is the only SQL that ends one. A test checks that no other SQL does either.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeVar

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

from shared.domain.errors import UnreadableRow
from shared.domain.job import (
    RUNNING,
    TERMINAL,
    Attempt,
    AttemptOutcome,
    Choice,
    Failure,
    Job,
    JobState,
    JobStatus,
    Usage,
)
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.request_context import RequestContext
from shared.domain.result import JobResult
from shared.postgres.prepared import Prepared
from shared.postgres.store import Records, Store, readable
from shared.postgres.tables import JobRow, ResponseRow, Timestamp, WorkerRow

logger = logging.getLogger(__name__)

J = TypeVar("J", bound=JobState)

# Suffix of `worker` in the row of a job whose claim was revoked or released.
LOST = "/lost"

STATE_COLUMNS = (
    JobRow.id,
    JobRow.project_id,
    JobRow.key_id,
    JobRow.end_user,
    JobRow.model,
    JobRow.status,
    JobRow.priority,
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
    JobRow.request_id,
    JobRow.traceparent,
    JobRow.choices,
)
COLUMNS = (
    *STATE_COLUMNS,
    JobRow.request,
    JobRow.job_metadata,
    JobRow.output,
    JobRow.usage,
    JobRow.error_code,
    JobRow.error_message,
)


def to_state(row: Any) -> JobState:
    """Build the state of a job from a row of `STATE_COLUMNS`.

    Raises:
        UnreadableRow: this version cannot read the row.
    """
    with readable("job", row.id):
        return JobState(**_state(row))


def to_job(row: Any) -> Job:
    """Build a job from a row of `COLUMNS`.

    Raises:
        UnreadableRow: this version cannot read the row.
    """
    with readable("job", row.id):
        return Job(
            **_state(row),
            request=GenerateRequest.model_validate(row.request),
            metadata=row.metadata,
            output=tuple(Choice.of(choice) for choice in row.output or ()),
            usage=Usage.of(row.usage) if row.usage is not None else None,
            error=Failure(row.error_code, row.error_message) if row.error_code is not None else None,
        )


def _state(row: Any) -> dict[str, Any]:
    attempts = [_attempt(item) for item in row.attempts]
    if row.worker is not None and row.attempt_started_at is not None:
        attempts.append(Attempt(row.attempt, row.worker.removesuffix(LOST), row.attempt_started_at))
    return {
        "id": row.id,
        "owner": Owner(row.project_id, row.key_id, row.end_user),
        "model": row.model,
        "status": JobStatus(row.status),
        "priority": row.priority,
        "created_at": row.created_at,
        "start_before": row.start_before,
        "finish_before": row.finish_before,
        "attempt": row.attempt,
        "deaths": row.deaths,
        "worker": row.worker,
        "started_at": row.started_at,
        "first_token_at": row.first_token_at,
        "finished_at": row.finished_at,
        "attempts": tuple(attempts),
        "request_context": RequestContext(row.request_id, row.traceparent),
        "choices": row.choices,
    }


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
    """The value of `attempts` with the running attempt appended."""
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
    """The values that put a running job back into the queue. `deaths` is 1 if its worker or engine died, else 0."""
    return {
        JobRow.status: JobStatus.QUEUED.value,
        JobRow.worker: None,
        JobRow.deaths: JobRow.deaths + deaths,
        JobRow.attempts: ended_attempt(tokens, outcome),
    }


_RESULTS = Records(
    "results",
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
    """The only SQL that creates jobs, and the entry seam: inserts one `queued` job per record.

    A record has at least an id, a model, a request, its number of choices and metadata; `values` sets further columns. Whatever must be
    written exactly once with a new job (such as a budget reservation) joins this statement as a CTE: in the same
    transaction, without an extra round trip. A dispatcher that withholds jobs sets `JobRow.dispatched_at` to NULL here,
    so that redelivery does not take their missing messages for lost ones.
    """
    columns = {
        JobRow.id: new.id,
        JobRow.model: new.model,
        JobRow.status: literal(JobStatus.QUEUED.value),
        JobRow.request: new.request,
        JobRow.choices: new.choices,
        JobRow.job_metadata: new.metadata,
        # Every job is released to the queue at once, unless `values` say otherwise.
        JobRow.dispatched_at: func.now(),
        **values,
    }
    return insert(JobRow).from_select(list(columns), select(*columns.values()))


def end_statement(*guards: ColumnElement[bool]) -> Any:
    """The only SQL that ends jobs, and the exit seam: writes results (`result_record`) to jobs, and returns their ids.

    Whatever must be written exactly once when a job ends (a ledger entry, a webhook outbox row) joins this statement
    as a CTE that inserts from the rows which the update returns, as in `purge_statement`: in the same transaction,
    without an extra round trip. That covers every end: by the job's worker, while the job waits, or after its worker
    was lost.

    Optimistic lock: a job ends only if the guards hold and it is still at the attempt that its result names, so that
    no attempt was added to its history since it was read.
    """
    result = _RESULTS
    return (
        update(JobRow)
        .where(JobRow.id == result.id, JobRow.attempt == result.attempt, *guards)
        .values(
            {
                JobRow.status: result.status,
                JobRow.worker: None,
                JobRow.finished_at: result.finished_at,
                JobRow.first_token_at: func.coalesce(JobRow.first_token_at, result.first_token_at),
                JobRow.output: result.output,
                JobRow.usage: result.usage,
                JobRow.error_code: result.error_code,
                JobRow.error_message: result.error_message,
                JobRow.attempts: result.attempts,
                JobRow.log: result.log,
            }
        )
        .returning(JobRow.id)
    )


def result_record(job_id: str, attempt: int, result: JobResult) -> dict[str, Any]:
    """A record for `end_statement`."""
    error = result.error
    return {
        "id": job_id,
        "attempt": attempt,
        "status": result.status.value,
        "finished_at": result.finished_at,
        "first_token_at": result.first_token_at,
        "output": [choice.stored() for choice in result.output],
        "usage": asdict(result.usage),
        "error_code": error.code if error else None,
        # A message may quote anything, and `text` refuses U+0000.
        "error_message": error.message.replace("\0", "\ufffd") if error else None,
        "attempts": [asdict(attempt) for attempt in result.attempts],
        "log": result.log,
    }


def purge_statement(*guards: ColumnElement[bool]) -> Any:
    """Delete the input and output of ended jobs for which the guards hold, and their responses; returns the ids.

    The rows remain, for accounting.
    """
    purged = (
        update(JobRow)
        .where(*guards, JobRow.deleted_at.is_(None), JobRow.status.in_(TERMINAL))
        .values(request={}, job_metadata={}, output=None, log=None, error_message=None, deleted_at=func.now())
        .returning(JobRow.id)
        .cte("purged")
    )
    response = delete(ResponseRow).where(ResponseRow.job_id.in_(select(purged.c.id)))
    return select(purged.c.id).add_cte(response.cte("response"))


def owned(job_id: str, attempt: int, worker: str) -> ColumnElement[bool]:
    """Condition: the job is running, and this attempt of this worker owns it."""
    return and_(
        JobRow.id == job_id,
        JobRow.attempt == attempt,
        JobRow.worker == worker,
        JobRow.status.in_(RUNNING),
    )


def live_workers() -> Select[str]:
    """The ids of the workers whose lease has not expired."""
    return select(WorkerRow.id).where(WorkerRow.lease_expires_at > func.clock_timestamp())


def overdue() -> ColumnElement[bool]:
    """Condition: a deadline of the job has passed. Once a job was started, only its finish deadline counts."""
    now = func.clock_timestamp()
    return or_(
        func.coalesce(and_(JobRow.start_before < now, JobRow.started_at.is_(None)), False),
        func.coalesce(JobRow.finish_before < now, False),
    )


class JobRowStore(Store):
    """The base class of stores of jobs."""

    async def _readable(self, statement: Select[Any], build: Callable[[Any], J]) -> list[J]:
        """Build jobs from rows, without those that this version cannot read: one row must not fail the others."""
        jobs = []
        for row in await self._all(statement, lambda row: row):
            try:
                jobs.append(build(row))
            except UnreadableRow as error:
                logger.warning("job=%s cannot be read: %s", error.item_id, error.reason)
        return jobs

    async def _end(self, statement: Prepared, results: Sequence[dict[str, Any]], **values: object) -> list[bool]:
        """Run an `end_statement`; return for each result whether it was written."""
        ended = {row.id for row in await statement.run(self._engine, {**_RESULTS.parameters(results), **values})}
        return [item["id"] in ended for item in results]
