"""Reasoning items of OpenAI, which only OpenAI can read, as opaque parts of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.domain.opaque import THINKING, OpaquePart


def opaque_part(item: Mapping[str, Any], provider: str) -> OpaquePart | None:
    """The part for a complete reasoning item; None if it has nothing that only the provider can read."""
    encrypted = item.get("encrypted_content")
    if not isinstance(encrypted, str) or not encrypted:
        return None
    data = {"id": item.get("id"), "encrypted_content": encrypted, "summary": _summary(item.get("summary"))}
    return OpaquePart(provider, THINKING, data)


def item_id_of(part: OpaquePart) -> Any:
    """The id of the item that a part was created from."""
    return part.data.get("id") if isinstance(part.data, dict) else None


def reasoning_item(part: OpaquePart) -> dict[str, Any] | None:
    """The input item for a part. Clients can forge parts: None if this engine has not created it."""
    data = part.data if part.kind == THINKING and isinstance(part.data, dict) else {}
    encrypted, item_id = data.get("encrypted_content"), data.get("id")
    if not isinstance(encrypted, str) or not encrypted:
        return None
    item = {"type": "reasoning", "summary": _summary(data.get("summary")), "encrypted_content": encrypted}
    return {**item, "id": item_id} if isinstance(item_id, str) else item


def _summary(summary: Any) -> list[dict[str, str]]:
    """The texts of a summary."""
    texts = [part.get("text") for part in summary if isinstance(part, Mapping)] if isinstance(summary, list) else []
    return [{"type": "summary_text", "text": text} for text in texts if isinstance(text, str)]
