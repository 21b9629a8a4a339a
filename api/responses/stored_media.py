"""Stored input items have no copies of the data of images and files: the job's request has it.

The data is replaced by its number among the data of the response's own input, which comes last in the request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from shared.domain.request import Message

# The member that replaces the data in a stored part.
STORED = "stored_data"
_DATA = {"input_image": "image_url", "input_file": "file_data"}


def without_data(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace the data in input items, which are changed."""
    number = 0
    for part in _media(items):
        field = _DATA[part["type"]]
        if is_data(part.get(field)):
            del part[field]
            part[STORED] = number
            number += 1
    return items


def with_data(items: list[dict[str, Any]], messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Put the data back into input items, which are changed, from the conversation that ends with them."""
    stored = [part for part in _media(items) if STORED in part]
    found = [part for message in messages for part in message.media if part.data is not None]
    own = found[len(found) - len(stored) :] if len(found) >= len(stored) else []
    for part in stored:
        number = part.pop(STORED)
        if number < len(own):
            part[_DATA[part["type"]]] = f"data:{own[number].media_type};base64,{own[number].data}"
    return items


def is_stored(items: list[dict[str, Any]]) -> bool:
    """Whether the data of some items is in the request."""
    return any(STORED in part for part in _media(items))


def is_data(source: Any) -> bool:
    """Whether the source of an image or a file is its data, not a URL."""
    return isinstance(source, str) and not source[:8].lower().startswith(("http://", "https://"))


def _media(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for item in items:
        content = item.get("content" if item.get("type") == "message" else "output")
        for part in content if isinstance(content, list) else ():
            if part.get("type") in _DATA:
                yield part
