"""Evaluates the conditions of rules (`shared/config/models/conditions.py`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from api.routing.facts import Facts
from api.routing.keywords import keywords_of
from shared.config.models.conditions import Conditions

# Each gets the condition's value, all conditions of the rule with the route's first level as the default of `of`, and
# the facts.
_Check = Callable[[Any, str, Facts], Awaitable[bool]]


async def holds(conditions: Conditions, waited_for: str, facts: Facts) -> bool:
    """Whether all conditions hold. Those that cost the least are checked first.

    `waited_for`: the model of `predicted_wait_over_s`, unless `of` names another one.
    """
    of = conditions.of or waited_for
    for name, check in CHECKS.items():
        value = getattr(conditions, name)
        if value is not None and not await check(value, of, facts):
            return False
    return True


def _is(fact: str) -> _Check:
    async def check(value: bool, of: str, facts: Facts) -> bool:
        return getattr(facts, fact) is value

    return check


async def _tier(tiers: tuple[str, ...], of: str, facts: Facts) -> bool:
    return facts.tier in tiers


async def _keywords(keywords: tuple[str, ...], of: str, facts: Facts) -> bool:
    return keywords_of(keywords).are_in(facts.text)


async def _input_tokens_over(tokens: int, of: str, facts: Facts) -> bool:
    return await facts.has_more_tokens(tokens)


async def _input_tokens_under(tokens: int, of: str, facts: Facts) -> bool:
    return not await facts.has_more_tokens(tokens - 1)


async def _predicted_wait_over_s(limit_s: float, of: str, facts: Facts) -> bool:
    wait_s = await facts.wait_s(of)
    return wait_s is not None and wait_s > limit_s


CHECKS: Mapping[str, _Check] = {
    "tools": _is("tools"),
    "structured_output": _is("structured_output"),
    "tier": _tier,
    "images": _is("images"),
    "files": _is("files"),
    "keywords": _keywords,
    "input_tokens_over": _input_tokens_over,
    "input_tokens_under": _input_tokens_under,
    "predicted_wait_over_s": _predicted_wait_over_s,
}
