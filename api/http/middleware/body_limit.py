"""Rejects bodies over the size limit, with or without a Content-Length, and decompresses the others."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.errors import render
from shared.domain.errors import HeadraceError, InvalidRequest, TooLarge, UnsupportedEncoding
from shared.runtime.offload import off_loop

IDENTITY = b"identity"
ENCODINGS = frozenset((b"gzip", b"x-gzip", b"deflate"))
# The format is detected: gzip's or zlib's header.
_DETECT = zlib.MAX_WBITS | 32


class OpenRequest(Protocol):
    """An authenticated request: `api.keys.open_requests.OpenRequest`."""

    def hold(self, size: int) -> None:
        """Count bytes of the body. Raises `QuotaExceeded`."""


class BodyLimitMiddleware:
    """ASGI middleware: buffers the body and passes it on as one message, or responds with 413.

    The limit holds for a compressed body (`Content-Encoding: gzip` or `deflate`) and for its content. The bytes of both
    count for the quota of the project, beyond which the response is 429.

    Bodies of POST requests to the `streamed` paths are not buffered; their routes enforce their own limits. Bodies of
    requests that are not authenticated are not read: the routes that need no key have none.
    """

    def __init__(self, app: ASGIApp, limit: int, streamed: Collection[str] = ()) -> None:
        self._app = app
        self._limit = limit
        self._streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        open_request: OpenRequest | None = scope.get("state", {}).get("open_request")
        if scope["type"] != "http" or open_request is None:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        encoding = headers.get(b"content-encoding", IDENTITY).lower()
        streamed = scope["method"] == "POST" and scope["path"] in self._streamed
        pending: Message | None = None
        try:
            if encoding != IDENTITY and (streamed or encoding not in ENCODINGS):
                raise UnsupportedEncoding
            if not streamed:
                pending = await self._read(receive, headers.get(b"content-length", b""), open_request)
                if encoding != IDENTITY and pending["type"] == "http.request":
                    pending["body"] = await off_loop(self._limit, self._decompress, pending["body"])
                    open_request.hold(len(pending["body"]))
        except HeadraceError as error:
            await render(error)(scope, receive, send)
            return

        async def replay() -> Message:
            nonlocal pending
            if pending is not None:
                message, pending = pending, None
                return message
            return await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive, length: bytes, open_request: OpenRequest) -> Message:
        """Read the complete body as one message, or a disconnect."""
        if length.isdigit() and int(length) > self._limit:
            raise self._too_large()
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

    def _decompress(self, body: bytes) -> bytes:
        decompressor = zlib.decompressobj(_DETECT)
        try:
            content = decompressor.decompress(body, self._limit + 1)
        except zlib.error:
            raise InvalidRequest("The body is not compressed as its Content-Encoding says.") from None
        if len(content) > self._limit:
            raise self._too_large()
        if not decompressor.eof or decompressor.unused_data:
            raise InvalidRequest("The compressed body is incomplete, or has data after its end.")
        return content

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The body is larger than {self._limit} bytes.")
