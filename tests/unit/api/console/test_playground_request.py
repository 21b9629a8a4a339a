"""The request of a job as the playground loads it: submitted again, it is the same request."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from api.console.playground.request import request_body
from api.jobs.schemas import JobCreate
from shared.domain.job import Job, JobStatus
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"}}
MESSAGES = [{"role": "user", "content": "x"}]


def make_job(request: GenerateRequest, **others: Any) -> Job:
    return Job(
        **{"id": "job_1", "owner": Owner(1, 1), "model": "m", "status": JobStatus.COMPLETED, "priority": 3, **others},
        request=request,
        created_at=datetime.now(UTC),
    )


@pytest.mark.parametrize(
    "body",
    [
        {"messages": MESSAGES},
        {"prompt": "x", "max_tokens": 3, "logprobs": 2},
        {"prompt": [1, 2, 3]},
        {"messages": [{"role": "system", "content": "Be brief."}, *MESSAGES], "temperature": 0.0, "stop": ["a", "b"]},
        {
            "messages": [
                *MESSAGES,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "42", "tool_call_id": "call_1"},
            ],
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, IMAGE]}]},
        {
            "messages": MESSAGES,
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        },
        {"messages": MESSAGES, "response_format": {"type": "json_object"}, "reasoning_effort": "low"},
        {"messages": MESSAGES, "structured_outputs": {"regex": "[a-z]+"}, "top_k": 5, "n": 2},
    ],
)
def test_the_request_is_the_same(body: dict[str, Any]) -> None:
    request = JobCreate.model_validate({"model": "m", **body}).generate_request()
    stored = GenerateRequest.model_validate_json(request.model_dump_json(exclude_none=True, exclude_defaults=True))
    again = JobCreate.model_validate(request_body(make_job(stored))).generate_request()
    assert again == request


def test_the_name_that_was_requested_is_kept() -> None:
    request = GenerateRequest(prompt="x")
    body = request_body(make_job(request, model="large", requested_model="auto", priority=7))
    assert body["model"] == "auto"
    assert body["priority"] == 7
