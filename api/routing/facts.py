"""The facts about a request that rules of routes compare. Each is determined once, when a rule needs it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

from api.context.window import PromptTokens
from api.routing.candidates import Candidates
from api.routing.keywords import SearchedText
from shared.domain.request import GenerateRequest

# Characters of the user's newest message that are searched for keywords: half of them at each end.
SEARCHED = 8000
# If no model of the route can render the prompt.
BYTES_PER_TOKEN = 4


class Facts:
    """The facts about one request."""

    def __init__(
        self,
        request: GenerateRequest,
        *,
        tier: str | None,
        priority: int,
        models: Sequence[str],
        count_up_to: int,
        candidates: Candidates,
        project_id: int,
    ) -> None:
        """`models`: the first one whose tokenizer is known counts the tokens. `count_up_to`: no rule compares with a
        larger number of tokens."""
        self.request = request
        self.tier = tier
        self._priority = priority
        self._models = models
        self._count_up_to = count_up_to
        self._candidates = candidates
        self._project_id = project_id
        self._tokens: PromptTokens | None = None

    @property
    def measured(self) -> PromptTokens | None:
        """The prompt's tokens, if a rule needed them and they were counted or estimated."""
        return self._tokens

    async def input_tokens(self) -> PromptTokens:
        """The prompt's tokens, or an estimate if no model of the route can count them."""
        if self._tokens is None:
            self._tokens = await self._measure()
        return self._tokens

    async def has_more_tokens(self, than: int) -> bool:
        """Whether the prompt has more tokens. A prompt that is too short for that is not counted."""
        if self._tokens is None and self._most_tokens <= than:
            return False
        return (await self.input_tokens()).number > than

    async def wait_s(self, model: str) -> float | None:
        """The seconds that the job would wait for a model; None if unknown, infinity if no worker takes jobs."""
        return await self._candidates.wait_s(model, self._priority)

    @cached_property
    def images(self) -> bool:
        """Whether the conversation has images."""
        return self._has("image")

    @cached_property
    def files(self) -> bool:
        """Whether the conversation has files."""
        return self._has("file")

    @property
    def tools(self) -> bool:
        """Whether the request has tools."""
        return self.request.chat is not None and bool(self.request.chat.tools)

    @property
    def structured_output(self) -> bool:
        """Whether the output is constrained."""
        return self.request.structured_outputs is not None

    @cached_property
    def text(self) -> SearchedText:
        """The user's newest message, or the prompt; of a long one the beginning and the end."""
        if self.request.messages is None:
            text = self.request.prompt if isinstance(self.request.prompt, str) else ""
        else:
            newest = next((item for item in reversed(self.request.messages) if item.role == "user"), None)
            text = "" if newest is None else newest.text
        if len(text) > SEARCHED:
            text = f"{text[: SEARCHED // 2]}\n{text[-SEARCHED // 2 :]}"
        return SearchedText(text)

    @cached_property
    def _most_tokens(self) -> float:
        """The tokens that the prompt has at most, whichever model counts or estimates them."""
        known = [self._candidates.most_tokens(model, self.request) for model in self._models]
        return max(math.inf if most is None else most for most in known)

    async def _measure(self) -> PromptTokens:
        estimate = None
        for model in self._models:
            up_to = self._count_up_to + 1
            tokens = await self._candidates.measure(model, self.request, up_to, self._project_id)
            if tokens is not None and not tokens.estimated:
                return tokens
            estimate = estimate or tokens
        return estimate or PromptTokens(self.request.size // BYTES_PER_TOKEN, estimated=True)

    def _has(self, kind: str) -> bool:
        return any(
            part.type == kind
            for message in self.request.messages or ()
            if isinstance(message.content, list)
            for part in message.content
        )
