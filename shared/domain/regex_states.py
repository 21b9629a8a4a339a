"""Estimates the automaton of a regular expression, or of one rule of a grammar, in one pass over its text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

# Characters between two steps of an estimate.
STEP_CHARACTERS = 4096
# Groups may be nested as deeply as the engines' parsers allow at least.
MAX_GROUPS = 200
# A class of characters that may have any number of bytes has a state for each byte.
WIDE_STATES = 4
# Negated classes and `.` match almost every token, other classes with many characters match many.
WIDE, CLASS, NARROW = 2, 1, 0
# Repetitions beyond the longest token cost as much as repetitions of this length.
LONGEST_TOKEN = 128


@dataclass(slots=True)
class RegexSize:
    """What an expression expands to.

    `states`: of the automaton, with all repetitions expanded. `wide`, `classes` and `narrow`: sums of the lengths of
    bounded repetitions, up to the longest token, by how many characters their items match. `wide_items` and
    `class_items`: the items themselves, as often as they are written. `literals`: bytes outside of classes. `groups`:
    how deeply groups are nested.
    """

    states: float = 0
    wide: int = 0
    classes: int = 0
    narrow: int = 0
    wide_items: int = 0
    class_items: int = 0
    literals: int = 0
    groups: int = 0


@dataclass(slots=True)
class _Sequence:
    """The items of a group so far; the last one may still be repeated."""

    states: float = 0
    last: float = 0
    kind: int = NARROW
    kinds: int = NARROW
    opened: str = field(default="(")


def measure(text: str, size: RegexSize, *, grammar: bool = False) -> Iterator[None]:
    """Add the size of an expression to `size`; yields after each `STEP_CHARACTERS`.

    `grammar`: the text has rules of EBNF or Lark, with quoted literals and expressions between slashes.
    """
    stack = [_Sequence()]
    position, end, steps = 0, len(text), 0

    def item(states: float, kind: int) -> None:
        top = stack[-1]
        top.states += top.last
        top.last, top.kind = states, kind
        top.kinds = max(top.kinds, kind)
        size.wide_items += kind == WIDE and states == WIDE_STATES

    while position < end:
        if position >= steps:
            steps = position + STEP_CHARACTERS
            yield
        character = text[position]
        position += 1
        if character == "\\" and position < end:
            escaped = text[position]
            position += 1
            if escaped in "pP" and position < end and text[position] == "{":
                position = text.find("}", position) + 1 or end
            if escaped in "pPSDW":
                item(WIDE_STATES, WIDE)
            elif escaped in "wsd":
                item(WIDE_STATES if escaped == "w" else 1, CLASS if escaped == "w" else NARROW)
            else:
                item(1, NARROW)
                size.literals += 1
        elif character == "[":
            size.class_items += 1
            negated = text[position : position + 1] == "^"
            begin = position
            position += 1 if negated or text[position : position + 1] == "]" else 0
            while position < end and text[position] != "]":
                position += 2 if text[position] == "\\" else 1
            length = position - begin
            position += 1
            if negated:
                item(WIDE_STATES, WIDE)
            else:
                # Characters outside of ASCII have states of their own.
                item(1 + length / 8 if length > 32 else 1, CLASS if length > 5 else NARROW)
        elif character == "(":
            stack.append(_Sequence())
            size.groups = max(size.groups, len(stack) - 1)
            if len(stack) > MAX_GROUPS + 1:
                return
            if text.startswith("?", position):
                position += 1
        elif character == ")" and len(stack) > 1:
            group = stack.pop()
            item(group.states + group.last, group.kinds)
        elif character == "{" or (grammar and character == "~"):
            bounds, position = _bounds(text, position, character)
            if bounds is not None:
                top = stack[-1]
                count, bounded = bounds
                top.last *= max(1, count)
                if bounded and count > 1:
                    repeated = int(min(count, LONGEST_TOKEN))
                    size.wide += repeated if top.kind == WIDE else 0
                    size.classes += repeated if top.kind == CLASS else 0
                    size.narrow += repeated if top.kind == NARROW else 0
                if top.last > 1e15:
                    top.last = 1e15
            elif not grammar:
                item(1, NARROW)
        elif character == "." and not grammar:
            item(WIDE_STATES, WIDE)
        elif character in "*+?|^$":
            pass
        elif grammar and character in "\"'":
            begin = position
            while position < end and text[position] not in (character, "\n"):
                position += 2 if text[position] == "\\" else 1
            item(position - begin, NARROW)
            size.literals += position - begin
            position += 1
        elif grammar and character == "/" and text[position : position + 1] != "/":
            begin = position
            while position < end and text[position] not in "/\n":
                position += 2 if text[position] == "\\" else 1
            inner = RegexSize()
            yield from measure(text[begin:position], inner)
            item(inner.states, NARROW)
            size.wide += inner.wide
            size.classes += inner.classes
            size.narrow += inner.narrow
            size.wide_items += inner.wide_items
            size.class_items += inner.class_items
            size.literals += inner.literals
            size.groups = max(size.groups, inner.groups)
            position += 1
        elif grammar and (character == "#" or (character == "/" and text[position : position + 1] == "/")):
            position = text.find("\n", position) + 1 or end
        elif grammar:
            begin = position
            while position < end and (text[position].isalnum() or text[position] in "_-"):
                position += 1
            if position > begin or character.isalnum():
                item(1, NARROW)
        else:
            item(1, NARROW)
            size.literals += 1
    for sequence in stack:
        size.states += sequence.states + sequence.last


def _bounds(text: str, position: int, opened: str) -> tuple[tuple[float, bool] | None, int]:
    """Parse `m}`, `m,}`, `m,n}`, `,n}` or Lark's `m` and `m..n` after its first character.

    Returns how often the item before it is repeated at most, and whether that is bounded; and where the rest starts.
    """
    begin = position
    allowed = "0123456789., " if opened == "~" else "0123456789, "
    while position < len(text) and text[position] in allowed and position - begin < 64:
        position += 1
    inner = text[begin:position].strip()
    if opened == "{":
        if text[position : position + 1] != "}":
            digits = inner.replace(",", "").replace(" ", "")
            return ((math.inf, True), position) if position - begin >= 64 and digits else (None, begin)
        position += 1
    first, separator, last = inner.partition(".." if opened == "~" else ",")
    numbers = [_number(part) for part in (first, last) if part.strip()]
    if not numbers:
        return None, begin
    unbounded = bool(separator) and not last.strip()
    return (max(numbers) + unbounded, not unbounded), position


def _number(part: str) -> float:
    digits = part.strip()
    if not (digits.isascii() and digits.isdigit()):
        return 1
    return math.inf if len(digits) > 15 else float(digits)
