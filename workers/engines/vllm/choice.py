"""One choice of an answer: vLLM's tokens as they come, to deltas of whole tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from vllm.outputs import CompletionOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from shared.domain.events import Delta
from workers.engines.token_boundaries import TokenBoundaries
from workers.engines.vllm.logprobs import entry
from workers.engines.vllm.parsing import Parsing
from workers.engines.vllm.regenerate import Regeneration


class Choice:
    """What one choice gains, in order."""

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
        """`top`: how many entries `top` of a logprob has at most; None: all that vLLM tells of."""
        self._index = index
        self._tokenizer = tokenizer
        self._params = params
        self._prompt = list(prompt)
        self._parsing = parsing
        self._top = top
        self._whole = TokenBoundaries()
        self._decoding = _Decoding(tokenizer, self._prompt, params)
        self._logprobs: deque[dict[str, Any]] = deque()
        self._repeat: Regeneration | None = None

    def go_on(self, made: Sequence[int]) -> None:
        """Begin after these tokens, which are a part of the prompt now: nothing of them is told again."""
        if self._parsing is not None:
            for token in made:
                self._parsing.feed(Delta(self._index, self._decoding.text_of(token), (token,)), finished=False)
        self._decoding = _Decoding(self._tokenizer, [*self._prompt, *made], self._params)

    def repeat(self, made: Sequence[int], *, finished: bool) -> None:
        """Begin anew, and tell nothing that was told before: these tokens, and the end where it was `finished`."""
        self._repeat = Regeneration(self._index, made, finished=finished)

    @property
    def repeated(self) -> bool:
        """Whether all that was told has come again."""
        return self._repeat is None or self._repeat.done

    @property
    def diverged(self) -> bool:
        """Whether it comes out otherwise than it was told."""
        return self._repeat is not None and self._repeat.diverged

    def forget(self) -> Delta:
        """All that was made since the beginning; from now on everything is told."""
        whole = self._repeat.whole() if self._repeat is not None else Delta(self._index)
        self._repeat = None
        return whole

    def take(self, output: CompletionOutput) -> Delta:
        """What an output adds that was not told before; with the finish reason, where it is the last."""
        finished = output.finish_reason is not None
        for token in output.token_ids:
            self._whole.made(token, self._decoding.text_of(token))
        if output.logprobs is not None:
            # After a stop string there may be more of these than tokens.
            for token, likely in zip(output.token_ids, output.logprobs, strict=False):
                self._logprobs.append(entry(token, likely, self._top, self._tokenizer))
        self._whole.may_show(output.text)
        pieces = self._whole.take(finished=finished)
        if self._parsing is None and self._repeat is None:
            delta = Delta(self._index, "".join(text for _, text in pieces), tuple(token for token, _ in pieces))
            return self._with_rest(delta, output if finished else None)
        made = [Delta(self._index, text, (token,)) for token, text in pieces]
        if finished and not made:
            made = [Delta(self._index)]
        new = Delta(self._index)
        for number, delta in enumerate(made, 1):
            last = output if finished and number == len(made) else None
            if self._parsing is not None:
                delta = self._parsing.feed(delta, finished=last is not None)
            self._with_rest(delta, last)
            if self._repeat is None or not self._repeat.told(delta):
                new = new.merged(delta)
        return new

    def _with_rest(self, delta: Delta, last: CompletionOutput | None) -> Delta:
        """A delta with its tokens' logprobs, and with how the choice ended."""
        if self._logprobs:
            entries = tuple(self._logprobs.popleft() for _ in delta.token_ids)
            if self._parsing is None or not self._parsing.hides:
                delta.logprobs = entries
        if last is not None:
            delta.finish_reason, delta.stop_reason = last.finish_reason, last.stop_reason
            if self._parsing is not None and self._parsing.calls and last.finish_reason == "stop":
                delta.finish_reason = "tool_calls"
        return delta


class _Decoding:
    """The text that each token adds, by vLLM's own detokenizer; empty where it is a part of a character."""

    def __init__(self, tokenizer: Any, before: list[int], params: SamplingParams) -> None:
        # All that a detokenizer asks of a request.
        request: Any = SimpleNamespace(
            request_id="", sampling_params=params, prompt_token_ids=before, prompt_embeds=None
        )
        self._detokenizer: Any = IncrementalDetokenizer.from_new_request(tokenizer, request)

    def text_of(self, token: int) -> str:
        self._detokenizer.token_ids.append(token)
        return str(self._detokenizer.decode_next(token))
