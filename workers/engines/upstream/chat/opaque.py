"""What servers want back with the next turn: Google's thought signatures, and OpenRouter's details of the reasoning.

Both are kept as opaque parts (`shared.domain.opaque`), with the member of the message or call as it was received.
"""

from __future__ import annotations

from typing import Any, Literal

from shared.domain.opaque import THINKING, TOOL_CALL, OpaquePart
from shared.domain.request import Message

EXTRA_CONTENT, REASONING_DETAILS = "extra_content", "reasoning_details"
# Members of a detail of the reasoning that come in fragments.
_FRAGMENTS = ("text", "summary", "data", "signature")
MAX_DETAILS = 1000


class OpaqueReader:
    """Collects the opaque parts of one choice. `origin`: the provider; `member`: what the server wants back."""

    def __init__(self, origin: str, member: Literal["extra_content", "reasoning_details"]) -> None:
        self._origin = origin
        self._member = member
        self._details: dict[Any, dict[str, Any]] = {}
        # The key of the last detail at each place.
        self._latest: dict[Any, Any] = {}

    def add(self, content: dict[str, Any]) -> list[OpaquePart]:
        """Read the members of a delta; returns the parts that are complete. Others follow with `close`."""
        found = content.get(self._member)
        if self._member == EXTRA_CONTENT:
            return [OpaquePart(self._origin, EXTRA_CONTENT, {EXTRA_CONTENT: found})] if _is_object(found) else []
        for position, detail in enumerate(found if isinstance(found, list) else ()):
            if isinstance(detail, dict):
                self._add_detail(detail.get("index", position), detail)
        return self.close() if content.get("content") or content.get("tool_calls") else []

    def of_call(self, call_id: str, extra_content: Any) -> list[OpaquePart]:
        """The part of a tool call."""
        if self._member != EXTRA_CONTENT or not _is_object(extra_content):
            return []
        return [OpaquePart(self._origin, TOOL_CALL, {EXTRA_CONTENT: extra_content}, call_id)]

    def close(self) -> list[OpaquePart]:
        """The part with the reasoning so far, which has ended."""
        details, self._details, self._latest = list(self._details.values()), {}, {}
        return [OpaquePart(self._origin, THINKING, {REASONING_DETAILS: details})] if details else []

    def _add_detail(self, index: Any, detail: dict[str, Any]) -> None:
        place = (index if isinstance(index, (int, str)) else 0, str(detail.get("type")))
        key = self._latest.get(place, place)
        known = self._details.get(key)
        if known and "data" in detail and detail.get("id") and known.get("id") and known["id"] != detail["id"]:
            key = (*place, str(detail["id"]))  # another one at the same place
            known = self._details.get(key)
        if known is None:
            if len(self._details) < MAX_DETAILS:
                self._details[key], self._latest[place] = dict(detail), key
            return
        for name, value in detail.items():
            if name in _FRAGMENTS and isinstance(value, str) and isinstance(known.get(name), str):
                if name != "signature" or value != known[name]:  # some servers repeat it
                    known[name] += value
            elif value is not None:
                known[name] = value


def add_parts(fields: dict[str, Any], message: Message, member: str) -> None:
    """Add the opaque parts of a message to its fields. What has not the expected type, which a client may have forged,
    is left out."""
    for part in message.opaque or ():
        value = part.data.get(member) if isinstance(part.data, dict) else None
        if member == EXTRA_CONTENT and _is_object(value):
            if part.kind != TOOL_CALL:
                fields[EXTRA_CONTENT] = value
            for call in fields.get("tool_calls", ()) if part.kind == TOOL_CALL else ():
                if call["id"] == part.call_id:
                    call[EXTRA_CONTENT] = value
        elif member == REASONING_DETAILS and isinstance(value, list):
            details = [detail for detail in value if isinstance(detail, dict)]
            fields[REASONING_DETAILS] = [*fields.get(REASONING_DETAILS, ()), *details]


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)
