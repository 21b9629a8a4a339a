"""Reasoning tokens and cache writes that an upstream reports, in the usage of each dialect."""

from __future__ import annotations

from datetime import UTC, datetime

from api.anthropic.events import message_body
from api.jobs.schemas import summary_view
from api.openai.completions import total, usage_view
from api.responses.view import usage as responses_usage
from shared.domain.job import Choice, Job, JobStatus, Usage
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest

REPORTED = Usage(10, 3, 8, 5, 2)
COUNTED = Usage(10, 3, 8)


def job(usage: Usage) -> Job:
    return Job(
        id="job_1",
        owner=Owner(1, 1),
        model="m",
        status=JobStatus.COMPLETED,
        priority=3,
        request=GenerateRequest(),
        created_at=datetime.now(UTC),
        usage=usage,
        output=(Choice(0, "x", "stop"),),
    )


def test_native_jobs() -> None:
    counts = {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18, "cached_tokens": 3}
    assert summary_view(job(COUNTED)).model_dump()["usage"] == counts
    reported = counts | {"reasoning_tokens": 5, "cache_write_tokens": 2}
    assert summary_view(job(REPORTED)).model_dump()["usage"] == reported


def test_openai() -> None:
    counts = {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18}
    assert usage_view(COUNTED).model_dump() == counts | {"prompt_tokens_details": {"cached_tokens": 3}}
    assert usage_view(total([COUNTED, REPORTED])).model_dump() == {
        "prompt_tokens": 20,
        "completion_tokens": 16,
        "total_tokens": 36,
        "prompt_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }


def test_responses_prefers_the_reported_reasoning_tokens_to_those_counted_here() -> None:
    reported = responses_usage(REPORTED.stored(), reasoning_tokens=4)
    assert reported["input_tokens_details"] == {"cached_tokens": 3, "cache_write_tokens": 2}
    assert reported["output_tokens_details"] == {"reasoning_tokens": 5}
    assert responses_usage(COUNTED.stored(), reasoning_tokens=4)["output_tokens_details"] == {"reasoning_tokens": 4}


def test_anthropic_counts_read_written_and_other_tokens_of_the_prompt_apart() -> None:
    usage = message_body(job(REPORTED), hides_thinking=False).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (5, 3, 2)
    assert message_body(job(COUNTED), hides_thinking=False).usage.cache_creation_input_tokens is None
    assert message_body(job(COUNTED), hides_thinking=False).usage.cache_creation is None


def test_the_tokens_that_are_cached_for_an_hour_are_reported_apart() -> None:
    usage = Usage(10, 3, 8, 0, 5, 2)
    reported = summary_view(job(usage)).model_dump()["usage"]
    assert (reported["cache_write_tokens"], reported["cache_write_1h_tokens"]) == (5, 2)
    creation = message_body(job(usage), hides_thinking=False).usage.cache_creation
    assert creation is not None
    assert (creation.ephemeral_5m_input_tokens, creation.ephemeral_1h_input_tokens) == (3, 2)
    assert total([usage, usage]).cache_write_1h_tokens == 4
