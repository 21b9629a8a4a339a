"""Places cache breakpoints in requests whose clients placed none.

A breakpoint ends a part of the prompt that later requests find in the cache: the tools, the system prompt, and the
conversation before the last message of the user. https://platform.claude.com/docs/en/build-with-claude/prompt-caching
"""

from __future__ import annotations

from typing import Any

import orjson

from workers.engines.anthropic.messages import Block, Conversation, cache_control, last_cacheable

# The API ignores breakpoints after a shorter prompt than the model's minimum. Text has fewer bytes per token than this,
# so a part that is long enough by this measure is so by the API's.
BYTES_PER_TOKEN = 4
# An image or a document counts as this many bytes: the size of its file is unrelated to its tokens.
_MEDIA_BYTES = 1024 * BYTES_PER_TOKEN


def place_breakpoints(tools: list[dict[str, Any]], conversation: Conversation, min_tokens: int) -> None:
    """Set breakpoints after each of the three parts, if the prompt up to there is long enough."""
    minimum = min_tokens * BYTES_PER_TOKEN
    size = sum(len(orjson.dumps(tool)) for tool in tools)
    if tools and size >= minimum:
        tools[-1]["cache_control"] = cache_control()
    size += sum(map(_size, conversation.system))
    if conversation.system and size >= minimum:
        conversation.system[-1]["cache_control"] = cache_control()
    stable = conversation.turns[:-1]
    size += sum(_size(block) for turn in stable for block in turn.blocks)
    if stable and size >= minimum and (last := last_cacheable(stable[-1].blocks)) is not None:
        last["cache_control"] = cache_control()


def _size(block: Block) -> int:
    """About the bytes of a block's text."""
    match block["type"]:
        case "text":
            return len(block["text"])
        case "thinking":
            return len(block["thinking"])
        case "tool_use":
            return len(orjson.dumps(block["input"]))
        case "tool_result":
            content = block.get("content", "")
            return len(content) if isinstance(content, str) else sum(map(_size, content))
        case "image" | "document":
            return _MEDIA_BYTES
    return 0
