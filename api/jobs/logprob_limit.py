"""Rejects, at submit, requests for more log probabilities than one answer may have.

Their number is n x max_tokens x (1 + top_logprobs), and for those of the prompt its tokens x (1 + prompt_logprobs).
An answer needs about 30 bytes for each in the worker's memory and in Redis, and twice that in the job's row.
"""

from __future__ import annotations

from api.context.window import ContextWindow
from shared.config.models.loader import Registry
from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest


class LogprobLimit:
    """Checks requests against their model's `max_logprob_values`. Requests without log probabilities always pass."""

    def __init__(self, registry: Registry, context: ContextWindow) -> None:
        self._registry = registry
        self._context = context

    async def check(self, model: str, request: GenerateRequest) -> None:
        """Raise `InvalidRequest` if the answer could have too many log probabilities.

        If max_tokens is omitted, the answer may fill what the prompt leaves of the model's context. If that is unknown
        too, the output is not checked.
        """
        if request.logprobs is None and request.prompt_logprobs is None:
            return
        limit = self._registry[model].max_logprob_values
        if request.logprobs is not None:
            await self._check_output(model, request, 1 + request.logprobs, limit)
        if request.prompt_logprobs is not None:
            await self._check_prompt(model, request, "prompt_logprobs", 1 + request.prompt_logprobs, limit)
        if request.logprobs is not None and request.echo and request.messages is None:
            per_token = request.sampling.n * (1 + request.logprobs)
            await self._check_prompt(model, request, "logprobs", per_token, limit)

    async def _check_output(self, model: str, request: GenerateRequest, per_token: int, limit: int) -> None:
        n = request.sampling.n
        tokens = request.sampling.max_tokens
        source = "max_tokens"
        if request.prompt_only:
            return
        if tokens is None:
            tokens = self._context.length(model)
            if tokens is None:
                return
            if n * tokens * per_token > limit:
                tokens = max(1, tokens - (await self._context.tokens(model, request) or 0))
            source = "what the prompt leaves of the context"
        values = n * tokens * per_token
        if values <= limit:
            return
        most = limit // (n * per_token)
        if request.sampling.max_tokens is None:
            self._context.note_refusal(model)
        fix = f"Set max_tokens to {most} or less, or request" if most else "Request"
        raise InvalidRequest(
            f"max_tokens: this model returns at most {limit} log probabilities per request, counted as n x max_tokens x"
            f" (1 + top_logprobs); got {n} x {tokens} ({source}) x {per_token} = {values}."
            f" {fix} fewer choices or alternatives",
            param="max_tokens",
        )

    async def _check_prompt(self, model: str, request: GenerateRequest, param: str, per_token: int, limit: int) -> None:
        tokens = await self._context.tokens(model, request)
        if tokens is not None and tokens * per_token > limit:
            raise InvalidRequest(
                f"{param}: this model returns at most {limit} log probabilities per request; the prompt's {tokens}"
                f" tokens x {per_token} = {tokens * per_token}. Request fewer alternatives, or send a shorter prompt",
                param=param,
            )
