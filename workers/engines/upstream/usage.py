"""Reads an upstream's usage. It is accounting: whatever it looks like, the answer is kept."""

from __future__ import annotations

import re
from typing import Any

from shared.domain.job import Usage

# The columns that hold counts are 32 bits wide, also that of the sum of a prompt and its completion.
MAX_COUNT = 1_000_000_000
_PROMPT = ("prompt_tokens", "input_tokens")
_COMPLETION = ("completion_tokens", "output_tokens")
_CACHED = ("cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens")
# The default tier is "standard" at Anthropic, "on_demand" at Groq, and "auto" at providers that repeat the request's.
_DEFAULT_TIERS = ("default", "standard", "on_demand", "auto")
_TIER = re.compile(r"[a-z0-9_.-]{1,40}")
_WRITTEN = ("cache_write_tokens", "cache_creation_input_tokens")


class UsageReader:
    """Collects the counts of one answer. The last usable count of each kind is kept; zero never replaces another."""

    __slots__ = ("_cached", "_completion", "_prompt", "_reasoning", "_thoughts_apart", "_tier", "_written")

    def __init__(self, *, thoughts_apart: bool = False) -> None:
        """`thoughts_apart`: the completion's count does not include the reasoning, the total does."""
        self._thoughts_apart = thoughts_apart
        self._prompt = self._cached = self._completion = self._reasoning = self._written = 0
        self._tier: str | None = None

    def add(self, usage: Any, tier: Any = None) -> None:
        """`tier`: the service tier of the answer, which some upstreams report apart from its usage."""
        self._tier = tier_of(tier) or self._tier
        if not isinstance(usage, dict):
            return
        prompt, completion = _first(usage, _PROMPT), _first(usage, _COMPLETION)
        reasoning = _detail(usage, _COMPLETION, "reasoning_tokens") or _first(usage, ("reasoning_tokens",))
        apart = count_of(usage.get("total_tokens")) - prompt - completion if prompt else 0
        # xAI's count of the completion lacks the reasoning too.
        if apart > 0 and (self._thoughts_apart or apart == reasoning):
            completion += apart
            reasoning = max(reasoning, apart)
        if not prompt and completion:
            prompt = max(0, count_of(usage.get("total_tokens")) - completion)
        elif prompt and not completion:
            completion = max(0, count_of(usage.get("total_tokens")) - prompt)
        cached = _detail(usage, _PROMPT, "cached_tokens")
        self._prompt = prompt or self._prompt
        self._completion = completion or self._completion
        self._cached = cached or _first(usage, _CACHED) or self._cached
        self._written = _detail(usage, _PROMPT, "cache_write_tokens") or _first(usage, _WRITTEN) or self._written
        self._reasoning = reasoning or self._reasoning

    def result(self, tokens: int) -> Usage | None:
        """The usage; None if nothing usable was reported. `tokens` is the number of completion tokens counted here."""
        if not (self._prompt or self._completion):
            return None
        cached, completion = min(self._cached, self._prompt), self._completion or tokens
        return Usage(
            self._prompt,
            cached,
            completion,
            min(self._reasoning, completion),
            min(self._written, self._prompt - cached),
            service_tier=self._tier,
        )


def _detail(usage: dict[str, Any], names: tuple[str, ...], name: str) -> int:
    """A count in the details of another, such as `prompt_tokens_details`."""
    for of in names:
        details = usage.get(f"{of}_details")
        if isinstance(details, dict) and (count := count_of(details.get(name))):
            return count
    return 0


def _first(usage: dict[str, Any], names: tuple[str, ...]) -> int:
    return next((count for name in names if (count := count_of(usage.get(name)))), 0)


def tier_of(value: Any) -> str | None:
    """The service tier of an answer; None if it is the default one, or not the name of one."""
    return value if isinstance(value, str) and _TIER.fullmatch(value) and value not in _DEFAULT_TIERS else None


def count_of(value: Any) -> int:
    """A count as a whole number; 0 if it is none."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 12:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_COUNT:
        return 0
    return int(value)
