"""The application: routes, errors, and what lives as long as it does."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import errors, health
from api.anthropic import routes as anthropic
from api.anthropic.errors import is_asked
from api.batches import routes as batches
from api.body_limit import BodyLimit
from api.files import routes as files
from api.jobs import routes as jobs
from api.metrics import HttpMetrics
from api.openai import routes as openai
from api.regions import HomeRegion
from api.resources import open_resources
from api.responses import routes as responses
from api.settings import ApiSettings
from api.traced import Traced
from shared.logging import requests_come
from shared.origin import ORIGIN, Origin
from shared.startup import settle
from shared.tracing import open_traces

DESCRIPTION = (
    "Self-hosted, queue-based, asynchronous LLM inference. Every call is a job: committed, queued, run by vLLM."
)


class Ids:
    """ASGI middleware: every answer carries `x-request-id`, the client's own where it sent one.

    From the moment that a request's job is committed (`request.state.job_id`), its answer carries the job's id too,
    whatever it is: a client that gets an error then can still find the job.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = sent if 0 < len(sent) <= 128 and sent.isprintable() else f"req_{secrets.token_hex(12)}"

        ORIGIN.set(Origin(request_id))

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if is_asked(scope["path"]):
                    headers["request-id"] = request_id
                if job_id := scope.get("state", {}).get("job_id"):
                    headers["x-headrace-job-id"] = job_id
            await send(message)

        await self._app(scope, receive, with_id)


class Stopping:
    """ASGI middleware: a request that the end of this process cuts short is answered 503, to be tried again."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except asyncio.CancelledError:
            if started or scope["type"] != "http":
                raise
            await errors.stopping()(scope, receive, send)


def create_app(settings: ApiSettings) -> FastAPI:
    """The application for these settings. Its resources are made when it starts."""

    traces = open_traces("headrace-api", f"{socket.gethostname()}-{os.getpid()}")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_resources(settings, traces) as held:
            app.state.resources = held
            settle()
            requests_come()
            yield

    app = FastAPI(title="Headrace", version="0.1.0", description=DESCRIPTION, lifespan=lifespan)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes, streamed=(files.PATH,))
    if settings.regions:
        app.add_middleware(HomeRegion, own=settings.region, regions=settings.regions)
    app.add_middleware(Stopping)
    if traces.on:
        app.add_middleware(Traced, traces=traces)
    app.add_middleware(Ids)
    app.add_middleware(HttpMetrics)
    errors.install(app)
    app.include_router(jobs.router)
    app.include_router(openai.router)
    app.include_router(responses.router)
    app.include_router(anthropic.router)
    app.include_router(files.router)
    app.include_router(batches.router)
    app.include_router(health.router)
    return app
