"""SQL for the rows of jobs: the columns to read, and the statements and conditions that stores share.

Two statements here are seams, where everything that must happen once per job belongs: `insert_queued` is the only SQL
that creates a job, and `end_statement` is the only SQL that ends one. A test checks that no other SQL does either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import (
    JSON,
    ColumnElement,
    Integer,
    Select,
    SmallInteger,
    Text,
    and_,
    delete,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB

from shared.domain.decisions import NO_DECISIONS, Decisions
from shared.domain.job import (
    RUNNING,
    TERMINAL,
    Attempt,
    AttemptOutcome,
    Choice,
    Failure,
    Job,
    JobStatus,
    JobSummary,
    Usage,
)
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.request_context import RequestContext
from shared.domain.result import JobResult
from shared.postgres.prepared import Prepared
from shared.postgres.store import Encoded, Records, Store, readable, seconds
from shared.postgres.tables import JobRow, ResponseRow, SummaryRow, Timestamp, UpstreamCancellationRow, WorkerRow
from shared.postgres.upstream_cancellations import stored_state
from shared.runtime import chunked_json
from shared.runtime.offload import INLINE_BYTES, off_loop

# With literals: if the status were a parameter, the generic plan, which PostgreSQL may use from the sixth execution on,
# could not use the partial indexes of queued and of running jobs.
IS_QUEUED = JobRow.status == literal_column(f"'{JobStatus.QUEUED.value}'")
IS_RUNNING = JobRow.status.in_([literal_column(f"'{status.value}'") for status in RUNNING])

# Suffix of `worker` in the row of a job whose claim was revoked or released.
LOST = "/lost"

SUMMARY_COLUMNS = (
    JobRow.id,
    JobRow.project_id,
    JobRow.key_id,
    JobRow.end_user,
    JobRow.model,
    JobRow.status,
    JobRow.priority,
    JobRow.job_metadata,
    JobRow.created_at,
    JobRow.start_before,
    JobRow.finish_before,
    JobRow.not_before,
    JobRow.deferred_since,
    JobRow.attempt,
    JobRow.deaths,
    JobRow.suspect,
    JobRow.exposures,
    JobRow.worker,
    JobRow.attempt_started_at,
    JobRow.attempts,
    JobRow.started_at,
    JobRow.first_token_at,
    JobRow.finished_at,
    JobRow.usage,
    JobRow.error_code,
    JobRow.error_message,
    JobRow.error_param,
    JobRow.request_id,
    JobRow.traceparent,
    JobRow.choices,
    JobRow.requested_model,
    JobRow.kind,
    JobRow.decisions,
    JobRow.follows,
)
# Texts, which `to_job` parses: the driver would parse them on the event loop, in one step.
REQUEST = sql_cast(JobRow.request, Text).label("request")
OUTPUT = sql_cast(JobRow.output, Text).label("output")
COLUMNS = (*SUMMARY_COLUMNS, REQUEST, OUTPUT)


def to_summary(row: Any) -> JobSummary:
    """Build the summary of a job from a row of `SUMMARY_COLUMNS`.

    Raises:
        UnreadableRow: this version cannot read the row.
    """
    with readable("job", row.id):
        return JobSummary(**_summary(row))


def to_job(row: Any) -> Job:
    """Build a job from a row of `COLUMNS`. If they are large, run it in a thread: see `read_job`.

    Raises:
        UnreadableRow: this version cannot read the row.
    """
    with readable("job", row.id):
        return Job(**_summary(row), request=to_request(row.request), output=to_output(row.output))


async def read_job(row: Any) -> Job:
    """Build a job from a row of `COLUMNS` without stalling the event loop.

    Raises:
        UnreadableRow: this version cannot read the row.
    """
    return await off_loop(len(row.request) + len(row.output or ""), to_job, row)


def to_request(text: str) -> GenerateRequest:
    """Parse a stored request."""
    return GenerateRequest.model_validate(_loads(text))


def to_output(text: str | None) -> tuple[Choice, ...]:
    """Parse a stored output. Its log probabilities, if there are many, stay in the text until they are read."""
    return tuple(Choice.of(choice) for choice in _loads(text) or ()) if text is not None else ()


def _loads(text: str) -> Any:
    if len(text) <= INLINE_BYTES:
        return orjson.loads(text)
    return chunked_json.loads(text, lazy=("logprobs", "prompt_logprobs"))


def _summary(row: Any) -> dict[str, Any]:
    attempts = [_attempt(item) for item in row.attempts]
    if row.worker is not None and row.attempt_started_at is not None:
        attempts.append(Attempt(row.attempt, row.worker.removesuffix(LOST), row.attempt_started_at))
    return {
        "id": row.id,
        "owner": Owner(row.project_id, row.key_id, row.end_user),
        "model": row.model,
        "status": JobStatus(row.status),
        "priority": row.priority,
        "metadata": row.metadata,
        "created_at": row.created_at,
        "start_before": row.start_before,
        "finish_before": row.finish_before,
        "not_before": row.not_before,
        "deferred_since": row.deferred_since,
        "attempt": row.attempt,
        "deaths": row.deaths,
        "suspect": row.suspect,
        "exposures": row.exposures,
        "worker": row.worker,
        "started_at": row.started_at,
        "first_token_at": row.first_token_at,
        "finished_at": row.finished_at,
        "usage": Usage.of(row.usage) if row.usage is not None else None,
        "error": Failure(row.error_code, row.error_message, row.error_param) if row.error_code is not None else None,
        "attempts": tuple(attempts),
        "request_context": RequestContext(row.request_id, row.traceparent),
        "choices": row.choices,
        "requested_model": row.requested_model,
        "kind": row.kind,
        "decisions": Decisions.model_validate(row.decisions) if row.decisions is not None else NO_DECISIONS,
        "follows": row.follows,
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


def requeued(tokens: int, outcome: AttemptOutcome) -> dict[Any, Any]:
    """The values that put a running job back into the queue."""
    return {
        JobRow.status: JobStatus.QUEUED.value,
        JobRow.worker: None,
        JobRow.attempts: ended_attempt(tokens, outcome),
    }


def after_death(charged: Any, suspect: Any) -> dict[Any, Any]:
    """The values that record the death of a job's worker or engine; the arguments are SQL or those of a `Verdict`."""
    charge = sql_cast(charged, Integer)
    return {
        JobRow.deaths: JobRow.deaths + charge,
        JobRow.exposures: JobRow.exposures + 1 - charge,
        JobRow.suspect: suspect,
    }


_RESULTS = Records(
    "results",
    id=Text,
    attempt=SmallInteger,
    status=Text,
    finished_at=Timestamp,
    first_token_at=Timestamp,
    output=Encoded(JSON),
    usage=JSONB,
    error_code=Text,
    error_message=Text,
    error_param=Text,
    attempts=JSONB,
    log=Encoded(Text),
    upstream=JSONB,
)


def insert_queued(new: Records, values: Mapping[Any, Any]) -> Any:
    """The only SQL that creates jobs, and the entry seam: inserts one `queued` job per record.

    A record has at least an id, a model, a request, its number of choices and metadata; `values` sets further columns.
    Whatever must be written exactly once with a new job (such as a budget reservation) joins this statement as a CTE:
    in the same transaction, without an extra round trip. A dispatcher that withholds jobs sets `JobRow.dispatched_at`
    to NULL here, so that redelivery does not take their missing messages for lost ones.
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
    as a CTE that inserts from the rows which the update returns: in the same transaction, without an extra round trip.
    That covers every end: by the job's worker, while the job waits, or after its worker was lost. One such CTE adds the
    upstream's request, if it is still to be cancelled.

    Optimistic lock: a job ends only if the guards hold and it is still at the attempt that its result names, so that
    no attempt was added to its history since it was read.
    """
    result = _RESULTS
    ended = (
        update(JobRow)
        .where(JobRow.id == result.id, JobRow.attempt == result.attempt, *guards)
        .values(
            {
                JobRow.status: result.status,
                JobRow.worker: None,
                JobRow.unreadable_at: None,
                JobRow.not_before: None,
                JobRow.deferred_since: None,
                JobRow.finished_at: result.finished_at,
                JobRow.first_token_at: func.coalesce(JobRow.first_token_at, result.first_token_at),
                JobRow.output: result.output,
                JobRow.usage: result.usage,
                JobRow.error_code: result.error_code,
                JobRow.error_message: result.error_message,
                JobRow.error_param: result.error_param,
                JobRow.attempts: result.attempts,
                JobRow.log: result.log,
            }
        )
        .returning(JobRow.id, JobRow.model, result.upstream.label("upstream"))
        .cte("ended")
    )
    left = select(ended.c.id, ended.c.model, ended.c.upstream).where(ended.c.upstream.is_not(None))
    cancellations = insert(UpstreamCancellationRow).from_select(["job_id", "model", "state"], left)
    return select(ended.c.id).add_cte(cancellations.cte("cancellations"))


def result_record(job_id: str, attempt: int, result: JobResult) -> dict[str, Any]:
    """A record for `end_statement`."""
    error = result.error
    return {
        "id": job_id,
        "attempt": attempt,
        "status": result.status.value,
        "finished_at": result.finished_at,
        "first_token_at": result.first_token_at,
        "output": result.output,
        "usage": result.usage.stored(),
        "error_code": error.code if error else None,
        # A message may quote anything, and `text` refuses U+0000.
        "error_message": error.message.replace("\0", "\ufffd") if error else None,
        "error_param": error.param.replace("\0", "\ufffd") if error and error.param is not None else None,
        "attempts": [asdict(attempt) for attempt in result.attempts],
        "log": result.log,
        "upstream": stored_state(job_id, result.upstream) if result.upstream is not None else None,
    }


def purge_statement(*guards: ColumnElement[bool]) -> Any:
    """Delete the input and output of ended jobs for which the guards hold, their responses, and the summaries that they
    used; returns the ids.

    The rows remain, for accounting.
    """
    purged = (
        update(JobRow)
        .where(*guards, JobRow.deleted_at.is_(None), JobRow.status.in_(TERMINAL))
        .values(
            request={},
            job_metadata={},
            output=None,
            log=None,
            error_message=None,
            error_param=None,
            deleted_at=func.now(),
        )
        .returning(JobRow.id, JobRow.decisions["context"]["summary_job"].astext.label("summary_job"))
        .cte("purged")
    )
    response = delete(ResponseRow).where(ResponseRow.job_id.in_(select(purged.c.id)))
    # The summary of its conversation that the job was answered with, or wrote.
    writers = select(purged.c.id).union_all(select(purged.c.summary_job))
    summary = delete(SummaryRow).where(SummaryRow.job_id.in_(writers))
    return select(purged.c.id).add_cte(response.cte("response"), summary.cte("summary"))


def owned(job_id: str, attempt: int, worker: str) -> ColumnElement[bool]:
    """Condition: the job is running, and this attempt of this worker owns it."""
    return and_(
        JobRow.id == job_id,
        JobRow.attempt == attempt,
        JobRow.worker == worker,
        IS_RUNNING,
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


def due(for_s: float = 0) -> ColumnElement[bool]:
    """Condition: the job is not deferred, or has been due again for this many seconds."""
    return or_(JobRow.not_before.is_(None), JobRow.not_before <= func.clock_timestamp() - seconds(for_s))


class JobRowStore(Store):
    """The base class of stores of jobs."""

    async def _summaries(self, statement: Select[Any]) -> list[JobSummary]:
        """Build summaries from rows, without those that this version cannot read."""
        return await self._readable(statement, to_summary)

    async def _end(self, statement: Prepared, results: Sequence[dict[str, Any]], **values: object) -> list[bool]:
        """Run an `end_statement`; return for each result whether it was written."""
        ended = {row.id for row in await statement.run(self._engine, {**_RESULTS.parameters(results), **values})}
        return [item["id"] in ended for item in results]
