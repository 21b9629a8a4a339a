"""Responses that stream server-sent events.

All dialects write the same kind of bytes, because many clients have a parser of their own: UTF-8, lines that end with
`\\n`, `data` in one line, frames that end with one empty line, no comments, and in `data` no character that a parser
which splits at Unicode's line ends would split at.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing

from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from api.settings import StreamSettings
from shared.domain.json_bytes import escape_separators


class StoppedReading(Exception):
    """The client has read nothing for too long, and its stream cannot be completed."""


class _EventStream(EventSourceResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:  # an OSError, for which there is an error handler
            raise StoppedReading from None


def event_stream(
    frames: AsyncIterator[bytes], settings: StreamSettings, headers: Mapping[str, str] | None = None
) -> EventSourceResponse:
    """Stream encoded frames, keepalives included. A client that reads nothing for `send_timeout_s` is disconnected
    (`api.http.middleware.interrupted`).
    """
    return _EventStream(
        _escaped(frames),
        headers=headers,
        ping=0,  # its pings have other line ends, and may be sent between the last frame and the end
        send_timeout=settings.send_timeout_s,
    )


async def _escaped(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(frames):  # type: ignore[type-var]  # all are generators
        async for frame in frames:
            yield escape_separators(frame)
