"""Converts vLLM's output for one choice into deltas of whole tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from vllm.outputs import CompletionOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from shared.domain.events import Delta, merge_deltas
from workers.engines.token_boundaries import TokenBoundaries
from workers.engines.vllm.logprobs import entry
from workers.engines.vllm.parsing import Parsing
from workers.engines.vllm.regenerate import Regeneration


class Choice:
    """The state of one choice: its decoder, its parser, and the answer that it is compared with, if any."""

    def __init__(
        self,
        index: int,
        tokenizer: Any,
        params: SamplingParams,
        prompt: Sequence[int],
        *,
        parsing: Parsing | None,
        top: int | None,
    ) -> None:
        """`top`: maximum number of alternatives in a logprobs entry; None for all that vLLM returns."""
        self._index = index
        self._tokenizer = tokenizer
        self._params = params
        self._prompt = list(prompt)
        self._parsing = parsing
        self._top = top
        self._boundaries = TokenBoundaries()
        self._decoder = _Decoder(tokenizer, self._prompt, params)
        self._logprobs: deque[bytes] = deque()
        self._regeneration: Regeneration | None = None

    def resume(self, tokens: Sequence[int]) -> None:
        """Continue after these tokens, which vLLM receives as part of the prompt."""
        if self._parsing is not None:
            for token in tokens:
                self._parsing.feed(Delta(self._index, self._decoder.text_of(token), (token,)), finished=False)
        self._decoder = _Decoder(self._tokenizer, [*self._prompt, *tokens], self._params)

    def regenerate(self, tokens: Sequence[int], *, finished: bool) -> None:
        """Start again, and suppress the output while it equals these tokens and, if `finished`, their end."""
        self._regeneration = Regeneration(self._index, tokens, finished=finished)

    @property
    def caught_up(self) -> bool:
        """Whether everything emitted earlier has been regenerated."""
        return self._regeneration is None or self._regeneration.done

    @property
    def diverged(self) -> bool:
        """Whether the regenerated answer differs from the emitted one."""
        return self._regeneration is not None and self._regeneration.diverged

    def end_regeneration(self) -> Delta:
        """Stop suppressing output; returns everything that was regenerated."""
        output = self._regeneration.output() if self._regeneration is not None else Delta(self._index)
        self._regeneration = None
        return output

    def take(self, output: CompletionOutput) -> Delta:
        """The part of an output that was not emitted before."""
        finished = output.finish_reason is not None
        for token in output.token_ids:
            self._boundaries.add(token, self._decoder.text_of(token))
        if output.logprobs is not None:
            # After a stop string there may be more of these than tokens.
            for token, candidates in zip(output.token_ids, output.logprobs, strict=False):
                self._logprobs.append(entry(token, candidates, self._top, self._tokenizer))
        self._boundaries.release(output.text)
        pieces = self._boundaries.take(finished=finished)
        if self._parsing is None and self._regeneration is None:
            delta = Delta(self._index, "".join(text for _, text in pieces), tuple(token for token, _ in pieces))
            return self._completed(delta, output if finished else None)
        deltas = [Delta(self._index, text, (token,)) for token, text in pieces]
        if finished and not deltas:
            deltas = [Delta(self._index)]
        new: list[Delta] = []
        for number, delta in enumerate(deltas, 1):
            last = output if finished and number == len(deltas) else None
            if self._parsing is not None:
                delta = self._parsing.feed(delta, finished=last is not None)
            self._completed(delta, last)
            if self._regeneration is None or not self._regeneration.was_emitted(delta):
                new.append(delta)
        return merge_deltas(new) if new else Delta(self._index)

    def _completed(self, delta: Delta, last: CompletionOutput | None) -> Delta:
        """Add the logprobs of a delta's tokens, and the finish reason if it is the last delta."""
        if self._logprobs:
            entries = tuple(self._logprobs.popleft() for _ in delta.token_ids)
            if self._parsing is None or not self._parsing.hides_tokens:
                delta.logprobs = entries
        if last is not None:
            delta.finish_reason, delta.stop_reason = last.finish_reason, last.stop_reason
            if self._parsing is not None and self._parsing.ends_in_tool_calls and last.finish_reason == "stop":
                delta.finish_reason = "tool_calls"
        return delta


class _Decoder:
    """Decodes tokens one by one with vLLM's detokenizer; the text of a token that is part of a character is empty."""

    def __init__(self, tokenizer: Any, before: list[int], params: SamplingParams) -> None:
        # The attributes of a request that the detokenizer reads.
        request: Any = SimpleNamespace(
            request_id="", sampling_params=params, prompt_token_ids=before, prompt_embeds=None
        )
        self._detokenizer: Any = IncrementalDetokenizer.from_new_request(tokenizer, request)

    def text_of(self, token: int) -> str:
        self._detokenizer.token_ids.append(token)
        return str(self._detokenizer.decode_next(token))
