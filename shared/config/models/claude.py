"""Published limits of Claude models.

https://platform.claude.com/docs/en/models/overview (context, output), .../docs/en/build-with-claude/prompt-caching
(shortest cached prompt), .../docs/en/build-with-claude/thinking, .../docs/en/api/errors#prefill-not-supported, and the
migration guides at .../docs/en/models/opus-5-5/migration-guide, .../sonnet-5-5/... and .../haiku-5-5/....
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# How thinking is controlled. "budget": by a number of tokens; off unless requested. "adaptive": by an effort; it can be
# turned off. "between_tools": by an effort; only thinking before the first tool call can be turned off. "always": by an
# effort; it cannot be turned off. "none": the model does not think.
ThinkingControl = Literal["none", "budget", "adaptive", "between_tools", "always"]


@dataclass(frozen=True, slots=True)
class ClaudeLimits:
    """Limits in tokens, and what a model accepts. `sampling`: temperature, top_p and top_k."""

    thinking: ThinkingControl
    min_cache_tokens: int
    max_output_tokens: int
    context: int | None = None
    sampling: bool = False
    prefill: bool = False


# By the start of the model's id; the longest one counts.
_FAMILIES = {
    "claude-opus-5-5": ClaudeLimits("always", 512, 128_000, 1_000_000),
    "claude-sonnet-5-5": ClaudeLimits("between_tools", 512, 128_000, 1_000_000),
    "claude-haiku-5-5": ClaudeLimits("adaptive", 512, 128_000, 1_000_000),
    "claude-opus-5": ClaudeLimits("adaptive", 512, 128_000, 1_000_000),
    "claude-sonnet-5": ClaudeLimits("adaptive", 1024, 128_000, 1_000_000),
    "claude-opus-4-8": ClaudeLimits("adaptive", 1024, 128_000, 1_000_000),
    # Sources differ about the context of these three, and about their shortest cached prompt: this is the longest.
    "claude-opus-4-7": ClaudeLimits("adaptive", 4096, 128_000),
    "claude-opus-4-6": ClaudeLimits("adaptive", 4096, 128_000, sampling=True),
    "claude-sonnet-4-6": ClaudeLimits("adaptive", 2048, 64_000, sampling=True),
    "claude-opus-4-5": ClaudeLimits("budget", 4096, 64_000, 200_000, sampling=True, prefill=True),
    "claude-sonnet-4-5": ClaudeLimits("budget", 1024, 64_000, 200_000, sampling=True, prefill=True),
    "claude-haiku-4-5": ClaudeLimits("budget", 4096, 64_000, 200_000, sampling=True, prefill=True),
}
# A model that is not listed accepts whatever the API has, and nothing depends on its limits being large.
_OTHER = ClaudeLimits("budget", 4096, 4096, sampling=True)


def claude_limits(model: str) -> ClaudeLimits:
    """The limits of a model by its id, or conservative ones."""
    known = max((name for name in _FAMILIES if model.startswith(name)), key=len, default="")
    return _FAMILIES.get(known, _OTHER)
