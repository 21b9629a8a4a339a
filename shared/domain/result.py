"""The result of a job: the final values of its row and the last event of its log, built together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from shared.domain.errors import ErrorCode
from shared.domain.events import Event, EventType, UpstreamState, archive, event
from shared.domain.job import Attempt, AttemptOutcome, Choice, Failure, JobStatus, JobSummary, Usage
from shared.domain.ledger import EngineOf, Entry, Run, Source, build_entries, unknown_engine
from shared.domain.refusals import Verdict, find_refusal
from shared.domain.transcript import encode_output, fingerprint_by_attempt, reported_fingerprints

CANCELLED = Failure(ErrorCode.CANCELLED, "The job was cancelled.")
LATE = Failure(ErrorCode.DEADLINE_EXCEEDED, "The job was not finished in time (Cancel-After).")
NOT_STARTED = Failure(ErrorCode.DEADLINE_EXCEEDED, "The job was not started in time (Start-Before).")


def exhausted(deaths: int) -> Failure:
    return Failure(
        ErrorCode.ATTEMPTS_EXHAUSTED, f"The worker or engine died {deaths} times while running this job; giving up."
    )


def cannot_continue(tokens: int) -> Failure:
    """The failure of a job whose answer ended with its worker, after readers may have received `tokens`."""
    count = "1 token" if tokens == 1 else f"{tokens} tokens"
    return Failure(
        ErrorCode.CANNOT_CONTINUE,
        f"The worker was lost after {count} had been sent; this model's upstream can neither resume nor continue the"
        " answer.",
    )


@dataclass(frozen=True, slots=True)
class JobResult:
    """The values that a job's row gets when it ends. `output` is JSON, `log` the archive of its events.

    `upstream` is the upstream's request that is to be cancelled, because it has not ended. `cacheable`: other requests
    may get the same answer. `leads`: other jobs may follow it. `entries` are those of the ledger. `refusal`: whether
    the model has refused to answer; None if that is not known.
    """

    status: JobStatus
    finished_at: datetime
    output: bytes
    usage: Usage
    error: Failure | None
    first_token_at: datetime | None
    attempts: tuple[Attempt, ...]
    log: bytes
    upstream: UpstreamState | None = None
    cacheable: bool = False
    leads: bool = False
    entries: tuple[Entry, ...] = ()
    refusal: Verdict | None = None


async def build_result(
    job: JobSummary,
    events: Sequence[Event],
    seq: int,
    *,
    status: JobStatus,
    output: tuple[Choice, ...],
    usage: Usage,
    failure: Failure | None,
    first_token_at: datetime | None,
    finished_at: datetime,
    outcome: AttemptOutcome,
    runs: Mapping[int, Run],
    source: Source = Source.ESTIMATE,
    upstream: UpstreamState | None = None,
    revision: str | None = None,
    handed_over: bool = False,
    prompt_estimate: int = 0,
    counted: Mapping[str, int] | None = None,
    engine_of: EngineOf = unknown_engine,
) -> tuple[JobResult, Event]:
    """Build the row's result and the log's last event, which has the number `seq` and follows `events`.

    The event loop runs other tasks meanwhile. `outcome` is that of the running attempt, and `runs` are what is known of
    each. `source`: who reported the usage to the last of them. `upstream` is the upstream's request that generated the
    output, `revision` that of the model. `handed_over`: the generation continues for another job, to which the prompt
    counts if it is not known yet. `prompt_estimate`: the tokens of the prompt, if neither the usage, the log nor
    admission has them. `counted`: as in `shared.domain.ledger.Entry`.
    """
    ended = replace(job, first_token_at=job.first_token_at or first_token_at, finished_at=finished_at)
    payload: dict[str, Any] = {
        "usage": usage.stored(),
        "timings": ended.timings(),
    }
    if failure is not None:
        payload["error"] = failure.payload()
    fingerprints = fingerprint_by_attempt(events, job.begins_with)
    last = event(seq, EventType(status.value), payload)
    attempts = tuple(_ended(attempt, finished_at, outcome, runs, fingerprints) for attempt in job.attempts)
    result = JobResult(
        status=status,
        finished_at=finished_at,
        output=await encode_output(output, events),
        usage=usage,
        error=failure,
        first_token_at=first_token_at,
        attempts=attempts,
        log=await archive([*events, last]),
        upstream=None if status.succeeded else upstream,
        cacheable=failure is None and _is_cacheable(job, events, status, output, revision),
        leads=job.may_lead,
        entries=build_entries(
            job,
            attempts,
            usage,
            status=status,
            source=source,
            runs=runs,
            estimate=0 if handed_over else job.decisions.estimated_tokens or prompt_estimate,
            counted=counted,
            engine_of=engine_of,
        ),
        refusal=find_refusal(status, output, job.kind),
    )
    return result, last


# How a complete answer ends: it was neither cut, nor filtered, nor interrupted.
_CACHEABLE_ENDS = frozenset({"stop", "tool_calls"})


def _is_cacheable(
    job: JobSummary,
    events: Sequence[Event],
    status: JobStatus,
    output: Sequence[Choice],
    revision: str | None,
) -> bool:
    """Whether the response cache may give the answer to other requests.

    The model must be the one that the job was admitted for: during a reload, API processes and workers may differ.
    """
    decision = job.decisions.cache
    return (
        decision is not None
        and decision.ttl_s is not None
        and revision is not None
        and decision.revision == revision
        and status is JobStatus.COMPLETED
        and all(choice.finish_reason in _CACHEABLE_ENDS for choice in output)
        # An empty answer is most often a failure that the upstream does not report as one.
        and all(choice.tool_calls or (choice.text and not choice.text.isspace()) for choice in output)
        and len(reported_fingerprints(events)) == 1
        and not any(item.type is EventType.RESTARTED for item in events)
    )


def _ended(
    attempt: Attempt,
    now: datetime,
    outcome: AttemptOutcome,
    runs: Mapping[int, Run],
    fingerprints: Mapping[int, str | None],
) -> Attempt:
    """An attempt as the history keeps it. Its tokens are those that have reached the log.

    They are those that its worker has reported if the log has nothing of this attempt and of earlier ones: it was lost.
    """
    run = runs.get(attempt.number)
    is_whole = any(number <= attempt.number for number in runs)
    return replace(
        attempt,
        ended_at=attempt.ended_at or now,
        outcome=attempt.outcome or outcome,
        tokens=(0 if run is None else run.tokens) if is_whole else attempt.tokens,
        fingerprint=fingerprints.get(attempt.number, attempt.fingerprint),
    )
