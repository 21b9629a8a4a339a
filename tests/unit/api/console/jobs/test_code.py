"""The body that sends a job's request again, and the programs with it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from typing import Any

import pytest

from api.console.jobs.job.code import MAX_INLINE, body_text, programs, request_body
from api.jobs.schemas import JobCreate
from shared.domain.job import Job, JobStatus
from shared.domain.owner import Owner
from tests.unit.api.console.data.test_timeline import T0

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BODIES: list[dict[str, Any]] = [
    {"model": "m", "prompt": "Once upon"},
    {"model": "m", "prompt": [1, 2, 3], "max_tokens": 5, "stop": ["a", "b"], "seed": 7, "logit_bias": {"5": 1.5}},
    {
        "model": "auto",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}, IMAGE]},
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "ok"},
        ],
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "temperature": 0,
        "logprobs": 2,
    },
    {
        "model": "m",
        "messages": [{"role": "user", "content": "it's \"so\" \\ \n\u2028 é $HOME `x`"}],
        "structured_outputs": {"json": {"type": "object", "properties": {"a": {"type": "string"}}}},
        "reasoning_effort": "low",
        "priority": 5,
        "metadata": {"k": "v"},
        "user": "ann",
    },
]  # fmt: skip


def job_of(body: dict[str, Any]) -> Job:
    created = JobCreate.model_validate(body)
    return Job(
        id="job_1",
        owner=Owner(1, 1, created.user),
        model="m",
        requested_model=None if created.model == "m" else created.model,
        status=JobStatus.QUEUED,
        priority=created.priority,
        created_at=T0,
        metadata=created.metadata,
        request=created.generate_request(),
    )


@pytest.mark.parametrize("body", BODIES)
def test_the_body_sends_the_same_request(body: dict[str, Any]) -> None:
    job = job_of(body)
    again = JobCreate.model_validate(json.loads(body_text(request_body(job))))
    assert again.generate_request() == job.request
    assert (again.model, again.priority, again.user) == (body["model"], job.priority, body.get("user"))
    assert again.metadata == body.get("metadata", {})


@pytest.mark.parametrize("body", BODIES)
def test_programs_have_the_body_and_no_key(body: dict[str, Any]) -> None:
    text = body_text(body)
    curl, python, node = (program.text for program in programs(text))
    words = shlex.split(curl.replace("\\\n", " "))
    assert json.loads(words[words.index("-d") + 1]) == body
    line = next(one for one in python.partition("headers =")[0].split("\nbody = ")[1:])
    printed = subprocess.run(
        [sys.executable, "-c", f"import json\nbody = {line}\nprint(json.dumps(body))"], capture_output=True, check=True
    )
    assert json.loads(printed.stdout) == body
    assert f"const body = {text};" in node
    for program in (curl, python, node):
        assert "HEADRACE_API_KEY" in program
        assert "HEADRACE_URL" in program


def test_a_large_body_is_read_from_a_file() -> None:
    text = body_text({"model": "m", "prompt": "x" * MAX_INLINE})
    for program in programs(text):
        assert "request.json" in program.text
        assert len(program.text) < 2000
