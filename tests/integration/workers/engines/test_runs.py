"""Requests that an upstream runs without their connection: one suite over the vendors that have them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web

from shared.config.models.loader import ModelSpec
from shared.config.models.upstream import UpstreamModel
from shared.domain.events import Delta, UpstreamState
from shared.runtime.aio import cancel_and_wait
from tests.integration.workers.engines.answer import ASK, Answer, no_backoff, started
from tests.support.vendors.catalog import VENDORS
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import KEY, KEY_ENV, Seen, Vendor
from workers.engines.base import CannotContinue, EngineError, Prior, UpstreamBusy, UpstreamError
from workers.engines.resume import Resume
from workers.engines.upstream.breaker import FAILURES
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


@pytest.mark.parametrize(
    "data",
    [
        {"api": "another"},
        {"api": "own", "endpoint_id": "gone"},
        {"api": "own", "endpoint_id": "gone", "endpoint": "0"},
        {"api": "own", "endpoint": "gone"},
    ],
)
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
    assert set(state.data) == {"api", "endpoint_id", "endpoint"}
    assert KEY_ENV not in str(state.data)


# Workers of two versions, during an upgrade. Remove these tests with the code that they are for.

# What the previous version wrote for one endpoint. For several, it added `endpoint` with the name.
PREVIOUS: dict[str | None, dict[str, Any]] = {"responses": {"api": "responses"}, "replicate": {}, "runpod": {}}


async def test_a_run_that_the_previous_version_began_is_resumed(vendor: Vendor) -> None:
    async with started(vendor.spec()) as engine:
        first = await begun(vendor, engine)
        assert first.state is not None
        first.state = UpstreamState(first.state.id, PREVIOUS[engine.run_api])
        assert engine.resume_mode(ASK, first.prior) is Resume.EXACT
        await vendor.go_on()
        rest = await Answer().take(engine, prior=first.prior)
        assert (first.text + rest.text, vendor.generated) == ("Hi there", 1)
        await engine.cancel(first.state)
    assert vendor.cancelled.is_set()


async def test_the_previous_version_named_one_of_several_endpoints(vendor: Vendor) -> None:
    async with type(vendor)().serve() as other:
        own = {"base_url": base_url(vendor), "api_key_env": KEY_ENV, "weight": 0.001}
        entries = [{"base_url": base_url(other), "api_key_env": KEY_ENV, "weight": 1000}, own]
        async with started(with_endpoints(vendor, entries)) as engine:
            data = PREVIOUS[engine.run_api]
            state = UpstreamState("run1", {**data, "endpoint": "1"})
            assert engine.resume_mode(ASK, Prior((), True, state)) is Resume.EXACT
            await engine.cancel(state)
            assert (len(vendor.seen), other.seen) == (1, [])
            unknown = UpstreamState("run1", data)
            assert engine.resume_mode(ASK, Prior((), True, unknown)) is Resume.NONE, "any of them may run it"


async def test_the_previous_version_finds_the_endpoint_of_a_run(vendor: Vendor) -> None:
    own = {"base_url": base_url(vendor), "api_key_env": KEY_ENV}
    async with started(with_endpoints(vendor, [own | {"name": "mine"}, own | {"api_key_env": "OTHER_KEY"}])) as engine:
        states = [(await Answer().take(engine)).state for _ in range(8)]
        keys = [seen.headers["authorization"] for seen in vendor.seen if seen.method == "POST"]
    names = {f"Bearer {KEY}": "mine", "Bearer other": "1"}
    assert [state.data["endpoint"] for state in states if state] == [names[key] for key in keys]


# A key that is refused while a run goes on


class RefusedPolls:
    """A vendor that refuses the key of requests about a run, while `status` is set."""

    def __init__(self, vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.status = 0
        self._record = vendor.record
        monkeypatch.setattr(vendor, "record", self._refuse)

    async def _refuse(self, request: web.Request) -> Seen:
        seen = await self._record(request)
        if self.status and request.method == "GET":
            refusal: type[web.HTTPException] = type("Refusal", (web.HTTPClientError,), {"status_code": self.status})
            raise refusal
        return seen


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_a_run_goes_on_without_its_key(vendor: Vendor, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """Its job waits: the key, or the account, may be accepted again. Nothing is lost or cancelled."""
    polls = RefusedPolls(vendor, monkeypatch)
    async with started(vendor.spec()) as engine:
        first = await begun(vendor, engine)
        polls.status = status
        for prior in (first.prior, Prior((), True, first.state)):
            with pytest.raises(UpstreamBusy, match=str(status)):
                await Answer().take(engine, prior=prior)
        polls.status = 0
        await vendor.go_on()
        rest = await Answer().take(engine, prior=first.prior)
    assert (first.text + rest.text, vendor.generated) == ("Hi there", 1)
    assert not any("cancel" in seen.path for seen in vendor.seen)


async def test_runs_whose_key_is_refused_do_not_stop_jobs_of_other_keys(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls = RefusedPolls(vendor, monkeypatch)
    own = {"base_url": base_url(vendor), "api_key_env": KEY_ENV, "weight": 1000}
    async with started(with_endpoints(vendor, [own, own | {"api_key_env": "OTHER_KEY", "weight": 0.001}])) as engine:
        first = await begun(vendor, engine)
        polls.status = 401
        for _ in range(FAILURES + 1):
            with pytest.raises(UpstreamBusy):
                await Answer().take(engine, prior=first.prior)
        assert engine.gate.breaker is None


# Runs that the upstream has ended


async def test_a_run_that_has_failed_is_not_to_be_cancelled(vendor: Vendor) -> None:
    vendor.default = Script(fail_after=1, status=200)
    async with started(vendor.spec(max_retries=0)) as engine:
        answer = Answer()
        with pytest.raises(EngineError):
            await answer.take(engine)
    assert answer.run_ended


async def test_a_run_that_is_given_up_is_to_be_cancelled(vendor: Vendor) -> None:
    async with started(vendor.spec()) as engine:
        answer = await begun(vendor, engine)
    assert not answer.run_ended
