"""Continues an interrupted answer: the text so far becomes the start of the assistant's message ("prefill").

https://platform.claude.com/docs/en/api/messages; the models that refuse it are in .../docs/en/api/errors
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.config.models.anthropic import AnthropicModel
from shared.config.models.claude_rules import is_forced, output_limit
from shared.domain.events import Delta
from shared.domain.request import ChatOptions, GenerateRequest
from workers.engines.anthropic.thinking import thinking
from workers.engines.base import Prior
from workers.engines.upstream.estimated_tokens import counted_tokens, fewest_tokens


@dataclass(frozen=True, slots=True)
class Continuation:
    """What an answer continues after: its `text`, without the `space` at the end.

    `tokens`: its tokens, of which each piece counts as one. `fewest_tokens`: the number that it has at least.

    The API refuses a message of the assistant that ends with white space. The model generates it again.
    """

    text: str = ""
    space: str = ""
    tokens: int = 0
    fewest_tokens: int = 0


FROM_START = Continuation()


def continuation(request: GenerateRequest, prior: Prior, model: AnthropicModel) -> Continuation | None:
    """How the answer continues after `prior`; None if it cannot."""
    if not (model.limits.prefill and _can_prefill(request, model) and all(map(_is_text, prior.deltas))):
        return None
    so_far = "".join(delta.text for delta in prior.deltas)
    text = so_far.rstrip()
    tokens, fewest = counted_tokens(prior.deltas), fewest_tokens(prior.deltas)
    return Continuation(text, so_far[len(text) :], tokens, fewest)


def _can_prefill(request: GenerateRequest, model: AnthropicModel) -> bool:
    """Whether the API allows it for this request: not with thinking, JSON Schemas and forced tool calls."""
    if request.structured_outputs is not None or is_forced(request.chat or ChatOptions()):
        return False
    return not thinking(request, model.limits, output_limit(request, model.default_max_tokens))


def _is_text(delta: Delta) -> bool:
    return not (delta.reasoning or delta.tool_calls or delta.opaque)
