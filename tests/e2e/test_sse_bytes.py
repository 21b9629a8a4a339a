"""The bytes of every event stream, read by seven parsers: all dialects, with keepalives, calls and errors."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx_sse
import openai
import pytest
from aiohttp import ClientSession, web

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.support.browser import needs_chromium, render
from tests.support.database import drop_database
from tests.support.faulty_upstream import Answer, FaultyUpstream, faulty_upstream
from tests.support.node_openai import run_script
from tests.support.ports import free_port
from tests.support.stack import KEY, Stack

PORT = free_port()
PING_S = 0.02
SILENCE_S = 10 * PING_S
# Line ends of SSE, of Unicode and of Python, a byte order mark, and what looks like fields.
PARTS = ("a\r\nb\rc\n\nd", "\u2028e\u2029f\x85g\x0b\x0c\x1ch", "data: x\n\nevent: y\n: z", " \ufeff水🌊 ")
TEXT = "".join(PARTS)
FAILED_IN = "the upstream's disk is full"
MESSAGES: Any = [{"role": "user", "content": "Hello"}]


def chunk(choice: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


TEXTS = tuple(chunk({"delta": {"content": part}, "text": part}) for part in PARTS)
END = (chunk({"delta": {}, "text": "", "finish_reason": "stop"}), b"data: [DONE]\n\n")
ERROR = b"data: " + json.dumps({"error": {"message": FAILED_IN}}).encode() + b"\n\n"
START: tuple[bytes | float, ...] = (SILENCE_S, TEXTS[0], SILENCE_S, *TEXTS[1:])
COMPLETE, BROKEN = Answer(raw=(*START, *END)), Answer(raw=(*START, ERROR))
# One event that is longer than the buffers of most parsers.
LONG_TEXT = (TEXT + "x" * 1000) * 200
LONG = Answer(raw=(SILENCE_S, chunk({"delta": {"content": LONG_TEXT}, "text": LONG_TEXT}), SILENCE_S, *TEXTS, *END))
# The arguments of a call, in parts that end within characters of JSON.
ARGUMENTS = json.dumps({"x": TEXT}, ensure_ascii=False)


def call(arguments: str, **first: str) -> bytes:
    function = {"arguments": arguments} | ({"name": "f"} if first else {})
    return chunk({"delta": {"tool_calls": [{"index": 0, "type": "function", **first, "function": function}]}})


ARGUMENT_CHUNKS = [call(part) for part in (ARGUMENTS[:9], ARGUMENTS[9:12], ARGUMENTS[12:])]
CALLED = chunk({"delta": {}, "finish_reason": "tool_calls"})
CALL = Answer(
    raw=(SILENCE_S, call("", id="call_1"), ARGUMENT_CHUNKS[0], SILENCE_S, *ARGUMENT_CHUNKS[1:], CALLED, END[1])
)


@dataclass(frozen=True)
class Frame:
    """A parsed frame."""

    event: str
    data: Any
    id: str = ""


@dataclass(frozen=True)
class Dialect:
    """How to request a stream of a dialect, and how to read it. Without `tools`, it has no calls."""

    path: str
    body: dict[str, Any]
    text_of: Callable[[Frame], str]
    keepalive: Frame
    last: str
    error: Callable[[Frame], str | None]
    tools: Any = None
    arguments_of: Callable[[Frame], str] = lambda _: ""


@dataclass(frozen=True)
class Case:
    """What the upstream answers, and what each parser must read from it."""

    answer: Answer
    text: str = TEXT
    error: bool = False
    arguments: str = ""

    @property
    def dialects(self) -> dict[str, Dialect]:
        return {name: dialect for name, dialect in DIALECTS.items() if dialect.tools or not self.arguments}


CASES = {
    "text": Case(COMPLETE),
    "error": Case(BROKEN, error=True),
    "long": Case(LONG, LONG_TEXT + TEXT),
    "call": Case(CALL, "", arguments=ARGUMENTS),
}


def _chat_text(frame: Frame) -> str:
    return frame.data["choices"][0]["delta"].get("content", "") if "choices" in frame.data else ""


def _calls(holder: dict[str, Any]) -> str:
    """The arguments in OpenAI's `tool_calls`."""
    return "".join(call["function"]["arguments"] for call in holder.get("tool_calls", ()))


FUNCTION_TOOL = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def _completion_text(frame: Frame) -> str:
    return str(frame.data["choices"][0]["text"]) if "choices" in frame.data else ""


def _openai_error(frame: Frame) -> str | None:
    return frame.data["error"]["message"] if "error" in frame.data else None


def _choice(**content: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, **content, "logprobs": None, "finish_reason": None}]}


DIALECTS = {
    "chat": Dialect(
        "/v1/chat/completions",
        {"messages": MESSAGES, "stream": True},
        _chat_text,
        Frame("message", _choice(delta={})),
        "[DONE]",
        _openai_error,
        FUNCTION_TOOL,
        lambda frame: _calls(frame.data["choices"][0]["delta"]),
    ),
    "completions": Dialect(
        "/v1/completions",
        {"prompt": "Hello", "stream": True},
        _completion_text,
        Frame("message", _choice(text="")),
        "[DONE]",
        _openai_error,
    ),
    "responses": Dialect(
        "/v1/responses",
        {"input": "Hello", "stream": True},
        lambda frame: frame.data["delta"] if frame.event == "response.output_text.delta" else "",
        Frame("keepalive", {"type": "keepalive"}),
        "response.completed",
        lambda frame: frame.data["response"]["error"]["message"] if frame.event == "response.failed" else None,
        [{"type": "function", "name": "f", "parameters": {}}],
        lambda frame: frame.data["delta"] if frame.event == "response.function_call_arguments.delta" else "",
    ),
    "messages": Dialect(
        "/v1/messages",
        {"messages": MESSAGES, "stream": True, "max_tokens": 100},
        lambda frame: frame.data["delta"].get("text", "") if frame.event == "content_block_delta" else "",
        Frame("ping", {"type": "ping"}),
        "message_stop",
        lambda frame: frame.data["error"]["message"] if frame.event == "error" else None,
        [{"name": "f", "input_schema": {"type": "object"}}],
        lambda frame: frame.data["delta"].get("partial_json", "") if frame.event == "content_block_delta" else "",
    ),
    "jobs": Dialect(
        "/v1/jobs",
        {"messages": MESSAGES},
        lambda frame: frame.data["text"] if frame.event == "job.delta" else "",
        Frame("job.keepalive", {}),
        "job.completed",
        lambda frame: frame.data["error"]["message"] if frame.event == "job.failed" else None,
        FUNCTION_TOOL,
        lambda frame: (
            "".join(part["arguments"] for part in frame.data.get("tool_calls", ()))
            if frame.event == "job.delta"
            else ""
        ),
    ),
}


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The API with frequent keepalives, and a worker that relays to the upstream of a test."""
    model: dict[str, object] = {
        "name": "up",
        "engine": "openai",
        "model": "theirs",
        "slots": 8,
        "options": {"base_url": f"http://127.0.0.1:{PORT}/v1", "max_retries": 0, "max_wait_s": 0},
    }
    stack = make_stack(servers, tmp_path_factory, "sse", [model], HEADRACE_PING_S=PING_S)
    try:
        stack.start_api()
        stack.start_worker("up")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_sse")


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as client:
        yield client


@pytest.fixture
async def upstream() -> AsyncIterator[FaultyUpstream]:
    async with faulty_upstream(PORT) as upstream:
        upstream.default = COMPLETE
        yield upstream


async def open_stream(client: httpx.AsyncClient, dialect: Dialect, case: Case = CASES["text"]) -> httpx.Request:
    """The request for a stream. For a native stream, its job is submitted here."""
    body = {"model": "up", **dialect.body} | ({"tools": dialect.tools} if case.arguments else {})
    if dialect.path != "/v1/jobs":
        return client.build_request("POST", dialect.path, json=body)
    job = (await client.post(dialect.path, json=body)).json()
    return client.build_request("GET", job["stream_url"])


async def read(client: httpx.AsyncClient, request: httpx.Request, watch: Callable[[Frame], None]) -> httpx.Response:
    """The response, read to its end; its frames are shown to `watch` as they arrive."""
    response = await client.send(request, stream=True)
    content = rest = b""
    async for data in response.aiter_raw():
        content += data
        *blocks, rest = (rest + data).split(b"\n\n")
        for block in blocks:
            watch(_frame(block.decode().split("\n")))
    await response.aclose()
    return httpx.Response(response.status_code, headers=response.headers, content=content)


def naive(content: bytes) -> list[Frame]:
    """The parser that people write: split at empty lines, then take what follows `data: `."""
    return [_frame(block.split("\n")) for block in content.decode().split("\n\n")[:-1]]


def by_lines(content: bytes) -> list[Frame]:
    """The other one: `str.splitlines`, which splits at Unicode's line ends too; an empty line ends a frame."""
    frames, lines = [], []
    for line in content.decode().splitlines():
        if line:
            lines.append(line)
        else:
            frames.append(_frame(lines))
            lines = []
    assert not lines
    return frames


def _frame(lines: list[str]) -> Frame:
    fields = dict(line.split(": ", 1) for line in lines)
    data = fields["data"] if fields["data"] == "[DONE]" else json.loads(fields["data"])
    return Frame(fields.get("event", "message"), data, fields.get("id", ""))


cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def check(dialect: Dialect, frames: list[Frame], case: Case = CASES["text"]) -> None:
    """The output is complete, and the last frame is the dialect's."""
    objects = [frame for frame in frames if frame.data != "[DONE]"]
    assert "".join(map(dialect.text_of, objects)) == case.text
    if case.arguments:
        assert "".join(map(dialect.arguments_of, objects)) == case.arguments
    if case.error:
        assert FAILED_IN in (dialect.error(frames[-1]) or "")
    else:
        assert dialect.last in (frames[-1].event, frames[-1].data)


class Silences:
    """The upstream's pauses before and in its output: each lasts until all readers have had a keepalive in it."""

    def __init__(self, readers: Iterable[str]) -> None:
        self._missing = (set(readers), set(readers))
        self._over = (asyncio.Event(), asyncio.Event())

    def hold(self, answer: Answer) -> Answer:
        """The answer with these pauses instead of timed ones."""
        pauses = iter(self._over)
        assert answer.raw is not None
        raw = (partial(self._wait, next(pauses)) if isinstance(part, float) else part for part in answer.raw)
        return replace(answer, raw=tuple(raw))

    def watch(self, reader: str, case: Case = CASES["text"]) -> Callable[[Frame], None]:
        """Returns the function that the reader calls with each frame."""
        dialect = DIALECTS[reader]
        content = content_of(dialect, case)
        output = False

        def watch(frame: Frame) -> None:
            nonlocal output
            if frame.data == "[DONE]":
                return
            if is_keepalive(dialect, frame):
                self._missing[output].discard(reader)
                if not self._missing[output]:
                    self._over[output].set()
            output = output or bool(content(frame))

        return watch

    async def _wait(self, over: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):  # `check_keepalives` fails then
            await asyncio.wait_for(over.wait(), 20)


def content_of(dialect: Dialect, case: Case) -> Callable[[Frame], str]:
    return dialect.arguments_of if case.arguments else dialect.text_of


def check_keepalives(dialect: Dialect, frames: list[Frame], case: Case = CASES["text"]) -> None:
    """There are keepalives before and in the output."""
    objects = [frame for frame in frames if frame.data != "[DONE]"]
    content = content_of(dialect, case)
    found = [number for number, frame in enumerate(objects) if content(frame)]
    alive = [number for number, frame in enumerate(objects) if is_keepalive(dialect, frame)]
    assert min(alive) < min(found), "a keepalive comes before the first output"
    assert any(min(found) < number < max(found) for number in alive), "a keepalive comes within the output"


def is_keepalive(dialect: Dialect, frame: Frame) -> bool:
    return frame.event == dialect.keepalive.event and dialect.keepalive.data.items() <= frame.data.items()


def check_bytes(response: httpx.Response) -> None:
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in response.headers
    body = response.content.decode()
    assert "\r" not in body
    assert body.splitlines() == body.removesuffix("\n").split("\n"), "no other character ends a line"
    for block in body.removesuffix("\n\n").split("\n\n"):
        fields = [line.split(": ", 1)[0] for line in block.split("\n")]
        assert fields in (["data"], ["event", "data"], ["id", "event", "data"]), block


@cases
async def test_bytes_and_the_parsers_that_people_write(
    client: httpx.AsyncClient, upstream: FaultyUpstream, case: Case
) -> None:
    silences = Silences(case.dialects)
    upstream.default = silences.hold(case.answer)

    async def check_stream(name: str, dialect: Dialect) -> None:
        response = await read(client, await open_stream(client, dialect, case), silences.watch(name, case))
        check_bytes(response)
        frames = naive(response.content)
        check(dialect, frames, case)
        check_keepalives(dialect, frames, case)
        assert by_lines(response.content) == frames

    await asyncio.gather(*starmap(check_stream, case.dialects.items()))


@pytest.mark.parametrize("header", [True, False])
async def test_resumed_streams(client: httpx.AsyncClient, upstream: FaultyUpstream, header: bool) -> None:
    upstream.default = LONG
    dialect = DIALECTS["jobs"]
    request = await open_stream(client, dialect)
    complete = [frame for frame in naive((await client.send(request)).content) if frame.id]
    for position, frame in enumerate(complete[:-1]):
        cursor: dict[str, Any] = (
            {"headers": {"Last-Event-ID": frame.id}} if header else {"params": {"starting_after": frame.id}}
        )
        resumed = await client.get(request.url.path, **cursor)
        check_bytes(resumed)
        assert naive(resumed.content) == by_lines(resumed.content) == complete[position + 1 :]


async def test_a_background_response(client: httpx.AsyncClient, upstream: FaultyUpstream) -> None:
    """Its stream can be resumed: a keepalive's number is no new position."""
    silences = Silences(["responses"])
    upstream.default = silences.hold(COMPLETE)
    created = await client.post("/v1/responses", json={"model": "up", "input": "Hello", "background": True})
    url = f"/v1/responses/{created.json()['id']}"
    request = client.build_request("GET", url, params={"stream": "true"})
    frames = naive((await read(client, request, silences.watch("responses"))).content)
    check(DIALECTS["responses"], frames)
    check_keepalives(DIALECTS["responses"], frames)
    events = [frame.data for frame in frames if frame.event != "keepalive"]
    numbers = [frame.data["sequence_number"] for frame in frames]
    assert numbers == sorted(numbers)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    resumed = naive((await client.get(url, params={"stream": "true", "starting_after": 3})).content)
    assert [frame.data for frame in resumed] == events[4:]


async def test_chat_chunks_before_and_after_a_keepalive_have_the_role_once(
    client: httpx.AsyncClient, upstream: FaultyUpstream
) -> None:
    choices = [
        frame.data["choices"][0]
        for frame in naive((await client.send(await open_stream(client, DIALECTS["chat"]))).content)
        if frame.data != "[DONE]"
    ]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert not any("role" in choice["delta"] for choice in choices[1:])


@cases
async def test_httpx_sse(client: httpx.AsyncClient, upstream: FaultyUpstream, case: Case) -> None:
    silences = Silences(case.dialects)
    upstream.default = silences.hold(case.answer)

    async def read_events(name: str, dialect: Dialect) -> None:
        response = await client.send(await open_stream(client, dialect, case), stream=True)
        watch = silences.watch(name, case)
        frames = []
        async for item in httpx_sse.EventSource(response).aiter_sse():
            frames.append(Frame(item.event, item.data if item.data == "[DONE]" else item.json(), item.id))
            watch(frames[-1])
        await response.aclose()
        check(dialect, frames, case)
        check_keepalives(dialect, frames, case)

    await asyncio.gather(*starmap(read_events, case.dialects.items()))


async def test_openai_python(stack: Stack, upstream: FaultyUpstream) -> None:
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=KEY, max_retries=0) as sdk:

        async def chat() -> str:
            chunks = await sdk.chat.completions.create(model="up", messages=MESSAGES, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

        async def chat_helper() -> str | None:
            async with sdk.chat.completions.stream(model="up", messages=MESSAGES) as stream:
                message = (await stream.get_final_completion()).choices[0].message
                assert message.role == "assistant"
                return message.content

        async def completion() -> str:
            chunks = await sdk.completions.create(model="up", prompt="Hello", stream=True)
            return "".join([chunk.choices[0].text async for chunk in chunks])

        async def response() -> str:
            events = await sdk.responses.create(model="up", input="Hello", stream=True)
            return "".join([event.delta async for event in events if event.type == "response.output_text.delta"])

        async def response_helper() -> str:
            async with sdk.responses.stream(model="up", input="Hello") as stream:
                return (await stream.get_final_response()).output_text

        async def chat_call() -> str:
            tools: Any = FUNCTION_TOOL
            async with sdk.chat.completions.stream(model="up", messages=MESSAGES, tools=tools) as stream:
                made = (await stream.get_final_completion()).choices[0].message.tool_calls
                assert made is not None
                return made[0].function.arguments

        async def response_call() -> str:
            tools = DIALECTS["responses"].tools
            async with sdk.responses.stream(model="up", input="Hello", tools=tools) as stream:
                (made,) = (await stream.get_final_response()).output
                assert made.type == "function_call"
                return made.arguments

        texts = await asyncio.gather(chat(), chat_helper(), completion(), response(), response_helper())
        assert set(texts) == {TEXT}
        upstream.default = LONG
        long = await asyncio.gather(chat(), chat_helper(), completion(), response(), response_helper())
        assert set(long) == {CASES["long"].text}
        upstream.default = CALL
        assert set(await asyncio.gather(chat_call(), response_call())) == {ARGUMENTS}
        upstream.default = BROKEN
        for broken in (chat, completion):
            with pytest.raises(openai.APIError, match=FAILED_IN):
                await broken()


async def test_anthropic_python(stack: Stack, upstream: FaultyUpstream) -> None:
    async with anthropic.AsyncAnthropic(base_url=stack.url, api_key=KEY, max_retries=0) as sdk:

        async def events() -> str:
            stream = await sdk.messages.create(model="up", messages=MESSAGES, max_tokens=100, stream=True)
            deltas = [event.delta async for event in stream if event.type == "content_block_delta"]
            return "".join(delta.text for delta in deltas if delta.type == "text_delta")

        async def helper() -> str:
            async with sdk.messages.stream(model="up", messages=MESSAGES, max_tokens=100) as stream:
                return await stream.get_final_text()

        async def call_helper() -> object:
            tools = DIALECTS["messages"].tools
            async with sdk.messages.stream(model="up", messages=MESSAGES, max_tokens=100, tools=tools) as stream:
                (made,) = (await stream.get_final_message()).content
                assert made.type == "tool_use"
                return made.input

        assert set(await asyncio.gather(events(), helper())) == {TEXT}
        upstream.default = LONG
        assert set(await asyncio.gather(events(), helper())) == {CASES["long"].text}
        upstream.default = CALL
        assert await call_helper() == {"x": TEXT}
        upstream.default = BROKEN
        with pytest.raises(anthropic.APIError, match=FAILED_IN):
            await helper()


NODE = """
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({baseURL, apiKey, maxRetries: 0});
const messages = [{role: "user", content: "Hello"}];
async function chat() {
  let text = "";
  for await (const chunk of await client.chat.completions.create({model: "up", messages, stream: true})) {
    text += chunk.choices[0].delta.content ?? "";
  }
  return text;
}
async function completion() {
  let text = "";
  for await (const chunk of await client.completions.create({model: "up", prompt: "Hello", stream: true})) {
    text += chunk.choices[0].text;
  }
  return text;
}
async function response() {
  let text = "";
  for await (const event of await client.responses.create({model: "up", input: "Hello", stream: true})) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  return text;
}
const calls = process.argv[4] === "calls";
const chatTools = calls ? {tools: [{type: "function", function: {name: "f", parameters: {}}}]} : {};
const responseTools = calls ? {tools: [{type: "function", name: "f", parameters: {}}]} : {};
const helper = client.chat.completions.stream({model: "up", messages, ...chatTools});
const responseHelper = client.responses.stream({model: "up", input: "Hello", ...responseTools});
console.log(JSON.stringify(await Promise.all(calls ? [
  helper.finalMessage().then((message) => message.tool_calls[0].function.arguments),
  responseHelper.finalResponse().then((final) => final.output[0].arguments),
] : [
  chat(), completion(), response(),
  helper.finalContent(), responseHelper.finalResponse().then((final) => final.output[0].content[0].text),
])));
"""


@pytest.mark.parametrize("name", ["text", "call"])
async def test_openai_node(stack: Stack, upstream: FaultyUpstream, name: str) -> None:
    case = CASES[name]
    upstream.default = case.answer
    kind = "calls" if case.arguments else "texts"
    outputs: Any = await asyncio.to_thread(run_script, NODE, f"{stack.url}/v1", KEY, kind)
    assert outputs == ([ARGUMENTS] * 2 if case.arguments else [TEXT] * 5)


PAGE = """
<!DOCTYPE html><meta charset="utf-8"><pre id="out"></pre><script>
const dialects = DIALECTS;
const kinds = KINDS;
const read = (name) => new Promise((resolve) => {
  const source = new EventSource("/" + name);
  const frames = [];
  const end = () => { source.close(); resolve([name, frames]); };
  for (const kind of kinds) {
    source.addEventListener(kind, (event) => {
      if (event.data === undefined) return end();  // the connection ended, as it does after an error frame
      frames.push([kind, event.data, event.lastEventId]);
      if ([kind, event.data].includes(dialects[name])) end();
    });
  }
});
Promise.all(Object.keys(dialects).map(read)).then((all) => {
  document.getElementById("out").textContent = btoa(unescape(encodeURIComponent(JSON.stringify(all))));
});
</script>
"""
KINDS = (
    *("message", "error", "ping", "keepalive", "job.keepalive", "job.queued", "job.started", "job.delta"),
    *("job.completed", "job.failed", "message_start", "message_delta", "message_stop"),
    *("content_block_start", "content_block_delta", "content_block_stop"),
    *("response.created", "response.in_progress", "response.completed", "response.failed"),
    *("response.output_item.added", "response.output_item.done", "response.content_part.added"),
    *("response.content_part.done", "response.output_text.delta", "response.output_text.done"),
    *("response.function_call_arguments.delta", "response.function_call_arguments.done"),
)


@needs_chromium
@cases
async def test_event_source_in_a_browser(
    client: httpx.AsyncClient, upstream: FaultyUpstream, tmp_path: Path, case: Case
) -> None:
    """EventSource sends neither a body nor an API key, so a proxy does, and returns the bytes as they are."""
    upstream.default = case.answer
    page = PAGE.replace("DIALECTS", json.dumps({name: dialect.last for name, dialect in case.dialects.items()}))
    page = page.replace("KINDS", json.dumps(KINDS))

    async def index(_: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html")

    async def stream(request: web.Request) -> web.StreamResponse:
        opened = await open_stream(client, DIALECTS[request.match_info["name"]], case)
        async with (
            ClientSession() as session,
            session.request(opened.method, str(opened.url), data=opened.content, headers=dict(opened.headers)) as reply,
        ):
            response = web.StreamResponse(headers={"Content-Type": reply.headers["Content-Type"]})
            await response.prepare(request)
            async for data in reply.content.iter_any():
                await response.write(data)
            return response

    app = web.Application()
    app.add_routes([web.get("/", index), web.get("/{name}", stream)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        rendered = await asyncio.to_thread(render, f"http://127.0.0.1:{runner.addresses[0][1]}/", tmp_path)
    finally:
        await runner.cleanup()
    encoded = rendered.dom.partition('<pre id="out">')[2].partition("</pre>")[0]
    streams = dict(json.loads(base64.b64decode(encoded)))
    assert streams.keys() == case.dialects.keys()
    alive = 0
    for name, items in streams.items():
        frames = [Frame(kind, data if data == "[DONE]" else json.loads(data), last) for kind, data, last in items]
        check(DIALECTS[name], frames, case)
        alive += sum(is_keepalive(DIALECTS[name], frame) for frame in frames if frame.data != "[DONE]")
    assert alive, "the browser may be slow to open some of the streams, but not all"
    ids = [last for kind, _, last in streams["jobs"] if kind not in ("job.queued", "job.keepalive")]
    assert ids == [str(number + 1) for number in range(len(ids))]
