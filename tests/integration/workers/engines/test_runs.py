"""Requests that an upstream runs without their connection: one suite over the vendors that have them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from shared.config.models.loader import ModelSpec
from shared.config.models.upstream import UpstreamModel
from shared.domain.events import Delta, UpstreamState
from shared.runtime.aio import cancel_and_wait
from tests.integration.workers.engines.answer import ASK, Answer, no_backoff, started
from tests.support.vendors.catalog import VENDORS
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY, KEY_ENV, Vendor
from workers.engines.base import CannotContinue, Prior, UpstreamError
from workers.engines.resume import Resume
from workers.engines.upstream.engine import UpstreamEngine

__all__ = ["no_backoff"]

pytestmark = pytest.mark.usefixtures("no_backoff")
RUNNING = {name: kind for name, kind in VENDORS.items() if kind.resumes}


@pytest.fixture(params=RUNNING)
async def vendor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Vendor]:
    monkeypatch.setenv("OTHER_KEY", "other")
    async with RUNNING[request.param]().serve() as vendor:
        yield vendor


def base_url(vendor: Vendor) -> str:
    spec = vendor.spec()
    assert isinstance(spec, UpstreamModel)
    return spec.options.base_url


def with_endpoints(vendor: Vendor, endpoints: list[dict[str, Any]]) -> ModelSpec:
    """The vendor's entry with several endpoints in place of its own."""
    spec = vendor.spec()
    fields = spec.model_dump(mode="json", exclude_unset=True, by_alias=True)
    del fields["options"]["base_url"], fields["options"]["api_key_env"]
    fields["options"]["endpoints"] = endpoints
    return type(spec).model_validate(fields)


async def begun(vendor: Vendor, engine: UpstreamEngine) -> Answer:
    """An answer whose worker was lost after its first piece."""
    vendor.scripts = [Script(hang_after=1)]
    answer = await Answer().take_text(engine, 1)
    assert answer.text == "Hi "
    return answer


# Runs that the upstream has forgotten


async def test_a_forgotten_run_with_output_cannot_continue(vendor: Vendor) -> None:
    async with started(vendor.spec()) as engine:
        first = await begun(vendor, engine)
        vendor.forget()
        with pytest.raises(CannotContinue, match="no longer"):
            await Answer().take(engine, prior=first.prior)
    assert vendor.generated == 1


async def test_a_forgotten_run_without_output_is_created_again(vendor: Vendor) -> None:
    async with started(vendor.spec()) as engine:
        first = await begun(vendor, engine)
        vendor.forget()
        again = await Answer().take(engine, prior=Prior((), True, first.state))
    assert (again.text, again.reasons, vendor.generated) == ("Hi there", ["stop"], 2)
    assert again.state is not None
    assert first.state is not None
    assert again.state.id != first.state.id


async def test_an_upstream_that_keeps_no_run_is_not_asked_for_ever(vendor: Vendor) -> None:
    async with started(vendor.spec(read_timeout_s=0.05)) as engine:
        first = await begun(vendor, engine)
        vendor.forgetful = True
        vendor.forget()
        vendor.default = Script(text=(), hang_after=0)
        with pytest.raises(UpstreamError, match="no longer"):
            await Answer().take(engine, prior=Prior((), True, first.state))
    assert vendor.generated == 2


async def test_another_answer_cannot_be_continued(vendor: Vendor) -> None:
    async with started(vendor.spec()) as engine:
        first = await Answer().take(engine)
        with pytest.raises(CannotContinue):
            await Answer().take(engine, prior=Prior([Delta(0, "Else")], True, first.state, None))
    assert vendor.generated == 1


# The runs of others


@pytest.mark.parametrize("data", [{}, {"api": "another"}, {"api": "own", "endpoint": "gone"}, {"api": "own"}])
async def test_the_run_of_another_api_or_endpoint_is_not_used(vendor: Vendor, data: dict[str, str]) -> None:
    async with started(vendor.spec()) as engine:
        own = {"api": engine.run_api}
        foreign = UpstreamState("run1", data | (own if data.get("api") == "own" else {}))
        prior = Prior([Delta(0, "Hi ")], True, foreign, "1:1")
        assert engine.resume_mode(ASK, prior) is Resume.NONE
        with pytest.raises(CannotContinue):
            await Answer().take(engine, prior=prior)
        with pytest.raises(UpstreamError, match="of another API or endpoint"):
            await engine.cancel(foreign)
        assert vendor.seen == []
        assert (await Answer().take(engine, prior=Prior((), True, foreign))).text == "Hi there"
    assert not any("run1" in seen.path for seen in vendor.seen)


async def test_a_run_stays_with_its_endpoint(vendor: Vendor) -> None:
    """Also if the entry had one endpoint when it was created, and has several now, in any order and with any names."""
    async with started(vendor.spec()) as engine:
        first = await begun(vendor, engine)
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(type(vendor)().serve())
        own = {"base_url": base_url(vendor), "api_key_env": KEY_ENV, "weight": 0.001}
        others = [{"base_url": base_url(other), "api_key_env": KEY_ENV, "weight": 1000}]
        others.append(own | {"api_key_env": "OTHER_KEY", "weight": 1000})
        for entries in ([*others, own], [own | {"name": "mine"}, *others]):
            engine = await stack.enter_async_context(started(with_endpoints(vendor, entries)))
            assert engine.resume_mode(ASK, first.prior) is Resume.EXACT
            vendor.seen.clear()
            vendor.arrived.clear()
            task = asyncio.create_task(Answer().take(engine, prior=first.prior))
            await vendor.arrived.wait()
            await cancel_and_wait(task)
            assert {seen.headers["authorization"] for seen in vendor.seen} == {f"Bearer {KEY}"}
        assert first.state is not None
        await engine.cancel(first.state)
        assert vendor.cancelled.is_set()
        gone = await stack.enter_async_context(started(with_endpoints(vendor, others)))
        assert gone.resume_mode(ASK, first.prior) is Resume.NONE
        seen = len(vendor.seen)
        with pytest.raises(UpstreamError, match="of another API or endpoint"):
            await gone.cancel(first.state)
        with pytest.raises(CannotContinue):
            await Answer().take(gone, prior=first.prior)
        assert (len(vendor.seen), other.seen) == (seen, [])


async def test_states_have_their_api_and_endpoint(vendor: Vendor) -> None:
    async with started(vendor.spec()) as engine:
        assert engine.resume_mode(ASK) is Resume.EXACT
        state = (await Answer().take(engine)).state
    assert state is not None
    assert state.data["api"] == engine.run_api
    assert set(state.data) == {"api", "endpoint"}
    assert KEY_ENV not in str(state.data)
