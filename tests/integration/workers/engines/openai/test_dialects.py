"""The relaying engine with the dialects of OpenAI-compatible servers, each from a server over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from shared.config.models.openai import OpenAIModel, OpenAIOptions
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta
from shared.domain.job import Usage
from shared.domain.request import ChatOptions, Function, GenerateRequest, Message, Tool
from tests.support.dialects import ANY_ID, GROUPS, Dialect
from tests.support.faulty_upstream import Answer, FaultyUpstream, faulty_upstream
from tests.support.metrics import worker_metrics
from tests.support.transcripts import choices_of
from workers.engines.base import UpstreamError
from workers.engines.openai.engine import OpenAIEngine

DIALECTS = [
    pytest.param(dialect, id=f"{group}: {dialect.name}") for group, dialects in GROUPS.items() for dialect in dialects
]


@pytest.fixture
async def upstream(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FaultyUpstream]:
    monkeypatch.setattr("workers.engines.upstream.recovery.backoff_s", lambda *_, **__: 0)
    async with faulty_upstream() as upstream:
        yield upstream


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_dialect(upstream: FaultyUpstream, dialect: Dialect) -> None:
    upstream.default = Answer(raw=dialect.writes, headers=dialect.headers)
    options = OpenAIOptions(base_url=upstream.url, max_retries=1)
    engine = OpenAIEngine(OpenAIModel(name="up", engine="openai", model="m", options=options), worker_metrics("up"))
    await engine.start()
    deltas: list[Delta] = []
    usage: Usage | None = None
    failure: Exception | None = None
    try:
        async with aclosing(engine.generate("r", _request(dialect))) as items:
            async for item in items:
                if isinstance(item, Usage):
                    usage = item
                elif isinstance(item, Delta):
                    deltas.append(item)
    except (UpstreamError, InvalidRequest) as error:
        failure = error
    finally:
        await engine.stop()
    assert (str(failure) if failure else "").find(dialect.error) >= 0, failure
    assert isinstance(failure, InvalidRequest) == dialect.invalid
    assert len(upstream.seen) == dialect.requests
    choice = choices_of(deltas)[0]
    assert (choice.text, choice.reasoning or "") == (dialect.text, dialect.reasoning)
    if dialect.error:
        assert failure is not None
        assert choice.finish_reason is None
        return
    assert failure is None
    found = [
        replace(call, id=ANY_ID if expected.id == ANY_ID else call.id) for call, expected in _pairs(choice, dialect)
    ]
    assert found == list(dialect.calls)
    assert len({call.id for call in choice.tool_calls} - {""}) == len(choice.tool_calls), "ids are kept apart"
    assert _calls_follow_each_other(deltas)
    assert choice.finish_reason == dialect.finish
    assert usage == dialect.usage
    if dialect.logprobs is not None:
        assert (choice.logprobs or []) == dialect.logprobs


def _request(dialect: Dialect) -> GenerateRequest:
    logprobs = 1 if dialect.logprobs is not None else None
    if dialect.chat:
        chat = ChatOptions(tools=[Tool(function=Function(name=name)) for name in ("now", "nowhere", "weather")])
        return GenerateRequest(messages=[Message(role="user", content="Hello")], logprobs=logprobs, chat=chat)
    return GenerateRequest(prompt="Hello", logprobs=logprobs)


def _pairs(choice: Any, dialect: Dialect) -> list[tuple[Any, Any]]:
    assert len(choice.tool_calls) == len(dialect.calls), choice.tool_calls
    return list(zip(choice.tool_calls, dialect.calls, strict=True))


def _calls_follow_each_other(deltas: list[Delta]) -> bool:
    """Whether no fragment of a call comes after the next has begun, and each begins with its id and name."""
    numbers = [call.index for delta in deltas for call in delta.tool_calls]
    begins = [call for delta in deltas for call in delta.tool_calls if call.id]
    return numbers == sorted(numbers) and len(begins) == len(set(numbers)) and all(call.name for call in begins)
