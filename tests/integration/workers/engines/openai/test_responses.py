"""The Responses API: what is sent, and how an answer continues at each point where it may be interrupted."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from typing import Any

import orjson
import pytest

from shared.domain.content import FilePart, ImagePart, TextPart
from shared.domain.errors import InvalidRequest
from shared.domain.events import CallDelta, Delta, UpstreamState, joined_calls
from shared.domain.job import Choice, ToolCall, Usage
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
from tests.support.vendors.responses import ResponsesVendor
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY, KEY_ENV
from tests.support.waiting import eventually
from workers.engines.base import NO_PRIOR, CannotContinue, Prior, UpstreamBusy, UpstreamError
from workers.engines.factory import make_engine
from workers.engines.openai.engine import OpenAIEngine
from workers.engines.openai.responses import ResponseParser
from workers.engines.openai.responses.cursor import Cursor
from workers.engines.resume import Resume
from workers.engines.upstream.errors import RunLost

ASK = GenerateRequest(messages=[Message(role="user", content="Hello")])
WEATHER = Tool(function=Function(name="weather", parameters={"type": "object"}))
CALLS = (ToolCall("call_1", "weather", '{"city": "Paris"}'), ToolCall("call_2", "weather", '{"city": "Rome"}'))
FULL = Script(
    reasoning=("Let me ", "think."),
    text=("né", "e 😀", "ü"),
    calls=CALLS,
    finish="tool_calls",
    usage=Usage(70, 50, 90, 20),
    split=True,
)


@pytest.fixture
async def vendor(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ResponsesVendor]:
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.setattr("workers.engines.upstream.backoff.BACKOFF_S", (0.0, 0.0))
    monkeypatch.setattr("workers.engines.openai.responses.exchange.POLL_S", 0.01)
    monkeypatch.setattr("workers.engines.openai.responses.exchange.MAX_POLL_S", 0.01)
    async with ResponsesVendor().serve() as vendor:
        yield vendor


@pytest.fixture
async def engine(vendor: ResponsesVendor) -> AsyncIterator[OpenAIEngine]:
    engine = make_engine(vendor.spec(max_retries=2), worker_metrics("up"))
    assert isinstance(engine, OpenAIEngine)
    await engine.start()
    yield engine
    await engine.stop()


class Answer:
    """What an engine emitted."""

    def __init__(self) -> None:
        self.state: UpstreamState | None = None
        self.deltas: list[Delta] = []
        self.usage: Usage | None = None

    @property
    def choice(self) -> Choice:
        return choices_of(self.deltas)[0]


async def run(
    engine: OpenAIEngine, prior: Prior = NO_PRIOR, request: GenerateRequest = ASK, answer: Answer | None = None
) -> Answer:
    answer = answer or Answer()
    async with aclosing(engine.generate("job-1", request, prior)) as items:
        async for item in items:
            match item:
                case UpstreamState():
                    assert not answer.deltas, "the state precedes the output"
                    answer.state = item
                case Delta():
                    answer.deltas.append(item)
                case Usage():
                    answer.usage = item
    return answer


def prior_of(state: UpstreamState | None, deltas: Sequence[Delta]) -> Prior:
    """What the event log has after these deltas."""
    cursor = next((delta.cursor for delta in reversed(deltas) if delta.cursor is not None), None)
    choice = choices_of(deltas)[0] if deltas else None
    if choice is None:
        return Prior((), True, state, cursor)
    merged = Delta(0, choice.text, unidentified=sum(delta.tokens for delta in deltas), reasoning=choice.reasoning or "")
    merged.tool_calls = joined_calls(fragment for delta in deltas for fragment in delta.tool_calls)
    merged.opaque = tuple(part for delta in deltas for part in delta.opaque)
    return Prior((merged,), True, state, cursor)


async def test_a_successor_continues_after_each_delta(
    vendor: ResponsesVendor, engine: OpenAIEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No character and no fragment of a call is repeated or lost, and the upstream generates once."""
    monkeypatch.setattr("workers.engines.upstream.engine.flush_interval_s", lambda _: 0.0)
    vendor.turns = 20
    vendor.scripts = [FULL]
    whole = await run(engine)
    assert (whole.choice.reasoning, whole.choice.text) == ("Let me think.", "née 😀ü")
    assert (whole.choice.tool_calls, whole.choice.finish_reason) == (CALLS, "tool_calls")
    assert whole.usage == FULL.usage
    assert [part.data["encrypted_content"] for part in whole.choice.opaque] == [vendor.encrypted]
    assert len(whole.deltas) > 8
    assert any(":" in str(delta.cursor) for delta in whole.deltas), "a call is open at one of them"
    for count in range(len(whole.deltas)):
        before = whole.deltas[:count]
        prior = prior_of(whole.state, before)
        assert engine.resume_mode(ASK, prior) is Resume.EXACT
        rest = await run(engine, prior)
        assert rest.state is None, "it is in the log"
        assert choices_of([*before, *rest.deltas]) == choices_of(whole.deltas)
        assert rest.usage == FULL.usage
    assert vendor.generated == 1
    resumed = [seen for seen in vendor.seen if seen.method == "GET"]
    assert [seen.query.get("starting_after") for seen in resumed][:2] == [None, str(whole.deltas[0].cursor)]


@pytest.mark.parametrize("cut_after", range(4))
async def test_a_broken_stream_is_resumed(vendor: ResponsesVendor, engine: OpenAIEngine, cut_after: int) -> None:
    vendor.scripts = [Script(text=("a", "b", "c"), calls=CALLS, finish="tool_calls", cut_after=cut_after)]
    answer = await run(engine)
    assert (answer.choice.text, answer.choice.tool_calls) == ("abc", CALLS)
    assert vendor.generated == 1
    assert [seen.method for seen in vendor.seen] == ["POST", "GET"]


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_response_that_is_not_streamed_again_is_retrieved(
    vendor: ResponsesVendor, engine: OpenAIEngine, count: int
) -> None:
    vendor.scripts = [FULL]
    whole = await run(engine)
    vendor.streams_again = False
    rest = await run(engine, prior_of(whole.state, whole.deltas[:count]))
    whole_again = choices_of([*whole.deltas[:count], *rest.deltas])
    assert whole_again == choices_of(whole.deltas)
    assert rest.deltas[-1].cursor == "retrieved"
    again = await run(engine, prior_of(whole.state, [*whole.deltas[:count], *rest.deltas[:-1]]))
    assert again.deltas[-1].finish_reason == "tool_calls", "a third attempt needs no stream either"
    assert vendor.generated == 1


async def test_a_running_response_is_polled(vendor: ResponsesVendor, engine: OpenAIEngine) -> None:
    vendor.gate = asyncio.Semaphore(1)
    vendor.scripts = [Script(text=("a", "b"), cut_after=1)]
    vendor.streams_again = False
    answer = Answer()
    running = asyncio.create_task(run(engine, answer=answer))

    async def polled() -> bool:
        return len([seen for seen in vendor.seen if "stream" not in seen.query and seen.method == "GET"]) > 2

    await eventually(polled, "it is polled")
    vendor.gate.release()
    assert (await running).choice.text == "ab"
    assert vendor.generated == 1


@pytest.mark.parametrize("pieces", [0, 1])
async def test_a_response_without_progress_is_cancelled(
    vendor: ResponsesVendor, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    """It is polled, less and less often, for no longer than `read_timeout_s`."""
    monkeypatch.setattr("workers.engines.openai.responses.exchange.MAX_POLL_S", 10)
    vendor.gate = asyncio.Semaphore(pieces)
    vendor.streams_again = False
    engine = make_engine(vendor.spec(read_timeout_s=0.15, max_retries=1), worker_metrics("up"))
    assert isinstance(engine, OpenAIEngine)
    await engine.start()
    answer = Answer()
    with pytest.raises(UpstreamError, match="did not answer in time"):
        await run(engine, answer=answer)
    assert choices_of(answer.deltas)[0].text == "Hi " if pieces else not answer.deltas
    assert vendor.seen[-1].path == "/v1/responses/resp_1/cancel"
    assert vendor.cancelled.is_set()
    assert (vendor.generated, len(vendor.seen) < 14) == (1, True)
    vendor.gate = asyncio.Semaphore(100)
    vendor.failing_cancels = True
    vendor.scripts = [Script(hang_after=0)]
    with pytest.raises(UpstreamError, match="did not answer in time"):
        await run(engine)
    await engine.stop()


async def test_a_response_that_fails_again_and_again(vendor: ResponsesVendor, engine: OpenAIEngine) -> None:
    vendor.default = Script(fail_after=0)
    with pytest.raises(UpstreamError):
        await run(engine)
    assert vendor.generated < 12


async def test_an_expired_response(vendor: ResponsesVendor, engine: OpenAIEngine) -> None:
    """Without output, the request is sent again; otherwise the answer cannot continue."""
    whole = await run(engine)
    vendor.forget()
    with pytest.raises(CannotContinue):
        await run(engine, prior_of(whole.state, whole.deltas[:1]))
    assert vendor.generated == 1
    again = await run(engine, prior_of(whole.state, ()))
    assert (again.choice.text, vendor.generated) == ("Hi there", 2)
    assert again.state is not None
    assert again.state.id == "resp_2"


async def test_a_state_of_another_engine_is_not_used(vendor: ResponsesVendor, engine: OpenAIEngine) -> None:
    foreign = Prior((Delta(0, "Hi "),), True, UpstreamState("p1", {"url": "http://other"}), 3)
    assert engine.resume_mode(ASK, foreign) is Resume.NONE
    with pytest.raises(CannotContinue):
        await run(engine, foreign)
    answer = await run(engine, Prior((), True, foreign.upstream))
    assert answer.choice.text == "Hi there"
    assert "p1" not in {seen.path for seen in vendor.seen}


async def test_a_failed_response(vendor: ResponsesVendor, engine: OpenAIEngine) -> None:
    """It is created again if it had no output."""
    vendor.scripts = [Script(fail_after=0), Script(text=("a", "b"), fail_after=1)]
    answer = Answer()
    with pytest.raises(UpstreamError, match="the reason"):
        await run(engine, answer=answer)
    assert (answer.choice.text, vendor.generated) == ("a", 2)


async def test_a_response_that_always_fails_is_created_as_often_as_any_request(
    vendor: ResponsesVendor, engine: OpenAIEngine
) -> None:
    """Each creation is paid. The events before the failure are no answer."""
    vendor.default = Script(fail_after=0)
    with pytest.raises(UpstreamBusy, match="the reason"):
        await run(engine)
    assert vendor.generated == engine._options.max_retries + 1


async def test_a_successor_creates_a_failed_response_again(vendor: ResponsesVendor, engine: OpenAIEngine) -> None:
    """Also if it may not repeat requests: its predecessor has left the state of the response that failed."""
    failed = Answer()
    vendor.default = Script(fail_after=0)
    with pytest.raises(UpstreamBusy):
        await run(engine, answer=failed)
    generated = vendor.generated
    vendor.default = Script()
    again = await run(engine, prior_of(failed.state, ()))
    assert (again.choice.text, vendor.generated) == ("Hi there", generated + 1)


async def test_a_failed_response_with_output_is_not_created_again(
    vendor: ResponsesVendor, engine: OpenAIEngine
) -> None:
    vendor.default = Script(text=("a", "b"), fail_after=1)
    answer = Answer()
    with pytest.raises(UpstreamError):
        await run(engine, answer=answer)
    with pytest.raises(UpstreamError, match="the reason") as caught:
        await run(engine, prior_of(answer.state, answer.deltas[:1]))
    assert not isinstance(caught.value, UpstreamBusy)
    assert vendor.generated == 1


async def test_cancelling(vendor: ResponsesVendor, engine: OpenAIEngine) -> None:
    whole = await run(engine)
    assert whole.state is not None
    await engine.cancel(whole.state)
    assert vendor.seen[-1].path == "/v1/responses/resp_1/cancel"
    await engine.cancel(replace(whole.state, id="../resp?"))
    assert vendor.seen[-1].path == "/v1/responses/../resp?/cancel"
    assert vendor.cancelled.is_set()


async def test_the_whole_request(vendor: ResponsesVendor, engine: OpenAIEngine) -> None:
    call = MessageToolCall(id="call_1", function=FunctionCall(name="weather", arguments="{}"))
    first = await run(engine, request=ASK.model_copy())
    vendor.scripts = [FULL]
    thought = (await run(engine)).choice.opaque[0].at(reasoning=13, text=0, calls=0)
    request = GenerateRequest(
        messages=[
            Message(role="system", content="Be brief."),
            Message(
                role="user",
                content=[
                    TextPart(type="text", text="What is this?"),
                    ImagePart(type="image", media_type="image/png", data="aGk="),
                    ImagePart(type="image", url="https://pictures.example/1", detail="low"),
                    FilePart(type="file", file_id="file_1"),
                    FilePart(type="file", media_type="application/pdf", data="aGk=", filename="a.pdf"),
                ],
            ),
            Message(role="assistant", content="Wait.", reasoning="Let me think.", tool_calls=[call], opaque=[thought]),
            Message(role="tool", tool_call_id="call_1", content="rain"),
            Message(role="developer", content="Go on."),
        ],
        sampling=Sampling(max_tokens=50, temperature=0.5, top_p=0.9),
        chat=ChatOptions(
            tools=[WEATHER, Tool(function=Function(name="time", description="Tells it.", strict=True))],
            tool_choice={"name": "weather"},
            parallel_tool_calls=False,
            reasoning_effort="low",
        ),
        structured_outputs=StructuredOutputs(json_schema={"type": "object"}),
        logprobs=2,
        prompt_cache_key="thread-7",
        cache_salt="5a17",
    )
    await run(engine, request=request)
    assert first.choice.text == "Hi there"
    assert vendor.seen[-1].body == {
        "model": "theirs",
        "prompt_cache_key": hmac.digest(b"5a17", b"thread-7", "sha256").hex(),
        "background": True,
        "stream": True,
        "store": True,
        "stream_options": {"include_obfuscation": False},
        "instructions": "Be brief.",
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is this?"},
                    {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "auto"},
                    {"type": "input_image", "image_url": "https://pictures.example/1", "detail": "low"},
                    {"type": "input_file", "file_id": "file_1"},
                    {"type": "input_file", "file_data": "data:application/pdf;base64,aGk=", "filename": "a.pdf"},
                ],
            },
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [{"type": "summary_text", "text": "Let me think."}],
                "encrypted_content": vendor.encrypted,
            },
            {"role": "assistant", "content": "Wait."},
            {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
            {"role": "developer", "content": "Go on."},
        ],
        "max_output_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
        "top_logprobs": 2,
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_schema", "name": "answer", "schema": {"type": "object"}}},
        "tools": [
            {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False},
            {
                "type": "function",
                "name": "time",
                "description": "Tells it.",
                "parameters": {"type": "object", "properties": {}},
                "strict": True,
            },
        ],
        "tool_choice": {"type": "function", "name": "weather"},
        "parallel_tool_calls": False,
    }


async def test_parameters_of_the_provider_add_to_those_of_the_request(
    vendor: ResponsesVendor, engine: OpenAIEngine
) -> None:
    schema = StructuredOutputs(json_schema={"type": "object"})
    extra = {"text": {"verbosity": "low", "format": {"type": "text"}}, "truncation": "auto"}
    await run(engine, request=ASK.model_copy(update={"extra_body": extra, "structured_outputs": schema}))
    body = vendor.seen[0].body
    assert body["truncation"] == "auto"
    assert (body["text"]["verbosity"], body["text"]["format"]["type"]) == ("low", "json_schema")


async def test_ids_of_calls_that_are_too_long(vendor: ResponsesVendor, engine: OpenAIEngine) -> None:
    call = MessageToolCall(id=65 * "a", function=FunctionCall(name="f", arguments="{}"))
    messages = [Message(role="assistant", tool_calls=[call]), Message(role="tool", tool_call_id=call.id, content="1")]
    await run(engine, request=GenerateRequest(messages=messages))
    first, second = (item["call_id"] for item in vendor.seen[-1].body["input"])
    assert first == second
    assert len(first) <= 64


async def test_a_model_that_does_not_reason(vendor: ResponsesVendor, engine: OpenAIEngine) -> None:
    """It refuses the request for encrypted reasoning, which is then left out for good."""
    vendor.scripts = [Script(status=400, message="include: Encrypted content is not supported with this model.")]
    for _ in range(2):
        assert (await run(engine)).choice.text == "Hi there"
    assert ["include" in seen.body for seen in vendor.seen] == [True, False, False]


@pytest.mark.parametrize("logprobs", [None, 2])
async def test_what_a_model_refuses_is_not_requested_again(
    vendor: ResponsesVendor, engine: OpenAIEngine, logprobs: int | None
) -> None:
    """Neither by resumed streams nor by polls, of the worker that created the response or of the next one."""
    vendor.refuses_reasoning = True
    request = ASK.model_copy(update={"logprobs": logprobs})
    expected = "message.output_text.logprobs" if logprobs else None
    for vendor.streams_again in (True, False):
        vendor.scripts = [Script(text=("a", "b"), cut_after=1)]
        vendor.seen.clear()
        whole = await run(engine, request=request)
        assert whole.choice.text == "ab"
        gets = [seen for seen in vendor.seen if seen.method == "GET"]
        assert {seen.query.get("include[]") for seen in gets} == {expected}
        other = make_engine(vendor.spec(), worker_metrics("up"))
        assert isinstance(other, OpenAIEngine)
        await other.start()
        vendor.seen.clear()
        rest = await run(other, prior_of(whole.state, whole.deltas[:1]), request)
        assert choices_of([*whole.deltas[:1], *rest.deltas])[0].text == "ab"
        included = [seen.query.get("include[]") for seen in vendor.seen]
        assert included[1:] == [expected] * (1 if vendor.streams_again else 2)
        await other.stop()


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (GenerateRequest(prompt="x"), "prompt"),
        (ASK.model_copy(update={"structured_outputs": StructuredOutputs(regex="a")}), "structured_outputs"),
        (GenerateRequest(messages=[Message(role="user", content="x", name="Al")]), "messages"),
    ],
)
async def test_what_the_api_cannot_express(engine: OpenAIEngine, request_: GenerateRequest, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await run(engine, request=request_)
    assert caught.value.param == param


def parse(*events: Any, prior: Prior = NO_PRIOR, reasoning: bool = True) -> tuple[ResponseParser, list[Delta]]:
    """The parser and its deltas after these events, each in a read of its own. None: the connection broke."""
    parser = ResponseParser(prior, logprobs=True, reasoning=reasoning, provider="openai")
    deltas: list[Delta] = []
    for event in events:
        if event is None:
            parser.reconnect()
            continue
        body = event if isinstance(event, bytes) else b"data: " + orjson.dumps(event) + b"\n\n"
        deltas += [item for item in parser.feed(body) if isinstance(item, Delta)]
    deltas += [item for item in parser.end() if isinstance(item, Delta)]
    return parser, deltas


def text(seq: int | None, delta: str, **members: Any) -> dict[str, Any]:
    number = {} if seq is None else {"sequence_number": seq}
    return {"type": "response.output_text.delta", "output_index": 0, "delta": delta, **number, **members}


def ended(kind: str = "completed", **members: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "sequence_number": 99, "response": {"status": kind, **members}}


MESSAGE = {"type": "message", "content": [{"type": "output_text", "text": "abc"}]}


def test_repeated_events_are_skipped() -> None:
    parser, deltas = parse(text(4, "a"), text(4, "a"), None, text(4, "a"), text(3, "x"), text(5, "b"), ended(output=[]))
    assert ("".join(delta.text for delta in deltas), parser.finished) == ("ab", True)


@pytest.mark.parametrize("number", [0, -1])
def test_events_that_all_have_the_same_number(number: int) -> None:
    """Nothing is taken for repeated, and the stream cannot be resumed."""
    created = {"type": "response.created", "sequence_number": number, "response": {"id": "resp", "status": "queued"}}
    parser, deltas = parse(
        created, text(number, "l"), text(number, "l"), {**ended(output=[]), "sequence_number": number}
    )
    assert ([delta.text for delta in deltas], parser.finished) == (["l", "l", ""], True)
    assert {delta.cursor for delta in deltas} == {"retrieved"}


def test_numbers_that_start_again() -> None:
    parser, deltas = parse(text(7, "a"), text(0, "b"), text(1, "c"), ended(output=[]))
    assert ("".join(delta.text for delta in deltas), deltas[-1].cursor) == ("abc", "retrieved")
    assert not parser.resumable


def test_a_character_that_is_cut_between_two_events() -> None:
    halves = [
        rb'data: {"type":"response.output_text.delta","sequence_number":%d,"output_index":0,"delta":"%b"}' % half
        for half in ((1, rb"a\ud83d"), (2, rb"\ude00b"))
    ]
    _, deltas = parse(*(half + b"\n\n" for half in halves), ended(output=[]))
    assert "".join(delta.text for delta in deltas) == "a😀b"


def item_done(item: dict[str, Any], seq: int = 8, index: int = 0) -> dict[str, Any]:
    return {"type": "response.output_item.done", "sequence_number": seq, "output_index": index, "item": item}


def text_done(whole: str, seq: int = 7) -> dict[str, Any]:
    return {"type": "response.output_text.done", "sequence_number": seq, "output_index": 0, "text": whole}


@pytest.mark.parametrize(
    "events",
    [
        [text_done("abc")],
        [item_done(MESSAGE)],
        [text_done("abc"), item_done(MESSAGE)],
        [text(1, "a"), text(2, "bc"), text_done("abc"), item_done(MESSAGE)],
        [text(1, "a"), item_done(MESSAGE)],
        [text(1, "a"), text(2, "b"), None, text(3, "c"), text_done("abc"), item_done(MESSAGE)],
    ],
)
@pytest.mark.parametrize("output", [[], [MESSAGE]])
def test_texts_without_all_their_deltas(events: list[Any], output: list[Any]) -> None:
    """Some gateways send no deltas, or no output with the last event."""
    _, deltas = parse(*events, ended(output=output))
    assert "".join(delta.text for delta in deltas) == "abc"


def test_the_text_of_an_item_that_an_earlier_attempt_began_is_not_repeated() -> None:
    prior = Prior((Delta(0, "ab"),), True, UpstreamState("resp"), 3)
    _, deltas = parse(text(4, "c"), text_done("abc"), item_done(MESSAGE), ended(output=[]), prior=prior)
    assert "".join(delta.text for delta in deltas) == "c"
    begin = {"type": "response.output_item.added", "sequence_number": 9, "output_index": 1, "item": {"type": "message"}}
    _, deltas = parse(item_done(MESSAGE), begin, item_done(MESSAGE, 10, 1), ended(output=[]), prior=prior)
    assert "".join(delta.text for delta in deltas) == "abc"


def test_reasoning_without_deltas() -> None:
    thoughts = [{"type": "reasoning", "id": at, "summary": [{"type": "summary_text", "text": at}]} for at in ("a", "b")]
    _, deltas = parse(item_done(thoughts[0]), item_done(thoughts[1], 9, 1), ended(output=[]))
    assert choices_of(deltas)[0].reasoning == "a\n\nb"


def test_events_whose_type_is_only_their_name() -> None:
    delta = b'event: response.output_text.delta\ndata: {"delta":"a"}\n\n'
    last = b'event: response.completed\ndata: {"response":{"id":"resp","status":"completed","output":[]}}\n\n'
    parser, deltas = parse(delta, last)
    assert ("".join(delta.text for delta in deltas), parser.finished) == ("a", True)


def test_events_without_an_index_or_with_null() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f"}
    events = [
        {"type": "response.output_text.delta", "delta": None},
        {"type": "response.output_text.delta", "delta": "a"},
        {"type": "response.output_item.added", "item": call},
        {"type": "response.function_call_arguments.delta", "delta": "{}"},
        {"type": "response.output_item.done", "item": call},
    ]
    _, deltas = parse(*events, ended(output=[]))
    choice = choices_of(deltas)[0]
    assert (choice.text, choice.tool_calls) == ("a", (ToolCall("c", "f", "{}"),))


def test_an_error_with_a_number_of_its_own_is_reported() -> None:
    error = {"type": "error", "sequence_number": 0, "error": {"type": "server_error", "message": "Oh no"}}
    for events in ((text(5, "a"), error), (text(5, "a"), None, error)):
        parser, _ = parse(*events)
        assert getattr(parser.failure, "message", None) == "Oh no"


def test_a_whole_text_that_differs_from_its_deltas() -> None:
    """The deltas count if they are those of one body. They cannot be compared with the rest of it otherwise."""
    parser, deltas = parse(text(None, "abc "), ended(output=[MESSAGE]))
    assert ("".join(delta.text for delta in deltas), parser.finished) == ("abc ", True)
    with pytest.raises(RunLost):
        parse(text(None, "abc "), None, ended(output=[MESSAGE]))


@pytest.mark.parametrize(
    ("sent", "arguments"),
    [("null", "{}"), ('"{\\"a\\":1}"', '{"a":1}'), ({"a": 1}, '{"a":1}'), ('{"a":1}', '{"a":1}'), ('"x"', '"x"')],
)
def test_arguments_that_are_null_or_not_encoded_once(sent: Any, arguments: str) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": ""}
    begin = {"type": "response.output_item.added", "sequence_number": 1, "output_index": 0, "item": call}
    members = {"type": "response.function_call_arguments.delta", "output_index": 0}
    halves = [sent[:2], sent[2:]] if isinstance(sent, str) else [sent]
    fragments = [{**members, "sequence_number": 2 + at, "delta": half} for at, half in enumerate(halves)]
    done = {"type": "response.output_item.done", "sequence_number": 9, "output_index": 0}
    whole = {**done, "item": {**call, "arguments": sent}}
    for events in ((begin, *fragments, whole), (begin, *fragments, {**done, "item": call}), (begin, whole), ()):
        _, deltas = parse(*events, ended(output=[{**call, "arguments": sent}]))
        assert choices_of(deltas)[0].tool_calls == (ToolCall("c", "f", arguments),)


def test_arguments_that_an_earlier_attempt_began() -> None:
    """What follows is no beginning, whatever it looks like."""
    begun = Delta(0, tool_calls=(CallDelta(0, "c", "f", '{"city":'),))
    prior = Prior((begun,), True, UpstreamState("resp"), "3:0=0")
    fragment = {"type": "response.function_call_arguments.delta", "output_index": 0, "sequence_number": 4}
    _, deltas = parse({**fragment, "delta": '"Paris"}'}, prior=prior)
    assert [call.arguments for delta in deltas for call in delta.tool_calls] == ['"Paris"}']


def test_a_call_without_arguments() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": ""}
    begin = {"type": "response.output_item.added", "sequence_number": 1, "output_index": 0, "item": call}
    done = {"type": "response.output_item.done", "sequence_number": 2, "output_index": 0, "item": call}
    for events in ((begin, done), (begin,), (done,), ()):
        for output in ([call], []):
            if events or output:
                _, deltas = parse(*events, ended(output=output))
                assert choices_of(deltas)[0].tool_calls == (ToolCall("c", "f", "{}"),)
    cut = {**done, "item": {**call, "status": "incomplete"}}
    for events in ((begin, cut), (begin,)):
        _, deltas = parse(*events, ended("incomplete", output=[call]))
        assert choices_of(deltas)[0].tool_calls == (ToolCall("c", "f", ""),)


def test_what_the_deltas_lacked_comes_with_the_last_event() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    _, deltas = parse(text(1, "a"), ended(output=[MESSAGE, call]))
    choice = choices_of(deltas)[0]
    assert (choice.text, choice.tool_calls, choice.finish_reason) == ("abc", (ToolCall("c", "f", "{}"),), "tool_calls")


def test_a_whole_response_in_place_of_a_stream() -> None:
    thought = {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "hm"}]}
    body = {"id": "resp", "object": "response", "status": "completed", "output": [thought, MESSAGE]}
    parser, deltas = parse(orjson.dumps(body))
    choice = choices_of(deltas)[0]
    assert (choice.reasoning, choice.text, parser.run_id) == ("hm", "abc", "resp")


def test_another_answer_than_the_one_that_was_emitted() -> None:
    body = {"id": "resp", "object": "response", "status": "completed", "output": [MESSAGE]}
    with pytest.raises(RunLost):
        parse(orjson.dumps(body), prior=Prior((Delta(0, "ax"),), True, UpstreamState("resp"), None))


def test_events_without_numbers_cannot_be_resumed() -> None:
    parser, deltas = parse(text(None, "a"))
    assert (deltas[0].cursor, parser.resumable) == ("retrieved", False)


def test_summaries_are_paragraphs() -> None:
    part = {"type": "response.reasoning_summary_part.added"}
    delta = {"type": "response.reasoning_summary_text.delta"}
    events = [part, {**delta, "delta": "a"}, {**delta, "delta": "b"}, part, {**delta, "delta": "c"}]
    numbered = [{**event, "sequence_number": seq} for seq, event in enumerate(events)]
    _, deltas = parse(*numbered)
    assert choices_of(deltas)[0].reasoning == "ab\n\nc"
    assert parse(*numbered, reasoning=False)[1] == []


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        ({"reason": "max_output_tokens"}, "length"),
        ({"reason": "content_filter"}, "content_filter"),
        ({"reason": "a_new_reason"}, "length"),
        (None, "length"),
    ],
)
def test_an_incomplete_response_does_not_pass_for_a_complete_one(details: Any, reason: str) -> None:
    _, deltas = parse(text(1, "a"), ended("incomplete", output=[], incomplete_details=details))
    assert choices_of(deltas)[0].finish_reason == reason


def test_log_probabilities_and_refusals() -> None:
    logprobs = [{"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -1.0}]}]
    refusal = {"type": "response.refusal.delta", "sequence_number": 2, "delta": "No."}
    _, deltas = parse(text(1, "a", logprobs=logprobs * 2), refusal, ended(output=[]))
    assert [len(delta.logprobs) for delta in deltas] == [2, 0, 0]
    assert [delta.tokens for delta in deltas] == [2, 1, 0]
    choice = choices_of(deltas)[0]
    assert (choice.text, choice.finish_reason) == ("aNo.", "stop")


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (b'event: error\ndata: {"type": "error", "code": "x", "message": "Oh no", "sequence_number": 3}\n\n', "Oh no"),
        ({"type": "error", "message": "Oh no", "sequence_number": 3}, "Oh no"),
        (ended("failed", error={"code": "server_error", "message": "Oh no"}), "Oh no"),
        (ended("cancelled"), "cancelled"),
        ({"type": "response.output_text.delta", "delta": 7}, "not the stream"),
        (b"data: [1]\n\n", "not the stream"),
    ],
)
def test_failures(event: Any, message: str) -> None:
    parser, _ = parse(event)
    assert parser.done
    assert not parser.finished
    failure = parser.failure
    assert message in (str(failure) if isinstance(failure, UpstreamError) else getattr(failure, "message", ""))


@pytest.mark.parametrize("encoded", [5, "5:2=0,3=1", "retrieved"])
def test_cursors(encoded: int | str) -> None:
    assert Cursor.of(encoded).encoded() == encoded


@pytest.mark.parametrize("encoded", [None, "", "x", "5:", "5:2", "a:1=2"])
def test_cursors_that_cannot_be_read(encoded: str | None) -> None:
    assert Cursor.of(encoded).seq is None


def test_what_counts_as_progress() -> None:
    parser = ResponseParser(NO_PRIOR, logprobs=False, reasoning=True, provider=None)
    times = []
    for status, output in (("queued", []), ("queued", []), ("in_progress", []), ("in_progress", []), ("queued", [1])):
        parser.reconnect()
        body = {"id": "resp", "object": "response", "status": status, "output": output}
        assert all(isinstance(item, UpstreamState) for item in [*parser.feed(orjson.dumps(body)), *parser.end()])
        times.append(parser.progress_at)
    assert [late > early for early, late in pairwise(times)] == [False, True, False, True]
    assert list(parser.feed(b'data: {"type": "response.in_progress", "sequence_number": 1}\n\n')) == []
    assert parser.progress_at > times[-1]


REFUSAL = {"type": "message", "content": [{"type": "refusal", "refusal": "I will not."}]}


@pytest.mark.parametrize(
    "events",
    [
        [
            {"type": "response.refusal.delta", "output_index": 0, "delta": "I will ", "sequence_number": 1},
            {"type": "response.refusal.delta", "output_index": 0, "delta": "not.", "sequence_number": 2},
        ],
        [],
    ],
)
def test_a_refusal_is_marked(events: list[dict[str, Any]]) -> None:
    _, deltas = parse(*events, ended(output=[REFUSAL]))
    assert "".join(delta.text for delta in deltas) == "I will not."
    assert any(delta.refused for delta in deltas)
    _, deltas = parse(text(1, "abc"), ended(output=[MESSAGE]))
    assert not any(delta.refused for delta in deltas)
