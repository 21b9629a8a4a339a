"""How a job ends: what its row is given and what its log's last event says, made together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from shared.errors import ErrorCode
from shared.events import Event, EventType, archive, event
from shared.job import Choice, Failure, Job, JobStatus, Usage

CANCELLED = Failure(ErrorCode.CANCELLED, "The job was cancelled.")
LATE = Failure(ErrorCode.DEADLINE_EXCEEDED, "The job was not finished in time (Cancel-After).")
NOT_STARTED = Failure(ErrorCode.DEADLINE_EXCEEDED, "The job was not started in time (Start-Before).")


def exhausted(deaths: int) -> Failure:
    return Failure(
        ErrorCode.ATTEMPTS_EXHAUSTED, f"The job's worker or engine died {deaths} times under it; it is not tried again."
    )


@dataclass(frozen=True, slots=True)
class Ending:
    """What the row of a job is given when it ends. `log` is the archive of its events."""

    status: JobStatus
    finished_at: datetime
    output: tuple[Choice, ...]
    usage: Usage
    error: Failure | None
    first_token_at: datetime | None
    log: str


def conclude(
    job: Job,
    events: Sequence[Event],
    seq: int,
    *,
    status: JobStatus,
    output: tuple[Choice, ...],
    usage: Usage,
    failure: Failure | None,
    first_token_at: datetime | None,
    finished_at: datetime,
) -> tuple[Ending, Event]:
    """The row's ending and the log's last event, which has the number `seq` and follows `events`."""
    ended = replace(job, first_token_at=job.first_token_at or first_token_at, finished_at=finished_at)
    payload: dict[str, Any] = {
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
        },
        "timings": ended.timings(),
    }
    if failure is not None:
        payload["error"] = {"code": str(failure.code), "message": failure.message}
    last = event(seq, EventType(status.value), payload)
    ending = Ending(
        status=status,
        finished_at=finished_at,
        output=output,
        usage=usage,
        error=failure,
        first_token_at=first_token_at,
        log=archive([*events, last]),
    )
    return ending, last
