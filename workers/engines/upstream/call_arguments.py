"""The arguments of tool calls. Some servers send null, encode the arguments twice, or do not encode them at all."""

from __future__ import annotations

from typing import Any

import orjson

NO_ARGUMENTS = "{}"
_NULL = "null"
# How many times arguments are decoded.
_MAX_ENCODINGS = 3


def arguments_text(value: Any) -> str:
    """The arguments in an event as text."""
    if isinstance(value, str):
        return value
    return "" if value is None else orjson.dumps(value).decode()


def plain_arguments(text: str) -> str:
    """Complete arguments without a second encoding; `{}` for null and for an empty text. Others stay as they are."""
    plain = text
    for _ in range(_MAX_ENCODINGS):
        stripped = plain.strip()
        if stripped in ("", _NULL):
            return NO_ARGUMENTS
        if not stripped.startswith('"'):
            break
        try:
            plain = orjson.loads(stripped)
        except orjson.JSONDecodeError:
            return text
    return plain if is_object(plain) else text


def is_object(text: str) -> bool:
    """Whether a text is a JSON object."""
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False


def may_be_encoded(beginning: str) -> bool:
    """Whether arguments that begin so may be null or encoded twice, so that `plain_arguments` may change them."""
    stripped = beginning.strip()
    return stripped.startswith('"') or (bool(stripped) and _NULL.startswith(stripped))


class ArgumentReader:
    """Reads the fragments of one call's arguments. Arguments that may have to be changed are held back."""

    __slots__ = ("_held", "_is_encoded", "_is_plain")

    def __init__(self) -> None:
        self._held: list[str] = []
        self._is_plain = self._is_encoded = False

    def add(self, fragment: str) -> str:
        """Take a fragment; returns what can be emitted."""
        if self._is_plain or not (self._held or fragment.strip()):
            return fragment
        self._held.append(fragment)
        # White space decides nothing, and many parts of it are not joined again for each.
        if not self._is_encoded and fragment.strip():
            beginning = "".join(self._held)
            if not may_be_encoded(beginning):
                self._held, self._is_plain = [], True
                return beginning
            self._is_encoded = beginning.lstrip().startswith('"')
        return ""

    def end(self) -> str:
        """What was held back."""
        held, self._held = "".join(self._held), []
        return plain_arguments(held) if held else ""
