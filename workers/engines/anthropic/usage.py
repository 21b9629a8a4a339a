"""Reads Anthropic's usage, which counts cached prompt tokens apart from the others.

https://platform.claude.com/docs/en/build-with-claude/prompt-caching
"""

from __future__ import annotations

from typing import Any

from shared.domain.job import Usage
from workers.engines.upstream.usage import MAX_COUNT, count_of, tier_of

_NAMES = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
# The part of the tokens in `cache_creation` that is kept for an hour.
_FOR_AN_HOUR = "ephemeral_1h_input_tokens"


class UsageReader:
    """Collects the counts of one answer. They are cumulative: the last of each kind counts, and zero replaces none."""

    __slots__ = ("_counts", "_tier")

    def __init__(self) -> None:
        self._counts = dict.fromkeys((*_NAMES, _FOR_AN_HOUR, "thinking_tokens"), 0)
        self._tier: str | None = None

    def add(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        for name in _NAMES:
            self._counts[name] = count_of(usage.get(name)) or self._counts[name]
        if isinstance(parts := usage.get("cache_creation"), dict):
            written = min(MAX_COUNT, sum(map(count_of, parts.values())))
            self._counts[_FOR_AN_HOUR] = count_of(parts.get(_FOR_AN_HOUR)) or self._counts[_FOR_AN_HOUR]
            self._counts["cache_creation_input_tokens"] = max(written, self._counts["cache_creation_input_tokens"])
        self._tier = tier_of(usage.get("service_tier")) or self._tier
        if isinstance(details := usage.get("output_tokens_details"), dict):
            self._counts["thinking_tokens"] = (
                count_of(details.get("thinking_tokens")) or self._counts["thinking_tokens"]
            )

    @property
    def prompt_tokens(self) -> int:
        return min(MAX_COUNT, sum(self._counts[name] for name in _NAMES[:3]))

    @property
    def cached_tokens(self) -> int:
        return self._counts["cache_read_input_tokens"]

    def result(self, tokens: int) -> Usage | None:
        """The usage; None if nothing usable was reported. `tokens` is the number of completion tokens counted here."""
        completion = self._counts["output_tokens"]
        if not (self.prompt_tokens or completion):
            return None
        return Usage(
            self.prompt_tokens,
            self.cached_tokens,
            completion or tokens,
            min(self._counts["thinking_tokens"], completion),
            self._counts["cache_creation_input_tokens"],
            min(self._counts[_FOR_AN_HOUR], self._counts["cache_creation_input_tokens"]),
            self._tier,
        )
