"""Creates a span for each request if tracing is enabled."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.telemetry.tracing import Traces

# Probes and scrapes are not traced.
PREFIX = "/v1/"


class TracingMiddleware:
    """ASGI middleware. A span ends when the response, which may be a stream, is complete or its client disconnects."""

    def __init__(self, app: ASGIApp, traces: Traces) -> None:
        self._app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        sent = dict(scope["headers"]).get(b"traceparent")
        trace = self._traces.request(scope["method"], scope["path"], sent.decode("latin-1") if sent else None)

        async def tracing_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.response_started(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, tracing_send)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            trace.ended(route, scope.get("state", {}).get("job_id"))
