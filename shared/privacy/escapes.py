"""Escapes in texts: of JSON, in what is not JSON but has parts of it (JSON that was cut off, source code); and of URLs.

A letter of an escape stands beside what follows it: in `\\n+49 30 901820`, a letter precedes the number. In URLs and
forms, signs are escaped: `ann%40example.com`.
"""

from __future__ import annotations

import re

_SIMPLE = (
    ("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t"), ("\\b", "\b"), ("\\f", "\f"), ("\\/", "/"), ('\\"', '"'),
)  # fmt: skip
# JSON within JSON has several.
_BACKSLASHES = re.compile(r"\\{2,}")
# The signs of ASCII and white space, without the percent sign and what has a meaning in JSON or in placeholders. They
# are replaced one after the other: that takes less time than a call for each match.
_PERCENT = tuple(
    dict.fromkeys(
        (f"%{code:02{case}}", chr(code))
        for code in (0x09, 0x0A, 0x0D, *range(0x20, 0x25), *range(0x26, 0x30), *range(0x3A, 0x41))
        for case in "Xx"
    )
)
# URLs within URLs are escaped as often as they are nested, up to this depth: %2540, %252540.
_NESTED = 3
_CODE = re.compile(r"\\u([0-9A-Fa-f]{4})")


def unescaped(text: str) -> str:
    """The text with what its escapes stand for. Backslashes and percent signs that escape nothing remain."""
    if "%" in text:
        text = _without_percent(text)
    if "\\" not in text:
        return text
    text = _BACKSLASHES.sub(r"\\", text)
    for escape, character in _SIMPLE:
        text = text.replace(escape, character)
    return _CODE.sub(_character, text) if "\\u" in text else text


def _without_percent(text: str) -> str:
    for _ in range(_NESTED):
        if "%25" not in text:
            break
        text = text.replace("%25", "%")
    for escape, character in _PERCENT:
        text = text.replace(escape, character)
    return text


def _character(match: re.Match[str]) -> str:
    code = int(match[1], 16)
    # Half of a pair cannot be encoded, and a backslash would be another escape.
    return match[0] if 0xD800 <= code <= 0xDFFF or code in (0, 0x5C) else chr(code)
