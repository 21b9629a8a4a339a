"""The bytes of every event stream, read by six parsers: all dialects, with keepalives and with errors."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Frame:
    """A parsed frame."""

    event: str
    data: Any
    id: str = ""


@dataclass(frozen=True)
class Dialect:
    """How to request a stream of a dialect, and how to read it."""

    path: str
    body: dict[str, Any]
    text_of: Callable[[Frame], str]
    keepalive: Frame
    last: str
    error: Callable[[Frame], str | None]


def _chat_text(frame: Frame) -> str:
    return frame.data["choices"][0]["delta"].get("content", "") if "choices" in frame.data else ""


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
    ),
    "messages": Dialect(
        "/v1/messages",
        {"messages": MESSAGES, "stream": True, "max_tokens": 100},
        lambda frame: frame.data["delta"].get("text", "") if frame.event == "content_block_delta" else "",
        Frame("ping", {"type": "ping"}),
        "message_stop",
        lambda frame: frame.data["error"]["message"] if frame.event == "error" else None,
    ),
    "jobs": Dialect(
        "/v1/jobs",
        {"messages": MESSAGES},
        lambda frame: frame.data["text"] if frame.event == "job.delta" else "",
        Frame("job.keepalive", {}),
        "job.completed",
        lambda frame: frame.data["error"]["message"] if frame.event == "job.failed" else None,
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
        "options": {"base_url": f"http://127.0.0.1:{PORT}/v1", "max_retries": 0},
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


async def open_stream(client: httpx.AsyncClient, dialect: Dialect) -> httpx.Request:
    """The request for a stream. For a native stream, its job is submitted here."""
    body = {"model": "up", **dialect.body}
    if dialect.path != "/v1/jobs":
        return client.build_request("POST", dialect.path, json=body)
    job = (await client.post(dialect.path, json=body)).json()
    return client.build_request("GET", job["stream_url"])


async def read(client: httpx.AsyncClient, dialect: Dialect) -> httpx.Response:
    return await client.send(await open_stream(client, dialect))


async def read_all(client: httpx.AsyncClient) -> list[tuple[Dialect, httpx.Response]]:
    dialects = list(DIALECTS.values())
    return list(zip(dialects, await asyncio.gather(*(read(client, one) for one in dialects)), strict=True))


def naive(content: bytes) -> list[Frame]:
    """The parser that people write: split at empty lines, then take what follows `data: `."""
    frames = []
    for block in content.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        data = fields["data"] if fields["data"] == "[DONE]" else json.loads(fields["data"])
        frames.append(Frame(fields.get("event", "message"), data, fields.get("id", "")))
    return frames


with_and_without_error = pytest.mark.parametrize("error", [False, True])


def check(dialect: Dialect, frames: list[Frame], error: bool = False) -> None:
    """The text is complete, there are keepalives before and in it, and the last frame is the dialect's."""
    objects = [frame for frame in frames if frame.data != "[DONE]"]
    assert "".join(map(dialect.text_of, objects)) == TEXT
    if error:
        assert FAILED_IN in (dialect.error(frames[-1]) or "")
    else:
        assert dialect.last in (frames[-1].event, frames[-1].data)
    texts = [number for number, frame in enumerate(objects) if dialect.text_of(frame)]
    alive = [number for number, frame in enumerate(objects) if is_keepalive(dialect, frame)]
    assert min(alive) < min(texts), "a keepalive comes before the first text"
    assert any(min(texts) < number < max(texts) for number in alive), "a keepalive comes between texts"


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


@with_and_without_error
async def test_bytes_and_the_naive_parser(client: httpx.AsyncClient, upstream: FaultyUpstream, error: bool) -> None:
    upstream.default = BROKEN if error else COMPLETE
    for dialect, response in await read_all(client):
        check_bytes(response)
        check(dialect, naive(response.content), error=error)


async def test_a_background_response(client: httpx.AsyncClient, upstream: FaultyUpstream) -> None:
    """Its stream can be resumed: a keepalive's number is no new position."""
    created = await client.post("/v1/responses", json={"model": "up", "input": "Hello", "background": True})
    url = f"/v1/responses/{created.json()['id']}"
    frames = naive((await client.get(url, params={"stream": "true"})).content)
    check(DIALECTS["responses"], frames)
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
        for frame in naive((await read(client, DIALECTS["chat"])).content)
        if frame.data != "[DONE]"
    ]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert not any("role" in choice["delta"] for choice in choices[1:])


@with_and_without_error
async def test_httpx_sse(client: httpx.AsyncClient, upstream: FaultyUpstream, error: bool) -> None:
    upstream.default = BROKEN if error else COMPLETE

    async def read_events(dialect: Dialect) -> None:
        response = await client.send(await open_stream(client, dialect), stream=True)
        frames = [
            Frame(item.event, item.data if item.data == "[DONE]" else item.json(), item.id)
            async for item in httpx_sse.EventSource(response).aiter_sse()
        ]
        await response.aclose()
        check(dialect, frames, error=error)

    await asyncio.gather(*map(read_events, DIALECTS.values()))


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

        texts = await asyncio.gather(chat(), chat_helper(), completion(), response(), response_helper())
        assert set(texts) == {TEXT}
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

        assert set(await asyncio.gather(events(), helper())) == {TEXT}
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
const helper = client.chat.completions.stream({model: "up", messages});
const responseHelper = client.responses.stream({model: "up", input: "Hello"});
console.log(JSON.stringify(await Promise.all([
  chat(), completion(), response(),
  helper.finalContent(), responseHelper.finalResponse().then((final) => final.output[0].content[0].text),
])));
"""


async def test_openai_node(stack: Stack, upstream: FaultyUpstream) -> None:
    texts: Any = await asyncio.to_thread(run_script, NODE, f"{stack.url}/v1", KEY)
    assert texts == [TEXT] * 5


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
)


@needs_chromium
@with_and_without_error
async def test_event_source_in_a_browser(
    client: httpx.AsyncClient, upstream: FaultyUpstream, tmp_path: Path, error: bool
) -> None:
    """EventSource sends neither a body nor an API key, so a proxy does, and returns the bytes as they are."""
    upstream.default = BROKEN if error else COMPLETE
    page = PAGE.replace("DIALECTS", json.dumps({name: dialect.last for name, dialect in DIALECTS.items()}))
    page = page.replace("KINDS", json.dumps(KINDS))

    async def index(_: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html")

    async def stream(request: web.Request) -> web.StreamResponse:
        opened = await open_stream(client, DIALECTS[request.match_info["name"]])
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
    assert streams.keys() == DIALECTS.keys()
    for name, items in streams.items():
        frames = [Frame(kind, data if data == "[DONE]" else json.loads(data), last) for kind, data, last in items]
        check(DIALECTS[name], frames, error=error)
    ids = [last for kind, _, last in streams["jobs"] if kind not in ("job.queued", "job.keepalive")]
    assert ids == [str(number + 1) for number in range(len(ids))]
