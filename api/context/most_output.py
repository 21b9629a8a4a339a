"""How many tokens an answer may have at most."""

from __future__ import annotations

from api.context.window import PromptTokens
from shared.config.models.loader import ModelSpec
from shared.domain.request import GenerateRequest


def most_output_tokens(
    spec: ModelSpec, request: GenerateRequest, *, length: int | None, prompt: PromptTokens
) -> int | None:
    """The most output tokens of a request, of all of its choices together; None if nothing limits them.

    `length`: that of the model's context, if it is known.
    """
    if request.prompt_only:
        return 0
    sampling = request.sampling
    # An estimate is too high for most prompts, so it leaves less room than there may be.
    room = None if length is None else length if prompt.estimated else max(0, length - prompt.number)
    wanted = (sampling.max_tokens or spec.default_max_tokens) if spec.capabilities.max_tokens else None
    limits = [limit for limit in (wanted, spec.max_output_tokens, room) if limit is not None]
    return min(limits) * sampling.n if limits else None
