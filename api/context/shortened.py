"""Builds a request without the messages that were dropped."""

from __future__ import annotations

from collections.abc import Sequence

from api.context.turns import INSTRUCTIONS
from shared.domain.content import TextPart
from shared.domain.request import CacheBreakpoint, GenerateRequest, Message

SEPARATOR = "\n\n"


def shortened(request: GenerateRequest, kept: Sequence[int], summary: str | None = None) -> GenerateRequest:
    """The request with only the messages at these positions, and with a summary of the others.

    What refers to messages by their positions, or to places in them, refers to the same messages afterwards, or is left
    out.
    """
    messages = request.messages or []
    positions = {old: new for new, old in enumerate(kept)}
    left = [messages[position] for position in kept]
    breakpoints = [
        point if point.message is None else point.model_copy(update={"message": positions[point.message]})
        for point in request.cache_breakpoints
        if point.message is None or point.message in positions
    ]
    tool_errors = [positions[position] for position in request.tool_errors if position in positions]
    if summary is not None:
        first = next((n for n, message in enumerate(left) if message.role not in INSTRUCTIONS), len(left))
        if first < len(left) and left[first].role == "user":
            left[first] = _introduced(left[first], summary)
            moved = len(summary) + len(SEPARATOR) if isinstance(left[first].content, str) else 1
            breakpoints = [_moved(point, moved) if point.message == first else point for point in breakpoints]
        else:
            left.insert(first, Message(role="user", content=summary))
            breakpoints = [
                point.model_copy(update={"message": point.message + 1})
                if point.message is not None and point.message >= first
                else point
                for point in breakpoints
            ]
            tool_errors = [position + 1 if position >= first else position for position in tool_errors]
    return request.model_copy(update={"messages": left, "cache_breakpoints": breakpoints, "tool_errors": tool_errors})


def _introduced(message: Message, summary: str) -> Message:
    """A user's message that begins with the summary.

    As a message of its own, it would be the second of the user in succession, which many chat templates reject.
    """
    content = message.content
    if isinstance(content, list):
        return message.model_copy(update={"content": [TextPart(type="text", text=summary), *content]})
    return message.model_copy(update={"content": f"{summary}{SEPARATOR}{content or ''}"})


def _moved(point: CacheBreakpoint, by: int) -> CacheBreakpoint:
    return point if point.end is None else point.model_copy(update={"end": point.end + by})
