"""What refers to messages refers to the same ones in the shortened request."""

from __future__ import annotations

from api.context.shortened import shortened
from shared.domain.content import TextPart
from shared.domain.request import CacheBreakpoint, GenerateRequest, Message


def say(role: str, content: str = "text") -> Message:
    return Message.model_validate({"role": role, "content": content})


REQUEST = GenerateRequest(
    messages=[say("system"), say("user", "1"), say("assistant", "2"), say("user", "3"), say("tool", "4"), say("user")],
    cache_breakpoints=[
        CacheBreakpoint(tool=0),
        CacheBreakpoint(message=0),
        CacheBreakpoint(message=1),
        CacheBreakpoint(message=3, end=1),
        CacheBreakpoint(message=5),
    ],
    tool_errors=[1, 4],
)
KEPT = (0, 3, 4, 5)


def points(request: GenerateRequest) -> list[tuple[int | None, int | None, int | None]]:
    return [(point.tool, point.message, point.end) for point in request.cache_breakpoints]


def contents(request: GenerateRequest) -> list[object]:
    return [message.content for message in request.messages or ()]


def test_dropped_messages_are_left_out() -> None:
    request = shortened(REQUEST, KEPT)
    assert contents(request) == ["text", "3", "4", "text"]
    assert points(request) == [(0, None, None), (None, 0, None), (None, 1, 1), (None, 3, None)]
    assert request.tool_errors == [2]
    assert len(REQUEST.messages or ()) == 6  # unchanged


def test_a_summary_begins_the_first_message_of_the_user() -> None:
    request = shortened(REQUEST, KEPT, "SUM")
    assert contents(request) == ["text", "SUM\n\n3", "4", "text"]
    assert points(request) == [(0, None, None), (None, 0, None), (None, 1, 6), (None, 3, None)]
    assert request.tool_errors == [2]


def test_a_summary_before_parts_is_a_part() -> None:
    parts = [TextPart(type="text", text="a"), TextPart(type="text", text="b")]
    messages = [say("user"), Message(role="user", content=parts)]
    request = GenerateRequest(messages=messages, cache_breakpoints=[CacheBreakpoint(message=1, end=1)])
    found = shortened(request, (1,), "SUM")
    assert found.messages is not None
    assert found.messages[0].texts == ["SUM", "a", "b"]
    assert points(found) == [(None, 0, 2)]


def test_a_summary_before_the_assistant_is_a_message() -> None:
    messages = [say("system"), say("user"), say("assistant", "a"), say("user", "b")]
    request = GenerateRequest(messages=messages, cache_breakpoints=[CacheBreakpoint(message=3)], tool_errors=[2])
    found = shortened(request, (0, 2, 3), "SUM")
    assert contents(found) == ["text", "SUM", "a", "b"]
    assert points(found) == [(None, 3, None)]
    assert found.tool_errors == [2]
