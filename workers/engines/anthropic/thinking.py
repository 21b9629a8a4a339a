"""Converts a request's thinking budget or effort into Anthropic's parameters.

https://platform.claude.com/docs/en/build-with-claude/thinking
"""

from __future__ import annotations

from typing import Any

from shared.config.models.claude import ThinkingControl
from shared.domain.errors import InvalidRequest
from shared.domain.request import ChatOptions, GenerateRequest

MIN_BUDGET = 1024
# A budget for an effort is at most this. Larger ones are for requests that name them.
MAX_EFFORT_BUDGET = 32_000
# The part of max_tokens that a model with a budget may think for each effort.
_BUDGETS = {"minimal": 0.1, "low": 0.2, "medium": 0.5, "high": 0.8, "xhigh": 0.9, "max": 0.95}


def thinking(request: GenerateRequest, control: ThinkingControl, max_tokens: int) -> dict[str, Any]:
    """The parameters `thinking` and `output_config`. A request that says nothing about thinking has neither.

    Raises:
        InvalidRequest: the model cannot think as requested.
    """
    chat = request.chat or ChatOptions()
    effort, budget = chat.reasoning_effort, request.sampling.thinking_token_budget
    if effort == "none" or budget == 0:
        return _off(control)
    requested = effort is not None or budget is not None
    if forbids_thinking(chat):
        if requested:
            raise InvalidRequest(
                "tool_choice: a model that thinks cannot be forced to call a tool; use `auto`, or turn thinking off",
                param="tool_choice",
            )
        return _off(control)
    if not (requested or request.adaptive_thinking):
        return {}
    if control == "none":
        raise InvalidRequest("reasoning_effort: this model does not think", param="reasoning_effort")
    if control == "budget":
        return _budget(effort, budget, max_tokens) if requested else {}
    if budget is not None:
        raise InvalidRequest(
            "thinking_token_budget: this model decides how much it thinks; send reasoning_effort instead",
            param="thinking_token_budget",
        )
    # Models that think by default return no text of it unless this is requested.
    parameters: dict[str, Any] = {"thinking": {"type": "adaptive", "display": "summarized"}}
    if effort is not None:
        parameters["output_config"] = {"effort": "low" if effort == "minimal" else effort}
    return parameters


def forbids_thinking(chat: ChatOptions) -> bool:
    """Whether the model is forced to call a tool, which the API allows only without thinking."""
    return chat.tool_choice == "required" or isinstance(chat.tool_choice, dict)


def _off(control: ThinkingControl) -> dict[str, Any]:
    match control:
        case "adaptive":
            return {"thinking": {"type": "disabled"}}
        case "between_tools":
            return {"thinking": {"type": "between_tools"}}
        case "always":
            raise InvalidRequest("reasoning_effort: this model always thinks", param="reasoning_effort")
        case _:
            return {}


def _budget(effort: str | None, budget: int | None, max_tokens: int) -> dict[str, Any]:
    if budget is None:
        share = int(max_tokens * _BUDGETS[effort or "medium"])
        budget = max(MIN_BUDGET, min(share, MAX_EFFORT_BUDGET))
    elif budget < MIN_BUDGET:
        raise InvalidRequest(
            f"thinking_token_budget: this model accepts 0 or at least {MIN_BUDGET}, got {budget}",
            param="thinking_token_budget",
        )
    if budget >= max_tokens:
        raise InvalidRequest(
            f"max_tokens: must be more than the thinking budget of {budget} tokens, got {max_tokens}",
            param="max_tokens",
        )
    return {"thinking": {"type": "enabled", "budget_tokens": budget}}
