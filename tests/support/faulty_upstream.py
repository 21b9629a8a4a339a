"""An OpenAI-compatible server whose answers and failures are set by the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from aiohttp import web


class End(Enum):
    """How an answer ends, after its tokens."""

    COMPLETE = "a finish reason, usage, [DONE]"
    NO_USAGE = "a finish reason, [DONE]"
    BROKEN_USAGE = "a finish reason, malformed usage, [DONE]"
    SHORT = "the end of the body"
    DISCONNECT = "the connection is closed"
    ERROR = "an error event"
    INVALID_JSON = "a line that is not JSON"
    SILENCE = "nothing, until the client disconnects"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: an error's status and body, a stream of tokens, `choices` and an end, or `raw` bytes.

    `pause_s`: seconds after each token. `raw`: writes, and pauses between them, in seconds or until something
    awaited is done; `headers` go with them.
    """

    tokens: int = 0
    end: End = End.COMPLETE
    choices: tuple[dict[str, Any], ...] = ()
    finish_reason: str = "stop"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    pause_s: float = 0
    raw: tuple[bytes | float | Callable[[], Awaitable[None]], ...] | None = None


@dataclass(slots=True)
class Seen:
    """A received request; `at` is the time of the event loop's clock."""

    at: float
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    query: dict[str, str] = field(default_factory=dict)


USAGE = {"prompt_tokens": 70, "completion_tokens": 90, "prompt_tokens_details": {"cached_tokens": 50}}


def error_answer(status: int, message: str = "no", **headers: str) -> Answer:
    """An error in OpenAI's format; `retry_after="1"` sets the header Retry-After."""
    body = json.dumps({"error": {"message": message, "type": "error", "code": None}})
    return Answer(status=status, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


class FaultyUpstream:
    """Returns `answers` in order, then `default`."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.default = Answer(3)
        self.seen: list[Seen] = []
        self.health = 200
        self.checks = 0
        # By path, the JSON or the bytes of a page, or its status; of others it is 503.
        self.pages: dict[str, Any] = {}
        self.pages_read = 0
        self.page_read = asyncio.Event()
        self.url = ""
        self.arrived = asyncio.Event()
        self.left = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        now, query = asyncio.get_running_loop().time(), dict(request.query)
        self.seen.append(Seen(now, request.path, headers, await request.json(), query))
        self.arrived.set()
        answer = self.answers.pop(0) if self.answers else self.default
        if answer.status != 200:
            headers = {"Content-Type": "application/json", **answer.headers}
            return web.Response(status=answer.status, body=answer.body.encode(), headers=headers)
        try:
            return await self._stream(request, answer)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise

    async def show_health(self, _: web.Request) -> web.Response:
        self.checks += 1
        return web.Response(status=self.health)

    async def show_page(self, request: web.Request) -> web.Response:
        self.pages_read += 1
        self.page_read.set()
        page = self.pages.get(request.path, 503)
        if isinstance(page, int):
            return web.Response(status=page, headers={"Location": "/v1/health"})
        return web.Response(body=page if isinstance(page, bytes) else json.dumps(page).encode())

    async def _stream(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **answer.headers})
        if answer.raw is not None:
            await response.prepare(request)
            for part in answer.raw:
                if isinstance(part, bytes):
                    await response.write(part)
                else:
                    await (part() if callable(part) else asyncio.sleep(part))
            return response
        if answer.end is End.SILENCE and not answer.tokens:
            await asyncio.Event().wait()
        await response.prepare(request)

        async def send(payload: dict[str, Any]) -> None:
            await response.write(b"data: " + json.dumps(payload).encode() + b"\r\n\r\n")

        await response.write(b": a comment\n\n")
        await send({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        for position in range(answer.tokens):
            await send({"choices": [{"index": 0, "delta": {"content": f"{position} "}, "finish_reason": None}]})
            await asyncio.sleep(answer.pause_s)
        for choice in answer.choices:
            await send({"choices": [{"index": 0, **choice}]})
        match answer.end:
            case End.COMPLETE | End.NO_USAGE | End.BROKEN_USAGE:
                await send({"choices": [{"index": 0, "delta": {}, "finish_reason": answer.finish_reason}]})
                if answer.end is End.COMPLETE:
                    await send({"choices": [], "usage": USAGE})
                elif answer.end is End.BROKEN_USAGE:
                    await send({"choices": [], "usage": {"prompt_tokens": "many", "completion_tokens": None}})
                await response.write(b"data: [DONE]\n\n")
            case End.DISCONNECT:
                assert request.transport is not None
                request.transport.close()
            case End.ERROR:
                await send({"error": {"message": "out of memory", "type": "server_error", "code": 500}})
            case End.INVALID_JSON:
                await response.write(b"data: <html>\n\n")
            case End.SILENCE:
                await asyncio.Event().wait()
            case End.SHORT:
                pass
        return response


@asynccontextmanager
async def faulty_upstream(port: int = 0) -> AsyncIterator[FaultyUpstream]:
    """A server on 127.0.0.1; port 0 selects a free port."""
    upstream = FaultyUpstream()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/chat/completions", upstream.handle)
    app.router.add_post("/v1/completions", upstream.handle)
    app.router.add_get("/v1/health", upstream.show_health)
    app.router.add_get("/v1/models", upstream.show_page)
    app.router.add_get("/info", upstream.show_page)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield upstream
    finally:
        await runner.cleanup()
