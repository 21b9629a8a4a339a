"""No model: deterministic text at a fixed rate, for load tests and for trying things out. Needs no torch.

A token is one word, or a piece of one; some tokens are a part of an emoji's UTF-8 and make no text until the
last part comes, as real tokenizers do. The text follows from the prompt (and the seed and the choice) alone.
What a request asks for beside text (reasoning, tool calls, structured outputs) is in `simulated_answers.py`.

Tokens are due at a rate, whatever the machine is doing: an engine that is late gives all that are due at once, as
vLLM's does to a reader that is behind.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncGenerator, Sequence

from shared.config.models.simulated import SimulatedModel
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta
from shared.domain.request import GenerateRequest
from workers.engines.base import EngineDead, EngineError, EngineStats, PromptInfo, Resume
from workers.engines.simulated.script import Script, logprob_entries, script_of
from workers.engines.token_boundaries import TokenBoundaries

WORDS = (
    " water", " wheel", " mill", " stream", " river", " stone", " grain", " flour", " gate", " channel",
    " turns", " runs", " falls", " carries", " feeds", " never", " always", " slowly", " und", " wieder",
    " dry", " deep", " Mühle", " Wasser", " naïve", " café", ",", ".", " 水車", " 流れ", "ing", "er",
)  # fmt: skip
EMOJI = "🌊"
_PARTS = [EMOJI.encode()[:2], EMOJI.encode()[2:3], EMOJI.encode()[3:]]
EMOJI_IDS = tuple(range(len(WORDS), len(WORDS) + len(_PARTS)))
VOCABULARY = [word.encode() for word in WORDS] + _PARTS


class SimulatedEngine:
    """The `simulated` engine. `slots` requests at once; there is no queue inside."""

    def __init__(self, model: SimulatedModel) -> None:
        self.fingerprint = model.fingerprint
        self._options = model.options
        self._slots = model.slots
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

    def resume_mode(self, request: GenerateRequest) -> Resume:
        return Resume.EXACT if request.sampling.n == 1 else Resume.NONE

    def stats(self) -> EngineStats:
        return EngineStats(self._requests)

    async def generate(
        self, request_id: str, request: GenerateRequest, prior: Sequence[Delta] = ()
    ) -> AsyncGenerator[Delta | PromptInfo, None]:
        options = self._options
        prompt = _prompt_text(request)
        prompt_tokens = count_tokens(prompt)
        room = options.max_model_len - prompt_tokens
        wanted = request.sampling.max_tokens
        if room < 1:
            raise InvalidRequest(
                f"This model's context is {options.max_model_len} tokens; the prompt has {prompt_tokens}.",
                param="messages" if request.messages is not None else "prompt",
            )
        sampling = request.sampling
        seed = prompt if sampling.seed is None else f"{prompt}#{sampling.seed}"
        choices = []
        for index in range(sampling.n):
            script = script_of(request, index, seed)
            length = wanted or (min(options.default_tokens, room) if script.reason is None else room)
            choices.append(_Choice(index, f"{seed}#{index}", length, request, script))
        self._requests += 1
        try:
            await asyncio.sleep(options.ttft_ms / 1000)
            if options.fail_on and options.fail_on in prompt:
                raise EngineError("the simulated engine was told to fail on this prompt")
            if options.die_on and options.die_on in prompt:
                self._died.set()
            yield PromptInfo(prompt_tokens)
            if request.echo and not prior:
                for choice in choices:
                    if (echo := _echo(choice.index, prompt, request)).text:
                        yield echo
            made = sum(len(delta.token_ids) for delta in prior)
            for choice in choices:
                choice.skip(made)
            began, given, itl_s = time.monotonic(), 0, options.itl_ms / 1000
            while any(choice.open for choice in choices):
                if self._died.is_set():
                    raise EngineDead("the simulated engine was told to die")
                due = 1 + int((time.monotonic() - began) / itl_s) if itl_s else given + 1
                for choice in choices:
                    if choice.open:
                        yield choice.steps(due - given)
                given = due
                await asyncio.sleep(began + due * itl_s - time.monotonic() if itl_s else 0)
        finally:
            self._requests -= 1


class _Choice:
    """One choice's answer as it grows: its script, then free text where the script does not end it."""

    def __init__(self, index: int, seed: str, max_tokens: int, request: GenerateRequest, script: Script) -> None:
        self.open = True
        self.index = index
        self._script = script
        self._scripted = 0
        self._given = 0
        self._top = request.logprobs
        self._digest = hashlib.sha256(seed.encode("utf-8", "surrogatepass")).digest()
        # Of the free text, as all that follows.
        self._max_tokens = max_tokens - len(script.deltas)
        self._stop = request.sampling.stop
        self._hold = max((len(item) for item in self._stop), default=1) - 1
        self._made = 0
        self._bytes = b""
        self._text = ""
        self._shown = 0
        self._whole = TokenBoundaries()
        self._waiting: list[int] = []

    def skip(self, tokens: int) -> None:
        """Start after so many tokens, which earlier attempts have shown."""
        self._given = tokens
        self._scripted = min(tokens, len(self._script.deltas))
        self._made = tokens - self._scripted

    def steps(self, count: int) -> Delta:
        """The next so many tokens, or as many as there are."""
        left = len(self._script.deltas) - self._scripted
        if left > 0:
            delta = self._script_step()
            for _ in range(min(count, left) - 1):
                if not self.open:
                    break
                delta = delta.merged(self._script_step())
            count -= left
            if self.open and count > 0:
                delta = delta.merged(self._free(count))
        else:
            delta = self._free(count)
        if self._top is not None:
            texts = [self._text_of(token) for token in delta.token_ids]
            delta.logprobs = logprob_entries(texts, self._given, self._top)
        self._given += len(delta.token_ids)
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
        """Free text of so many tokens, or as many as there are."""
        if self._stop:
            delta = self._step()
            for _ in range(count - 1):
                if not self.open:
                    break
                delta = delta.merged(self._step())
            return delta
        end = min(self._made + count, self._max_tokens)
        finished = end == self._max_tokens
        tokens = [*self._waiting, *(self._token(position) for position in range(self._made, end))]
        # The first two parts of an emoji wait for the third.
        parts = end % 16 - 5 if 5 < end % 16 < 8 and not finished else 0
        waiting = min(parts, len(tokens))
        self._waiting = tokens[len(tokens) - waiting :]
        del tokens[len(tokens) - waiting :]
        self._made, self.open = end, not finished
        text = b"".join([VOCABULARY[token] for token in tokens]).decode(errors="ignore")
        return Delta(self.index, text, tuple(tokens), "length" if finished else None)

    def _step(self) -> Delta:
        token = self._token(self._made)
        self._made += 1
        self._bytes += VOCABULARY[token]
        made = ""
        try:
            made = self._bytes.decode()
            self._bytes = b""
        except UnicodeDecodeError:
            pass
        self._text += made
        self._whole.made(token, made)
        reason = "length" if self._made >= self._max_tokens else None
        stopped_by = None
        end = len(self._text) - (0 if reason else self._hold)
        for stop in self._stop:
            at = self._text.find(stop, max(0, self._shown - len(stop) + 1))
            if at >= 0 and (stopped_by is None or at < end):
                end, reason, stopped_by = at, "stop", stop
        end = max(end, self._shown)
        self._whole.may_show(self._text[self._shown : end])
        self._shown = end
        self.open = reason is None
        taken = self._whole.take(finished=reason is not None)
        text, tokens = "".join(text for _, text in taken), tuple(token for token, _ in taken)
        return Delta(self.index, text, tokens, reason, stop_reason=stopped_by)

    def _token(self, position: int) -> int:
        """Every 16 positions hold one emoji in its three parts, at 5, 6 and 7."""
        if 5 <= position % 16 <= 7:
            return EMOJI_IDS[position % 16 - 5]
        digest = self._digest
        return (digest[position % 32] * 31 + digest[(position // 32) % 32] + position) % len(WORDS)


def _echo(index: int, prompt: str, request: GenerateRequest) -> Delta:
    """The prompt before the output; of a conversation the assistant's turn that is gone on with, as vLLM has it."""
    if request.messages is not None:
        last = request.messages[-1] if request.messages else None
        return Delta(index, (last.content or "") if last is not None and last.role == "assistant" else "")
    if request.logprobs is None:
        return Delta(index, prompt)
    words = [word.encode() for word in re.findall(r"\s*\S+|\s+$", prompt)]
    entries = logprob_entries(words, 0, request.logprobs)
    # Nothing comes before the first.
    return Delta(index, prompt, logprobs=({**entries[0], "logprob": None, "top": []}, *entries[1:]) if entries else ())


def count_tokens(text: str) -> int:
    """Tokens of a prompt: its words, and one more."""
    return len(text.split()) + 1


def _prompt_text(request: GenerateRequest) -> str:
    if isinstance(request.prompt, list):
        return " ".join(map(str, request.prompt))
    if request.messages is None:
        return request.prompt or ""
    return "\n".join(f"{message.role}: {message.content or ''}" for message in request.messages)
