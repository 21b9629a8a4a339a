"""Responds to requests that a shutdown interrupts."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http import errors


class ShutdownMiddleware:
    """ASGI middleware: responds with 503 to a request that is cancelled by the shutdown of this process."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def tracking_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, tracking_send)
        except asyncio.CancelledError:
            if started or scope["type"] != "http":
                raise
            await errors.stopping()(scope, receive, send)
