"""Measures one engine, in the process that runs it, through the interface that workers use."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from statistics import median
from typing import Any

from shared.config.models.vllm import VllmModel
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta
from shared.domain.request import GenerateRequest, Message, Sampling
from tune.results import DONE, perplexity
from tune.workload import REPETITIVE, Plan, long_prefix, question, windows
from workers.engines.base import Engine, EngineError

# Of the long prefix, for a context that has room for it.
PREFIX_TOKENS = 1000
# Beside a prefix: the question, the chat template and the answer.
ROOM = 200
# The answer to a request that measures the first token.
SHORT = 4

# Receives the name of a figure (`tune.results.Figures`) and its value, or None when the measurement of it begins.
Report = Callable[[str, Any], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: its tokens, and the times of its first token and of its end, by the monotonic clock."""

    began: float
    first: float
    ended: float
    tokens: list[int]

    @property
    def first_token(self) -> float:
        return self.first - self.began

    @property
    def speed(self) -> float:
        """Tokens per second after the first one."""
        return (len(self.tokens) - 1) / max(self.ended - self.first, 1e-9)


class Measurement:
    """The measurements of one engine that has started."""

    def __init__(self, engine: Engine, model: VllmModel, plan: Plan, report: Report) -> None:
        self._engine = engine
        self._context = model.max_model_len or 2048
        self._plan = plan
        self._report = report
        self._requests = 0
        self._has_template = True

    async def run(self) -> None:
        """Measure everything, reporting each figure when it is known."""
        await self._first_request()
        for name, measured in (
            ("speed", self._speeds),
            ("perplexity", self._perplexity),
            ("answers", self._answers),
            ("cold", self._prefixes),
            ("plain", self._speculation),
        ):
            self._report(name, None)
            await measured()
        self._report(DONE, None)

    async def _first_request(self) -> None:
        """Not measured: it pays for everything that is computed once. Also finds out if there is a chat template."""
        try:
            await self._answer(question(0), 8)
        except InvalidRequest:
            self._has_template = False
            await self._answer(question(0), 8)

    async def _speeds(self) -> None:
        plan = self._plan
        alone = [(await self._answer(question(at), SHORT)).first_token for at in range(max(3, plan.repeats))]
        speeds, first_tokens = {}, {1: median(alone)}
        for streams, tokens in plan.tokens.items():
            runs = [await self._together(streams, tokens) for _ in range(plan.repeats)]
            speeds[streams] = median(speed for speed, _ in runs)
            if streams > 1:
                first_tokens[streams] = median(first for _, first in runs)
            self._report("speed", speeds)
            self._report("first_token", first_tokens)

    async def _together(self, streams: int, tokens: int) -> tuple[float, float]:
        """Tokens per second of all streams together, and the median of their first tokens."""
        began = time.monotonic()
        answers = await asyncio.gather(*(self._answer(question(number), tokens) for number in range(streams)))
        seconds = max(answer.ended for answer in answers) - began
        return sum(len(answer.tokens) for answer in answers) / seconds, median(a.first_token for a in answers)

    async def _perplexity(self) -> None:
        logprobs: list[float] = []
        for text in windows(self._plan.windows):
            request = GenerateRequest(
                prompt=text,
                prompt_logprobs=0,
                prompt_only=True,
                sampling=Sampling(max_tokens=1, temperature=0),
            )
            deltas = await self._deltas(request)
            entries = [json.loads(entry) for delta in deltas for entry in delta.prompt_logprobs]
            logprobs += [entry[1] for entry in entries if entry is not None]
        value = perplexity(logprobs) if logprobs else math.nan
        if not math.isfinite(value):
            raise EngineError("the log probabilities of the text are not finite: the output is useless")
        self._report("perplexity", value)

    async def _answers(self) -> None:
        plan = self._plan
        answers = await asyncio.gather(
            *(self._answer(question(number), plan.answer_tokens, ignore_eos=False) for number in range(plan.answers))
        )
        self._report("answers", [answer.tokens for answer in answers])

    async def _prefixes(self) -> None:
        """The first token after a long prefix: when it is new, when it is in the cache, and when it was warmed."""
        length = min(PREFIX_TOKENS, self._context - ROOM)
        if length < PREFIX_TOKENS // 4:
            return
        text = long_prefix(length)
        cold, cached, warmed = [], [], []
        for repeat in range(self._plan.repeats):
            # The prompts differ from their start on, so that each is new to the cache.
            prompt = f"Text {repeat}, as it was printed:\n{text}\n\n"
            cold.append((await self._answer(prompt + question(0), SHORT)).first_token)
            cached.append((await self._answer(prompt + question(1), SHORT)).first_token)
            if self._engine_room > length:
                prompt = f"Extract {repeat}, as it was printed:\n{text}\n\n"
                pair = [self._request(prompt + question(number), SHORT) for number in (0, 1)]
                tokens = await self._engine.prefix(pair)  # type: ignore[attr-defined]
                await self._engine.prefill(self._next_id(), tokens, "")  # type: ignore[attr-defined]
                warmed.append((await self._answer(prompt + question(2), SHORT)).first_token)
        self._report("cold", median(cold))
        self._report("cached", median(cached))
        if warmed:
            self._report("warmed", median(warmed))

    @property
    def _engine_room(self) -> int:
        return int(getattr(self._engine, "prefix_room", 0))

    async def _speculation(self) -> None:
        """One stream whose answer repeats its prompt, and one that does not."""
        tokens = self._plan.speculation_tokens
        repetitive = [(await self._answer(REPETITIVE, tokens)).speed for _ in range(self._plan.repeats)]
        # Sampled, because greedy answers of small models repeat themselves.
        plain = [
            (await self._answer(question(2), tokens, temperature=0.8, seed=number)).speed
            for number in range(self._plan.repeats)
        ]
        self._report("repetitive", median(repetitive))
        self._report("plain", median(plain))

    def _request(self, text: str, tokens: int, **sampling_parameters: Any) -> GenerateRequest:
        parameters = {"temperature": 0, "ignore_eos": True, **sampling_parameters}
        sampling = Sampling(max_tokens=tokens, **parameters)
        if self._has_template:
            return GenerateRequest(messages=[Message(role="user", content=text)], sampling=sampling)
        return GenerateRequest(prompt=text, sampling=sampling)

    async def _answer(self, text: str, tokens: int, **sampling_parameters: Any) -> Answer:
        request = self._request(text, tokens, **sampling_parameters)
        began, first, ids = time.monotonic(), math.nan, list[int]()
        async with aclosing(self._engine.generate(self._next_id(), request)) as items:
            async for item in items:
                if isinstance(item, Delta) and item.token_ids:
                    if not ids:
                        first = time.monotonic()
                    ids += item.token_ids
        if not ids:
            raise EngineError("an answer had no tokens")
        return Answer(began, first, time.monotonic(), ids)

    async def _deltas(self, request: GenerateRequest) -> list[Delta]:
        async with aclosing(self._engine.generate(self._next_id(), request)) as items:
            return [item async for item in items if isinstance(item, Delta)]

    def _next_id(self) -> str:
        self._requests += 1
        return f"tune-{self._requests}"
