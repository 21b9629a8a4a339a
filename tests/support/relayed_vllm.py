"""The relaying engines in front of vLLM's own server, which speaks the APIs of OpenAI and Anthropic."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from shared.config.models.loader import ModelSpec
from shared.domain.events import Delta, UpstreamState
from shared.domain.job import Choice, Usage
from shared.domain.request import GenerateRequest, Message, Sampling
from tests.support.metrics import worker_metrics
from tests.support.transcripts import choices_of
from tests.support.waiting import eventually
from workers.engines.base import NO_PRIOR, Engine, Prior
from workers.engines.factory import make_engine

QUESTION = "Name three rivers in Europe."
TOKENS = 24
REQUEST = GenerateRequest(
    messages=[Message(role="user", content=QUESTION)], sampling=Sampling(temperature=0, max_tokens=TOKENS)
)
# The entries of models.yaml by the API that they use, without what all have in common.
ENGINES: dict[str, dict[str, Any]] = {
    "chat": {"engine": "openai", "preset": "vllm"},
    "anthropic": {"engine": "anthropic"},
    "responses": {"engine": "openai", "preset": "vllm", "api": "responses"},
}
# Of vLLM's server: it keeps responses.
SETTINGS = {"VLLM_ENABLE_RESPONSES_API_STORE": "1"}
# Deltas that a worker has emitted before another one resumes the response.
BEFORE = 3


@dataclass(frozen=True, slots=True)
class Relayed:
    """An answer to `REQUEST`, and what the server reported: the usage, and with `preset: vllm` its context length.

    `resumed`: the same answer, read by another worker from the middle on, if the API can do that.
    """

    choice: Choice
    usage: Usage | None
    resumed: Choice | None
    context: int | None


async def relayed(url: str, served_model: str) -> dict[str, Relayed]:
    """The answers to `REQUEST` by API; `url` is that of vLLM's server, without a path."""
    answers = {}
    for name, entry in ENGINES.items():
        options = {**entry.get("options", {}), "base_url": f"{url}/v1"}
        model: ModelSpec = TypeAdapter(ModelSpec).validate_python(
            {"name": name, "model": served_model, **entry, "options": options}
        )
        engine = make_engine(model, worker_metrics(name))
        await engine.start()
        try:
            answer = await run(engine)
            resumed = None
            if answer.state is not None:
                seen = answer.deltas[:BEFORE]
                resumed = (await run(engine, Prior(seen, True, answer.state, seen[-1].cursor))).choice
            context = await _context_of(engine) if model.context_source is not None else None
            answers[name] = Relayed(answer.choice, answer.usage, resumed, context)
        finally:
            await engine.stop()
    return answers


async def _context_of(engine: Engine) -> int:
    async def probe() -> int | None:
        context = engine.stats().context
        return context.tokens if context is not None else None

    return await eventually(probe, "the context length of vLLM's server")


@dataclass(frozen=True, slots=True)
class Answer:
    deltas: list[Delta]
    usage: Usage | None
    state: UpstreamState | None

    @property
    def choice(self) -> Choice:
        return choices_of(self.deltas)[0]


async def run(engine: Engine, prior: Prior = NO_PRIOR) -> Answer:
    """The answer to `REQUEST`, with what is there of it before."""
    deltas: list[Delta] = list(prior.deltas)
    usage, state = None, None
    async with aclosing(engine.generate("job-1", REQUEST, prior)) as items:
        async for item in items:
            match item:
                case Delta():
                    deltas.append(item)
                case Usage():
                    usage = item
                case UpstreamState():
                    state = item
    return Answer(deltas, usage, state)
