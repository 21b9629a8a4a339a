"""Converts a conversation into Anthropic's system prompt and turns, which alternate between the user and the assistant.

https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from shared.domain.request import CacheBreakpoint, Message, MessageToolCall
from shared.runtime.time_slice import TimeSlice

Block = dict[str, Any]
# Anthropic's pages on tool streaming wrap arguments that are not a JSON object in this member.
INVALID_JSON = "INVALID_JSON"
_NOT_IN_AN_ID = re.compile(r"[^a-zA-Z0-9_-]")


@dataclass(slots=True)
class Turn:
    """What the user or the assistant says, in one or more messages."""

    role: Literal["user", "assistant"]
    blocks: list[Block] = field(default_factory=list)


@dataclass(slots=True)
class Conversation:
    """The blocks of the system prompt, and the turns."""

    system: list[Block] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    def turn(self, role: Literal["user", "assistant"]) -> Turn:
        """The last turn if it is of this role, else a new one."""
        if not self.turns or self.turns[-1].role != role:
            self.turns.append(Turn(role))
        return self.turns[-1]


async def conversation(messages: Sequence[Message], breakpoints: Sequence[CacheBreakpoint]) -> Conversation:
    """Convert messages, of which there may be thousands, with time for other tasks in between."""
    marks: dict[int, list[CacheBreakpoint]] = {}
    for mark in breakpoints:
        if mark.message is not None:
            marks.setdefault(mark.message, []).append(mark)
    result = Conversation()
    slice_ = TimeSlice()
    for position, message in enumerate(messages):
        _add(result, message, marks.get(position, []))
        if slice_.over:
            await slice_.give_way()
    return result


def cache_control(ttl: str | None = None) -> Block:
    """The value of `cache_control`."""
    return {"type": "ephemeral"} | ({} if ttl is None else {"ttl": ttl})


def _add(result: Conversation, message: Message, marks: list[CacheBreakpoint]) -> None:
    match message.role:
        case "system" | "developer":
            result.system += _marked(list(_texts(message.content, marks)), marks)
        case "user":
            result.turn("user").blocks += _marked(list(_texts(message.content, marks)), marks)
        case "tool":
            _insert_result(result.turn("user").blocks, *_marked([_tool_result(message)], marks))
        case "assistant":
            blocks = [*_texts(message.content, marks), *map(_tool_use, message.tool_calls or ())]
            if blocks:
                result.turn("assistant").blocks += _marked(blocks, marks)


def _texts(text: str | None, marks: list[CacheBreakpoint]) -> Iterator[Block]:
    """The text in blocks that end at the breakpoints. The API refuses empty blocks."""
    text = text or ""
    start = 0
    for mark in sorted((mark for mark in marks if mark.end is not None), key=lambda mark: mark.end or 0):
        if part := text[start : mark.end]:
            yield {"type": "text", "text": part, "cache_control": cache_control(mark.ttl)}
            start += len(part)
    if part := text[start:]:
        yield {"type": "text", "text": part}


def _marked(blocks: list[Block], marks: list[CacheBreakpoint]) -> list[Block]:
    """Set the breakpoint at the end of a message."""
    for mark in marks:
        if mark.end is None and blocks:
            blocks[-1]["cache_control"] = cache_control(mark.ttl)
    return blocks


def _tool_use(call: MessageToolCall) -> Block:
    return {
        "type": "tool_use",
        "id": _call_id(call.id),
        "name": call.function.name,
        "input": _input(call.function.arguments),
    }


def _input(arguments: str) -> Any:
    """The arguments as an object, byte for byte if they are one, so that they match the upstream's cache."""
    if not arguments.strip():
        return {}
    try:
        if isinstance(orjson.loads(arguments), dict):
            return orjson.Fragment(arguments)
    except orjson.JSONDecodeError:
        pass
    return {INVALID_JSON: arguments}


def _tool_result(message: Message) -> Block:
    block: Block = {"type": "tool_result", "tool_use_id": _call_id(message.tool_call_id or "")}
    return block | ({"content": message.content} if message.content else {})


def _insert_result(blocks: list[Block], result: Block) -> None:
    """Insert a tool's result after the others: the API requires them at the start of a turn."""
    results = next((at for at, block in enumerate(blocks) if block["type"] != "tool_result"), len(blocks))
    blocks.insert(results, result)


def _call_id(text: str) -> str:
    """The id of a call by any model, in the characters that the API allows."""
    return _NOT_IN_AN_ID.sub("_", text) or "call"
