"""The timelines of jobs that ran in different ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from api.console.data.timeline import MarkKind, SpanKind, Timeline, job_timeline
from shared.domain.decisions import CacheDecision, CacheOutcome, Decisions
from shared.domain.job import Attempt, AttemptOutcome, JobStatus, JobSummary
from shared.domain.owner import Owner
from shared.redis.log_flushes import Flush

T0 = datetime(2026, 11, 30, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def attempt(number: int, start: float, end: float | None = None, outcome: str | None = None, **others: str) -> Attempt:
    return Attempt(number, f"w{number}", at(start), None if end is None else at(end), 10, outcome, **others)


def job(status: JobStatus, *attempts: Attempt, end: float | None = None, first: float | None = None) -> JobSummary:
    return JobSummary(
        id="job_1",
        owner=Owner(1, 1),
        model="m",
        status=status,
        priority=3,
        created_at=T0,
        started_at=attempts[0].started_at if attempts else None,
        first_token_at=None if first is None else at(first),
        finished_at=None if end is None else at(end),
        attempts=attempts,
    )


def flush(seconds: float, number: int = 1, tokens: int = 2) -> Flush:
    return Flush(at(seconds), number, tokens)


def spans(timeline: Timeline) -> list[tuple[str, float, float | None]]:
    """The kinds of the spans, with their starts and ends in seconds."""
    for span, following in pairwise(timeline.spans):
        assert span.end == following.start
    assert not timeline.spans or timeline.spans[0].start == T0
    return [
        (span.kind.value, (span.start - T0).total_seconds(), (span.end - T0).total_seconds() if span.end else None)
        for span in timeline.spans
    ]


def marks(timeline: Timeline) -> list[tuple[MarkKind, float]]:
    return [(mark.kind, (mark.at - T0).total_seconds()) for mark in timeline.marks]


DONE = AttemptOutcome.COMPLETED.value


def test_a_completed_job() -> None:
    timeline = job_timeline(
        job(JobStatus.COMPLETED, attempt(1, 1, 5, DONE), end=5, first=2),
        [flush(2), flush(3), flush(4), flush(5, tokens=0)],
    )
    assert spans(timeline) == [("queued", 0, 1), ("prefill", 1, 2), ("generating", 2, 5)]
    assert marks(timeline) == [
        (MarkKind.SUBMITTED, 0), (MarkKind.CLAIMED, 1), (MarkKind.FIRST_TOKEN, 2), (MarkKind.ENDED, 5),
    ]  # fmt: skip
    assert [one.at for one in timeline.flushes] == [at(2), at(3), at(4)]
    assert timeline.seconds(SpanKind.GENERATING, at(60)) == 3
    assert timeline.marks[-1].detail == "completed"


def test_a_job_whose_log_has_expired() -> None:
    timeline = job_timeline(job(JobStatus.COMPLETED, attempt(1, 1, 5, DONE), end=5, first=2))
    assert spans(timeline) == [("queued", 0, 1), ("prefill", 1, 2), ("generating", 2, 5)]
    assert timeline.flushes == []


def test_a_waiting_job() -> None:
    timeline = job_timeline(job(JobStatus.QUEUED))
    assert spans(timeline) == [("queued", 0, None)]
    assert timeline.end is None
    assert timeline.seconds(SpanKind.QUEUED, at(7)) == 7


def test_a_running_job_before_and_after_its_first_token() -> None:
    running = job(JobStatus.IN_PROGRESS, attempt(1, 1))
    assert spans(job_timeline(running)) == [("queued", 0, 1), ("prefill", 1, None)]
    timeline = job_timeline(running, [flush(3)])
    assert spans(timeline) == [("queued", 0, 1), ("prefill", 1, 3), ("generating", 3, None)]
    assert (MarkKind.FIRST_TOKEN, 3) in marks(timeline)


@pytest.mark.parametrize(
    ("flushes", "lost"),
    [
        ([flush(2), flush(3), flush(13, 2), flush(14, 2)], [("generating", 2, 3), ("silent", 3, 10)]),
        ([], [("generating", 2, 10)]),
    ],
)
def test_a_failover(flushes: Sequence[Flush], lost: list[tuple[str, float, float]]) -> None:
    timeline = job_timeline(
        job(
            JobStatus.COMPLETED,
            attempt(1, 1, 10, AttemptOutcome.WORKER_LOST.value),
            attempt(2, 12, 15, DONE),
            end=15,
            first=2,
        ),
        flushes,
    )
    again = [("prefill", 12, 13), ("generating", 13, 15)] if flushes else [("prefill", 12, 15)]
    assert spans(timeline) == [("queued", 0, 1), ("prefill", 1, 2), *lost, ("rescue", 10, 12), *again]
    assert [kind for kind, _ in marks(timeline)] == [
        MarkKind.SUBMITTED, MarkKind.CLAIMED, MarkKind.FIRST_TOKEN, MarkKind.LOST, MarkKind.CONTINUED, MarkKind.ENDED,
    ]  # fmt: skip
    loss = next(mark for mark in timeline.marks if mark.kind is MarkKind.LOST)
    assert (loss.worker, loss.attempt, loss.detail) == ("w1", 1, "worker_lost")


def test_a_job_that_waits_to_be_rescued() -> None:
    timeline = job_timeline(job(JobStatus.QUEUED, attempt(1, 1, 4, AttemptOutcome.ENGINE_LOST.value)))
    assert spans(timeline) == [("queued", 0, 1), ("prefill", 1, 4), ("rescue", 4, None)]


def test_a_job_that_was_given_back_is_not_rescued() -> None:
    timeline = job_timeline(
        job(JobStatus.COMPLETED, attempt(1, 1, 4, AttemptOutcome.HANDED_BACK.value), attempt(2, 6, 9, DONE), end=9)
    )
    assert ("queued", 4, 6) in spans(timeline)
    assert MarkKind.LOST not in [kind for kind, _ in marks(timeline)]
    assert [kind for kind, _ in marks(timeline)].count(MarkKind.CLAIMED) == 2


def test_a_deferred_job() -> None:
    waiting = replace(job(JobStatus.QUEUED), deferred_since=at(1))
    assert spans(job_timeline(waiting)) == [("deferred", 0, None)]
    timeline = job_timeline(job(JobStatus.QUEUED, attempt(1, 1, 4, AttemptOutcome.DEFERRED.value)))
    assert spans(timeline)[-1] == ("deferred", 4, None)


@pytest.mark.parametrize("started", [False, True])
def test_a_cancelled_job(started: bool) -> None:
    attempts = [attempt(1, 1, 3, AttemptOutcome.CANCELLED.value)] if started else []
    timeline = job_timeline(job(JobStatus.CANCELLED, *attempts, end=3))
    assert spans(timeline) == ([("queued", 0, 1), ("prefill", 1, 3)] if started else [("queued", 0, 3)])
    assert timeline.marks[-1].detail == "cancelled"


def test_a_cached_answer() -> None:
    cache = CacheDecision(outcome=CacheOutcome.HIT, source="job_0")
    hit = replace(job(JobStatus.COMPLETED, end=0, first=0), decisions=Decisions(cache=cache))
    (span,) = job_timeline(hit).spans
    assert (span.kind, span.source) == (SpanKind.CACHED, "job_0")


@pytest.mark.parametrize("ended", [False, True])
def test_a_coalesced_job(ended: bool) -> None:
    cache = CacheDecision(outcome=CacheOutcome.COALESCED, source="job_0")
    status, end = (JobStatus.COMPLETED, 4) if ended else (JobStatus.QUEUED, None)
    follower = replace(job(status, end=end), decisions=Decisions(cache=cache), follows=None if ended else "job_0")
    (span,) = job_timeline(follower).spans
    assert (span.kind, span.source, span.end) == (SpanKind.FOLLOWING, "job_0", at(4) if ended else None)


def test_a_coalesced_job_that_continued_by_itself() -> None:
    continued = replace(job(JobStatus.COMPLETED, attempt(1, 3, 6, DONE), end=6, first=2), continues="job_0")
    timeline = job_timeline(continued, [flush(3.5, tokens=20), flush(5)])
    assert spans(timeline) == [("following", 0, 3), ("prefill", 3, 3.5), ("generating", 3.5, 6)]
    assert timeline.spans[0].source == "job_0"


def test_a_rerouted_job() -> None:
    timeline = job_timeline(
        job(
            JobStatus.COMPLETED,
            attempt(1, 1, 2, AttemptOutcome.REROUTED.value, model="small"),
            attempt(2, 3, 5, DONE, model="large"),
            end=5,
            first=4,
        )
    )
    moved = next(mark for mark in timeline.marks if mark.kind is MarkKind.REROUTED)
    assert (moved.at, moved.detail) == (at(2), "large")
    assert [span.model for span in timeline.spans if span.kind is SpanKind.PREFILL] == ["small", "large"]


def test_output_that_was_discarded() -> None:
    flushes = [flush(2), Flush(at(6), 2, 0, restarted=True), flush(7, 2)]
    timeline = job_timeline(
        job(
            JobStatus.COMPLETED, attempt(1, 1, 4, AttemptOutcome.ENGINE_LOST.value), attempt(2, 5, 9, DONE), end=9,
            first=2,
        ),
        flushes,
    )  # fmt: skip
    assert (MarkKind.RESTARTED, 6) in marks(timeline)
    assert len(timeline.flushes) == 2


def test_clocks_that_differ_a_little() -> None:
    """A worker's first token may precede its claim by the clock of the database."""
    timeline = job_timeline(job(JobStatus.COMPLETED, attempt(1, 1, 2, DONE), end=2), [flush(0.9)])
    assert spans(timeline) == [("queued", 0, 1), ("generating", 1, 2)]
