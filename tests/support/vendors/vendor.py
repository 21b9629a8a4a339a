"""The base of the stand-ins: an HTTP server in this process that follows scripts."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from shared.config.models.capabilities import Modality
from shared.config.models.loader import ModelSpec
from tests.support.vendors.script import Script

# The name of the variable with the key, and the key: an id and a secret, for vendors that want both.
KEY_ENV = "VENDOR_API_KEY"
KEY = "sk-vendor-0123:456789abcdef"
PAGE = "<html><head><title>502 Bad Gateway</title></head><body>proxy-17.internal</body></html>"


@dataclass(frozen=True, slots=True)
class Seen:
    """A received request; `body` is None if it has none."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any


class Hang(Exception):
    """The answer stops here, with its connection open."""


class Cut(Exception):
    """The connection is closed here."""


class Vendor(ABC):
    """A server that answers with `scripts` in order, then with `default`.

    `generated` counts how often an answer was generated. `cancelled` is set when the vendor learns that its client
    does not want an answer any more: by a request, or by a closed connection where that is the vendor's way.
    """

    # What the vendor's API can express. The contract suite tests only that.
    tools: ClassVar[bool] = True
    reasoning: ClassVar[bool] = True
    usage: ClassVar[bool] = True
    structure: ClassVar[bool] = True
    stops: ClassVar[bool] = True
    # Prompts without a conversation, and images and files in messages.
    raw_prompts: ClassVar[bool] = False
    modalities: ClassVar[tuple[Modality, ...]] = ()
    # Whether it says that an answer has reached its limit.
    reports_limit: ClassVar[bool] = True
    # Whether the provider may end an answer with its filter.
    filters: ClassVar[bool] = True
    # Whether an answer whose connection broke is continued by the same engine.
    resumes: ClassVar[bool] = False
    # Whether an answer whose stream is silent is read by other requests.
    polled: ClassVar[bool] = False
    # Whether errors are reported in an answer that has begun.
    reports_errors: ClassVar[bool] = True

    def __init__(self) -> None:
        self.scripts: list[Script] = []
        self.default = Script()
        self.seen: list[Seen] = []
        self.generated = 0
        self.arrived = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.url = ""
        # Turns of the event loop after each frame, in which a client of this process can read it alone.
        self.turns = 0
        # Whether requests that run without their connection are forgotten at once.
        self.forgetful = False
        # The origin that redirects lead to: the same path there.
        self.elsewhere = "http://elsewhere.invalid"
        # All requests, also those to paths that the vendor's API does not have.
        self.requests = 0

    @abstractmethod
    def routes(self) -> Iterable[web.RouteDef]:
        """The routes of the vendor's API, below `url`."""

    @abstractmethod
    def spec(self, **options: Any) -> ModelSpec:
        """A model `up` behind this server, with the key in `KEY_ENV`; `options` are added to those of the entry."""

    @abstractmethod
    def error(self, script: Script) -> Any:
        """The body of an error, as JSON."""

    def forget(self) -> None:
        """Forget all requests that run without their connection."""
        raise NotImplementedError

    async def go_on(self) -> None:
        """Let all requests that hang, and run without their connection, go on to their end."""
        raise NotImplementedError

    def stops_of(self, body: Any) -> list[str]:
        """The stop strings in the body of a request."""
        raise NotImplementedError

    def schema_of(self, body: Any) -> Any:
        """The JSON Schema of the answer in the body of a request."""
        raise NotImplementedError

    def media_of(self, body: Any) -> list[str]:
        """The images and files in the body of a request, as URLs."""
        raise NotImplementedError

    def has_key(self, seen: Seen) -> bool:
        """Whether a request has the key, in a header."""
        return any(KEY in value for value in seen.headers.values())

    # For the stand-ins

    def next_script(self) -> Script:
        self.generated += 1
        return self.scripts.pop(0) if self.scripts else self.default

    async def record(self, request: web.Request) -> Seen:
        content = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = orjson.loads(content) if content else None
        seen = Seen(request.method, request.path, dict(request.query), headers, body)
        self.seen.append(seen)
        if self.forgetful and seen.method == "GET":
            self.forget()
        self.arrived.set()
        return seen

    def refusal(self, script: Script) -> web.Response | None:
        """The response in place of an answer; None if the script answers."""
        if script.html:
            return web.Response(body=PAGE.encode(), content_type="text/html")
        if script.status == 200:
            return None
        headers = {} if script.retry_after is None else {"Retry-After": script.retry_after}
        if 300 <= script.status < 400:
            return web.Response(status=script.status, headers={"Location": f"{self.elsewhere}{self.seen[-1].path}"})
        body = orjson.dumps(self.error(script))
        return web.Response(status=script.status, body=body, content_type="application/json", headers=headers)

    async def stream(
        self,
        request: web.Request,
        frames: AsyncIterator[bytes],
        script: Script,
        content_type: str = "text/event-stream",
    ) -> web.StreamResponse:
        """Send frames. A frame generator raises `Cut` or `Hang` where the script says so."""
        response = web.StreamResponse(headers={"Content-Type": content_type})
        try:
            if script.before is not None:
                await script.before.wait()
            await response.prepare(request)
            try:
                async for frame in frames:
                    await self._write(response, frame, split=script.split)
                    for _ in range(self.turns):
                        await asyncio.sleep(0)
            except Hang:
                await asyncio.Event().wait()
            except Cut:
                assert request.transport is not None
                request.transport.close()
        except (asyncio.CancelledError, ConnectionError):
            self.left()
            raise
        return response

    def left(self) -> None:
        """A client has closed its connection before the end of the answer."""
        self.cancelled.set()

    async def _write(self, response: web.StreamResponse, frame: bytes, *, split: bool) -> None:
        if not split:
            await response.write(frame)
            return
        for position in range(len(frame)):
            await response.write(frame[position : position + 1])
            await asyncio.sleep(0)

    @web.middleware
    async def _arrival(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.requests += 1
        return await handler(request)

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[Self]:
        """Listen on 127.0.0.1; port 0 selects a free port."""
        app = web.Application(client_max_size=1 << 26, middlewares=[self._arrival])
        app.router.add_routes(self.routes())
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()


def pieces(script: Script) -> Iterable[tuple[str, str]]:
    """The pieces of an answer as ("reasoning" | "text", piece).

    Raises `Cut` or `Hang` where the script says so. At `fail_after`, yields ("error", "").
    """
    for piece in script.reasoning:
        yield "reasoning", piece
    texts: list[str | None] = [*script.text, None]  # the script may stop before any of them, and after the last
    for position, text in enumerate(texts):
        if position == script.fail_after:
            yield "error", ""
            return
        if position == script.cut_after:
            raise Cut
        if position == script.hang_after:
            raise Hang
        if text is not None:
            yield "text", text
