"""Converts a request's thinking budget or effort into Anthropic's parameters.

https://platform.claude.com/docs/en/build-with-claude/thinking
"""

from __future__ import annotations

from typing import Any

from shared.config.models.claude import ClaudeLimits, ThinkingControl
from shared.config.models.claude_rules import MIN_BUDGET, is_forced, requests_thinking
from shared.domain.request import ChatOptions, GenerateRequest

# A budget for an effort is at most this. Larger ones are for requests that name them.
MAX_EFFORT_BUDGET = 32_000
# The part of max_tokens that a model with a budget may think for each effort.
_BUDGETS = {"minimal": 0.1, "low": 0.2, "medium": 0.5, "high": 0.8, "xhigh": 0.9, "max": 0.95}


def thinking(request: GenerateRequest, limits: ClaudeLimits, max_tokens: int) -> dict[str, Any]:
    """The parameters `thinking` and `output_config` of a request that the model supports.

    A request that says nothing about thinking has neither.
    """
    chat = request.chat or ChatOptions()
    effort, budget = chat.reasoning_effort, request.sampling.thinking_token_budget
    if not requests_thinking(request, limits):
        return _off(limits.thinking) if effort == "none" or budget == 0 or is_forced(chat) else {}
    if limits.thinking == "budget":
        return {"thinking": {"type": "enabled", "budget_tokens": budget or _budget(effort, max_tokens)}}
    # Models that think by default return no text of it unless this is requested.
    parameters: dict[str, Any] = {"thinking": {"type": "adaptive", "display": "summarized"}}
    if effort is not None:
        parameters["output_config"] = {"effort": "low" if effort == "minimal" else effort}
    return parameters


def _off(control: ThinkingControl) -> dict[str, Any]:
    match control:
        case "adaptive":
            return {"thinking": {"type": "disabled"}}
        case "between_tools":
            return {"thinking": {"type": "between_tools"}}
        case _:
            return {}


def _budget(effort: str | None, max_tokens: int) -> int:
    share = int(max_tokens * _BUDGETS[effort or "medium"])
    return max(MIN_BUDGET, min(share, MAX_EFFORT_BUDGET))
