"""A span for each request, where traces are on."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.telemetry.tracing import Traces

# Probes and scrapes are no work of anybody's.
PREFIX = "/v1/"


class TracingMiddleware:
    """ASGI middleware: a request's span lasts until its answer, which may be a stream, is whole or has no reader."""

    def __init__(self, app: ASGIApp, traces: Traces) -> None:
        self._app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        sent = dict(scope["headers"]).get(b"traceparent")
        trace = self._traces.request(scope["method"], scope["path"], sent.decode("latin-1") if sent else None)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.response_started(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            trace.ended(route, scope.get("state", {}).get("job_id"))
