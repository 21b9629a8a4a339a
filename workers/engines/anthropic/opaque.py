"""Blocks of signed or encrypted thinking, as opaque parts.

The API requires them back unchanged, with the results of the tools that the model called.
https://platform.claude.com/docs/en/build-with-claude/extended-thinking
"""

from __future__ import annotations

from typing import Any

from shared.domain.opaque import REDACTED_THINKING, THINKING, OpaquePart

ORIGIN = "anthropic"
# The types of these blocks, which cannot have a cache breakpoint.
NOT_CACHED = (THINKING, REDACTED_THINKING)
_MEMBERS = {THINKING: ("thinking", "signature"), REDACTED_THINKING: ("data",)}


def thinking_part(kind: str, **members: str) -> OpaquePart:
    """The part of a block, whose type is its kind."""
    return OpaquePart(ORIGIN, kind, members)


def thinking_block(part: OpaquePart) -> dict[str, Any] | None:
    """The block of a part; None if it is of another origin, or if a client has forged it."""
    names = _MEMBERS.get(part.kind)
    if part.origin != ORIGIN or names is None or not isinstance(part.data, dict):
        return None
    members = {name: part.data.get(name) for name in names}
    return {"type": part.kind, **members} if all(isinstance(value, str) for value in members.values()) else None
