"""The relaying engine with a faulty upstream: retries, error messages, and the conversion of requests and answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from shared.config.models.openai import OpenAIModel, OpenAIOptions
from shared.domain.errors import ErrorCode, InvalidRequest
from shared.domain.events import Delta
from shared.domain.job import Choice, ToolCall, Usage
from shared.domain.request import ChatOptions, Function, GenerateRequest, Message, Sampling, StructuredOutputs, Tool
from tests.support.faulty_upstream import Answer, End, FaultyUpstream, error_answer, faulty_upstream
from tests.support.metrics import worker_metrics
from tests.support.ports import free_port
from tests.support.transcripts import choices_of
from workers.engines.base import BusyReason, UpstreamBusy, UpstreamError
from workers.engines.openai.engine import OpenAIEngine
from workers.engines.upstream import answer_limit
from workers.engines.upstream import engine as upstream_engine

KEY = "sk-a-secret"
CHAT = GenerateRequest(messages=[Message(role="user", content="Hello")])
NO_DELAY = {"retry_after": "0"}


@pytest.fixture
async def upstream() -> AsyncIterator[FaultyUpstream]:
    async with faulty_upstream() as upstream:
        yield upstream


@pytest.fixture
async def engine(upstream: FaultyUpstream, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenAIEngine]:
    monkeypatch.setenv("UPSTREAM_API_KEY", f"{KEY}\n")
    engine = make(upstream.url, api_key_env="UPSTREAM_API_KEY", max_retries=2)
    await engine.start()
    yield engine
    assert engine.stats().requests == 0
    assert not engine.dead
    await engine.stop()


def make(url: str, **options: Any) -> OpenAIEngine:
    return OpenAIEngine(
        OpenAIModel(name="up", engine="openai", model="theirs", options=OpenAIOptions(base_url=url, **options)),
        worker_metrics("up"),
    )


async def run(
    engine: OpenAIEngine, request: GenerateRequest = CHAT, deltas: list[Delta] | None = None
) -> tuple[list[Delta], Usage | None]:
    """The deltas and usage of a request. `deltas` collects them even if the request fails."""
    deltas = [] if deltas is None else deltas
    async with aclosing(engine.generate("r", request)) as items:
        async for item in items:
            if isinstance(item, Usage):
                return deltas, item
            assert isinstance(item, Delta)
            deltas.append(item)
    return deltas, None


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def choice_of(deltas: list[Delta]) -> Choice:
    return choices_of(deltas)[0]


async def failure(engine: OpenAIEngine, expected_text: str = "") -> UpstreamError:
    """The error of a request that fails after a prefix of the expected text."""
    deltas: list[Delta] = []
    with pytest.raises(UpstreamError) as caught:
        await run(engine, deltas=deltas)
    assert expected_text.startswith(text(deltas))
    assert caught.value.code == ErrorCode.UPSTREAM_ERROR
    assert KEY not in caught.value.message
    assert "127.0.0.1" not in caught.value.message
    return caught.value


async def test_usage_is_the_upstreams(engine: OpenAIEngine) -> None:
    deltas, usage = await run(engine)
    assert text(deltas) == "0 1 2 "
    assert usage == Usage(70, 50, 90)


async def test_chunks_are_counted_if_usage_is_missing(engine: OpenAIEngine, upstream: FaultyUpstream) -> None:
    upstream.answers = [Answer(4, End.NO_USAGE)]
    deltas, usage = await run(engine)
    assert usage is None
    assert sum(delta.tokens for delta in deltas) == 4


@pytest.mark.parametrize("tokens", [0, 4])
async def test_malformed_usage_does_not_fail_the_answer(
    engine: OpenAIEngine, upstream: FaultyUpstream, tokens: int
) -> None:
    """It follows the finish reason: the answer is complete, and its chunks are counted."""
    upstream.answers = [Answer(tokens, End.BROKEN_USAGE)]
    deltas, usage = await run(engine)
    assert usage is None
    assert text(deltas) == "0 1 2 3 "[: 2 * tokens]
    assert sum(delta.tokens for delta in deltas) == tokens
    assert deltas[-1].finish_reason == "stop"
    assert len(upstream.seen) == 1


async def test_request_sent_to_the_upstream(engine: OpenAIEngine, upstream: FaultyUpstream) -> None:
    await run(engine)
    await run(engine, GenerateRequest(prompt="Once", sampling=Sampling(max_tokens=5, stop=["x"], temperature=0)))
    first, second = upstream.seen
    stream = {"model": "theirs", "stream": True, "stream_options": {"include_usage": True}}
    assert (first.path, first.headers["authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert first.body == {**stream, "messages": [{"role": "user", "content": "Hello"}]}
    assert second.path == "/v1/completions"
    assert second.body == {**stream, "prompt": "Once", "max_tokens": 5, "stop": ["x"], "temperature": 0}


async def test_max_tokens_field(upstream: FaultyUpstream) -> None:
    engine = make(upstream.url, max_tokens_field="max_completion_tokens")
    await engine.start()
    await run(engine, GenerateRequest(messages=CHAT.messages, sampling=Sampling(max_tokens=5)))
    await engine.stop()
    assert upstream.seen[0].body["max_completion_tokens"] == 5
    assert "max_tokens" not in upstream.seen[0].body
    assert "authorization" not in upstream.seen[0].headers


@pytest.mark.parametrize(
    ("upstream_reason", "reason"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), ("tool_calls", "stop")],
)
async def test_finish_reasons(
    engine: OpenAIEngine, upstream: FaultyUpstream, upstream_reason: str, reason: str
) -> None:
    """Without a call, that of tool calls is the usual one. (With one, it is a case of `tests.support.dialects`.)"""
    upstream.answers = [Answer(1, finish_reason=upstream_reason)]
    deltas, _ = await run(engine)
    assert deltas[-1].finish_reason == reason


@pytest.mark.parametrize(
    "transient",
    [
        error_answer(429, **NO_DELAY),
        error_answer(500, **NO_DELAY),
        error_answer(503, **NO_DELAY),
        Answer(0, End.DISCONNECT),
        Answer(0, End.SHORT),
    ],
    ids=["429", "500", "503", "cut", "short"],
)
async def test_transient_failures_before_the_first_token_are_retried(
    engine: OpenAIEngine, upstream: FaultyUpstream, transient: Answer
) -> None:
    upstream.answers = [transient]
    deltas, usage = await run(engine)
    assert text(deltas) == "0 1 2 "
    assert usage == Usage(70, 50, 90)
    assert len(upstream.seen) == 2


async def test_retry_after_is_honoured(engine: OpenAIEngine, upstream: FaultyUpstream) -> None:
    upstream.answers = [error_answer(429, retry_after="1")]
    await run(engine)
    assert upstream.seen[1].at - upstream.seen[0].at >= 1


@pytest.mark.parametrize(
    ("headers", "delay_s"),
    [
        ({"retry_after": "86400"}, 3600),
        ({"retry_after": "3"}, 3),
        ({}, None),
        ({"x_ratelimit_reset_requests": "6m0s"}, 360),
    ],
)
async def test_a_rate_limit_that_lasts_defers_the_job(
    engine: OpenAIEngine, upstream: FaultyUpstream, headers: dict[str, str], delay_s: float | None
) -> None:
    upstream.answers = [error_answer(429, "come tomorrow", **headers)]
    error = await failure(engine)
    assert isinstance(error, UpstreamBusy)
    assert "HTTP 429: come tomorrow" in error.message
    assert (error.reason, error.retry_after_s, error.max_wait_s) == (BusyReason.RATE_LIMIT, delay_s, 600)
    assert len(upstream.seen) == 1


async def test_retries_are_limited(engine: OpenAIEngine, upstream: FaultyUpstream) -> None:
    upstream.answers = [error_answer(500, f"key {KEY}", **NO_DELAY)] * 3
    error = await failure(engine)
    assert isinstance(error, UpstreamBusy)
    assert error.reason is BusyReason.SERVER_ERROR
    assert "HTTP 500: key ***" in error.message
    assert len(upstream.seen) == 3


async def test_unreachable_upstream() -> None:
    engine = make(f"http://127.0.0.1:{free_port()}/v1", max_retries=1)
    await engine.start()
    error = await failure(engine)
    await engine.stop()
    assert "cannot be reached" in error.message
    assert not engine.dead


@pytest.mark.parametrize(("tokens", "requests"), [(0, 2), (2, 1)])
async def test_silent_upstream(upstream: FaultyUpstream, tokens: int, requests: int) -> None:
    upstream.answers = [Answer(tokens, End.SILENCE)] * 2
    engine = make(upstream.url, read_timeout_s=0.2, max_retries=1)
    await engine.start()
    error = await failure(engine, "0 1 "[: 2 * tokens])
    await engine.stop()
    assert "did not answer in time" in error.message
    assert len(upstream.seen) == requests


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (End.DISCONNECT, "connection to the upstream broke"),
        (End.SHORT, "ended its answer too early"),
        (End.ERROR, "The upstream failed: out of memory"),
        (End.INVALID_JSON, "not OpenAI's stream"),
    ],
    ids=lambda value: value.name if isinstance(value, End) else "",
)
async def test_failures_after_text_are_not_retried(
    engine: OpenAIEngine, upstream: FaultyUpstream, end: End, words: str
) -> None:
    upstream.answers = [Answer(2, end)]
    assert words in (await failure(engine, "0 1 ")).message
    assert len(upstream.seen) == 1


async def test_a_finished_stream_that_stays_open_ends_soon(
    engine: OpenAIEngine, upstream: FaultyUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """maximhq/bifrost#6784: a finish reason, no [DONE], and heartbeats for ever."""
    monkeypatch.setattr("workers.engines.upstream.engine.TRAILER_S", 0.2)
    finished = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\n'
    upstream.answers = [Answer(raw=(finished, *(b": ping\n\n", 0.05) * 600))]
    async with asyncio.timeout(10):
        deltas, _ = await run(engine)
        await upstream.left.wait()
    assert text(deltas) == "Hi"
    assert deltas[-1].finish_reason == "stop"


async def test_text_after_a_finish_reason_is_not_cut(
    engine: OpenAIEngine, upstream: FaultyUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """open-webui/open-webui#16377: a stream whose every chunk has a finish reason, and lasts longer than the wait."""
    monkeypatch.setattr("workers.engines.upstream.engine.TRAILER_S", 0.5)
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
    upstream.answers = [Answer(raw=(*(chunk, 0.1) * 8, b"data: [DONE]\n\n"))]
    deltas, _ = await run(engine)
    assert text(deltas) == "x" * 8


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_refused_request(engine: OpenAIEngine, upstream: FaultyUpstream, status: int) -> None:
    upstream.answers = [error_answer(status, "the prompt is too long")]
    with pytest.raises(InvalidRequest, match=r"^the prompt is too long$"):
        await run(engine)
    assert len(upstream.seen) == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_key(engine: OpenAIEngine, upstream: FaultyUpstream, status: int) -> None:
    upstream.answers = [error_answer(status, f"Incorrect API key provided: {KEY}")]
    assert (await failure(engine)).message == f"The upstream refused the key (HTTP {status})."


@pytest.mark.parametrize("status", [302, 402, 403, 404, 405])
async def test_other_status(engine: OpenAIEngine, upstream: FaultyUpstream, status: int) -> None:
    upstream.answers = [error_answer(status, "hm", location="http://127.0.0.1:1/")]
    assert f"HTTP {status}: hm" in (await failure(engine)).message
    assert len(upstream.seen) == 1


@pytest.mark.parametrize("tokens", [0, 2], ids=["before the answer", "during the answer"])
async def test_cancel_closes_the_connection(engine: OpenAIEngine, upstream: FaultyUpstream, tokens: int) -> None:
    upstream.answers = [Answer(tokens, End.SILENCE)]
    task = asyncio.create_task(run(engine))
    async with asyncio.timeout(10):
        await upstream.arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await upstream.left.wait()


async def test_cancel_during_the_delay_before_a_retry(engine: OpenAIEngine, upstream: FaultyUpstream) -> None:
    upstream.answers = [error_answer(503, retry_after="2")]
    task = asyncio.create_task(run(engine))
    async with asyncio.timeout(10):
        await upstream.arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_connections_are_reused(engine: OpenAIEngine, upstream: FaultyUpstream) -> None:
    for _ in range(3):
        await run(engine)
    assert len(engine._session.connector._conns) == 1  # type: ignore[union-attr]


async def test_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPSTREAM_API_KEY", raising=False)
    engine = make("http://127.0.0.1:1/v1", api_key_env="UPSTREAM_API_KEY")
    with pytest.raises(InvalidRequest, match=r"up\.options\.api_key_env: UPSTREAM_API_KEY is not set"):
        await engine.start()


async def test_requests_cannot_be_resumed(engine: OpenAIEngine) -> None:
    assert not engine.resume_mode(CHAT)


TOOL = Tool(function=Function(name="weather", parameters={"type": "object"}))


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        (
            {"chat": ChatOptions(tools=[TOOL], tool_choice={"name": "weather"}, parallel_tool_calls=False)},
            {
                "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
                "tool_choice": {"type": "function", "function": {"name": "weather"}},
                "parallel_tool_calls": False,
            },
        ),
        (
            {"chat": ChatOptions(tool_choice="required", reasoning_effort="low")},
            {"tool_choice": "required", "reasoning_effort": "low"},
        ),
        ({"chat": ChatOptions(include_reasoning=False)}, {"include_reasoning": False}),
        ({"chat": ChatOptions(chat_template_kwargs={"a": 1})}, {"chat_template_kwargs": {"a": 1}}),
        ({"chat": ChatOptions()}, {}),
        ({"logprobs": 0}, {"logprobs": True}),
        ({"logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"echo": True}, {"echo": True}),
        (
            {"structured_outputs": StructuredOutputs(json_schema={"type": "object"})},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                }
            },
        ),
        ({"structured_outputs": StructuredOutputs(json_object=True)}, {"response_format": {"type": "json_object"}}),
        ({"structured_outputs": StructuredOutputs(regex="a+")}, {"structured_outputs": {"regex": "a+"}}),
        ({"structured_outputs": StructuredOutputs(choice=["a"])}, {"structured_outputs": {"choice": ["a"]}}),
        (
            {"sampling": Sampling(stop_token_ids=[1], bad_words=["x"], skip_special_tokens=False, min_tokens=2)},
            {"stop_token_ids": [1], "bad_words": ["x"], "skip_special_tokens": False, "min_tokens": 2},
        ),
    ],
    ids=str,
)
async def test_only_parameters_of_the_chat_request_are_sent(
    engine: OpenAIEngine, upstream: FaultyUpstream, fields: dict[str, Any], sent: dict[str, Any]
) -> None:
    await run(engine, CHAT.model_copy(update=fields))
    always = {"model", "stream", "stream_options", "messages"}
    assert {name: value for name, value in upstream.seen[0].body.items() if name not in always} == sent


async def test_parameters_of_a_completion_are_sent(engine: OpenAIEngine, upstream: FaultyUpstream) -> None:
    schema = StructuredOutputs(json_schema={"type": "object"})
    await run(
        engine, GenerateRequest(prompt=[1, 2], echo=True, prompt_only=True, logprobs=2, structured_outputs=schema)
    )
    body = upstream.seen[0].body
    assert (body["prompt"], body["echo"], body["max_tokens"], body["logprobs"]) == ([1, 2], True, 0, 2)
    assert body["structured_outputs"] == {"json": {"type": "object"}}


async def test_messages_with_tool_calls_are_sent_unchanged(engine: OpenAIEngine, upstream: FaultyUpstream) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
    ]
    await run(engine, GenerateRequest.model_validate({"messages": messages}))
    assert upstream.seen[0].body["messages"] == messages


async def test_prompt_logprobs_are_refused(engine: OpenAIEngine, upstream: FaultyUpstream) -> None:
    with pytest.raises(InvalidRequest, match="prompt_logprobs") as caught:
        await run(engine, CHAT.model_copy(update={"prompt_logprobs": 1}))
    assert caught.value.param == "prompt_logprobs"
    assert not upstream.seen


async def test_refusal_has_the_upstreams_param(engine: OpenAIEngine, upstream: FaultyUpstream) -> None:
    upstream.answers = [Answer(status=400, body='{"error": {"message": "no", "param": "tools"}}')]
    with pytest.raises(InvalidRequest) as caught:
        await run(engine)
    assert caught.value.param == "tools"


def fragment(
    number: int | None, call_id: str | None = None, name: str | None = None, arguments: str = ""
) -> dict[str, Any]:
    call: dict[str, Any] = {"function": {"arguments": arguments}}
    if number is not None:
        call["index"] = number
    if call_id is not None:
        call |= {"id": call_id, "type": "function"}
    if name is not None:
        call["function"]["name"] = name
    return {"delta": {"tool_calls": [call]}}


@pytest.mark.parametrize(
    "fragments",
    [
        [
            fragment(0, "a", "weather"),
            fragment(0, arguments='{"x"'),
            fragment(0, arguments=":1}"),
            fragment(1, "b", "tide", "{}"),
        ],
        # Each fragment has an id and a name.
        [fragment(0, "a", "weather", '{"x"'), fragment(0, "a", "weather", ":1}"), fragment(1, "b", "tide", "{}")],
        # Fragments have no index.
        [fragment(None, "a", "weather", '{"x"'), fragment(None, None, None, ":1}"), fragment(None, "b", "tide", "{}")],
    ],
    ids=["OpenAI", "name in each fragment", "no index"],
)
async def test_tool_calls(engine: OpenAIEngine, upstream: FaultyUpstream, fragments: list[dict[str, Any]]) -> None:
    upstream.answers = [Answer(choices=tuple(fragments), finish_reason="tool_calls")]
    deltas, _ = await run(engine)
    choice = choice_of(deltas)
    assert choice.tool_calls == (ToolCall("a", "weather", '{"x":1}'), ToolCall("b", "tide", "{}"))
    assert choice.finish_reason == "tool_calls"
    calls = [call for delta in deltas for call in delta.tool_calls]
    assert [call.id for call in calls if call.id] == ["a", "b"]
    assert [call.name for call in calls if call.name] == ["weather", "tide"]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
async def test_reasoning(engine: OpenAIEngine, upstream: FaultyUpstream, field: str) -> None:
    upstream.answers = [
        Answer(choices=({"delta": {field: "Hm, "}}, {"delta": {field: "rain"}}, {"delta": {"content": "Rain."}}))
    ]
    deltas, _ = await run(engine)
    choice = choice_of(deltas)
    assert (choice.reasoning, choice.text) == ("Hm, rain", "Rain.")
    assert sum(delta.tokens for delta in deltas) == 3


async def test_logprobs_of_a_chat(engine: OpenAIEngine, upstream: FaultyUpstream) -> None:
    entry = {
        "token": "ü",
        "logprob": -0.5,
        "bytes": [195, 188],
        "top_logprobs": [{"token": "u", "logprob": -1, "bytes": None}],
    }
    content = [entry, {"token": "!", "logprob": -2}]
    upstream.answers = [Answer(choices=({"delta": {"content": "ü!"}, "logprobs": {"content": content}},))]
    deltas, _ = await run(engine, CHAT.model_copy(update={"logprobs": 1}))
    assert choice_of(deltas).logprobs == [
        {"token": "ü", "logprob": -0.5, "bytes": [195, 188], "top": [{"token": "u", "logprob": -1.0, "bytes": [117]}]},
        {"token": "!", "logprob": -2.0, "bytes": [33], "top": []},
    ]
    assert sum(delta.tokens for delta in deltas) == 2


async def test_logprobs_of_a_completion(engine: OpenAIEngine, upstream: FaultyUpstream) -> None:
    lists = {
        "tokens": ["a", "b"],
        "token_logprobs": [None, -1],
        "top_logprobs": [None, {"b": -1}],
        "text_offset": [0, 1],
    }
    upstream.answers = [Answer(choices=({"text": "ab", "logprobs": lists, "finish_reason": "stop", "stop_reason": 7},))]
    deltas, _ = await run(engine, GenerateRequest(prompt="x", logprobs=1))
    choice = choice_of(deltas)
    assert choice.logprobs == [
        {"token": "a", "logprob": None, "bytes": [97], "top": []},
        {"token": "b", "logprob": -1.0, "bytes": [98], "top": [{"token": "b", "logprob": -1.0, "bytes": [98]}]},
    ]
    assert choice.stop_reason == 7


@pytest.mark.parametrize(
    "choice",
    [
        {"delta": {"tool_calls": [{"index": 0, "function": 7}]}},
        {"delta": {"tool_calls": 7}},
        {"delta": {"reasoning": 7}},
        {"delta": {"content": {"text": 7}}},
    ],
    ids=str,
)
async def test_malformed_stream_fails_the_job(
    engine: OpenAIEngine, upstream: FaultyUpstream, choice: dict[str, Any]
) -> None:
    upstream.answers = [Answer(1, choices=(choice,))] * 3
    assert "not OpenAI's stream" in (await failure(engine, "0 x")).message


async def test_reads_after_the_first_text_are_coalesced(
    engine: OpenAIEngine, upstream: FaultyUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.engines.upstream.engine.flush_interval_s", lambda _: 0.3)
    upstream.answers = [Answer(100, pause_s=0.001), Answer(100, pause_s=0.001)]
    for deltas, usage in await asyncio.gather(run(engine), run(engine)):
        assert text(deltas) == "".join(f"{position} " for position in range(100))
        assert usage is not None
        assert len(deltas) < 50, "one read returns many events"


async def test_an_answer_without_end_is_cut(
    engine: OpenAIEngine, upstream: FaultyUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_limit, "MARGIN_TOKENS", 0)
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"more "},"finish_reason":null}]}\n\n'
    upstream.answers = [Answer(raw=(chunk * 100,) * 1000)]
    request = CHAT.model_copy(update={"sampling": Sampling(max_tokens=2)})
    deltas: list[Delta] = []
    with pytest.raises(UpstreamError, match=r"^The upstream does not end its answer\.$"):
        await run(engine, request, deltas)
    assert len(deltas) < 1000


async def test_an_answer_of_another_model(engine: OpenAIEngine, upstream: FaultyUpstream) -> None:
    """Gateways name the model that they have chosen, and may change it: the client's model stays what it requested."""
    chunks = [
        {"model": name, "choices": [{"index": 0, "delta": {"content": name}, "finish_reason": reason}]}
        for name, reason in (("a", None), ("b", None), ("c", "stop"))
    ]
    upstream.answers = [Answer(raw=tuple(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks))]
    deltas, _ = await run(engine)
    assert "".join(delta.text for delta in deltas) == "abc"


async def test_output_after_a_finish_reason_gets_the_time_of_any_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A finish reason is believed until there is more output: some servers send one with each chunk."""
    waits: list[float] = []
    sent = asyncio.Semaphore(0)

    async def read_until(response: aiohttp.ClientResponse, deadline: float) -> bytes:
        waits.append(deadline - asyncio.get_running_loop().time())
        sent.release()
        return await read(response, deadline)

    async def chunks(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in ("a", "b", "c"):
            choice = {"index": 0, "delta": {"content": piece}, "finish_reason": "stop"}
            await response.write(b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n")
            await sent.acquire()
        return response

    read = upstream_engine._read_until
    monkeypatch.setattr(upstream_engine, "_read_until", read_until)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", chunks)
    async with TestServer(app) as server:
        engine = make(str(server.make_url("/v1")), read_timeout_s=60)
        await engine.start()
        deltas, _ = await run(engine)
        await engine.stop()
    assert text(deltas) == "abc"
    assert [round(wait) for wait in waits] == [5, 60, 60]
