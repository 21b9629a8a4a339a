"""The requests and their expected results: the simulated engine's text is a function of the prompt."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chaos.plan import MODEL, Plan
from shared.config.models.simulated import SimulatedModel, SimulatedOptions
from shared.domain.events import Delta
from shared.domain.request import GenerateRequest, Sampling
from workers.engines.simulated.engine import WORDS, SimulatedEngine

PROMPTS = 500
LARGE = "x" * 1_000_000
MANY = {"n": 16, "logprobs": 20}


@dataclass(frozen=True, slots=True)
class Work:
    """A request and its expected result: the text of the first choice, the tokens of all."""

    prompt: str
    max_tokens: int
    stop: str | None
    text: str
    tokens: int
    finish_reason: str
    # Other parameters of the request.
    more: Mapping[str, Any] = field(default_factory=dict)

    def body(self, number: int) -> dict[str, Any]:
        """Return the body for `POST /v1/jobs`."""
        body = {"model": MODEL, "prompt": self.prompt, "max_tokens": self.max_tokens, **self.more}
        if self.stop is not None:
            body["stop"] = self.stop
        return body | {"metadata": {"number": str(number)}}


async def make_work(plan: Plan, rng: random.Random) -> list[Work]:
    """Generate the requests. A few have a stop string, so they restart instead of resuming; a few are heavy."""
    engine = SimulatedEngine(
        SimulatedModel(name=MODEL, engine="simulated", options=SimulatedOptions(ttft_ms=0, itl_ms=0))
    )
    works = []
    for number in range(PROMPTS):
        prompt = f"The mill {number} of {rng.randrange(10**9)}"
        stop = rng.choice(WORDS) if rng.random() < plan.stops else None
        more: Mapping[str, Any] = {}
        if rng.random() < plan.heavy:
            prompt, more = rng.choice([(f"{prompt} {LARGE}", {}), (prompt, MANY)])
        works.append(await _run_undisturbed(engine, prompt, rng.randint(*plan.tokens), stop, more))
    return works


async def _run_undisturbed(
    engine: SimulatedEngine, prompt: str, max_tokens: int, stop: str | None, more: Mapping[str, Any]
) -> Work:
    sampling = Sampling(max_tokens=max_tokens, stop=[stop] if stop else [], n=more.get("n", 1))
    request = GenerateRequest(prompt=prompt, sampling=sampling)
    deltas = [item async for item in engine.generate("undisturbed", request) if isinstance(item, Delta)]
    first = [delta for delta in deltas if delta.index == 0]
    text = "".join(delta.text for delta in first)
    tokens = sum(len(delta.token_ids) for delta in deltas)
    return Work(prompt, max_tokens, stop, text, tokens, first[-1].finish_reason or "", more)
