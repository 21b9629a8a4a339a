"""Ids of tool calls in the length that an upstream takes: conversations may have been begun by another model."""

from __future__ import annotations

import hashlib

# https://platform.openai.com/docs/api-reference/responses/create: the limit of `call_id`.
RESPONSES_LENGTH = 64


def fitting_id(call_id: str, length: int | None) -> str:
    """The id, or the same short one for each use of an id that is longer than `length` characters."""
    if length is None or len(call_id) <= length:
        return call_id
    return f"call_{hashlib.sha256(call_id.encode()).hexdigest()[:24]}"
