"""What the circuit breaker learns from requests that an upstream runs on without their connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from shared.domain.events import UpstreamState
from tests.integration.workers.engines.answer import ASK
from tests.support.metrics import worker_metrics
from tests.support.vendors.replicate import ReplicateVendor
from tests.support.vendors.responses import ResponsesVendor
from tests.support.vendors.runpod import RunpodVendor
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY, KEY_ENV, Vendor
from workers.engines.base import NO_PRIOR, BusyReason, Prior, UpstreamBusy
from workers.engines.factory import make_engine
from workers.engines.upstream.breaker import FAILURES
from workers.engines.upstream.engine import UpstreamEngine

VENDORS = [ResponsesVendor, ReplicateVendor, RunpodVendor]
WITHIN_S = 20
METRICS = worker_metrics("up")


@pytest.fixture(params=VENDORS, ids=lambda kind: kind.__name__)
async def vendor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Vendor]:
    monkeypatch.setenv(KEY_ENV, KEY)
    async with request.param().serve() as vendor:
        vendor.default = Script(hang_after=0)
        yield vendor


@asynccontextmanager
async def started(vendor: Vendor, **options: object) -> AsyncIterator[UpstreamEngine]:
    engine = make_engine(vendor.spec(**options), METRICS)
    assert isinstance(engine, UpstreamEngine)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def accepted(engine: UpstreamEngine) -> UpstreamState:
    """Send a request; returns once the upstream runs it."""
    async with aclosing(engine.generate("job_1-1", ASK)) as items:
        state = await asyncio.wait_for(anext(items), WITHIN_S)
    assert isinstance(state, UpstreamState)
    return state


def resumed() -> float:
    return float(METRICS.upstream_resumes.labels("up", "attempt")._value.get())


async def wait_for_delta(engine: UpstreamEngine, request_id: str, prior: Prior = NO_PRIOR) -> None:
    async with aclosing(engine.generate(request_id, ASK, prior)) as items:
        async for item in items:
            assert isinstance(item, UpstreamState)


async def test_an_upstream_that_knows_the_request_closes_the_breaker(vendor: Vendor) -> None:
    """Its first token may come after a cold start; until then, no other job would pass."""
    async with started(vendor) as engine:
        state, gate = await accepted(engine), engine.gate
        resumed_before = resumed()
        for number in range(FAILURES):
            gate.failed(f"job_{number}", "HTTP 503")
        gate._breaker._half_open()
        assert await gate.enter(0) is not None
        room = asyncio.Event()
        gate.on_room = room.set
        answer = asyncio.create_task(wait_for_delta(engine, "job_1-2", Prior(upstream=state)))
        await asyncio.wait_for(room.wait(), WITHIN_S)
        assert gate.breaker is None
        assert not answer.done()
        assert resumed() == resumed_before + 1
        answer.cancel()
        await asyncio.wait([answer])


@pytest.mark.parametrize("vendor", [ResponsesVendor, ReplicateVendor], indirect=True)
async def test_a_cold_start_does_not_open_the_breaker(vendor: Vendor) -> None:
    """A connection that times out meanwhile says nothing about other requests."""
    async with started(vendor, read_timeout_s=0.03, max_retries=0) as engine:
        for number in range(FAILURES + 1):
            with pytest.raises(UpstreamBusy) as caught:
                await wait_for_delta(engine, f"job_{number}-1")
            assert caught.value.reason is BusyReason.TIMEOUT
        assert engine.gate.breaker is None
