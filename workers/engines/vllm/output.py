"""Converts vLLM's outputs for a request into deltas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vllm.outputs import RequestOutput

from shared.domain.events import Delta
from shared.domain.request import GenerateRequest
from workers.engines.base import Restarted
from workers.engines.prompt_logprobs import ENTRIES
from workers.engines.vllm.choice import Choice
from workers.engines.vllm.logprobs import entry, prompt_entries
from workers.engines.vllm.request import Rendered, Renderer


class OutputBuilder:
    """The choices of one answer. They continue after `prior`: at the next token, or by regeneration."""

    def __init__(
        self, request: GenerateRequest, rendered: Rendered, renderer: Renderer, prior: Sequence[Delta]
    ) -> None:
        self._request = request
        self._rendered = rendered
        self._tokenizer = renderer.tokenizer
        self._choices = [
            Choice(
                index,
                self._tokenizer,
                rendered.params,
                rendered.token_ids,
                parsing=renderer.parsing(rendered),
                top=self._top(),
            )
            for index in range(rendered.params.n)
        ]
        self._has_prior = bool(prior)
        # The first output, which has the prompt's log probabilities: kept while the answer may have to begin again.
        self._first: RequestOutput | None = None
        self._regenerates = bool(prior) and not rendered.resumable
        # The tokens that vLLM receives as part of the prompt.
        self.resumed_tokens: list[int] = []
        if self._regenerates:
            for index, choice in enumerate(self._choices):
                emitted = [delta for delta in prior if delta.index == index]
                finished = any(delta.finish_reason for delta in emitted)
                choice.regenerate([token for delta in emitted for token in delta.token_ids], finished=finished)
        elif prior:
            self.resumed_tokens = [token for delta in prior for token in delta.token_ids]
            self._choices[0].resume(self.resumed_tokens)

    def _top(self) -> int | None:
        """The sampled token counts as one of the alternatives in a chat and is added to them in a completion."""
        if self._request.logprobs in (None, -1):
            return None
        return self._request.logprobs + (self._request.messages is None)

    def begin(self, first: RequestOutput) -> Iterator[Delta]:
        """The deltas before the first token, from the first output: the prompt, as far as it was requested."""
        if not self._has_prior:
            yield from self._prompt_output(first)
        elif self._regenerates:
            self._first = first

    def take(self, output: RequestOutput) -> Iterator[Delta | Restarted]:
        """The deltas of an output. The first one has been passed to `begin`."""
        for item in output.outputs:
            if self._request.prompt_only:
                yield Delta(item.index, finish_reason="length")
                continue
            delta = self._choices[item.index].take(item)
            if self._choices[item.index].diverged:
                yield Restarted()
                assert self._first is not None
                yield from self._prompt_output(self._first)
                yield from (
                    regenerated for choice in self._choices if not is_empty(regenerated := choice.end_regeneration())
                )
                self._regenerates, self._first = False, None
            elif not is_empty(delta):
                yield delta
        if self._regenerates and all(choice.caught_up for choice in self._choices):
            for choice in self._choices:
                choice.end_regeneration()
            self._regenerates, self._first = False, None

    def _prompt_output(self, output: RequestOutput) -> Iterator[Delta]:
        """The prompt and its log probabilities, as far as the client requested them."""
        request = self._request
        tokens = output.prompt_logprobs
        if request.prompt_logprobs is not None and tokens is not None:
            for start in range(0, len(tokens), ENTRIES):
                yield Delta(0, prompt_logprobs=prompt_entries(tokens[start : start + ENTRIES]))
        if not request.echo:
            return
        text = (output.prompt or "") if request.messages is None else self._continued_text()
        for index in range(self._rendered.params.n):
            if request.messages is None and request.logprobs is not None:
                yield from self._prompt_with_logprobs(index, text, tokens)
            elif text:
                yield Delta(index, text)

    def _prompt_with_logprobs(self, index: int, text: str, tokens: Sequence[Any] | None) -> Iterator[Delta]:
        token_ids = self._rendered.token_ids
        for start in range(0, len(token_ids), ENTRIES):
            some = token_ids[start : start + ENTRIES]
            candidates = tokens[start : start + ENTRIES] if tokens else [None] * len(some)
            yield Delta(
                index,
                text if start + len(some) == len(token_ids) else "",
                logprobs=tuple(
                    entry(token, found, self._top(), self._tokenizer, missing=None)
                    for token, found in zip(some, candidates, strict=True)
                ),
            )

    def _continued_text(self) -> str:
        """The content of the last message if the answer continues it, that is, if it has the same role."""
        messages, chat = self._request.messages or [], self._request.chat
        if not messages or (messages[-1].role != "assistant" and (chat is None or chat.add_generation_prompt)):
            return ""
        return messages[-1].text


def is_empty(delta: Delta) -> bool:
    """Whether a delta has no content."""
    return not (delta.token_ids or delta.text or delta.finish_reason or delta.tool_calls or delta.reasoning)
