"""Replaces those matches of a pattern that a check confirms.

A check is Python code, which takes a microsecond or more for each match. So only the first matches of a text are
checked. The others are replaced as they are: a text with so many of them is a table of numbers, and of a table it is
better to keep too little than too much.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# The part of the text to replace: its start and its end. None: nothing of the match is.
Span = tuple[int, int] | None
Check = Callable[[re.Match[str]], Span]
# A separator in a number: a space, a dot or a hyphen, also those that do not break a line or are as wide as a letter.
SEPARATORS = " \u00a0\u2007\u202f\u3000.\\-\u2010-\u2013\u2212\uff0d"
SEPARATOR = f"[{SEPARATORS}]"


def replace_checked(
    text: str, pattern: re.Pattern[str], check: Check, placeholder: str, *, most: int, rest: re.Pattern[str]
) -> tuple[str, int]:
    """Replace the first `most` matches of `pattern` that `check` confirms, and then all matches of `rest`.

    Returns the new text, and how often something was replaced.
    """
    pieces: list[str] = []
    end = count = 0
    for number, match in enumerate(pattern.finditer(text)):
        if number == most:
            # From the end of the match before, which may reach into this one.
            start = max(end, match.start())
            replaced, more = rest.subn(placeholder, text[start:])
            return "".join((*pieces, text[end:start], replaced)), count + more
        span = check(match)
        if span is not None and span[0] >= end:
            pieces += (text[end : span[0]], placeholder)
            end = span[1]
            count += 1
    if not count:
        return text, 0
    pieces.append(text[end:])
    return "".join(pieces), count
