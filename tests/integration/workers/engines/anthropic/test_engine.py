"""The `anthropic` engine against a stand-in: headers, thinking over two turns, usage, continued answers, logs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from shared.config.models.anthropic import AnthropicModel
from shared.domain.errors import InvalidRequest
from shared.domain.events import CallDelta, Delta
from shared.domain.job import Choice, ToolCall, Usage
from shared.domain.opaque import OpaquePart
from shared.domain.request import (
    ChatOptions,
    Function,
    FunctionCall,
    GenerateRequest,
    Message,
    MessageToolCall,
    Sampling,
    StructuredOutputs,
    Tool,
)
from tests.support.metrics import worker_metrics
from tests.support.transcripts import choices_of
from tests.support.vendors.anthropic import REQUEST_ID, AnthropicVendor
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY, KEY_ENV
from workers.engines.anthropic.engine import AnthropicEngine
from workers.engines.base import NO_PRIOR, CannotContinue, EngineError, Prior
from workers.engines.resume import Resume

ASK = GenerateRequest(messages=[Message(role="user", content="Hello")], sampling=Sampling(max_tokens=50))
WEATHER = Tool(function=Function(name="weather", parameters={"type": "object"}))


@pytest.fixture
async def vendor(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AnthropicVendor]:
    monkeypatch.setenv(KEY_ENV, KEY)
    async with AnthropicVendor().serve() as vendor:
        yield vendor


@pytest.fixture
async def engine(vendor: AnthropicVendor) -> AsyncIterator[AnthropicEngine]:
    engine = started(vendor)
    await engine.start()
    yield engine
    await engine.stop()


def started(vendor: AnthropicVendor, **options: Any) -> AnthropicEngine:
    spec = vendor.spec(max_retries=0, **options)
    assert isinstance(spec, AnthropicModel)
    return AnthropicEngine(spec, worker_metrics("up"))


async def run(
    engine: AnthropicEngine, request: GenerateRequest = ASK, prior: Prior = NO_PRIOR
) -> tuple[Choice, Usage | None]:
    deltas, usage = [*prior.deltas], None
    async with aclosing(engine.generate("job-1", request, prior)) as items:
        async for item in items:
            if isinstance(item, Delta):
                deltas.append(item)
            elif isinstance(item, Usage):
                usage = item
    return choices_of(deltas)[0], usage


async def test_headers(vendor: AnthropicVendor) -> None:
    engine = started(vendor, anthropic_beta=["context-1m-2025-08-07", "files-api-2025-04-14"])
    await engine.start()
    await run(engine)
    await engine.stop()
    headers = vendor.seen[0].headers
    assert headers["x-api-key"] == KEY
    assert "authorization" not in headers
    assert headers["anthropic-version"] == "2023-06-01"
    assert headers["anthropic-beta"] == "context-1m-2025-08-07,files-api-2025-04-14"


async def test_usage_has_all_its_parts(vendor: AnthropicVendor, engine: AnthropicEngine) -> None:
    vendor.scripts = [Script(usage=Usage(100, 60, 20, 12, 30))]
    _, usage = await run(engine)
    assert usage == Usage(100, 60, 20, 12, 30)
    assert vendor.seen[0].body["max_tokens"] == 50


async def test_thinking_is_sent_back_unchanged_with_the_results_of_tools(
    vendor: AnthropicVendor, engine: AnthropicEngine
) -> None:
    call = ToolCall("toolu_1", "weather", '{"city": "Paris"}')
    vendor.scripts = [Script(reasoning=("Let me ", "ask."), text=("I ask.",), calls=(call,), finish="tool_calls")]
    chat = ChatOptions(tools=[WEATHER])
    sampling = Sampling(max_tokens=5000, thinking_token_budget=2000)
    choice, _ = await run(engine, ASK.model_copy(update={"chat": chat, "sampling": sampling}))
    answer = Message(
        role="assistant",
        content=choice.text,
        reasoning="a text that the client has changed",
        tool_calls=[
            MessageToolCall(id=item.id, function=FunctionCall(name=item.name, arguments=item.arguments))
            for item in choice.tool_calls
        ],
        opaque=list(choice.opaque),
    )
    result = Message(role="tool", tool_call_id=call.id, content="sunny")
    messages = [*(ASK.messages or ()), answer, result]
    await run(engine, ASK.model_copy(update={"chat": chat, "sampling": sampling, "messages": messages}))
    assert vendor.seen[1].body["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "Let me ask.", "signature": "sig0"},
        {"type": "text", "text": "I ask."},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}},
    ]


@pytest.mark.parametrize("after", [False, True])
async def test_the_upstreams_request_id_is_logged(
    vendor: AnthropicVendor, engine: AnthropicEngine, caplog: pytest.LogCaptureFixture, after: bool
) -> None:
    vendor.scripts = [Script(fail_after=1) if after else Script(status=529)]
    with pytest.raises(EngineError):
        await run(engine)
    assert REQUEST_ID in caplog.text


async def test_a_parameter_that_the_upstream_refuses_is_the_clients_error(
    vendor: AnthropicVendor, engine: AnthropicEngine
) -> None:
    call = MessageToolCall(id="a", function=FunctionCall(name="f", arguments="{}"))
    unanswered = [Message(role="assistant", tool_calls=[call]), Message(role="user", content="x")]
    messages = [*(ASK.messages or ()), *unanswered]
    with pytest.raises(InvalidRequest, match="without `tool_result` blocks"):
        await run(engine, ASK.model_copy(update={"messages": messages}))
    assert vendor.generated == 1


# Continued answers


def after(*texts: str) -> Prior:
    return Prior([Delta(0, text, unidentified=1) for text in texts])


async def test_an_interrupted_answer_is_continued_after_its_text(
    vendor: AnthropicVendor, engine: AnthropicEngine
) -> None:
    vendor.scripts = [Script(text=(" ", "and", " well"), usage=Usage(22, 0, 3))]
    prior = after("Safe", " ")
    assert engine.resume_mode(ASK, prior) is Resume.EXACT
    choice, usage = await run(engine, prior=prior)
    assert (choice.text, choice.finish_reason) == ("Safe and well", "stop")
    assert usage == Usage(20, 0, 5)
    body = vendor.seen[0].body
    assert body["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "text": "Safe"}]}
    assert body["max_tokens"] == 48


async def test_what_is_left_of_max_tokens(vendor: AnthropicVendor, engine: AnthropicEngine) -> None:
    """Pieces of several words have at least a token for each; the usage has the pieces."""
    vendor.scripts = [Script(text=("!",), usage=Usage(50, 0, 1)), Script(text=("!",), usage=Usage(50, 0, 1))]
    _, usage = await run(engine, prior=after("one two three four five", " six seven eight nine ten"))
    assert usage == Usage(48, 0, 3)
    _, usage = await run(engine, prior=after(*["\u0441\u0435\u0433\u043e\u0434\u043d\u044f "] * 10))
    assert usage == Usage(40, 0, 11)
    assert [seen.body["max_tokens"] for seen in vendor.seen] == [40, 40]


@pytest.mark.parametrize(
    ("emitted", "text", "answer"),
    [
        ("A", ("B",), "AB"),
        ("A \n", (" \n", " B"), "A \n B"),
        ("A \n", (" B",), "A \nB"),
        ("A ", ("\n", "B"), "A \nB"),
        ("A  ", (" B",), "A  B"),
        ("\n", ("\nB",), "\nB"),
    ],
)
async def test_white_space_at_the_end_is_not_repeated(
    vendor: AnthropicVendor, engine: AnthropicEngine, emitted: str, text: tuple[str, ...], answer: str
) -> None:
    vendor.scripts = [Script(text=text)]
    choice, _ = await run(engine, prior=after(emitted))
    assert choice.text == answer


async def test_a_text_that_the_client_began_is_continued_with_what_followed_it(
    vendor: AnthropicVendor, engine: AnthropicEngine
) -> None:
    messages = [*(ASK.messages or ()), Message(role="assistant", content="The answer")]
    chat = ChatOptions(add_generation_prompt=False, continue_final_message=True)
    await run(engine, ASK.model_copy(update={"messages": messages, "chat": chat}), after(" is", " "))
    assert vendor.seen[0].body["messages"][-1]["content"] == [{"type": "text", "text": "The answer is"}]


@pytest.mark.parametrize(
    ("changes", "prior"),
    [
        ({"sampling": Sampling(max_tokens=5000, thinking_token_budget=2000)}, after("A")),
        ({"structured_outputs": StructuredOutputs(json_schema={"type": "object"})}, after("{")),
        ({"chat": ChatOptions(tools=[WEATHER], tool_choice="required")}, after("A")),
        ({}, Prior([Delta(0, tool_calls=(CallDelta(0, "a", "weather", '{"ci'),))])),
        ({}, Prior([Delta(0, reasoning="Hm.")])),
        ({}, Prior([Delta(0, "A", opaque=(OpaquePart("anthropic", "thinking", {}),))])),
    ],
)
async def test_what_cannot_be_continued(
    vendor: AnthropicVendor, engine: AnthropicEngine, changes: dict[str, Any], prior: Prior
) -> None:
    request = ASK.model_copy(update=changes)
    assert engine.resume_mode(request, prior) is Resume.NONE
    with pytest.raises(CannotContinue):
        await run(engine, request, prior)
    assert vendor.generated == 0


async def test_models_that_refuse_a_started_answer_do_not_continue(vendor: AnthropicVendor) -> None:
    engine = started(vendor, prefill=False)
    assert engine.resume_mode(ASK) is Resume.NONE
    assert engine.resume_mode(ASK, after("A")) is Resume.NONE


async def test_a_prompt_is_counted_without_being_run(vendor: AnthropicVendor, engine: AnthropicEngine) -> None:
    chat = ChatOptions(tools=[WEATHER], reasoning_effort="low")
    counting = ASK.model_copy(update={"prompt_only": True, "sampling": Sampling(max_tokens=1), "chat": chat})
    choice, usage = await run(engine, counting)
    assert (choice.text, choice.finish_reason, usage) == ("", "length", Usage(2095))
    assert vendor.seen[0].path == "/v1/messages/count_tokens"
    assert vendor.generated == 0
