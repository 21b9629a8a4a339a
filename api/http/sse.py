"""One way to answer with a stream of server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping

from sse_starlette import EventSourceResponse, ServerSentEvent

from api.settings import StreamSettings


def heartbeat() -> ServerSentEvent:
    """A comment: keeps proxies from closing an idle stream; clients ignore it."""
    return ServerSentEvent(comment="ping")


def event_stream(
    frames: AsyncIterator[bytes],
    settings: StreamSettings,
    headers: Mapping[str, str] | None = None,
    *,
    heartbeat: Callable[[], ServerSentEvent] = heartbeat,
) -> EventSourceResponse:
    """Stream encoded frames, with heartbeats; a reader that takes nothing for long is dropped."""
    return EventSourceResponse(
        frames,
        headers=headers,
        ping=settings.ping_s,
        ping_message_factory=heartbeat,
        sep="\n",
        send_timeout=settings.send_timeout_s,
    )
