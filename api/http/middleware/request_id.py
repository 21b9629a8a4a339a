"""Adds request ids, the names of ignored parameters, and what is left of rate limits, to responses."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.conventions import OPENAI, Conventions, find_conventions
from api.http.members import HEADER, header_value
from api.http.rate_limits import RATE_LIMIT_STATUS, RateLimitStatus
from shared.domain.request_context import REQUEST_CONTEXT, RequestContext


class RequestIdMiddleware:
    """ASGI middleware: adds `x-request-id` to every response, with the client's value if it sent one.

    Once the request's job is committed (`request.state.job_id`), every response, errors included, also carries the
    job's id, so that the client can look up the job. The same holds for ignored parameters (`request.state.ignored`),
    and for the rate limits that were applied (`RATE_LIMIT_STATUS`).
    """

    def __init__(self, app: ASGIApp, conventions: Sequence[Conventions] = ()) -> None:
        self._app = app
        self._conventions = conventions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        conventions = find_conventions(self._conventions, scope["path"])
        rate_limit_headers = (conventions or OPENAI).rate_limit_headers
        sent = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = sent if 0 < len(sent) <= 128 and sent.isprintable() else f"req_{secrets.token_hex(12)}"

        REQUEST_CONTEXT.set(RequestContext(request_id))
        status = RateLimitStatus()
        RATE_LIMIT_STATUS.set(status)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if conventions is not None and conventions.request_id_header is not None:
                    headers[conventions.request_id_header] = request_id
                state = scope.get("state", {})
                if job_id := state.get("job_id"):
                    headers["x-headrace-job-id"] = job_id
                if ignored := state.get("ignored"):
                    headers[HEADER] = header_value(ignored)
                if status.requests is not None or status.tokens is not None:
                    headers.update(rate_limit_headers(status))
            await send(message)

        await self._app(scope, receive, send_with_id)
