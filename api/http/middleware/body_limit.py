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
# The most bytes of the body of a request without a key, where such a request is accepted.
ANONYMOUS_BYTES = 64 * 1024
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

    Bodies of POST requests to the `streamed` paths are not buffered; their routes enforce their own limits. That of an
    anonymous request (`api.keys.middleware`) may have `ANONYMOUS_BYTES`. Bodies of other requests that are not
    authenticated are not read: the routes that need no key have none.
    """

    def __init__(self, app: ASGIApp, limit: int, streamed: Collection[str] = ()) -> None:
        self._app = app
        self._limit = limit
        self._streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.get("state", {})
        open_request: OpenRequest | None = state.get("open_request")
        if scope["type"] != "http" or (open_request is None and not state.get("is_anonymous")):
            await self._app(scope, receive, send)
            return
        limit = self._limit if open_request is not None else min(self._limit, ANONYMOUS_BYTES)
        headers = dict(scope["headers"])
        encoding = headers.get(b"content-encoding", IDENTITY).lower()
        streamed = scope["method"] == "POST" and scope["path"] in self._streamed
        pending: Message | None = None
        try:
            if encoding != IDENTITY and (streamed or encoding not in ENCODINGS):
                raise UnsupportedEncoding
            if not streamed:
                pending = await _read(receive, headers.get(b"content-length", b""), limit, open_request)
                if encoding != IDENTITY and pending["type"] == "http.request":
                    pending["body"] = await off_loop(limit, _decompress, pending["body"], limit)
                    if open_request is not None:
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


async def _read(receive: Receive, length: bytes, limit: int, open_request: OpenRequest | None) -> Message:
    """Read the complete body as one message, or a disconnect."""
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return message
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        if open_request is not None:
            open_request.hold(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return {"type": "http.request", "body": b"".join(chunks), "more_body": False}


def _decompress(body: bytes, limit: int) -> bytes:
    decompressor = zlib.decompressobj(_DETECT)
    try:
        content = decompressor.decompress(body, limit + 1)
    except zlib.error:
        raise InvalidRequest("The body is not compressed as its Content-Encoding says.") from None
    if len(content) > limit:
        raise _too_large(limit)
    if not decompressor.eof or decompressor.unused_data:
        raise InvalidRequest("The compressed body is incomplete, or has data after its end.")
    return content


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit} bytes.")
