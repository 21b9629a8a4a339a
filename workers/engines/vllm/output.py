"""Converts vLLM's outputs for a request into deltas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vllm.outputs import RequestOutput

from shared.domain.events import Delta
from shared.domain.request import GenerateRequest
from workers.engines.base import Restarted
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
        # Deltas that precede each choice's first token, from the first output on.
        self._prompt_deltas: list[Delta] = []
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

    def take(self, output: RequestOutput) -> Iterator[Delta | Restarted]:
        """The deltas of an output."""
        if not self._prompt_deltas:
            self._prompt_deltas = self._prompt_output(output)
            if not self._has_prior:
                yield from (delta for delta in self._prompt_deltas if not is_empty(delta))
        for item in output.outputs:
            if self._request.prompt_only:
                yield Delta(item.index, finish_reason="length")
                continue
            delta = self._choices[item.index].take(item)
            if self._choices[item.index].diverged:
                yield Restarted()
                yield from (delta for delta in self._prompt_deltas if not is_empty(delta))
                yield from (
                    regenerated for choice in self._choices if not is_empty(regenerated := choice.end_regeneration())
                )
                self._regenerates = False
            elif not is_empty(delta):
                yield delta
        if self._regenerates and all(choice.caught_up for choice in self._choices):
            for choice in self._choices:
                choice.end_regeneration()
            self._regenerates = False

    def _prompt_output(self, output: RequestOutput) -> list[Delta]:
        """A delta per choice with the prompt and its logprobs, as far as the client requested them."""
        request = self._request
        deltas = [Delta(index) for index in range(self._rendered.params.n)]
        if request.prompt_logprobs is not None and output.prompt_logprobs is not None:
            deltas[0].prompt_logprobs = prompt_entries(output.prompt_logprobs)
        if not request.echo:
            return deltas
        for delta in deltas:
            if request.messages is not None:
                delta.text = self._continued_text()
                continue
            delta.text = output.prompt or ""
            if request.logprobs is not None:
                tokens = output.prompt_logprobs or [None] * len(self._rendered.token_ids)
                delta.logprobs = tuple(
                    entry(token, candidates, self._top(), self._tokenizer, missing=None)
                    for token, candidates in zip(self._rendered.token_ids, tokens, strict=True)
                )
        return deltas

    def _continued_text(self) -> str:
        """The content of the last message if the answer continues it, that is, if it has the same role."""
        messages, chat = self._request.messages or [], self._request.chat
        if not messages or (messages[-1].role != "assistant" and (chat is None or chat.add_generation_prompt)):
            return ""
        return messages[-1].content or ""


def is_empty(delta: Delta) -> bool:
    """Whether a delta has no content."""
    return not (
        delta.token_ids
        or delta.text
        or delta.finish_reason
        or delta.tool_calls
        or delta.reasoning
        or delta.prompt_logprobs
    )
