"""The cache breakpoints of Messages requests."""

from __future__ import annotations

from typing import Any

from api.anthropic.requests import MAX_BREAKPOINTS, conversation
from api.anthropic.schemas import CountTokensRequest
from shared.domain.request import CacheBreakpoint, GenerateRequest

EPHEMERAL = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}
TOOL: dict[str, Any] = {"name": "level", "input_schema": {}}


def converted(messages: list[dict[str, Any]], **fields: Any) -> GenerateRequest:
    return conversation(CountTokensRequest.model_validate({"model": "m", "messages": messages, **fields}))


def text(content: str, control: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "text", "text": content, "cache_control": control}


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def test_a_request_without_breakpoints_has_none() -> None:
    assert converted([user(text("a"))], tools=[TOOL], system="s").cache_breakpoints == []


def test_results_of_tools_that_failed() -> None:
    results = [
        {"type": "tool_result", "tool_use_id": call, "content": "x", "is_error": is_error}
        for call, is_error in (("a", False), ("b", True), ("c", None))
    ]
    uses = [{"type": "tool_use", "id": call, "name": "level", "input": {}} for call in "abc"]
    request = converted(
        [user(text("q")), {"role": "assistant", "content": uses}, user(text("Meanwhile"), *results)], system="s"
    )
    assert [(request.messages or [])[at].tool_call_id for at in request.tool_errors] == ["b"]


def test_tools_and_the_system_prompt() -> None:
    tools = [TOOL, {**TOOL, "name": "gate", "cache_control": HOUR}]
    system = [text("x-anthropic-billing-header: h", EPHEMERAL), text("One.", EPHEMERAL), text("Two."), text("3", HOUR)]
    request = converted([user(text("a"))], tools=tools, system=system)
    assert request.cache_breakpoints == [
        CacheBreakpoint(tool=1, ttl="1h"),
        CacheBreakpoint(message=0, end=4),
        CacheBreakpoint(message=0, end=9, ttl="1h"),
    ]
    assert request.messages is not None
    assert request.messages[0].content == "One.Two.3"


def test_blocks_of_messages() -> None:
    call = {"type": "tool_use", "id": "a", "name": "level", "input": {}, "cache_control": EPHEMERAL}
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    messages = [
        user(text("One", EPHEMERAL), text(""), text("Two", HOUR)),
        {"role": "assistant", "content": [thinking, text("Calling."), call]},
        user(
            {"type": "tool_result", "tool_use_id": "a", "content": [text("1", EPHEMERAL)]},
            {"type": "tool_result", "tool_use_id": "b", "content": "2"},
            {"type": "tool_result", "tool_use_id": "c", "content": "3", "cache_control": HOUR},
            text("And now?"),
            text("Well?", EPHEMERAL),
        ),
    ]
    request = converted(messages, system="s")
    assert request.cache_breakpoints == [
        CacheBreakpoint(message=1, end=3),
        CacheBreakpoint(message=1, ttl="1h"),
        CacheBreakpoint(message=2),
        CacheBreakpoint(message=3),
        CacheBreakpoint(message=5, ttl="1h"),
        CacheBreakpoint(message=6),
    ]
    assert request.messages is not None
    assert [message.role for message in request.messages[3:]] == ["tool", "tool", "tool", "user"]


def test_only_so_many_breakpoints_are_kept_that_the_api_refuses_them() -> None:
    """Finding the places of all would take time in proportion to the square of their number."""
    request = converted([user(*[text("a", EPHEMERAL)] * 9_999)], tools=[TOOL | {"cache_control": HOUR}])
    assert len(request.cache_breakpoints) == MAX_BREAKPOINTS
    assert request.cache_breakpoints[0] == CacheBreakpoint(tool=0, ttl="1h")


def test_a_breakpoint_of_the_request_itself() -> None:
    request = converted([user(text("a")), {"role": "assistant", "content": "b"}, user(text("c"))], cache_control=HOUR)
    assert request.cache_breakpoints == [CacheBreakpoint(message=2, ttl="1h")]


def test_an_unknown_duration_is_the_default() -> None:
    (mark,) = converted([user(text("a", {"type": "ephemeral", "ttl": "2h"}))]).cache_breakpoints
    assert mark.ttl is None


def test_adaptive_thinking_is_kept() -> None:
    assert converted([user(text("a"))], thinking={"type": "adaptive"}).adaptive_thinking
    assert not converted([user(text("a"))], thinking={"type": "disabled"}).adaptive_thinking


def test_breakpoints_are_stored_only_if_there_are_any() -> None:
    plain = converted([user(text("a"))]).model_dump_json(exclude_none=True, exclude_defaults=True)
    assert "cache_breakpoints" not in plain
    marked = converted([user(text("a", EPHEMERAL))])
    stored = marked.model_dump_json(exclude_none=True, exclude_defaults=True)
    assert GenerateRequest.model_validate_json(stored).cache_breakpoints == marked.cache_breakpoints
