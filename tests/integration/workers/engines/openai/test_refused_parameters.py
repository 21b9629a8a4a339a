"""Parameters that an upstream refuses though they do not change the answer."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.config.models.openai import OpenAIModel, OpenAIOptions
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta
from shared.domain.request import ChatOptions, Function, GenerateRequest, Message, Sampling, Tool
from tests.support.faulty_upstream import Answer, FaultyUpstream, error_answer, faulty_upstream
from tests.support.metrics import worker_metrics
from workers.engines.openai.engine import OpenAIEngine
from workers.engines.upstream import refused_parameters

CHAT = GenerateRequest(messages=[Message(role="user", content="Hello")])
TOOL = Tool(function=Function(name="weather", parameters={"type": "object"}))
TOOLS = CHAT.model_copy(update={"chat": ChatOptions(tools=[TOOL], tool_choice="auto")})
LIMITED = CHAT.model_copy(update={"sampling": Sampling(max_tokens=5)})


@pytest.fixture
async def upstream() -> AsyncIterator[FaultyUpstream]:
    async with faulty_upstream() as upstream:
        yield upstream


@pytest.fixture
async def engine(upstream: FaultyUpstream) -> AsyncIterator[OpenAIEngine]:
    model = OpenAIModel(
        name="up", engine="openai", model="m", options=OpenAIOptions(base_url=upstream.url, max_retries=0)
    )
    engine = OpenAIEngine(model, worker_metrics("up"))
    await engine.start()
    yield engine
    await engine.stop()


async def text_of(engine: OpenAIEngine, request: GenerateRequest = CHAT) -> str:
    return "".join([item.text async for item in engine.generate("r", request) if isinstance(item, Delta)])


def refusal(status: int, body: Any) -> Answer:
    return Answer(status=status, body=body if isinstance(body, str) else json.dumps(body))


def extra(*place: str) -> dict[str, Any]:
    return {"type": "extra_forbidden", "loc": ["body", *place], "msg": "Extra inputs are not permitted", "input": True}


@pytest.mark.parametrize(
    "answer",
    [
        # openai/openai-agents-python#442: Mistral
        refusal(422, {"object": "error", "message": {"detail": [extra("stream_options", "include_usage")]}}),
        # Gitlawb/openclaude#739: Mistral
        refusal(422, {"detail": [extra("stream_options")]}),
        # partITech/php-mistral#76
        refusal(422, {"object": "Error", "detail": [extra("stream_options")], "message": [], "code": 3001}),
        # mistralai/platform-docs-public#7: JSON in a string
        refusal(422, {"object": "error", "message": json.dumps({"detail": [extra("stream_options")]})}),
        # langchain-ai/langchain#23552: Azure
        error_answer(400, "Unrecognized request argument supplied: stream_options"),
        # agno-agi/agno#1066
        refusal(400, {"error": {"message": "Unknown parameter: 'stream_options'.", "param": "stream_options"}}),
        # servers in Go, jsonschema, plain text
        error_answer(400, 'json: unknown field "stream_options"'),
        error_answer(400, "Additional properties are not allowed ('stream_options' was unexpected)"),
        refusal(400, "stream_options is not supported"),
    ],
    ids=lambda answer: answer.body[:60],
)
async def test_refused_stream_options(engine: OpenAIEngine, upstream: FaultyUpstream, answer: Answer) -> None:
    upstream.answers = [answer]
    assert await text_of(engine) == "0 1 2 "
    assert await text_of(engine) == "0 1 2 "
    assert ["stream_options" in seen.body for seen in upstream.seen] == [True, False, False]
    assert all(seen.body["stream"] and seen.body["messages"] for seen in upstream.seen)


async def test_it_is_remembered_for_an_hour_and_logged_once(
    engine: OpenAIEngine, upstream: FaultyUpstream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr(refused_parameters, "monotonic", lambda: now)
    refused = error_answer(422, "stream_options: Extra inputs are not permitted")
    upstream.answers = [refused]
    with caplog.at_level(logging.WARNING):
        await text_of(engine)
        now += refused_parameters.REMEMBERED_S - 1
        await text_of(engine)
        now += 2
        upstream.answers = [refused]
        await text_of(engine)
        now += refused_parameters.REMEMBERED_S + 1
        await text_of(engine)  # the upstream has been upgraded
    sent = ["stream_options" in seen.body for seen in upstream.seen]
    assert sent == [True, False, False, True, False, True]
    assert [record.getMessage().count("stream_options") for record in caplog.records] == [1]
    counter = engine._metrics.upstream_refused_parameters.labels("up", "stream_options")
    assert counter._value.get() == 2


@pytest.mark.parametrize(
    ("request_", "answers", "sent"),
    [
        (
            TOOLS,
            [refusal(422, {"detail": [extra("tool_choice"), extra("stream_options")]})],
            {"tool_choice": None, "stream_options": None},
        ),
        (
            LIMITED,
            [error_answer(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")],
            {"max_tokens": None, "max_completion_tokens": 5},
        ),
        (
            LIMITED,
            [
                error_answer(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
                error_answer(400, "Unrecognized request argument supplied: stream_options"),
            ],
            {"max_tokens": None, "max_completion_tokens": 5, "stream_options": None},
        ),
    ],
    ids=["tools", "max_tokens", "one after the other"],
)
async def test_other_parameters(
    engine: OpenAIEngine,
    upstream: FaultyUpstream,
    request_: GenerateRequest,
    answers: list[Answer],
    sent: dict[str, Any],
) -> None:
    upstream.answers = list(answers)
    assert await text_of(engine, request_) == "0 1 2 "
    assert len(upstream.seen) == len(answers) + 1
    assert {name: upstream.seen[-1].body.get(name) for name in sent} == sent


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (CHAT, "the prompt is too long"),
        (LIMITED, "max_tokens is too large: 5"),
        (CHAT, "Unknown parameter: 'temperature'"),
        (
            TOOLS.model_copy(update={"chat": ChatOptions(tools=[TOOL], tool_choice="required")}),
            "tool_choice is unknown",
        ),
    ],
    ids=["no name", "a value", "not sent", "changes the answer"],
)
async def test_other_refusals_are_not_retried(
    engine: OpenAIEngine, upstream: FaultyUpstream, request_: GenerateRequest, message: str
) -> None:
    upstream.answers = [error_answer(400, message)]
    with pytest.raises(InvalidRequest):
        await text_of(engine, request_)
    assert len(upstream.seen) == 1


async def test_an_upstream_that_refuses_everything_is_asked_twice(
    engine: OpenAIEngine, upstream: FaultyUpstream
) -> None:
    """Nothing is remembered then: the parameter was not the reason."""
    refused = error_answer(400, "not supported: max_tokens, max_completion_tokens, stream_options")
    upstream.answers = [refused, refused]
    with pytest.raises(InvalidRequest):
        await text_of(engine, LIMITED)
    assert len(upstream.seen) == 2
    await text_of(engine, LIMITED)
    assert upstream.seen[-1].body["max_tokens"] == 5
    assert "stream_options" in upstream.seen[-1].body
