"""The rows of jobs: the columns to read, and the jobs that they become."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import BigInteger, Double, Text, and_, case, func, literal_column, not_, null, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.orm import aliased

from shared.domain.decisions import NO_DECISIONS, Decisions
from shared.domain.job import Attempt, Choice, Failure, Job, JobStatus, JobSummary, Usage
from shared.domain.log_level import stored_level
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.request_context import RequestContext
from shared.postgres.followers import LEADER
from shared.postgres.job_conditions import HAS_RUN
from shared.postgres.store import readable
from shared.postgres.tables import JobRow
from shared.postgres.usage_tables import UsageEventRow
from shared.runtime import chunked_json
from shared.runtime.offload import INLINE_BYTES, off_loop

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
    JobRow.log_level,
    JobRow.decisions,
    LEADER,
    JobRow.continues,
)
# The timings in the last line of a log.
_TIMINGS = r'"timings":\{[^{}]*\}'
# Those in the log of a completed job end the log: they are looked for in this many of its last characters. Those of a
# job that did not wait.
_LAST_TIMINGS = _TIMINGS + r"\}$"
_NO_TIMINGS = '"timings":{"queued_ms":0,"ttft_ms":0,"total_ms":0}}'
_LAST_LINE = 400

# The job whose answer the response cache has given to this one, if it has answered this one.
_ANSWER = aliased(JobRow, name="answer")


def _answered(own: Any, of_answer: Any) -> Any:
    """A job's own value, or that of the job that has its answer; NULL once the job was deleted."""
    shared = select(of_answer).where(_ANSWER.id == JobRow.answered_by).correlate(JobRow).scalar_subquery()
    return case((JobRow.deleted_at.is_not(None), null()), (JobRow.answered_by.is_(None), own), else_=shared)


def _with_own_timings(log: Any) -> Any:
    """The log of a follower, which is a copy of its leader's, with the times of the follower (`JobSummary.timings`)."""

    def since_submit(moment: Any) -> Any:
        seconds = sql_cast(func.extract("epoch", moment - JobRow.created_at), Double)
        ms = sql_cast(func.round(seconds * literal_column("1000::float8")), BigInteger)
        return func.coalesce(sql_cast(ms, Text), "null")

    timings = func.concat(
        '"timings":{"queued_ms":', since_submit(JobRow.started_at),
        ',"ttft_ms":', since_submit(JobRow.first_token_at),
        ',"total_ms":', since_submit(JobRow.finished_at), "}",
    )  # fmt: skip
    last_line = func.split_part(log, "\n", -1)
    return func.left(log, func.length(log) - func.length(last_line)).concat(
        func.regexp_replace(last_line, _TIMINGS, timings)
    )


def answered_log(log: Any) -> Any:
    """The log of a job that was created with the answer that has this log."""
    return func.left(log, -_LAST_LINE).concat(
        func.regexp_replace(func.right(log, _LAST_LINE), _LAST_TIMINGS, _NO_TIMINGS)
    )


# Characters of the archived log in one page.
ARCHIVE_PAGE = 128 * 1024
# Texts, which `to_job` parses: the driver would parse them on the event loop, in one step.
REQUEST = sql_cast(JobRow.request, Text).label("request")
OUTPUT = _answered(sql_cast(JobRow.output, Text), sql_cast(_ANSWER.output, Text)).label("output")
# The archived log of an ended job. That of an answered one has the times of a job that did not wait.
LOG = _answered(
    case((JobRow.follows.is_(None), JobRow.log), else_=_with_own_timings(JobRow.log)),
    answered_log(_ANSWER.log),
)
COLUMNS = (*SUMMARY_COLUMNS, REQUEST, OUTPUT)
_CHARGED = (
    select(func.sum(UsageEventRow.charge))
    .where(UsageEventRow.job_id == JobRow.id, UsageEventRow.final)
    .correlate(JobRow)
    .scalar_subquery()
)
_NEVER_RAN = and_(not_(HAS_RUN), JobRow.finished_at.is_not(None))
# What the ledger has charged for an ended job, with corrections. NULL if a part of it has no price. A job that has
# never run has no entry.
CHARGE = func.coalesce(_CHARGED, case((_NEVER_RAN, literal_column("0")))).label("charge")


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
        attempts.append(Attempt(row.attempt, row.worker.removesuffix(LOST), row.attempt_started_at, model=row.model))
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
        "log_level": stored_level(row.log_level),
        "decisions": _decisions(row),
        "follows": row.follows,
        "continues": row.continues,
        "charge": getattr(row, "charge", None),  # a part of few statements
    }


def _decisions(row: Any) -> Decisions:
    if row.decisions is None:
        return NO_DECISIONS
    decisions = Decisions.model_validate(row.decisions)
    if row.follows is None or decisions.cache is None:
        return decisions
    # The row of a follower has the job that led when it was inserted.
    return decisions.model_copy(update={"cache": decisions.cache.model_copy(update={"source": row.follows})})


def _attempt(item: dict[str, Any]) -> Attempt:
    return Attempt(
        number=item["number"],
        worker=item["worker"],
        started_at=datetime.fromisoformat(item["started_at"]),
        ended_at=datetime.fromisoformat(item["ended_at"]),
        tokens=item["tokens"],
        outcome=item["outcome"],
        fingerprint=item.get("fingerprint"),
        model=item.get("model"),
        error=item.get("error"),
    )
