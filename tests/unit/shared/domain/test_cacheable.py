"""Which results the response cache may give to other requests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from shared.domain.decisions import CacheDecision, Decisions
from shared.domain.events import Delta, Event, EventType, delta_event, event
from shared.domain.job import AttemptOutcome, Choice, Failure, JobStatus, JobSummary, ToolCall, Usage
from shared.domain.owner import Owner
from shared.domain.result import build_result

NOW = datetime.now(UTC)
DECISION = CacheDecision(outcome="MISS", ttl_s=60, revision="r")
RESTARTED = event(3, EventType.RESTARTED, {"attempt": 1})


def started(seq: int, attempt: int, fingerprint: str = "fp_1") -> Event:
    return event(seq, EventType.STARTED, {"attempt": attempt, "fingerprint": fingerprint})


async def is_cacheable(
    *later: Event,
    decision: CacheDecision | None = DECISION,
    finish_reasons: tuple[str | None, ...] = ("stop",),
    output: tuple[Choice, ...] | None = None,
    **ends: Any,
) -> bool:
    job = JobSummary(
        id="job_1", owner=Owner(1, 1), model="m", status=JobStatus.IN_PROGRESS, priority=3, created_at=NOW,
        decisions=Decisions(cache=decision),
    )  # fmt: skip
    arguments: dict[str, Any] = {"status": JobStatus.COMPLETED, "failure": None, "revision": "r", **ends}
    result, _ = await build_result(
        job,
        [started(1, 1), delta_event(2, Delta(0, "a")), *later],
        9,
        output=output or tuple(Choice(index, "a", reason) for index, reason in enumerate(finish_reasons)),
        usage=Usage(),
        first_token_at=NOW,
        finished_at=NOW,
        outcome=AttemptOutcome.COMPLETED,
        runs={},
        **arguments,
    )
    return result.cacheable


async def test_complete_answers_are_cacheable() -> None:
    assert await is_cacheable()
    assert await is_cacheable(finish_reasons=("tool_calls", "stop"))


async def test_an_answer_that_another_attempt_continued_is_cacheable_if_the_model_was_run_in_the_same_way() -> None:
    assert await is_cacheable(started(3, 2))
    assert not await is_cacheable(started(3, 2, "fp_2"))
    assert not await is_cacheable(RESTARTED, started(4, 2)), "its readers were told to discard the beginning"


@pytest.mark.parametrize(
    "ends",
    [
        {"finish_reasons": ("length",), "status": JobStatus.INCOMPLETE},
        {"finish_reasons": ("stop", "length"), "status": JobStatus.INCOMPLETE},
        {"finish_reasons": ("content_filter",), "status": JobStatus.INCOMPLETE},
        {"finish_reasons": (None,), "status": JobStatus.CANCELLED, "failure": Failure("cancelled", "")},
        {"status": JobStatus.FAILED, "failure": Failure("engine_error", "")},
    ],
    ids=str,
)
async def test_other_answers_are_not(ends: dict[str, Any]) -> None:
    assert not await is_cacheable(**ends)


async def test_empty_answers_are_not() -> None:
    """They would be repeated for as long as the entry lasts, although the next try may have a result."""
    call = ToolCall("call_1", "f", "{}")
    assert await is_cacheable(output=(Choice(0, "", "tool_calls", tool_calls=(call,)),))
    assert not await is_cacheable(output=(Choice(0, "", "stop"),))
    assert not await is_cacheable(output=(Choice(0, "a", "stop"), Choice(1, " \n", "stop")))
    assert not await is_cacheable(output=(Choice(0, "", "stop", reasoning="a"),))


async def test_an_answer_of_another_revision_of_the_model_is_not() -> None:
    """During a reload, a worker may still run the model as it was before the API has read the new entry."""
    assert not await is_cacheable(revision="r2")
    assert not await is_cacheable(revision=None)


async def test_an_answer_is_not_cacheable_if_the_cache_is_off() -> None:
    assert not await is_cacheable(decision=None)
    assert not await is_cacheable(decision=CacheDecision(outcome="BYPASS"))
