"""Request ids."""

from __future__ import annotations

import secrets

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.anthropic.error_shape import is_anthropic_path
from shared.domain.request_context import REQUEST_CONTEXT, RequestContext


class RequestIdMiddleware:
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

        REQUEST_CONTEXT.set(RequestContext(request_id))

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if is_anthropic_path(scope["path"]):
                    headers["request-id"] = request_id
                if job_id := scope.get("state", {}).get("job_id"):
                    headers["x-headrace-job-id"] = job_id
            await send(message)

        await self._app(scope, receive, with_id)
