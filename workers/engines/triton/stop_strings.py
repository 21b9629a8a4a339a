"""Cuts a text at stop strings, for models that do not."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Releases the text before the first stop string. Text that may be the start of one is held back."""

    def __init__(self, strings: Sequence[str], *, included: bool = False) -> None:
        """`included`: whether the stop string belongs to the text."""
        self._strings = strings
        self._included = included
        self._longest = max(map(len, strings), default=1)
        self._held = ""
        self.found: str | None = None

    def add(self, text: str, *, at_end: bool = False) -> str:
        """Add text; returns what is released. After a stop string was found, nothing is."""
        if self.found is not None:
            return ""
        held = self._held + text
        places = [(at, string) for string in self._strings if (at := held.find(string)) >= 0]
        if places:
            # Of two that start at the same place, the shorter one is complete first.
            at, self.found = min(places, key=lambda place: (place[0] + len(place[1]), place[0]))
            self._held = ""
            return held[: at + len(self.found) if self._included else at]
        start = len(held) if at_end else self._start_of_match(held)
        self._held = held[start:]
        return held[:start]

    def _start_of_match(self, text: str) -> int:
        """Where the last characters start that may be the start of a stop string."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            rest = text[start:]
            if any(string.startswith(rest) for string in self._strings):
                return start
        return len(text)
