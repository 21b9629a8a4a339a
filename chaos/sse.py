"""An SSE parser."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import httpx
import orjson


@dataclass(frozen=True)
class Sse:
    """One server-sent event."""

    event: str
    id: int | None
    data: dict[str, Any]


async def read_events(response: httpx.Response) -> AsyncGenerator[Sse, None]:
    """Parse a `text/event-stream` (WHATWG HTML, 9.2.6), ignoring comments."""
    event: str = "message"
    event_id: int | None = None
    data: list[str] = []
    async for line in response.aiter_lines():
        if not line:
            if data:
                yield Sse(event, event_id, orjson.loads("\n".join(data)))
            event, event_id, data = "message", None, []
        elif line.startswith(":"):
            continue
        else:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                event = value
            elif field == "id":
                event_id = int(value)
            elif field == "data":
                data.append(value)


def text_of(events: list[Sse], index: int = 0) -> str:
    """Return the concatenated deltas of a choice, discarding those before the last restart."""
    parts: list[str] = []
    for item in events:
        if item.event == "job.restarted":
            parts = []
        elif item.event == "job.delta" and item.data["index"] == index:
            parts.append(item.data["text"])
    return "".join(parts)
