"""Reads an upstream's usage. It is accounting: whatever it looks like, the answer is kept."""

from __future__ import annotations

from typing import Any

from shared.domain.job import Usage

# The columns that hold counts are 32 bits wide.
MAX_COUNT = (1 << 31) - 1
_PROMPT = ("prompt_tokens", "input_tokens")
_COMPLETION = ("completion_tokens", "output_tokens")


class UsageReader:
    """Collects the counts of one answer. The last usable count of each kind is kept; zero never replaces another."""

    __slots__ = ("_cached", "_completion", "_prompt")

    def __init__(self) -> None:
        self._prompt = self._cached = self._completion = 0

    def add(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        prompt, completion = _first(usage, _PROMPT), _first(usage, _COMPLETION)
        if not prompt and completion:
            prompt = max(0, _count(usage.get("total_tokens")) - completion)
        elif prompt and not completion:
            completion = max(0, _count(usage.get("total_tokens")) - prompt)
        details = usage.get("prompt_tokens_details")
        cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
        self._prompt = prompt or self._prompt
        self._completion = completion or self._completion
        self._cached = cached or _first(usage, ("cached_tokens", "prompt_cache_hit_tokens")) or self._cached

    def result(self, tokens: int) -> Usage | None:
        """The usage; None if nothing usable was reported. `tokens` is the number of completion tokens counted here."""
        if not (self._prompt or self._completion):
            return None
        return Usage(self._prompt, min(self._cached, self._prompt), self._completion or tokens)


def _first(usage: dict[str, Any], names: tuple[str, ...]) -> int:
    return next((count for name in names if (count := _count(usage.get(name)))), 0)


def _count(value: Any) -> int:
    """A count as a whole number; 0 if it is none."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 12:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_COUNT:
        return 0
    return int(value)
