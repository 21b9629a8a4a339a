"""Runs requests on an engine in front of a stand-in, and keeps what it emits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from shared.config.models.loader import ModelSpec
from shared.domain.events import Delta, UpstreamState
from shared.domain.job import Usage
from shared.domain.request import GenerateRequest, Message, Sampling
from shared.telemetry.metrics import Metrics
from tests.support.metrics import worker_metrics
from tests.support.vendors.vendor import KEY, KEY_ENV, Vendor
from workers.engines.base import NO_PRIOR, EngineError, Prior, RunEnded
from workers.engines.factory import make_engine
from workers.engines.upstream.engine import UpstreamEngine

ASK = GenerateRequest(messages=[Message(role="user", content="Hello")], sampling=Sampling(max_tokens=50))
TEXT = ("One, ", "two, ", "three ", "and ", "four.")
WHOLE = "".join(TEXT)


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed requests are repeated at once; the vendor's key is set."""
    monkeypatch.setattr("workers.engines.upstream.backoff.BACKOFF_S", (0.0, 0.0))
    monkeypatch.setenv(KEY_ENV, KEY)


@asynccontextmanager
async def started(model: ModelSpec, metrics: Metrics | None = None) -> AsyncIterator[UpstreamEngine]:
    """An engine, which must have no request left at the end."""
    engine = make_engine(model, metrics or worker_metrics("up"))
    assert isinstance(engine, UpstreamEngine)
    await engine.start()
    try:
        yield engine
        assert engine.stats().requests == 0
    finally:
        await engine.stop()


async def run(vendor: Vendor, request: GenerateRequest = ASK, **options: Any) -> Answer:
    """The answer of an engine with these options."""
    async with started(vendor.spec(**options)) as engine:
        return await Answer().take(engine, request)


async def failure(vendor: Vendor, answer: Answer | None = None, **options: Any) -> EngineError:
    """The error of a request to an engine with these options, and its output before that."""
    async with started(vendor.spec(**options)) as engine:
        with pytest.raises(EngineError) as caught:
            await (answer or Answer()).take(engine)
    assert KEY not in caught.value.message
    return caught.value


def exported(metrics: Metrics) -> dict[str, float]:
    """The samples of the model `up`."""
    families = metrics.registry().collect()
    samples = [sample for family in families for sample in family.samples]
    return {sample.name: sample.value for sample in samples if sample.labels.get("model") == "up"}


class Answer:
    """The output of one attempt, and what the next one gets from it."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.state: UpstreamState | None = None
        self.usage: Usage | None = None
        self.run_ended = False

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def reasons(self) -> list[str]:
        return [delta.finish_reason for delta in self.deltas if delta.finish_reason]

    @property
    def cursor(self) -> int | str | None:
        return next((delta.cursor for delta in reversed(self.deltas) if delta.cursor is not None), None)

    @property
    def prior(self) -> Prior:
        return Prior(self.deltas, True, self.state, self.cursor)

    async def take(self, engine: UpstreamEngine, request: GenerateRequest = ASK, prior: Prior = NO_PRIOR) -> Answer:
        """The rest of an answer."""
        async with aclosing(engine.generate("job-1", request, prior)) as items:
            async for item in items:
                self.add(item)
        return self

    async def take_text(self, engine: UpstreamEngine, characters: int) -> Answer:
        """The beginning of an answer, of so many characters or more."""
        async with aclosing(engine.generate("job-1", ASK)) as items:
            async for item in items:
                self.add(item)
                if len(self.text) >= characters:
                    break
        return self

    def add(self, item: Any) -> None:
        match item:
            case Delta():
                self.deltas.append(item)
            case UpstreamState():
                assert not self.deltas
                self.state = item
            case RunEnded():
                self.run_ended = True
            case Usage():
                self.usage = item
