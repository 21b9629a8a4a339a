"""Ends responses that are interrupted for an expected reason, without the errors that the server would log for them."""

from __future__ import annotations

import asyncio
import logging

from sse_starlette.sse import AppStatus
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import IncompleteResponse
from api.http.sse import StoppedReading
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class InterruptedResponses:
    """ASGI middleware: closes the connection of a response that cannot be completed.

    A client that does not read its stream is disconnected. A shutdown ends streams, and cancels what has not ended
    within the grace period. A file that is written while it is sent may fail in the middle. In all cases the connection
    is closed in the middle of the response, so that the client knows that it is incomplete. Other errors are passed on.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = complete = False

        async def tracking_send(message: Message) -> None:
            nonlocal started, complete
            started = True
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._app(scope, receive, tracking_send)
        except StoppedReading:
            self._metrics.stream_drops.inc()
            logger.info("a client reads nothing and is disconnected: %s", scope["path"])
        except IncompleteResponse:
            if not started:
                raise
        except asyncio.CancelledError:
            if not (started and AppStatus.should_exit):
                raise
        if started and not complete:
            await _disconnect(scope, receive)


async def _disconnect(scope: Scope, receive: Receive) -> None:
    """Close the connection, and return when the server knows it: it reports responses that end early as errors."""
    scope["state"]["disconnect"]()  # see `api.http.server`
    while (await receive())["type"] != "http.disconnect":
        pass
