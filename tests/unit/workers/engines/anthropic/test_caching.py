"""Cache breakpoints: those of the client, and those that are placed where it placed none."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from shared.config.models.anthropic import AnthropicModel
from shared.domain.opaque import OpaquePart
from shared.domain.request import GenerateRequest
from tests.support.transcripts import run_now
from workers.engines.anthropic.caching import BYTES_PER_TOKEN
from workers.engines.anthropic.request import request_body

MINIMUM = 100
LONG = "word " * (MINIMUM * BYTES_PER_TOKEN // 5)
EPHEMERAL = {"type": "ephemeral"}
TOOL = {"function": {"name": "weather", "description": LONG}}


def body(messages: list[dict[str, Any]], caching: str = "auto", **fields: Any) -> Any:
    options = {"prompt_caching": caching} if caching == "off" else {"min_cache_tokens": MINIMUM}
    model = AnthropicModel.model_validate(
        {"name": "up", "engine": "anthropic", "model": "claude-haiku-4-5", "options": options}
    )
    request = GenerateRequest.model_validate({"messages": messages, **fields})
    return orjson.loads(orjson.dumps(run_now(request_body(request, model))))


def places(result: Any) -> list[str]:
    """The blocks with a breakpoint, such as `tools[0]` and `messages[1][0]`."""
    found = [f"tools[{at}]" for at, tool in enumerate(result.get("tools", ())) if "cache_control" in tool]
    found += [f"system[{at}]" for at, block in enumerate(result.get("system", ())) if "cache_control" in block]
    return found + [
        f"messages[{turn}][{at}]"
        for turn, message in enumerate(result["messages"])
        for at, block in enumerate(message["content"])
        if "cache_control" in block
    ]


def turns(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "user" if at % 2 == 0 else "assistant", "content": text} for at, text in enumerate(texts)]


def test_breakpoints_after_tools_system_and_the_stable_turns() -> None:
    messages = [{"role": "system", "content": LONG}, *turns(LONG, "I see.", "And now?")]
    result = body(messages, chat={"tools": [{"function": {"name": "now"}}, TOOL]})
    assert places(result) == ["tools[1]", "system[0]", "messages[1][0]"]
    assert result["system"][0]["cache_control"] == EPHEMERAL


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (turns("short"), []),
        (turns(LONG), []),  # the last message of the user is not stable
        (turns(LONG, "a", "b"), ["messages[1][0]"]),
        (turns("short", "a", "b"), []),
        ([{"role": "system", "content": "short"}, *turns("a", "b", LONG)], []),
        # Each part counts with what precedes it.
        ([{"role": "system", "content": LONG}, *turns("a", "b", "c")], ["system[0]", "messages[1][0]"]),
        ([{"role": "system", "content": LONG[:-100]}, *turns("x" * 100, "b", "c")], ["messages[1][0]"]),
    ],
)
def test_parts_that_are_too_short_get_none(messages: list[dict[str, Any]], expected: list[str]) -> None:
    assert places(body(messages)) == expected


def test_results_of_tools_end_with_the_call_before_them() -> None:
    call = {"id": "a", "function": {"name": "weather", "arguments": "{}"}}
    messages = [*turns(LONG), {"role": "assistant", "content": "Calling.", "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": "a", "content": "sunny"})
    assert places(body(messages)) == ["messages[1][1]"]


def test_no_breakpoints_if_the_option_is_off() -> None:
    assert places(body(turns(LONG, "a", "b"), caching="off")) == []


def test_a_clients_breakpoints_replace_the_automatic_ones() -> None:
    messages = [{"role": "system", "content": "One.Two."}, *turns(LONG, "a", "b")]
    marks = [{"message": 0, "end": 4, "ttl": "1h"}, {"message": 1}, {"tool": 0}]
    result = body(messages, chat={"tools": [TOOL, TOOL]}, cache_breakpoints=marks)
    assert places(result) == ["tools[0]", "system[0]", "messages[0][0]"]
    assert [block["text"] for block in result["system"]] == ["One.", "Two."]
    assert result["system"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert result["messages"][0]["content"][0]["cache_control"] == EPHEMERAL


def test_a_clients_breakpoints_are_passed_on_if_the_option_is_off() -> None:
    assert places(body(turns("a"), caching="off", cache_breakpoints=[{"message": 0}])) == ["messages[0][0]"]


def test_breakpoints_inside_a_list_of_parts_and_after_results() -> None:
    parts = [{"type": "text", "text": text} for text in ("a", "", "b", "c")]
    call = {"id": "a", "function": {"name": "weather", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": parts},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
    ]
    marks = [{"message": 0, "end": 3}, {"message": 1}, {"message": 2}, {"message": 9}, {"tool": 9}]
    assert places(body(messages, cache_breakpoints=marks)) == ["messages[0][1]", "messages[1][0]", "messages[2][0]"]


def test_thinking_gets_no_breakpoint() -> None:
    signed = {"thinking": "Hm.", "signature": "s"}
    part = OpaquePart("anthropic", "thinking", signed, reasoning=3, text=1).encoded()
    messages = [*turns(LONG), {"role": "assistant", "content": "x", "opaque": [part]}, *turns("b")]
    result = body(messages)
    assert [block["type"] for block in result["messages"][1]["content"]] == ["text", "thinking"]
    assert places(result) == ["messages[1][0]"]
