"""Rejects bodies over the size limit, with or without a Content-Length."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import render
from shared.domain.errors import QuotaExceeded, TooLarge


class OpenRequest(Protocol):
    """An authenticated request: `api.keys.open_requests.OpenRequest`."""

    def hold(self, size: int) -> None:
        """Count bytes of the body. Raises `QuotaExceeded`."""


class BodyLimitMiddleware:
    """ASGI middleware: buffers the body and passes it on as one message, or responds with 413.

    The bytes count for the quota of the project, beyond which the response is 429.

    Bodies of POST requests to the `streamed` paths are not buffered; their routes enforce their own limits. Bodies of
    requests that are not authenticated are not read: the routes that need no key have none.
    """

    def __init__(self, app: ASGIApp, limit: int, streamed: Collection[str] = ()) -> None:
        self._app = app
        self._limit = limit
        self._streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        open_request: OpenRequest | None = scope.get("state", {}).get("open_request")
        if (
            scope["type"] != "http"
            or open_request is None
            or (scope["method"] == "POST" and scope["path"] in self._streamed)
        ):
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        try:
            if length.isdigit() and int(length) > self._limit:
                raise self._too_large()
            body = await self._read(receive, open_request)
        except (TooLarge, QuotaExceeded) as error:
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

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The body is larger than {self._limit} bytes.")

    async def _read(self, receive: Receive, open_request: OpenRequest) -> Message:
        """Read the complete body as one message, or a disconnect.

        Raises:
            TooLarge: the body is too large.
            QuotaExceeded: as `OpenRequest.hold`.
        """
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return message
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._limit:
                raise self._too_large()
            open_request.hold(len(chunk))
            chunks.append(chunk)
            if not message.get("more_body", False):
                return {"type": "http.request", "body": b"".join(chunks), "more_body": False}
