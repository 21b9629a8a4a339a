"""Checks that a regular expression takes linear time, whatever the text is.

Python's `re` tries all ways in which an expression can match at a position, and does so at each position. So an
expression is linear if the number of steps at one position has a bound that does not depend on the text: each
repetition has an upper bound, no repetition has others of variable length inside, and the product of what is left is
small. Expressions of a subset of `re`'s syntax are measured by this; all others are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

MAX_PATTERN = 500
# Steps at each position. A million characters take a second at most.
MAX_STEPS = 256
# Characters of a match.
MAX_MATCH = 4096
# Private, and without types. Compiled expressions do not have their structure.
_PARSER: Any = import_module("re._parser")
# Flags that may be set at the beginning: `(?i)`, and those that are always set for texts.
_FLAGS = re.IGNORECASE | re.UNICODE
_BOUNDARIES = ("AT_BOUNDARY", "AT_NON_BOUNDARY")


@dataclass(frozen=True, slots=True)
class LinearPattern:
    """A compiled expression. Its matches have from `shortest` to `longest` characters."""

    compiled: re.Pattern[str]
    shortest: int
    longest: int


@dataclass(frozen=True, slots=True)
class _Size:
    """Of a part: the lengths of its matches, in how many ways it can match at a position, and in how many steps."""

    shortest: int = 0
    longest: int = 0
    ways: int = 1
    steps: int = 1


def compile_linear(pattern: str) -> LinearPattern:
    """Compile an expression that takes linear time.

    Raises:
        ValueError: it is not valid, or has more than characters, classes, `|`, `\\b`, groups, and repetitions with an
            upper bound; the message says what to write instead.
    """
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"must have at most {MAX_PATTERN} characters")
    try:
        parsed = _PARSER.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is not a valid regular expression: {error}") from None
    if parsed.state.flags & ~_FLAGS:
        raise ValueError("may set no flag but (?i)")
    size = _measure(parsed)
    if size.shortest == 0:
        raise ValueError("must not match the empty text")
    if size.longest > MAX_MATCH:
        raise ValueError(f"can match more than {MAX_MATCH} characters; lower the bounds of its repetitions")
    if size.steps > MAX_STEPS:
        raise ValueError(
            f"can take {size.steps} steps at each position of a text, more than {MAX_STEPS}; lower the bounds of its"
            " repetitions, or use fewer with different bounds"
        )
    return LinearPattern(re.compile(pattern), size.shortest, size.longest)


def _measure(parts: Sequence[tuple[Any, Any]]) -> _Size:
    """The size of a sequence. What follows a part is tried once for each way in which the part matches."""
    shortest = longest = steps = 0
    ways = 1
    for part in reversed(parts):
        size = _part(*part)
        shortest, longest = shortest + size.shortest, longest + size.longest
        ways, steps = min(ways * size.ways, MAX_MATCH**2), min(size.steps + size.ways * steps, MAX_MATCH**2)
    return _Size(shortest, longest, ways, max(steps, 1))


def _part(kind: Any, value: Any) -> _Size:
    match str(kind):
        case "LITERAL" | "NOT_LITERAL" | "IN" | "ANY":
            return _Size(1, 1)
        case "AT" if str(value) in _BOUNDARIES:
            return _Size()
        case "MAX_REPEAT" | "MIN_REPEAT":
            least, most, repeated = value
            return _repeated(least, most, _measure(repeated))
        case "SUBPATTERN":
            _, added, removed, inner = value
            if added or removed:
                raise ValueError("may set no flags inside; begin it with (?i) to ignore case")
            return _measure(inner)
        case "BRANCH":
            sizes = [_measure(branch) for branch in value[1]]
            return _Size(
                min(size.shortest for size in sizes),
                max(size.longest for size in sizes),
                sum(size.ways for size in sizes),
                sum(size.steps for size in sizes),
            )
        case "GROUPREF" | "GROUPREF_EXISTS":
            raise ValueError("has a reference to a group, which takes more than linear time; write the text out")
        case "ASSERT" | "ASSERT_NOT":
            raise ValueError("looks ahead or behind, which is not supported; use \\b for the end of a word")
        case "AT":
            raise ValueError("has ^, $, \\A or \\Z, which are not supported: it is looked for anywhere in a text")
        case other:
            raise ValueError(f"has {other.lower()}, which is not supported")


def _repeated(least: int, most: Any, size: _Size) -> _Size:
    if str(most) == "MAXREPEAT" or most > MAX_MATCH:
        raise ValueError("has a repetition without an upper bound; write {1,64} instead of +, and {0,64} instead of *")
    if most > 1 and (size.shortest != size.longest or size.ways > 1):
        raise ValueError(
            "has a repetition of a group that itself varies (nested quantifiers), which takes more than linear time;"
            " repeat single characters or classes, such as [0-9 ]{8,20}"
        )
    return _Size(
        least * size.shortest,
        most * size.longest,
        most - least + (size.ways if most else 1),
        max(1, most * size.steps),
    )
