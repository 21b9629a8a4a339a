"""Joins characters whose surrogate pair is cut between two events, by servers that count characters in UTF-16."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import orjson

# The members of an event that say which of several texts it continues.
_PLACES = ("type", "index", "output_index", "content_index")


class CutEvent:
    """A decoded event with texts that end with the first half of a surrogate pair."""

    def __init__(self, value: Any, texts: list[_Text]) -> None:
        self._value = value
        self._texts = texts

    @classmethod
    def of(cls, value: Any) -> CutEvent | None:
        """The event with this value, which may have lone surrogates; None if no text of it is cut.

        Raises:
            RecursionError: the value is nested too deeply.
        """
        texts = [text for text in _texts(value, _place(value)) if "\ud800" <= text.value[-1] <= "\udbff"]
        return cls(value, texts) if texts else None

    def completed(self, following: Any = None) -> Any:
        """The value, with the other halves at the beginnings of the same texts in `following`, which loses them."""
        beginnings = {text.place: text for text in _texts(following, _place(following))}
        for text in self._texts:
            rest = beginnings.get(text.place)
            if rest is not None and "\udc00" <= rest.value[0] <= "\udfff":
                text.replace(text.value + rest.value[0])
                rest.replace(rest.value[1:])
        return without_surrogates(self._value)


def without_surrogates(value: Any) -> Any:
    """The value with U+FFFD in place of lone surrogates."""
    text = json.dumps(value, ensure_ascii=False)
    return orjson.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))


class CutTexts:
    """Joins the pieces of one text."""

    def __init__(self) -> None:
        self._half = ""

    def add(self, piece: str) -> str:
        """The text up to the last whole character."""
        text, self._half = self._half + piece, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def end(self) -> str:
        """What is left of the text."""
        half, self._half = self._half, ""
        return "\ufffd" if half else ""


class _Text:
    """A text that is not empty in a decoded event: where it stands, and its `holder` there."""

    __slots__ = ("_holder", "_key", "place", "value")

    def __init__(self, holder: Any, key: Any, value: str, place: tuple[Any, ...]) -> None:
        self._holder = holder
        self._key = key
        self.value = value
        self.place = place

    def replace(self, value: str) -> None:
        self._holder[self._key] = value


def _texts(value: Any, place: tuple[Any, ...]) -> Iterator[_Text]:
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        if isinstance(member, str) and member:
            yield _Text(value, key, member, (*place, key))
        elif isinstance(member, (dict, list)):
            yield from _texts(member, (*place, *_place(member), key if isinstance(value, dict) else None))


def _place(value: Any) -> tuple[Any, ...]:
    return tuple(map(str, map(value.get, _PLACES))) if isinstance(value, dict) else ()
