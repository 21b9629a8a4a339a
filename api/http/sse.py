"""Responses that stream server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping

from sse_starlette import EventSourceResponse, ServerSentEvent

from api.settings import StreamSettings


def heartbeat() -> ServerSentEvent:
    """A comment, which keeps proxies from closing an idle stream. Clients ignore it."""
    return ServerSentEvent(comment="ping")


def event_stream(
    frames: AsyncIterator[bytes],
    settings: StreamSettings,
    headers: Mapping[str, str] | None = None,
    *,
    heartbeat: Callable[[], ServerSentEvent] = heartbeat,
) -> EventSourceResponse:
    """Stream encoded frames with heartbeats. A client that reads nothing for `send_timeout_s` is disconnected."""
    return EventSourceResponse(
        frames,
        headers=headers,
        ping=settings.ping_s,
        ping_message_factory=heartbeat,
        sep="\n",
        send_timeout=settings.send_timeout_s,
    )
