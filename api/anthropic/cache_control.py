"""Finds the cache breakpoints of a request: the blocks and tools with `cache_control`.

https://platform.claude.com/docs/en/build-with-claude/prompt-caching
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from api.anthropic.schemas import CacheControl, CountTokensRequest, InputMessage, TextBlock, ToolResultBlock
from shared.domain.request import CacheBreakpoint, Message


def tool_breakpoints(body: CountTokensRequest) -> Iterator[CacheBreakpoint]:
    """The breakpoints after tools."""
    for position, tool in enumerate(body.tools or ()):
        if tool.cache_control is not None:
            yield CacheBreakpoint(tool=position, ttl=_ttl(tool.cache_control))


def system_breakpoints(blocks: Sequence[TextBlock]) -> Iterator[CacheBreakpoint]:
    """The breakpoints in the system prompt, which is the first message. It consists of these blocks."""
    end = 0
    for block in blocks:
        end += len(block.text)
        if block.cache_control is not None and end:
            yield CacheBreakpoint(message=0, end=end, ttl=_ttl(block.cache_control))


def turn_breakpoints(turn: InputMessage, messages: Sequence[Message], first: int) -> Iterator[CacheBreakpoint]:
    """The breakpoints in a turn, which was converted to these messages, of which the first has this position.

    The results of tools are messages of their own, before the rest of the turn.
    """
    results = [block for block in turn.content if isinstance(block, ToolResultBlock)]
    for position, result in enumerate(results):
        controls = [block.cache_control for block in (result, *result.content) if block.cache_control is not None]
        if controls:
            yield CacheBreakpoint(message=first + position, ttl=_ttl(controls[0]))
    if len(messages) == len(results):
        return
    rest = [block for block in turn.content if _is_kept(block)]
    for position, block in enumerate(rest, 1):
        if (control := getattr(block, "cache_control", None)) is not None:
            end = None if position == len(rest) else _end(turn.role, rest[:position], messages[-1].content)
            yield CacheBreakpoint(message=first + len(results), end=end, ttl=_ttl(control))


def last_breakpoint(control: CacheControl, messages: int) -> CacheBreakpoint:
    """The breakpoint of a request that has `cache_control` itself: after the last of its messages."""
    return CacheBreakpoint(message=messages - 1, ttl=_ttl(control))


def _is_kept(block: Any) -> bool:
    """Whether a block is part of a message's content or a call. Empty texts are not."""
    return block.type not in ("tool_result", "thinking", "redacted_thinking") and getattr(block, "text", None) != ""


def _end(role: str, blocks: Sequence[Any], content: str | list[Any] | None) -> int | None:
    """How much of the content these blocks are. The assistant's messages are cached as a whole."""
    if role == "assistant":
        return None
    if isinstance(content, list):
        return len(blocks)
    return sum(len(block.text) for block in blocks) + (len(blocks) - 1 if role == "user" else 0)


def _ttl(control: CacheControl) -> Literal["5m", "1h"] | None:
    match control.ttl:
        case "5m" | "1h" as ttl:
            return ttl
        case _:
            return None
