"""The values that statements write to a job's row when an attempt ends, but not the job."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Integer, func
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB

from shared.domain.job import AttemptOutcome, JobStatus
from shared.postgres.job_rows import LOST
from shared.postgres.tables import JobRow


def ended_attempt(tokens: int, outcome: AttemptOutcome, error: str | None = None) -> Any:
    """The value of `attempts` with the running attempt appended."""
    optional = ("error", error) if error is not None else ()
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
        "model",
        JobRow.model,
        *optional,
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
