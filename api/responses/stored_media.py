"""Stored input items have no copies of the data of images and files: the job's request has it.

The data is replaced by its number among the data of the response's own input, which comes last in the request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from shared.domain.request import Message

# The members that replace the data in a stored part: its number, and the characters that it had in the input.
STORED = "stored_data"
STORED_SIZE = "stored_size"
_DATA = {"input_image": "image_url", "input_file": "file_data"}


def without_data(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace the data in input items, which are changed."""
    number = 0
    for part in _media(items):
        field = _DATA[part["type"]]
        if is_data(part.get(field)):
            part[STORED_SIZE] = _data_size(part.pop(field))
            part[STORED] = number
            number += 1
    return items


def with_data(items: list[dict[str, Any]], messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Put the data back into input items, which are changed, from the conversation that ends with them.

    If the conversation was shortened, only the parts that were kept have their data.
    """
    stored = [part for part in _media(items) if STORED in part]
    found = [part for message in messages for part in message.media if part.data is not None]
    is_complete = len(found) >= len(stored)
    for part in reversed(stored):
        size = part.pop(STORED_SIZE, None)
        del part[STORED]
        if found and (is_complete or size == len(found[-1].data or "")):
            own = found.pop()
            part[_DATA[part["type"]]] = f"data:{own.media_type};base64,{own.data}"
    return items


def is_stored(items: list[dict[str, Any]]) -> bool:
    """Whether the data of some items is in the request."""
    return any(STORED in part for part in _media(items))


def is_data(source: Any) -> bool:
    """Whether the source of an image or a file is its data, not a URL."""
    return isinstance(source, str) and not source[:8].lower().startswith(("http://", "https://"))


def _data_size(source: str) -> int:
    """The characters of data in base64, with or without a prefix such as `data:image/png;base64,`."""
    return len(source) - source.find(",") - 1


def _media(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for item in items:
        content = item.get("content" if item.get("type") == "message" else "output")
        for part in content if isinstance(content, list) else ():
            if part.get("type") in _DATA:
                yield part
