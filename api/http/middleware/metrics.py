"""HTTP metrics."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.telemetry.metrics import Metrics

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
OTHER_METHOD = "(other)"
NO_ROUTE = "(none)"


class MetricsMiddleware:
    """ASGI middleware: records each response when its headers are sent."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = time.monotonic()
        started = False

        def record(status: int) -> None:
            nonlocal started
            started = True
            method = scope["method"] if scope["method"] in METHODS else OTHER_METHOD
            # Set by the router; its path is the template.
            route = getattr(scope.get("route"), "path", NO_ROUTE)
            self._metrics.http_requests.labels(method, route, str(status)).inc()
            self._metrics.http_response.labels(method, route).observe(time.monotonic() - started_at)

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start" and not started:
                record(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, counting_send)
        except Exception:
            if not started:
                record(500)  # sent by the server, outside of all middleware
            raise
