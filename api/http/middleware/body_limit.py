"""Rejects bodies over the size limit, with or without a Content-Length."""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import render
from shared.domain.errors import TooLarge


class BodyLimitMiddleware:
    """ASGI middleware: buffers the body and passes it on as one message, or responds with 413.

    Bodies of POST requests to the `streamed` paths are not buffered; their routes enforce their own limits. Bodies of
    requests that are not authenticated are not read: the routes that need no key have none.
    """

    def __init__(self, app: ASGIApp, limit: int, streamed: Collection[str] = ()) -> None:
        self._app = app
        self._limit = limit
        self._streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or "open_request" not in scope.get("state", {})
            or (scope["method"] == "POST" and scope["path"] in self._streamed)
        ):
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        body = None
        if not (length.isdigit() and int(length) > self._limit):
            body = await self._read(receive)
        if body is None:
            error = TooLarge(f"The body is larger than {self._limit} bytes.")
            await render(error)(scope, receive, send)
            return

        pending: Message | None = body

        async def replay() -> Message:
            nonlocal pending
            if pending is not None:
                message, pending = pending, None
                return message
            return await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> Message | None:
        """Read the complete body as one message, or a disconnect; None if the body is too large."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return message
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._limit:
                return None
            chunks.append(chunk)
            if not message.get("more_body", False):
                return {"type": "http.request", "body": b"".join(chunks), "more_body": False}
