"""Connections with an upstream: kept ones that were closed, headers of any size, and streams without output."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shared.config.models.openai import OpenAIModel
from shared.domain.request import GenerateRequest, Message
from shared.domain.version import VERSION
from tests.support.faulty_upstream import Answer, FaultyUpstream, faulty_upstream
from tests.support.metrics import worker_metrics
from workers.engines.base import BusyReason, UpstreamBusy, UpstreamError
from workers.engines.openai.engine import OpenAIEngine

CHAT = GenerateRequest(messages=[Message(role="user", content="Hello")])
STREAM = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
async def upstream() -> AsyncIterator[FaultyUpstream]:
    async with faulty_upstream() as upstream:
        yield upstream


@asynccontextmanager
async def started(*urls: str, **options: Any) -> AsyncIterator[OpenAIEngine]:
    """An engine that prefers the first address."""
    endpoints = [{"base_url": url, "weight": 1000 if url == urls[0] else 0.001} for url in urls]
    fields = {"endpoints": endpoints, "max_retries": 0, **options}
    model = OpenAIModel.model_validate({"name": "up", "engine": "openai", "model": "theirs", "options": fields})
    engine = OpenAIEngine(model, worker_metrics("up"))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def run(engine: OpenAIEngine) -> str:
    return "".join([item.text async for item in engine.generate("job-1", CHAT) if hasattr(item, "text")])


class Kept:
    """A server that closes a connection, unread, at the request after its `per_connection` first ones."""

    def __init__(self, per_connection: int) -> None:
        self.per_connection = per_connection
        self.connections = self.answers = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            for position in range(self.per_connection + 1):
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
                await reader.readexactly(int(length.partition(b":")[2]))
                if position < self.per_connection:
                    self.answers += 1
                    writer.write(HEAD % len(STREAM) + STREAM)
                    await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def kept(per_connection: int) -> AsyncIterator[tuple[Kept, str]]:
    server = Kept(per_connection)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    try:
        yield server, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    finally:
        listener.close()
        await listener.wait_closed()


async def test_a_closed_connection_that_was_kept_costs_no_attempt() -> None:
    async with kept(2) as (server, url), started(url) as engine:
        for _ in range(5):
            assert await run(engine) == "Hi"
        assert (server.connections, server.answers) == (3, 5)
        assert engine.gate.breaker is None
        assert engine.stats().endpoints == {"0": True}


async def test_a_connection_that_is_closed_at_its_first_request_is_a_failure() -> None:
    """The request may be the cause."""
    async with kept(0) as (server, url), started(url) as engine:
        with pytest.raises(UpstreamBusy) as caught:
            await run(engine)
        assert caught.value.reason is BusyReason.BROKEN
        assert server.connections == 1


async def test_a_long_wait_on_a_kept_connection_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server had the request, and may have died of it."""
    monkeypatch.setattr("workers.engines.upstream.session.STALE_S", 0.0)
    async with kept(1) as (server, url), started(url) as engine:
        assert await run(engine) == "Hi"
        with pytest.raises(UpstreamBusy):
            await run(engine)
        assert server.connections == 1


@pytest.mark.parametrize("headers", [{"X-Policy": "a" * 20_000}, {f"X-Trace-{n}": "a" for n in range(300)}])
async def test_large_headers(upstream: FaultyUpstream, headers: dict[str, str]) -> None:
    upstream.default = Answer(2, headers=headers)
    async with started(upstream.url) as engine:
        assert await run(engine) == "0 1 "


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"X-Policy": "secret" * 20_000}, "Got more than"),
        ({f"X-Trace-{n}": "secret" for n in range(600)}, "Too many headers"),
        ({"Content-Encoding": "gzip"}, "Can not decode content-encoding"),
        ({"Content-Encoding": "br"}, "Can not decode content-encoding"),
    ],
)
async def test_a_response_that_can_never_be_read(
    upstream: FaultyUpstream, headers: dict[str, str], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not repeated; another address may send one that can be read."""
    upstream.default = Answer(raw=(STREAM,), headers=headers)
    async with started(upstream.url, max_retries=3) as engine:
        with pytest.raises(UpstreamError, match="cannot be read") as caught:
            await run(engine)
    assert not isinstance(caught.value, UpstreamBusy)
    assert len(upstream.seen) == 1
    assert words in caplog.text
    assert "secret" not in caplog.text
    async with faulty_upstream() as other, started(upstream.url, other.url) as engine:
        assert await run(engine) == "0 1 2 "
        assert len(upstream.seen) == 2


async def test_the_user_agent_names_this_program(upstream: FaultyUpstream) -> None:
    """Filters of bots refuse those of HTTP libraries (Cloudflare's error 1010)."""
    async with started(upstream.url) as engine:
        await run(engine)
    assert upstream.seen[0].headers["user-agent"] == f"headrace/{VERSION}"


PINGS = [b": ping\n\n", b'data: {"choices":[],"usage":null}\n\n', b'data: {"type":"ping"}\n\n']


@pytest.mark.parametrize("ping", PINGS)
@pytest.mark.parametrize("begun", [False, True])
async def test_pings_do_not_keep_a_request_alive_for_ever(upstream: FaultyUpstream, ping: bytes, begun: bool) -> None:
    text = b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, "delta": {"content": "Hi"}}]}).encode()
    upstream.default = Answer(raw=(text if begun else ping, *(ping, 0.01) * 3000))
    async with asyncio.timeout(10), started(upstream.url, stall_timeout_s=0.05) as engine:
        with pytest.raises(UpstreamError, match="did not answer in time") as caught:
            await run(engine)
        assert isinstance(caught.value, UpstreamBusy) is not begun
        await upstream.left.wait()


async def test_output_between_pings_keeps_a_request_alive(upstream: FaultyUpstream) -> None:
    text = b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, "delta": {"content": "Hi"}}]}).encode()
    upstream.default = Answer(raw=(*(b": ping\n\n", 0.02, text, 0.02) * 8, b"data: [DONE]\n\n"))
    async with started(upstream.url, stall_timeout_s=0.2) as engine:
        assert await run(engine) == "Hi" * 8
