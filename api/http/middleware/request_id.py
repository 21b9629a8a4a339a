"""Adds request ids, and the names of ignored parameters, to responses."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.conventions import Conventions, find_conventions
from api.http.members import HEADER, header_value
from shared.domain.request_context import REQUEST_CONTEXT, RequestContext


class RequestIdMiddleware:
    """ASGI middleware: adds `x-request-id` to every response, with the client's value if it sent one.

    Once the request's job is committed (`request.state.job_id`), every response, errors included, also carries the
    job's id, so that the client can look up the job. The same holds for ignored parameters (`request.state.ignored`).
    """

    def __init__(self, app: ASGIApp, conventions: Sequence[Conventions] = ()) -> None:
        self._app = app
        self._conventions = conventions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        conventions = find_conventions(self._conventions, scope["path"])
        sent = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = sent if 0 < len(sent) <= 128 and sent.isprintable() else f"req_{secrets.token_hex(12)}"

        REQUEST_CONTEXT.set(RequestContext(request_id))

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
            await send(message)

        await self._app(scope, receive, send_with_id)
