"""Which model takes over a job, and whether the job may have output."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from shared.domain.decisions import Decisions, RouteDecision
from shared.domain.events import Delta, Event, EventType, delta_event, event
from shared.domain.fallback import Availability, candidates_of, may_have_output, next_model
from shared.domain.job import Attempt, AttemptOutcome, JobStatus, JobSummary
from shared.domain.owner import Owner

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB = JobSummary(
    id="job_1",
    owner=Owner(1, 1),
    model="a",
    status=JobStatus.QUEUED,
    priority=3,
    created_at=NOW,
)
STARTED = event(1, EventType.STARTED, {"attempt": 1})


def routed(*fallbacks: str, model: str = "a", tried: tuple[str, ...] = ()) -> JobSummary:
    route = RouteDecision(route="auto", rule="r", fallbacks=fallbacks, tried=tried)
    return replace(JOB, model=model, decisions=Decisions(route=route))


def attempted(*outcomes: AttemptOutcome | None) -> JobSummary:
    attempts = tuple(Attempt(number, "w", NOW, outcome=outcome) for number, outcome in enumerate(outcomes, 1))
    return replace(JOB, attempt=len(attempts), attempts=attempts)


def models(*available: str, paused: str = "") -> Availability:
    return Availability(frozenset(available), frozenset(paused))


def test_the_first_available_fallback_takes_over() -> None:
    job = routed("b", "c", "d")
    assert next_model(job, models("c", "d"), or_wait=False) == "c"
    assert next_model(job, models(), or_wait=False) is None
    assert next_model(job, models(), or_wait=True) == "b"
    assert next_model(JOB, models("b"), or_wait=True) is None


def test_a_paused_fallback_takes_over_only_if_all_are_paused() -> None:
    job = routed("b", "c", "d")
    assert next_model(job, models("d", paused="bc"), or_wait=True) == "d"
    assert next_model(job, models(paused="bc"), or_wait=False) is None
    assert next_model(job, models(paused="bd"), or_wait=True) == "c", "a worker may come without an operator"
    assert next_model(job, models(paused="bcd"), or_wait=True) == "b", "it waits there"


def test_no_model_has_a_job_twice() -> None:
    """Whatever is configured: each model of a circle is tried once."""
    circle = {"a": ("b", "a"), "b": ("c", "a", "b")}
    job = routed(*circle["a"], *circle["b"])
    seen = [job.model]
    while (to := next_model(job, models(), or_wait=True)) is not None:
        assert job.decisions.route is not None
        job = replace(job, model=to, decisions=Decisions(route=job.decisions.route.moved(job.model, to)))
        seen.append(to)
    assert seen == ["a", "b", "c"]
    assert job.decisions.route is not None
    assert job.decisions.route.left == ("a", "b")
    assert candidates_of(routed("b", "c", tried=("b",))) == ("c",), "nor one that was skipped at submit"


@pytest.mark.parametrize(
    ("job", "events", "expected"),
    [
        (JOB, [], False),
        (attempted(None), [STARTED], False),
        (attempted(None), [STARTED, event(2, EventType.UPSTREAM, {"id": "r"})], False),
        (attempted(None), [STARTED, delta_event(2, Delta(0, "x", (1,)))], True),
        (attempted(AttemptOutcome.WORKER_LOST, None), [event(1, EventType.RESTARTED, {"attempt": 2})], True),
        (attempted(AttemptOutcome.REROUTED), [], False),
        (attempted(AttemptOutcome.REROUTED, AttemptOutcome.WORKER_LOST), [], True),
        (attempted(AttemptOutcome.REROUTED, None), [], True),
        (replace(attempted(None), first_token_at=NOW), [STARTED], True),
    ],
    ids=[
        "new", "started", "sent", "token", "restarted", "lost log of another model", "lost log", "running, lost log",
        "token in the row",
    ],
)  # fmt: skip
def test_output_that_anybody_may_have(job: JobSummary, events: list[Event], expected: bool) -> None:
    assert may_have_output(job, events) is expected
