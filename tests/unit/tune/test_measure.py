"""The measurements of an engine, on a scripted one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import pytest

from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta
from shared.domain.request import GenerateRequest
from tests.unit.tune.rows import MODEL
from tune.measure import Measurement
from tune.results import DONE, Figures
from tune.workload import QUICK, question
from workers.engines.base import Engine, EngineError


class Scripted:
    """Answers with numbered tokens, at once. Counts what runs at the same time, and notes what was warmed."""

    prefix_room = 100_000

    def __init__(self, logprob: float = -2.0, *, template: bool = True) -> None:
        self.logprob = logprob
        self.template = template
        self.requests: list[GenerateRequest] = []
        self.warmed: list[str] = []
        self.most = 0
        self._running = 0

    async def generate(self, request_id: str, request: GenerateRequest) -> AsyncGenerator[Delta]:
        if request.messages is not None and not self.template:
            raise InvalidRequest("the model has no chat template")
        self.requests.append(request)
        if request.prompt_logprobs is not None:
            entries = [None, [7, self.logprob, 1, "a"], [8, self.logprob, 2, "b"]]
            yield Delta(0, prompt_logprobs=[json.dumps(entry).encode() for entry in entries], finish_reason="length")
            return
        self._running += 1
        self.most = max(self.most, self._running)
        for token in range(request.sampling.max_tokens or 0):
            await asyncio.sleep(0)
            yield Delta(0, "x", (token,))
        self._running -= 1

    async def prefix(self, requests: Sequence[GenerateRequest]) -> list[int]:
        self.warmed += [text(request) for request in requests]
        return [1, 2, 3]

    async def prefill(self, request_id: str, tokens: Sequence[int], salt: str) -> int:
        return len(tokens)


def text(request: GenerateRequest) -> str:
    if request.messages is None:
        return str(request.prompt)
    return str(request.messages[0].content)


async def measured(engine: Scripted, **options: Any) -> tuple[Figures, list[str]]:
    model = MODEL.model_copy(update={"options": {**MODEL.options, **options}})
    values: dict[str, Any] = {}
    steps: list[str] = []

    def report(name: str, value: Any) -> None:
        if value is None:
            steps.append(name)
        else:
            values[name] = value

    await Measurement(cast(Engine, engine), model, QUICK, report).run()
    return Figures.of(json.loads(json.dumps(values))), steps


async def test_everything_is_measured() -> None:
    engine = Scripted()
    figures, steps = await measured(engine)
    assert steps[-1] == DONE
    assert set(figures.speed) == set(figures.first_token) == {1, 4, 16, 64}
    assert all(speed > 0 for speed in figures.speed.values())
    assert figures.perplexity == pytest.approx(7.389, abs=0.001)
    assert figures.answers == [list(range(QUICK.answer_tokens))] * QUICK.answers
    for value in (figures.cold, figures.cached, figures.warmed, figures.repetitive, figures.plain):
        assert value is not None
        assert value > 0
    assert engine.most == 64


async def test_a_warmed_prompt_is_new_to_the_cache_otherwise() -> None:
    engine = Scripted()
    await measured(engine)
    prompts = [text(request) for request in engine.requests]
    start = engine.warmed[0][:40]
    assert [prompt for prompt in prompts if prompt.startswith(start)] == [
        engine.warmed[0].replace(question(0), question(2))
    ]


async def test_without_a_chat_template_prompts_are_plain() -> None:
    engine = Scripted(template=False)
    figures, _ = await measured(engine)
    assert figures.speed[64] > 0
    assert all(request.messages is None for request in engine.requests)


async def test_a_short_context_has_no_long_prefix() -> None:
    figures, _ = await measured(Scripted(), max_model_len=256)
    assert figures.speed[1] > 0
    assert figures.cold is None


async def test_output_that_is_not_a_number_is_a_problem() -> None:
    with pytest.raises(EngineError, match="not finite"):
        await measured(Scripted(logprob=float("nan")))
