"""Generates deterministic text at a fixed rate without a model, for load tests and trials. Does not need torch.

A token is a word or part of a word. Some tokens are part of an emoji's UTF-8 and have no text until the last part
follows, as with real tokenizers. The text depends only on the prompt, the seed, the choice's index and the
adapter. Reasoning, tool calls and structured outputs are in `script.py`.

Tokens are due at a fixed rate, however busy the machine is: an engine that is late returns all due tokens at once, as
vLLM does if its consumer is slow.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import time
from collections.abc import AsyncGenerator, Iterator

from shared.config.models.simulated import SimulatedModel, SimulatedOptions
from shared.domain.errors import ContextExceeded
from shared.domain.events import Delta, UpstreamState, merge_deltas
from shared.domain.logprobs import encode_entry
from shared.domain.request import GenerateRequest
from shared.runtime.offload import INLINE_BYTES, off_loop
from shared.runtime.time_slice import TimeSlice
from workers.engines import prompt_logprobs
from workers.engines.base import NO_PRIOR, Engine, EngineDead, EngineError, EngineStats, Prior, PromptInfo, Restarted
from workers.engines.gate import Gate
from workers.engines.info import info_of
from workers.engines.resume import Resume
from workers.engines.simulated.script import Script, logprob_entries, sampled_candidate, script_of
from workers.engines.token_boundaries import TokenBoundaries

WORDS = (
    " water", " wheel", " mill", " stream", " river", " stone", " grain", " flour", " gate", " channel",
    " turns", " runs", " falls", " carries", " feeds", " never", " always", " slowly", " und", " wieder",
    " dry", " deep", " Mühle", " Wasser", " naïve", " café", ",", ".", " 水車", " 流れ", "ing", "er",
)  # fmt: skip
# How many tokens an engine that is late returns at once, for each choice.
MAX_STEP = 1024
MAX_STEP_WITH_LOGPROBS = 16
# Prompts are read in pieces of this many characters or ids, because no other thread runs during one call of C code.
PIECE = 16 * 1024
# Characters before a text is cut to those in which a stop string may start.
RELEASED = 4096
EMOJI = "🌊"
_PARTS = [EMOJI.encode()[:2], EMOJI.encode()[2:3], EMOJI.encode()[3:]]
EMOJI_IDS = tuple(range(len(WORDS), len(WORDS) + len(_PARTS)))
VOCABULARY = [word.encode() for word in WORDS] + _PARTS


class SimulatedEngine:
    """The `simulated` engine. It has no queue of its own."""

    gate: Gate | None = None

    def __init__(self, model: SimulatedModel) -> None:
        self.fingerprint = model.fingerprint
        self.adapter_fingerprints = {adapter.name: adapter.fingerprint for adapter in model.adapters}
        self._options = model.options
        self._slots = model.slots
        self._info = info_of(model)
        self._requests = 0
        self._died = asyncio.Event()

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def dead(self) -> bool:
        return self._died.is_set()

    async def start(self) -> None:
        self._died.clear()

    async def stop(self) -> None:
        pass

    def take_over(self, earlier: Engine) -> None:
        """Nothing to do: it has no upstream."""

    def resume_mode(self, request: GenerateRequest, prior: Prior = NO_PRIOR) -> Resume:
        return Resume.EXACT if request.sampling.n == 1 else Resume.RESTART

    async def cancel(self, state: UpstreamState) -> None:
        """There is no upstream."""

    def stats(self) -> EngineStats:
        return EngineStats(self._requests, info=self._info)

    async def generate(
        self, request_id: str, request: GenerateRequest, prior: Prior = NO_PRIOR
    ) -> AsyncGenerator[Delta | PromptInfo | Restarted, None]:
        options, emitted = self._options, prior.deltas
        prompt, prompt_tokens, choices = await off_loop(_size(request), _read, request, options)
        self._requests += 1
        try:
            await asyncio.sleep(options.ttft_ms / 1000)
            if options.fail_on and options.fail_on in prompt:
                raise EngineError("the simulated engine is configured to fail on this prompt")
            if options.kill_on and options.kill_on in prompt:
                os.kill(os.getpid(), signal.SIGKILL)
            if options.die_on and options.die_on in prompt:
                self._died.set()
            yield PromptInfo(prompt_tokens)
            if prompt_logprobs.may_be_incomplete(request, emitted):
                yield Restarted()
                emitted = ()
            slice_ = TimeSlice()
            if request.echo and not emitted:
                for choice in choices:
                    for echoed in _echo(choice.index, prompt, request):
                        yield echoed
                        if slice_.over:
                            await slice_.give_way()
            resumed_tokens = sum(len(delta.token_ids) for delta in emitted)
            for choice in choices:
                choice.skip(resumed_tokens)
            began, generated, itl_s = time.monotonic(), 0, options.itl_ms / 1000
            at_most = MAX_STEP if request.logprobs is None else MAX_STEP_WITH_LOGPROBS
            while any(choice.open for choice in choices):
                if self._died.is_set():
                    raise EngineDead("the simulated engine is configured to die on this prompt")
                due = 1 + int((time.monotonic() - began) / itl_s) if itl_s else generated + 1
                due = min(due, generated + at_most)
                for choice in choices:
                    if choice.open:
                        yield choice.advance(due - generated)
                        if slice_.over:
                            await slice_.give_way()
                generated = due
                await asyncio.sleep(began + due * itl_s - time.monotonic() if itl_s else 0)
        finally:
            self._requests -= 1


class _Choice:
    """The state of one choice: its script, then free text unless the script is the whole answer."""

    def __init__(
        self,
        index: int,
        digest: bytes,
        max_tokens: int,
        request: GenerateRequest,
        script: Script,
        stop_after: int | None,
    ) -> None:
        self.open = True
        self.index = index
        self._script = script
        # Position in the script, and in the whole answer.
        self._scripted = 0
        self._position = 0
        self._top = request.logprobs
        self._digest = digest
        # The rest concerns the free text.
        self._max_tokens = max_tokens - len(script.deltas)
        self._end_reason = "length"
        if stop_after is not None and stop_after < self._max_tokens:
            self._max_tokens, self._end_reason = stop_after, "stop"
        self._stop = request.sampling.stop
        # A stop string may start in this many last characters.
        self._held_back = max((len(item) for item in self._stop), default=1) - 1
        self._free_tokens = 0
        self._bytes = b""
        self._text = ""
        self._released = 0
        self._boundaries = TokenBoundaries()
        self._partial: list[int] = []

    def skip(self, tokens: int) -> None:
        """Start after this many tokens, which earlier attempts have emitted."""
        self._position = tokens
        self._scripted = min(tokens, len(self._script.deltas))
        self._free_tokens = tokens - self._scripted

    def advance(self, count: int) -> Delta:
        """The next `count` tokens, or fewer at the end."""
        left = len(self._script.deltas) - self._scripted
        if left > 0:
            deltas = [self._script_step()]
            for _ in range(min(count, left) - 1):
                if not self.open:
                    break
                deltas.append(self._script_step())
            count -= left
            if self.open and count > 0:
                deltas.append(self._free(count))
            delta = merge_deltas(deltas)
        else:
            delta = self._free(count)
        if self._top is not None:
            texts = [self._text_of(token) for token in delta.token_ids]
            delta.logprobs = logprob_entries(texts, self._position, self._top)
        self._position += len(delta.token_ids)
        return delta

    def _script_step(self) -> Delta:
        delta = self._script.step(self._scripted)
        self._scripted += 1
        left = len(self._script.deltas) - self._scripted
        if delta.finish_reason is None and self._max_tokens + left <= 0:
            delta.finish_reason = "length"
        self.open = delta.finish_reason is None
        return delta

    def _text_of(self, token: int) -> bytes:
        return VOCABULARY[token] if token < len(VOCABULARY) else self._script.text_of(token)

    def _free(self, count: int) -> Delta:
        """The next `count` tokens of free text, or fewer at the end."""
        if self._stop:
            deltas = [self._free_step()]
            for _ in range(count - 1):
                if not self.open:
                    break
                deltas.append(self._free_step())
            return merge_deltas(deltas)
        end = min(self._free_tokens + count, self._max_tokens)
        finished = end == self._max_tokens
        tokens = [*self._partial, *(self._token(position) for position in range(self._free_tokens, end))]
        # The first two parts of an emoji are kept until the third.
        parts = end % 16 - 5 if 5 < end % 16 < 8 and not finished else 0
        partial = min(parts, len(tokens))
        self._partial = tokens[len(tokens) - partial :]
        del tokens[len(tokens) - partial :]
        self._free_tokens, self.open = end, not finished
        text = b"".join([VOCABULARY[token] for token in tokens]).decode(errors="ignore")
        return Delta(self.index, text, tuple(tokens), self._end_reason if finished else None)

    def _free_step(self) -> Delta:
        """One token of free text, with a check for stop strings."""
        token = self._token(self._free_tokens)
        self._free_tokens += 1
        self._bytes += VOCABULARY[token]
        decoded = ""
        try:
            decoded = self._bytes.decode()
            self._bytes = b""
        except UnicodeDecodeError:
            pass
        self._text += decoded
        self._boundaries.add(token, decoded)
        reason = self._end_reason if self._free_tokens >= self._max_tokens else None
        stopped_by = None
        end = len(self._text) - (0 if reason else self._held_back)
        for stop in self._stop:
            at = self._text.find(stop, max(0, self._released - len(stop) + 1))
            if at >= 0 and (stopped_by is None or at < end):
                end, reason, stopped_by = at, "stop", stop
        end = max(end, self._released)
        self._boundaries.release(self._text[self._released : end])
        self._released = end
        if (cut := end - self._held_back) > RELEASED:  # a stop string cannot start before what is kept
            self._text = self._text[cut:]
            self._released -= cut
        self.open = reason is None
        taken = self._boundaries.take(finished=reason is not None)
        text, tokens = "".join(text for _, text in taken), tuple(token for token, _ in taken)
        return Delta(self.index, text, tokens, reason, stop_reason=stopped_by)

    def _token(self, position: int) -> int:
        """The token at a position. Of every 16 positions, 5, 6 and 7 are the three parts of an emoji."""
        if 5 <= position % 16 <= 7:
            return EMOJI_IDS[position % 16 - 5]
        digest = self._digest
        return (digest[position % 32] * 31 + digest[(position // 32) % 32] + position) % len(WORDS)


def _echo(index: int, prompt: str, request: GenerateRequest) -> Iterator[Delta]:
    """The prompt, or in a chat the assistant's message that the answer continues, as in vLLM.

    Log probabilities come in deltas of a few tokens, the last of which has the text.
    """
    text = prompt
    if request.messages is not None:
        last = request.messages[-1] if request.messages else None
        text = last.text if last is not None and last.role == "assistant" else ""
    if not text:
        return
    words = [match[0].encode() for match in re.finditer(r"\s*\S+|\s+$", prompt)] if request.logprobs is not None else []
    if request.messages is not None or request.logprobs is None or not words:
        yield Delta(index, text)
        return
    for start in range(0, len(words), prompt_logprobs.ENTRIES):
        entries = logprob_entries(words[start : start + prompt_logprobs.ENTRIES], start, request.logprobs)
        if start == 0:  # the first token has no probability, since nothing precedes it
            entries[0] = encode_entry(sampled_candidate(words[0], None), ())
        yield Delta(index, text if start + len(entries) == len(words) else "", logprobs=entries)


def _size(request: GenerateRequest) -> int:
    """About how many bytes `_read` reads."""
    if request.structured_outputs is not None or (request.chat is not None and request.chat.tools):
        return INLINE_BYTES + 1
    if request.messages is None:
        return len(request.prompt or "")
    return sum(len(message.text) for message in request.messages)


def _read(request: GenerateRequest, options: SimulatedOptions) -> tuple[str, int, list[_Choice]]:
    """The prompt, its number of tokens, and the choices.

    Raises:
        ContextExceeded: the prompt does not fit the context.
        InvalidRequest: the simulated engine does not support the request.
    """
    prompt = _prompt_text(request)
    prompt_tokens = count_tokens(prompt)
    available = options.max_model_len - prompt_tokens
    sampling = request.sampling
    if available < 1:
        raise ContextExceeded(
            f"This model's context is {options.max_model_len} tokens; the prompt has {prompt_tokens}.",
            param="messages" if request.messages is not None else "prompt",
        )
    seed = prompt if sampling.seed is None else f"{prompt}#{sampling.seed}"
    if request.adapter is not None:
        seed = f"{request.adapter}#{seed}"
    seeded = hashlib.sha256(seed.encode("utf-8", "surrogatepass"))
    choices = []
    for index in range(sampling.n):
        script = script_of(request, index, seed)
        length = sampling.max_tokens
        length = length or (min(options.default_tokens, available) if script.reason is None else available)
        hashed = seeded.copy()
        hashed.update(f"#{index}".encode())
        choices.append(_Choice(index, hashed.digest(), length, request, script, options.stop_after))
    return prompt, prompt_tokens, choices


def count_tokens(text: str) -> int:
    """Number of tokens in a prompt: its words, and one more."""
    words, in_word = 0, False
    for start in range(0, len(text), PIECE):
        piece = text[start : start + PIECE]
        words += len(piece.split()) - (in_word and not piece[0].isspace())
        in_word = not piece[-1].isspace()
    return words + 1


def _prompt_text(request: GenerateRequest) -> str:
    if isinstance(request.prompt, list):
        ids = request.prompt
        return " ".join([" ".join(map(str, ids[start : start + PIECE])) for start in range(0, len(ids), PIECE)])
    if request.messages is None:
        return request.prompt or ""
    return "\n".join(f"{message.role}: {message.text}" for message in request.messages)
