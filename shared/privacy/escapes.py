"""Escapes in texts that are not JSON, but have parts of it: JSON that was cut off, lines of JSON, or source code.

A letter of an escape stands beside what follows it: in `\\n+49 30 901820`, a letter precedes the number.
"""

from __future__ import annotations

import re

_SIMPLE = (
    ("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t"), ("\\b", "\b"), ("\\f", "\f"), ("\\/", "/"), ('\\"', '"'),
)  # fmt: skip
# JSON within JSON has several.
_BACKSLASHES = re.compile(r"\\{2,}")
_CODE = re.compile(r"\\u([0-9A-Fa-f]{4})")


def unescaped(text: str) -> str:
    """The text with what the escapes of JSON stand for. Backslashes that escape nothing remain."""
    if "\\" not in text:
        return text
    text = _BACKSLASHES.sub(r"\\", text)
    for escape, character in _SIMPLE:
        text = text.replace(escape, character)
    return _CODE.sub(_character, text) if "\\u" in text else text


def _character(match: re.Match[str]) -> str:
    code = int(match[1], 16)
    # Half of a pair cannot be encoded, and a backslash would be another escape.
    return match[0] if 0xD800 <= code <= 0xDFFF or code in (0, 0x5C) else chr(code)
