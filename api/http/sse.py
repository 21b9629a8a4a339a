"""Responses that stream server-sent events.

All dialects write the same kind of bytes, because many clients have a parser of their own: UTF-8, lines that end with
`\\n`, `data` in one line, frames that end with one empty line, no comments, and in `data` no character that a parser
which splits at Unicode's line ends would split at.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.types import Message, Receive, Scope, Send

from api.settings import StreamSettings
from shared.domain.json_bytes import escape_separators


class StoppedReading(Exception):
    """The client has read nothing for too long, and its stream cannot be completed."""


class _EventStream(EventSourceResponse):
    """Limits each send by a timer of the stream. A cancel scope per send, as in the base class, would take longer than
    the send itself."""

    def __init__(self, frames: AsyncIterator[bytes], send_timeout_s: float, headers: Mapping[str, str] | None) -> None:
        # No pings of its own: they have other line ends, and may be sent between the last frame and the end.
        super().__init__(frames, headers=headers, ping=0)
        self._send_timeout_s = send_timeout_s
        # When the send began that has not ended, on the loop's clock, and the task that waits for it.
        self._sending_since: float | None = None
        self._sender: asyncio.Task[Any] | None = None
        self._timed_out = False
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:  # an OSError, for which there is an error handler
            raise StoppedReading from None
        finally:
            if self._timer is not None:
                self._timer.cancel()

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._sender = asyncio.current_task()
            self._timer = loop.call_later(self._send_timeout_s, self._check, loop)
        self._sending_since = loop.time()
        try:
            await send(message)
        except asyncio.CancelledError:
            if not self._timed_out or self._sender is None or self._sender.uncancel():
                raise  # cancelled from outside, at the same time or instead
            raise SendTimeoutError from None
        finally:
            self._sending_since = None

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        """End a send that has taken too long; otherwise check again when the one that is under way would have."""
        began = self._sending_since
        due = (loop.time() if began is None else began) + self._send_timeout_s
        if began is not None and due <= loop.time():
            self._timed_out = True
            assert self._sender is not None
            self._sender.cancel()
        else:
            self._timer = loop.call_at(due, self._check, loop)


def event_stream(
    frames: AsyncIterator[bytes], settings: StreamSettings, headers: Mapping[str, str] | None = None
) -> EventSourceResponse:
    """Stream encoded frames, keepalives included. A client that reads nothing for `send_timeout_s` is disconnected
    (`api.http.middleware.interrupted`).
    """
    return _EventStream(_escaped(frames), settings.send_timeout_s, headers)


async def _escaped(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(frames):  # type: ignore[type-var]  # all are generators
        async for frame in frames:
            yield escape_separators(frame)
