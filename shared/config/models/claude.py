"""Published limits of Claude models.

- Context and output: https://platform.claude.com/docs/en/models/overview and the page of each model below it, such as
  .../docs/en/models/opus-5-5/overview.
- Thinking: .../docs/en/build-with-claude/adaptive-thinking, .../docs/en/models/sonnet-5-5/whats-new-sonnet-5-5 and
  .../docs/en/about-claude/models/extended-thinking-models. Efforts: .../docs/en/build-with-claude/effort.
- Shortest cached prompt: .../docs/en/build-with-claude/prompt-caching.
- Sampling and prefill: .../docs/en/api/errors, .../docs/en/about-claude/models/migrating-to-claude-4, and the migration
  guides of the models, such as .../docs/en/models/sonnet-5-5/migration-guide.
- Models before 4, which Anthropic has retired and some gateways and platforms still serve: the same pages when the
  models were current.
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


# Longer than any prompt: for models whose prompts are not cached.
_NOT_CACHED = 1 << 30

_SINCE_5 = ClaudeLimits("adaptive", 512, 128_000, 1_000_000)
_ALWAYS = replace(_SINCE_5, thinking="always")
_4_6 = ClaudeLimits("adaptive", 4096, 128_000, 1_000_000, sampling=True, xhigh=False)
_4_5 = ClaudeLimits("budget", 1024, 64_000, 200_000, sampling=True, prefill=True)
_4 = replace(_4_5, either_temperature_or_top_p=False)
_3 = replace(_4, thinking="none", max_output_tokens=4096)
_2 = replace(_3, min_cache_tokens=_NOT_CACHED)

# By id, without the date.
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
    "claude-3-5-sonnet": replace(_3, max_output_tokens=8192),
    "claude-3-5-haiku": replace(_3, min_cache_tokens=2048, max_output_tokens=8192),
    "claude-3-opus": _3,
    "claude-3-sonnet": replace(_3, min_cache_tokens=_NOT_CACHED),
    "claude-3-haiku": replace(_3, min_cache_tokens=2048),
    "claude-2.1": _2,
    "claude-2.0": replace(_2, context=100_000),
    "claude-instant-1.2": replace(_2, context=100_000),
}
# What an unlisted model accepts, by the first version that accepts it. Its limits of tokens are not known. Models that
# are newer than the listed ones are assumed to accept what all of the newest accept.
_GENERATIONS = (
    ((4, 7), ClaudeLimits("always", 1024)),
    ((4, 6), _4_6),
    ((4, 1), _4_5),
    ((3, 7), _4),
    ((0, 0), _2),
)
# A model of another vendor behind a server with this API, or an alias that does not name the version: nearly everything
# is left to the server.
_OTHER = ClaudeLimits("budget", 4096, sampling=True, is_claude=False, either_temperature_or_top_p=False)

_TIERS = frozenset({"opus", "sonnet", "haiku", "fable", "mythos", "instant"})
# One or two numbers of one or two digits; a date has more.
_VERSION = r"(?P<major>\d{1,2})(?:-(?P<minor>\d{1,2}))?(?![a-z\d])"
_TIER_FIRST = re.compile(rf"(?P<tier>[a-z]+)-(?:(?<=instant-)v)?{_VERSION}")
_VERSION_FIRST = re.compile(rf"v?{_VERSION}(?:-(?P<tier>[a-z]+))?")
# The first unlisted tier would have this version. A lower number behind an unknown word is a part of an alias.
_NEXT_TIERS = (5, 0)


def claude_limits(model: str) -> ClaudeLimits:
    """The limits of a model by its id.

    It may have the name of a platform before it (`anthropic.`), and other separators or another order of its parts than
    in the list. An unlisted Claude model has the limits of its generation, and any other model those of the API.
    """
    if (named := _tier_and_version(model)) is None:
        return _OTHER
    if (listed := _LISTED.get(named)) is not None:
        return listed
    generation = next(limits for since, limits in _GENERATIONS if named[1] >= since)
    return replace(generation, max_output_tokens=None, context=None)


def is_listed(model: str) -> bool:
    """Whether the limits of a model with this id are published."""
    return _tier_and_version(model) in _LISTED


def _tier_and_version(model: str) -> tuple[str, tuple[int, int]] | None:
    """The tier (empty if there is none) and the version that an id names; None if it names no version of Claude."""
    before, claude, rest = "-".join(re.findall(r"[a-z\d]+", model.lower())).rpartition("claude")
    if not claude or (before and not before.endswith("-")):
        return None
    rest = rest.removeprefix("-")
    if (match := _VERSION_FIRST.match(rest) or _TIER_FIRST.match(rest)) is None:
        return None
    tier, major, minor = match["tier"] or "", int(match["major"]), match["minor"]
    # Some gateways write 3.5 as 35.
    version = divmod(major, 10) if minor is None and major >= 20 else (major, int(minor or 0))
    if match.re is _VERSION_FIRST:
        return (tier if tier in _TIERS else "", version)
    return (tier, version) if tier in _TIERS or version >= _NEXT_TIERS else None


_LISTED = {named: limits for id_, limits in _FAMILIES.items() if (named := _tier_and_version(id_)) is not None}
