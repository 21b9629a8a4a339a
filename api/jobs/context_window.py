"""Counts a prompt's tokens without torch: the model's tokenizer, and its chat template in Jinja's sandbox.

Used to refuse at submit what cannot fit. Where a model's files are not on this machine, or a conversation has more
than turns of text (tools, documents, a last message to go on with), only max_tokens is looked at, and the worker,
whose own rendering is the authority, refuses instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from api.jobs.token_counter import TokenCounter, count_words
from shared.config.models.base import PromptTokenizer, TokenizerFiles, WordTokenizer
from shared.config.models.loader import Registry
from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest

# A token of a byte-level tokenizer is at least one byte, so shorter prompts need no counting. A chat
# template adds a few dozen tokens to each conversation, and some to each message.
TEMPLATE_TOKENS = 256

logger = logging.getLogger(__name__)


class ContextWindow:
    """Refuses prompts that leave no room in their model's context."""

    def __init__(self, registry: Registry) -> None:
        self._limits = {name: model.max_model_len for name, model in registry.models.items()}
        self._counters = {name: _counter(model.prompt_tokenizer) for name, model in registry.models.items()}

    async def check(self, model: str, request: GenerateRequest) -> None:
        """Raise `InvalidRequest` where the prompt leaves no room, or max_tokens is more than there ever is.

        As in vLLM, an answer whose max_tokens is more than the prompt leaves may fill the context, and no more.
        """
        limit, count = self._limits[model], self._counters[model]
        if limit is None:
            return
        wanted = request.sampling.max_tokens
        param = "messages" if request.messages is not None else "prompt"
        if wanted is not None and wanted > limit:
            raise InvalidRequest(
                f"max_tokens: this model's context is {limit} tokens, prompt and answer together; got {wanted}",
                param="max_tokens",
            )
        if count is None:
            return
        size = _bytes(request)
        if size + TEMPLATE_TOKENS < limit:
            return
        tokens = await asyncio.to_thread(count, request) if size > 20_000 else count(request)
        if tokens is not None and tokens >= limit:
            raise InvalidRequest(
                f"{param}: this model's context is {limit} tokens, prompt and answer together; the prompt has {tokens}",
                param=param,
            )

    async def count(self, model: str, request: GenerateRequest) -> int:
        """Tokens of a prompt.

        Raises:
            InvalidRequest: they cannot be counted here, or the model's template refuses the prompt.
        """
        count = self._counters[model]
        tokens = await asyncio.to_thread(count, request) if count is not None else None
        if tokens is None:
            raise InvalidRequest(
                f"The tokens of `{model}` cannot be counted here: this process lacks its tokenizer or chat template,"
                " or tools, calls or a turn to go on with make the prompt what the engine alone can render.",
                param="model",
            )
        return tokens


def _counter(tokenizer: PromptTokenizer | None) -> Callable[[GenerateRequest], int | None] | None:
    match tokenizer:
        case WordTokenizer():
            return count_words
        case TokenizerFiles(folder, renders_chat):
            return TokenCounter(folder, renders_chat=renders_chat).count
        case None:
            return None


def _bytes(request: GenerateRequest) -> int:
    if isinstance(request.prompt, list):
        return len(request.prompt)
    if request.messages is None:
        return len((request.prompt or "").encode("utf-8", "surrogatepass"))
    return sum(len((item.content or "").encode("utf-8", "surrogatepass")) + 32 for item in request.messages)
