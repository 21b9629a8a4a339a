"""The form of a case, and chunks to make cases of."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from shared.domain.job import ToolCall, Usage

ANY_ID = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """A body of a response of status 200, and the answer in it.

    `writes` are sent one by one. An id of `ANY_ID` stands for one that the relay makes. `usage`: None if the upstream
    reports nothing usable. `error`: the answer fails with a message that has it.
    `requests`: how many times the request is sent if each receives the same response.
    """

    name: str
    source: str
    writes: tuple[bytes, ...]
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    finish: str = "stop"
    usage: Usage | None = None
    logprobs: list[Any] | None = None
    chat: bool = True
    error: str = ""
    invalid: bool = False
    requests: int = 1


DONE = b"data: [DONE]\n\n"
STOP: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": "stop"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
COUNTED = Usage(7, 0, 2)


def frame(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def frames(*chunks: Any, done: bool = True) -> tuple[bytes, ...]:
    return (b"".join(frame(chunk) for chunk in chunks) + (DONE if done else b""),)


def chunk(*choices: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion.chunk", "choices": list(choices), **members}


def part(content: Any, reason: Any = None, **members: Any) -> dict[str, Any]:
    """A chunk with content."""
    return chunk({"index": 0, "delta": {"content": content}, "finish_reason": reason}, **members)


def delta(*, reason: Any = None, **members: Any) -> dict[str, Any]:
    return chunk({"index": 0, "delta": members, "finish_reason": reason})


def end(reason: Any = "stop", **members: Any) -> dict[str, Any]:
    return chunk({"index": 0, "delta": {}, "finish_reason": reason}, **members)


def call(name: str | None = None, arguments: Any = None, **members: Any) -> dict[str, Any]:
    """A fragment of a tool call; members are `index` and `id`."""
    function: dict[str, Any] = {}
    if name is not None:
        function["name"] = name
    if arguments is not None:
        function["arguments"] = arguments
    return {"type": "function", "function": function, **members}


def calls(*fragments: dict[str, Any], **members: Any) -> dict[str, Any]:
    return delta(tool_calls=list(fragments), **members)


JSON = {"Content-Type": "application/json"}
PARIS, ROME = '{"city": "Paris"}', '{"city": "Rome"}'
TWO_CALLS = (ToolCall("a", "weather", PARIS), ToolCall("b", "weather", ROME))
TWO_MADE = (ToolCall(ANY_ID, "weather", PARIS), ToolCall(ANY_ID, "weather", ROME))
ONE_CALL = (ToolCall("a", "weather", PARIS),)
HI = (part("Hi "), part("there"))


def says_hi(name: str, source: str, *chunks: Any, **expected: Any) -> Dialect:
    """A stream of the text "Hi there", unless something else is expected."""
    expected.setdefault("text", "Hi there")
    return Dialect(name=name, source=source, writes=frames(*chunks), **expected)
