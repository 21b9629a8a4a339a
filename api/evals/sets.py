"""Sets of requests with known or recorded answers, as JSON Lines: what runs and comparisons are made over.

Each line is an object with `messages`, as OpenAI's chat format has them, and optionally an `id`, the answer that is
`expected`, and other members, which are ignored. If the last message is one of the assistant, it is the recorded
answer, and no part of the request. Exports of the request log have this form.
"""

from __future__ import annotations

import hashlib
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

MAX_SET_BYTES = 200 * 1024 * 1024
ROLES = ("system", "developer", "user", "assistant", "tool")


class SetError(Exception):
    """The file is no set; the message names the line."""


@dataclass(frozen=True, slots=True)
class SetItem:
    """An item: a conversation as pairs of role and text, the recorded answer, its model, and the expected answer."""

    id: str
    messages: tuple[tuple[str, str], ...]
    answer: str | None = None
    model: str | None = None
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class EvalSet:
    """A set. `sha256`: of the file."""

    name: str
    sha256: str
    items: tuple[SetItem, ...]

    @property
    def repeated(self) -> int:
        """How many items have the same messages as an earlier one."""
        return len(self.items) - len({item.messages for item in self.items})

    @property
    def has_expected(self) -> bool:
        """Whether all items have an expected answer."""
        return all(item.expected is not None for item in self.items)


def read_set(path: Path, limit: int | None = None) -> EvalSet:
    """Read a set, or its first `limit` items.

    Raises:
        SetError: the file cannot be read, has no items, or a line is not valid.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SetError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_SET_BYTES:
        raise SetError(f"{path}: is larger than {MAX_SET_BYTES // 1024**2} MB")
    items: list[SetItem] = []
    seen: dict[str, int] = {}
    for number, item in _items(path, content):
        if limit is not None and len(items) >= limit:
            break
        if item.id in seen:
            raise SetError(f"{path}, line {number}: the id {item.id!r} is already that of line {seen[item.id]}")
        seen[item.id] = number
        items.append(item)
    if not items:
        raise SetError(f"{path}: has no items")
    return EvalSet(path.name, hashlib.sha256(content).hexdigest(), tuple(items))


def _items(path: Path, content: bytes) -> Iterator[tuple[int, SetItem]]:
    # Editors on Windows put a mark at the beginning of the file.
    for number, line in enumerate(content.removeprefix(BOM_UTF8).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise SetError(f"{path}, line {number}: is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise SetError(f"{path}, line {number}: must be an object with `messages`")
        if "messages" not in found and found.get("object") is not None:
            continue  # what an export says about itself
        try:
            yield number, _item(number, found)
        except ValueError as error:
            raise SetError(f"{path}, line {number}: {error}") from error


def _item(number: int, found: Mapping[str, Any]) -> SetItem:
    messages = found.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("`messages` must be a list with at least one message")
    read = [_message(message) for message in messages]
    answer = None
    if read[-1][0] == "assistant":
        answer = read.pop()[1]
    if not read:
        raise ValueError("`messages` must have a message before the answer")
    expected = found.get("expected")
    if expected is not None and not isinstance(expected, str):
        raise ValueError("`expected` must be a text")
    metadata = found.get("metadata")
    of_export = metadata if isinstance(metadata, dict) else {}
    item_id = found.get("id") or found.get("job_id") or of_export.get("job_id") or f"line-{number}"
    model = found.get("model") or of_export.get("model")
    return SetItem(str(item_id)[:200], tuple(read), answer, model if isinstance(model, str) else None, expected)


def _message(message: Any) -> tuple[str, str]:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise ValueError(f"each message needs a `role`: one of {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if any(not isinstance(text, str) for text in texts):
            raise ValueError("a message has images or files; a set has texts only")
        content = "\n".join(map(str, texts))
    calls = [call.get("function", {}) for call in message.get("tool_calls") or () if isinstance(call, dict)]
    lines = [content] if isinstance(content, str) else []
    lines += [f"[calls {call.get('name')}: {call.get('arguments')}]" for call in calls]
    if not lines:
        raise ValueError("each message needs a `content` that is a text")
    return message["role"], "\n".join(lines)
