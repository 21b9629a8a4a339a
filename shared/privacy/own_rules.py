"""The rules of projects: words, and regular expressions that take linear time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from shared.domain.linear_patterns import compile_linear
from shared.domain.redaction_rules import OwnRule
from shared.privacy.secret_shapes import fold

# `re` keeps the interpreter's lock while it scans. With the most steps at each position, this takes some milliseconds.
_WINDOW = 16 * 1024


class Words:
    """Finds words and phrases, in upper or lower case, where no letter or digit precedes or follows."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = [fold(word) for word in words]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where they are, in order, without those that overlap."""
        folded = fold(text)
        return _disjoint(span for word in self._words for span in _whole(word, folded))


def _whole(word: str, text: str) -> Iterator[tuple[int, int]]:
    start = text.find(word)
    while start >= 0:
        end = start + len(word)
        # A word may begin or end with a sign; then any character may be beside it.
        begins = start == 0 or not (word[0].isalnum() and text[start - 1].isalnum())
        if begins and (end == len(text) or not (word[-1].isalnum() and text[end].isalnum())):
            yield start, end
        start = text.find(word, end)


class Pattern:
    """Finds the matches of a regular expression."""

    def __init__(self, pattern: str) -> None:
        self._linear = compile_linear(pattern)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where they are, in order."""
        if len(text) <= _WINDOW:
            return [match.span() for match in self._linear.compiled.finditer(text)]
        return list(self._windows(text))

    def _windows(self, text: str) -> Iterator[tuple[int, int]]:
        """As `spans`, in steps. A window ends after the longest match that begins in it, and the character beyond."""
        position, finditer = 0, self._linear.compiled.finditer
        while position < len(text):
            until = position + _WINDOW
            for match in finditer(text, position, min(len(text), until + self._linear.longest + 1)):
                if match.start() >= until:
                    break
                yield match.span()
                position = match.end()
            position = max(position, until)


def _disjoint(spans: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not found or start >= found[-1][1]:
            found.append((start, end))
    return found


class OwnRules:
    """Replaces what rules find by their names. It never changes placeholders, so that they can be told from texts."""

    def __init__(self, rules: Sequence[OwnRule], placeholders: re.Pattern[str]) -> None:
        """`placeholders`: those of all kinds."""
        self._rules = [
            (rule.name, Words(rule.words) if rule.words is not None else Pattern(rule.pattern or "")) for rule in rules
        ]
        self._placeholders = placeholders

    def replace(self, text: str, counts: dict[str, int]) -> str:
        """Replace what the rules find, and add how often to `counts`, by the rules' names."""
        for name, rule in self._rules:
            if spans := rule.spans(text):
                text = replace_spans(text, ((*span, name) for span in spans), self._placeholders, counts)
        return text


def placeholder(name: str) -> str:
    """What stands in the text for something of this kind, or found by the rule with this name."""
    return f"[{name.upper()}]"


def replace_spans(
    text: str, spans: Iterable[tuple[int, int, str]], placeholders: re.Pattern[str], counts: dict[str, int]
) -> str:
    """Replace disjoint parts of a text, each by its name, except those that overlap with a placeholder."""
    kept = [match.span() for match in placeholders.finditer(text)] if "[" in text else []
    pieces: list[str] = []
    end = place = 0
    for start, until, name in spans:
        while place < len(kept) and kept[place][1] <= start:
            place += 1
        if place < len(kept) and kept[place][0] < until:
            continue
        pieces += (text[end:start], placeholder(name))
        end = until
        counts[name] = counts.get(name, 0) + 1
    return "".join((*pieces, text[end:])) if pieces else text
