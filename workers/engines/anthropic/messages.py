"""Converts a conversation into Anthropic's system prompt and turns, which alternate between the user and the assistant.

https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

import base64
import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from shared.domain.content import ContentPart, FilePart, ImagePart, TextPart
from shared.domain.opaque import OpaquePart, Reasoning
from shared.domain.request import CacheBreakpoint, Message, MessageToolCall
from shared.runtime.time_slice import TimeSlice
from workers.engines.anthropic.opaque import NOT_CACHED, thinking_block

Block = dict[str, Any]
# Anthropic's pages on tool streaming wrap arguments that are not a JSON object in this member.
INVALID_JSON = "INVALID_JSON"
# Files of these types are sent as texts, beside those of `text/...`.
_TEXTS = ("application/json", "application/xml")
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

    def prefill(self, text: str) -> None:
        """Let the answer begin with a text, if it is not empty, after that with which the client lets it begin."""
        if text:
            blocks = self.turn("assistant").blocks
            if blocks and blocks[-1]["type"] == "text":
                text = blocks.pop()["text"] + text
            blocks.append(_text(text))


async def conversation(
    messages: Sequence[Message], breakpoints: Sequence[CacheBreakpoint], tool_errors: Sequence[int] = ()
) -> Conversation:
    """Convert messages, of which there may be thousands, with time for other tasks in between.

    `tool_errors`: the positions of results of tools that failed.
    """
    marks: dict[int, list[CacheBreakpoint]] = {}
    for mark in breakpoints:
        if mark.message is not None:
            marks.setdefault(mark.message, []).append(mark)
    result = Conversation()
    failed = frozenset(tool_errors)
    slice_ = TimeSlice()
    for position, message in enumerate(messages):
        _add(result, message, marks.get(position, []), is_error=position in failed)
        if slice_.over:
            await slice_.give_way()
    return result


def cache_control(ttl: str | None = None) -> Block:
    """The value of `cache_control`."""
    return {"type": "ephemeral"} | ({} if ttl is None else {"ttl": ttl})


def _add(result: Conversation, message: Message, marks: list[CacheBreakpoint], *, is_error: bool) -> None:
    match message.role:
        case "system" | "developer":
            result.system += _content(message.content, marks)
        case "user":
            if blocks := _content(message.content, marks):
                result.turn("user").blocks += blocks
        case "tool":
            error = {"is_error": True} if is_error else {}
            _insert_result(result.turn("user").blocks, _tool_result(message, marks) | error)
        case "assistant":
            if blocks := [block for item in message.in_order() if (block := _generated(item)) is not None]:
                result.turn("assistant").blocks += _mark_end(blocks, marks)


def _content(content: str | list[ContentPart] | None, marks: list[CacheBreakpoint]) -> list[Block]:
    """The blocks of a content, of which some end at breakpoints. The API refuses texts without visible characters."""
    if isinstance(content, list):
        blocks = [_part(part) for part in content]
        for mark in marks:
            if mark.end is not None and mark.end <= len(blocks):
                blocks[mark.end - 1]["cache_control"] = cache_control(mark.ttl)
    else:
        blocks = list(_texts(content or "", marks))
    return _mark_end([block for block in blocks if block["type"] != "text" or _is_visible(block["text"])], marks)


def _texts(text: str, marks: list[CacheBreakpoint]) -> Iterator[Block]:
    """The text in blocks that end at the breakpoints."""
    start = 0
    for mark in sorted((mark for mark in marks if mark.end is not None), key=lambda mark: mark.end or 0):
        if part := text[start : mark.end]:
            yield _text(part) | {"cache_control": cache_control(mark.ttl)}
            start += len(part)
    if part := text[start:]:
        yield _text(part)


def _is_visible(text: str) -> bool:
    return bool(text) and not text.isspace()


def _mark_end(blocks: list[Block], marks: list[CacheBreakpoint]) -> list[Block]:
    """Set the breakpoint at the end of a message. Blocks of thinking cannot have one."""
    for mark in marks:
        if mark.end is None and (last := last_cacheable(blocks)) is not None:
            last["cache_control"] = cache_control(mark.ttl)
    return blocks


def last_cacheable(blocks: Sequence[Block]) -> Block | None:
    """The last block that can have a breakpoint."""
    return next((block for block in reversed(blocks) if block["type"] not in NOT_CACHED), None)


def _text(text: str) -> Block:
    return {"type": "text", "text": text}


def _part(part: ContentPart) -> Block:
    """https://platform.claude.com/docs/en/build-with-claude/vision and .../pdf-support"""
    match part:
        case TextPart():
            return _text(part.text)
        case ImagePart():
            return {"type": "image", "source": _source(part)}
        case FilePart():
            title = {} if part.filename is None else {"title": part.filename}
            context = {} if part.context is None else {"context": part.context}
            return {"type": "document", "source": _source(part), **title, **context}


def _source(part: ImagePart | FilePart) -> Block:
    if part.url is not None:
        return {"type": "url", "url": part.url}
    if part.file_id is not None:
        return {"type": "file", "file_id": part.file_id}
    media_type = part.media_type or ""
    if media_type.startswith("text/") or media_type in _TEXTS:
        return {"type": "text", "media_type": "text/plain", "data": _decoded(base64.b64decode(part.data or ""))}
    return {"type": "base64", "media_type": part.media_type, "data": part.data}


def _decoded(data: bytes) -> str:
    """A text in UTF-8, or UTF-16 with a byte order mark; else in Windows-1252, as browsers read unlabelled texts."""
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _generated(item: Reasoning | str | MessageToolCall | OpaquePart) -> Block | None:
    """A block of the assistant. Thinking without a signature is left out, because the API refuses it."""
    match item:
        case str():
            return _text(item) if _is_visible(item) else None
        case MessageToolCall():
            return _tool_use(item)
        case OpaquePart():
            return thinking_block(item)
        case _:
            return None


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


def _tool_result(message: Message, marks: list[CacheBreakpoint]) -> Block:
    block: Block = {"type": "tool_result", "tool_use_id": _call_id(message.tool_call_id or "")}
    if isinstance(message.content, str):
        content: Any = message.content
    else:
        content = _content(message.content, [mark for mark in marks if mark.end is not None])
    return _mark_end([block | ({"content": content} if content else {})], marks)[0]


def _insert_result(blocks: list[Block], result: Block) -> None:
    """Insert a tool's result after the others: the API requires them at the start of a turn."""
    results = next((at for at, block in enumerate(blocks) if block["type"] != "tool_result"), len(blocks))
    blocks.insert(results, result)


def _call_id(text: str) -> str:
    """The id of a call by any model, in the characters that the API allows."""
    return _NOT_IN_AN_ID.sub("_", text) or "call"
