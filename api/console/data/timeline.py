"""The timeline of a job: where its time went, from its row and its event log. A pure function.

The row has the times of the submission, of each attempt and of the end. Those of flushes are in the log in Redis, as
long as it exists; without it, a timeline has no flushes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import pairwise

from shared.domain.decisions import CacheOutcome
from shared.domain.job import Attempt, AttemptOutcome, JobSummary
from shared.redis.log_flushes import Flush


class SpanKind(StrEnum):
    """What a job did for a time."""

    # It waited for its first attempt, or for the next one after it was put back into the queue.
    QUEUED = "queued"
    # It waited because its upstream was busy.
    DEFERRED = "deferred"
    # It waited for the answer of an identical job.
    FOLLOWING = "following"
    # Its answer came from the response cache.
    CACHED = "cached"
    # An attempt without output so far, and one with output.
    PREFILL = "prefill"
    GENERATING = "generating"
    # Nothing more was written by a worker that was lost, until that was noticed.
    SILENT = "silent"
    # It waited for another worker after its worker or engine was lost.
    RESCUE = "rescue"


class MarkKind(StrEnum):
    """What happened to a job at a moment."""

    SUBMITTED = "submitted"
    CLAIMED = "claimed"
    FIRST_TOKEN = "first_token"  # noqa: S105
    LOST = "lost"
    CONTINUED = "continued"
    RESTARTED = "restarted"
    REROUTED = "rerouted"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a job's time. `end`: None if it has not ended. `source`: the job whose answer it waits for or got."""

    kind: SpanKind
    start: datetime
    end: datetime | None
    attempt: int | None = None
    worker: str | None = None
    model: str | None = None
    source: str | None = None

    def seconds(self, now: datetime) -> float:
        """How long it took, or has taken so far."""
        return max(0.0, ((self.end or now) - self.start).total_seconds())


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment. `detail` is the outcome of an attempt, the status of the end, or a model."""

    kind: MarkKind
    at: datetime
    attempt: int | None = None
    worker: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Timeline:
    """Spans, marks and flushes, each in the order of time. Spans follow each other without gaps.

    `flushes`: when output was written, and how many tokens each time. `end`: None if the job has not ended.
    """

    start: datetime
    end: datetime | None
    spans: Sequence[Span]
    marks: Sequence[Mark]
    flushes: Sequence[Flush]

    def seconds(self, kind: SpanKind, now: datetime) -> float:
        """How long all spans of a kind took together."""
        return sum(span.seconds(now) for span in self.spans if span.kind is kind)


_LOSSES = (AttemptOutcome.WORKER_LOST, AttemptOutcome.ENGINE_LOST)
# Attempts with these outcomes ended the job.
_FINAL = (AttemptOutcome.COMPLETED, AttemptOutcome.INCOMPLETE, AttemptOutcome.FAILED, AttemptOutcome.CANCELLED)


def job_timeline(job: JobSummary, flushes: Sequence[Flush] = ()) -> Timeline:
    """The timeline of a job. `flushes`: those of its log, in order; none if the log does not exist any more."""
    marks = [Mark(MarkKind.SUBMITTED, job.created_at)]
    spans: list[Span] = []
    end = job.finished_at
    source = job.decisions.cache.source if job.decisions.cache is not None else None
    if job.decisions.cache is not None and job.decisions.cache.outcome == CacheOutcome.HIT:
        spans.append(Span(SpanKind.CACHED, job.created_at, end, source=source))
    elif not job.attempts:
        follows = job.follows or job.continues or (source if end is not None else None)
        spans.append(Span(_waiting(job, follows), job.created_at, end, source=follows))
    else:
        followed = job.continues or None
        kind = SpanKind.FOLLOWING if job.continues is not None else SpanKind.QUEUED
        spans.append(Span(kind, job.created_at, job.attempts[0].started_at, source=followed))
    around = [None, *job.attempts, None]
    for previous, attempt, following in zip(around, job.attempts, around[2:], strict=False):
        _add_attempt(job, attempt, previous, following, flushes, spans, marks)
    if job.first_token_at is not None:
        marks.append(Mark(MarkKind.FIRST_TOKEN, job.first_token_at))
    elif first := next((flush for flush in flushes if flush.tokens), None):  # the row has it only at the end
        marks.append(Mark(MarkKind.FIRST_TOKEN, first.at, first.attempt))
    marks += [Mark(MarkKind.RESTARTED, flush.at, flush.attempt) for flush in flushes if flush.restarted]
    if end is not None:
        marks.append(Mark(MarkKind.ENDED, end, detail=job.status.value))
    marks.sort(key=lambda mark: mark.at)
    return Timeline(job.created_at, end, _joined(spans), marks, [flush for flush in flushes if flush.tokens])


def _waiting(job: JobSummary, follows: str | None) -> SpanKind:
    if follows:
        return SpanKind.FOLLOWING
    return SpanKind.DEFERRED if job.deferred_since is not None else SpanKind.QUEUED


def _add_attempt(
    job: JobSummary,
    attempt: Attempt,
    previous: Attempt | None,
    following: Attempt | None,
    flushes: Sequence[Flush],
    spans: list[Span],
    marks: list[Mark],
) -> None:
    """Add what happened from the start of an attempt to that of the next one."""
    start, worker, model = attempt.started_at, attempt.worker, attempt.model or job.model
    rescued = previous is not None and previous.outcome in _LOSSES
    marks.append(Mark(MarkKind.CONTINUED if rescued else MarkKind.CLAIMED, start, attempt.number, worker, model))
    ended_at = attempt.ended_at or (job.finished_at if job.status.terminal else None)
    written = [flush for flush in flushes if flush.attempt == attempt.number and flush.tokens]
    first_at = written[0].at if written else _first_token(job, attempt, ended_at)
    last_at = ended_at
    lost = attempt.outcome in _LOSSES
    if attempt.outcome == AttemptOutcome.WORKER_LOST and ended_at is not None:
        last_at = written[-1].at if written else ended_at
    if first_at is None:
        spans.append(Span(SpanKind.PREFILL, start, ended_at, attempt.number, worker, model))
    else:
        spans.append(Span(SpanKind.PREFILL, start, first_at, attempt.number, worker, model))
        spans.append(Span(SpanKind.GENERATING, first_at, last_at, attempt.number, worker, model))
        if last_at is not None and ended_at is not None and last_at < ended_at:
            spans.append(Span(SpanKind.SILENT, last_at, ended_at, attempt.number, worker, model))
    if lost and ended_at is not None:
        marks.append(Mark(MarkKind.LOST, ended_at, attempt.number, worker, attempt.outcome))
    if attempt.outcome == AttemptOutcome.REROUTED and ended_at is not None:
        to = following.model if following is not None else job.model
        marks.append(Mark(MarkKind.REROUTED, ended_at, attempt.number, worker, to))
    until = following.started_at if following is not None else job.finished_at
    if ended_at is not None and attempt.outcome not in _FINAL and attempt.outcome is not None:
        kind = SpanKind.RESCUE if lost else SpanKind.QUEUED
        if attempt.outcome == AttemptOutcome.DEFERRED:
            kind = SpanKind.DEFERRED
        spans.append(Span(kind, ended_at, until))


def _first_token(job: JobSummary, attempt: Attempt, ended_at: datetime | None) -> datetime | None:
    """The time of the job's first token, if it was generated by this attempt."""
    first = job.first_token_at
    if first is None or first < attempt.started_at or (ended_at is not None and first > ended_at):
        return None
    return first


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Spans whose ends meet: the clocks of workers and of the database differ a little. Empty ones are left out."""
    joined: list[Span] = []
    for span, following in pairwise([*spans, None]):
        assert span is not None
        end = following.start if following is not None and span.end is not None else span.end
        start = span.start if not joined or joined[-1].end is None else max(span.start, joined[-1].end)
        if end is not None:
            end = max(start, end)
        if end is None or end > start or (not joined and following is None):
            joined.append(Span(span.kind, start, end, span.attempt, span.worker, span.model, span.source))
    return joined
