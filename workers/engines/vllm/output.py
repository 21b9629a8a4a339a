"""All choices of one answer: from vLLM's outputs to what a job's log is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vllm.outputs import RequestOutput

from shared.domain.events import Delta
from shared.domain.request import GenerateRequest
from workers.engines.base import Restarted
from workers.engines.vllm.choice import Choice
from workers.engines.vllm.logprobs import entry, of_prompt
from workers.engines.vllm.request import Rendered, Rendering


class OutputBuilder:
    """Goes on after what was told `prior`: at the next token, or by making all of it again."""

    def __init__(
        self, request: GenerateRequest, rendered: Rendered, rendering: Rendering, prior: Sequence[Delta]
    ) -> None:
        self._request = request
        self._rendered = rendered
        self._tokenizer = rendering.tokenizer
        self._choices = [
            Choice(
                index,
                self._tokenizer,
                rendered.params,
                rendered.token_ids,
                parsing=rendering.parsing(rendered),
                top=self._top(),
            )
            for index in range(rendered.params.n)
        ]
        self._opened = bool(prior)
        self._opening: list[Delta] = []
        self._repeats = bool(prior) and not rendered.prefills
        # What is a part of the prompt now.
        self.made: list[int] = []
        if self._repeats:
            for index, choice in enumerate(self._choices):
                told = [delta for delta in prior if delta.index == index]
                finished = any(delta.finish_reason for delta in told)
                choice.repeat([token for delta in told for token in delta.token_ids], finished=finished)
        elif prior:
            self.made = [token for delta in prior for token in delta.token_ids]
            self._choices[0].go_on(self.made)

    def _top(self) -> int | None:
        """In a conversation the drawn token is one of those that are asked for; in a completion it comes on top."""
        if self._request.logprobs in (None, -1):
            return None
        return self._request.logprobs + (self._request.messages is None)

    def take(self, output: RequestOutput) -> Iterator[Delta | Restarted]:
        """What an output adds."""
        if not self._opening:
            self._opening = self._open(output)
            if not self._opened:
                yield from (delta for delta in self._opening if not empty(delta))
        for one in output.outputs:
            if self._request.prompt_only:
                yield Delta(one.index, finish_reason="length")
                continue
            delta = self._choices[one.index].take(one)
            if self._choices[one.index].diverged:
                yield Restarted()
                yield from (delta for delta in self._opening if not empty(delta))
                yield from (whole for choice in self._choices if not empty(whole := choice.forget()))
                self._repeats = False
            elif not empty(delta):
                yield delta
        if self._repeats and all(choice.repeated for choice in self._choices):
            for choice in self._choices:
                choice.forget()
            self._repeats = False

    def _open(self, output: RequestOutput) -> list[Delta]:
        """What comes before each choice's first token: the prompt, where it is asked for."""
        request = self._request
        opening = [Delta(index) for index in range(self._rendered.params.n)]
        if request.prompt_logprobs is not None and output.prompt_logprobs is not None:
            opening[0].prompt_logprobs = of_prompt(output.prompt_logprobs)
        if not request.echo:
            return opening
        for delta in opening:
            if request.messages is not None:
                delta.text = self._last_said()
                continue
            delta.text = output.prompt or ""
            if request.logprobs is not None:
                likely = output.prompt_logprobs or [None] * len(self._rendered.token_ids)
                delta.logprobs = tuple(
                    entry(token, step, self._top(), self._tokenizer, told=False)
                    for token, step in zip(self._rendered.token_ids, likely, strict=True)
                )
        return opening

    def _last_said(self) -> str:
        """The turn that the answer goes on with: the last, where it is of the same role."""
        messages, chat = self._request.messages or [], self._request.chat
        if not messages or (messages[-1].role != "assistant" and (chat is None or chat.add_generation_prompt)):
            return ""
        return messages[-1].content or ""


def empty(delta: Delta) -> bool:
    """Whether there is nothing in it."""
    return not (delta.token_ids or delta.text or delta.finish_reason or delta.tool_calls or delta.reasoning) and (
        delta.prompt_logprobs is None
    )
