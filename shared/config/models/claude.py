"""Published limits of Claude models.

- Context and output: https://platform.claude.com/docs/en/models/overview and the page of each model below it, such as
  .../docs/en/models/opus-5-5/overview.
- Thinking: .../docs/en/build-with-claude/adaptive-thinking, .../docs/en/models/sonnet-5-5/whats-new-sonnet-5-5 and
  .../docs/en/about-claude/models/extended-thinking-models. Efforts: .../docs/en/build-with-claude/effort.
- Shortest cached prompt: .../docs/en/build-with-claude/prompt-caching.
- Sampling and prefill: .../docs/en/api/errors, .../docs/en/about-claude/models/migrating-to-claude-4, and the migration
  guides of the models, such as .../docs/en/models/sonnet-5-5/migration-guide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

# How thinking is controlled. "budget": by a number of tokens; off unless requested. "adaptive": by an effort; it can be
# turned off. "between_tools": by an effort; only thinking before the first tool call can be turned off. "always": by an
# effort; it cannot be turned off. "none": the model does not think.
ThinkingControl = Literal["none", "budget", "adaptive", "between_tools", "always"]
# The output of a request without a limit, to a model whose own limit is not known.
UNKNOWN_OUTPUT = 4096


@dataclass(frozen=True, slots=True)
class ClaudeLimits:
    """Limits in tokens (None: unknown), and what a model accepts.

    `sampling`: temperature, top_p and top_k. `is_claude`: the rules of Anthropic's API for combinations of parameters
    apply. `either_temperature_or_top_p`: not both in one request. `xhigh`: the effort of this name.
    """

    thinking: ThinkingControl
    min_cache_tokens: int
    max_output_tokens: int | None = None
    context: int | None = None
    sampling: bool = False
    prefill: bool = False
    is_claude: bool = True
    either_temperature_or_top_p: bool = True
    xhigh: bool = True


_SINCE_5 = ClaudeLimits("adaptive", 512, 128_000, 1_000_000)
_ALWAYS = replace(_SINCE_5, thinking="always")
_4_6 = ClaudeLimits("adaptive", 4096, 128_000, 1_000_000, sampling=True, xhigh=False)
_4_5 = ClaudeLimits("budget", 1024, 64_000, 200_000, sampling=True, prefill=True)
_4 = replace(_4_5, either_temperature_or_top_p=False)

# By the start of the model's id; the longest one counts.
_FAMILIES = {
    "claude-fable-5": _ALWAYS,
    "claude-fable-5-1": _ALWAYS,
    "claude-fable-5-2": _ALWAYS,
    "claude-mythos-5": _ALWAYS,
    "claude-mythos-5-1": _ALWAYS,
    "claude-opus-5-5": _ALWAYS,
    "claude-sonnet-5-5": replace(_SINCE_5, thinking="between_tools"),
    "claude-haiku-5-5": _SINCE_5,
    "claude-opus-5": _SINCE_5,
    "claude-sonnet-5": replace(_SINCE_5, min_cache_tokens=1024),
    "claude-opus-4-8": replace(_SINCE_5, min_cache_tokens=1024),
    "claude-opus-4-7": replace(_SINCE_5, min_cache_tokens=2048),
    "claude-opus-4-6": _4_6,
    "claude-sonnet-4-6": replace(_4_6, min_cache_tokens=1024, max_output_tokens=64_000),
    "claude-opus-4-5": replace(_4_5, min_cache_tokens=4096),
    "claude-sonnet-4-5": _4_5,
    "claude-haiku-4-5": replace(_4_5, min_cache_tokens=4096),
    "claude-opus-4-1": replace(_4_5, max_output_tokens=32_000),
    "claude-opus-4": replace(_4, max_output_tokens=32_000),
    "claude-sonnet-4": _4,
    "claude-3-7-sonnet": _4,
    "claude-3-5-haiku": replace(_4, thinking="none", min_cache_tokens=2048, max_output_tokens=8192),
    "claude-3-haiku": replace(_4, thinking="none", min_cache_tokens=2048, max_output_tokens=4096),
}
# A newer model is assumed to accept what all of the newest known ones accept.
_NEWER = ClaudeLimits("always", 1024)
# A model of another vendor, behind a server with this API.
_OTHER = ClaudeLimits("budget", 4096, sampling=True, is_claude=False, either_temperature_or_top_p=False)
# Other versions of a family have another second number: 5-5 is not a date of 5.
_OTHER_VERSION = re.compile(r"-[1-9]\d?(?!\d)")


def claude_limits(model: str) -> ClaudeLimits:
    """The limits of a model by its id, which may have a prefix of the platform (`anthropic.`) and dots in its version.

    A Claude model that is not listed gets what the newest ones have in common, any other model what the API has.
    """
    _, claude, rest = model.lower().replace(".", "-").rpartition("claude-")
    if not claude:
        return _OTHER
    name = claude + rest
    known = [family for family in _FAMILIES if name.startswith(family) and not _OTHER_VERSION.match(name, len(family))]
    return _FAMILIES[max(known, key=len)] if known else _NEWER
