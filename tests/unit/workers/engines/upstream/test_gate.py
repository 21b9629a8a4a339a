"""What holds back jobs before their claim: limits per minute, rate limits that an upstream reports, and the breaker."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from shared.config.models.openai import OpenAIModel
from shared.domain.job import Usage
from shared.domain.request import GenerateRequest
from tests.support.metrics import worker_metrics
from workers.engines.upstream import breaker
from workers.engines.upstream.breaker import FAILURES
from workers.engines.upstream.gate import HELD_S, Passage, UpstreamGate
from workers.engines.upstream.pause import UNNAMED_S
from workers.engines.upstream.token_bucket import TokenBucket

WITHIN_S = 10
REQUEST = GenerateRequest(prompt=[1] * 1000)


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "OPEN_S", (0.02, 0.08))


def make(**options: Any) -> UpstreamGate:
    options = {"base_url": "http://127.0.0.1:1/v1", **options}
    model = {"name": "m", "engine": "openai", "model": "theirs", "options": options}
    return UpstreamGate(OpenAIModel.model_validate(model), worker_metrics("m"))


def exhausted(requests_per_minute: float) -> UpstreamGate:
    """A gate whose burst of requests is used up."""
    gate = make(requests_per_minute=requests_per_minute)
    assert gate.requests is not None
    gate.requests.take(requests_per_minute / 10)
    return gate


def fail(gate: UpstreamGate, times: int = FAILURES, **options: bool) -> None:
    for number in range(times):
        gate.failed(f"job_{number}", "HTTP 503", **options)


async def entered(gate: UpstreamGate, priority: int = 0) -> Passage:
    passage = await asyncio.wait_for(gate.enter(priority), WITHIN_S)
    assert passage is not None
    return passage


async def enter_all(gate: UpstreamGate, *priorities: int) -> list[int]:
    """Let messages of these priorities wait, in this order. Returns the order in which they passed."""
    passed: list[int] = []

    async def enter(priority: int) -> None:
        passage = await entered(gate, priority)
        passage.claimed(REQUEST)
        passed.append(priority)

    waiting = [asyncio.create_task(enter(priority)) for priority in priorities]
    await asyncio.wait_for(asyncio.gather(*waiting), WITHIN_S)
    return passed


async def half_open(gate: UpstreamGate) -> None:
    """Wait until the breaker lets a probe through."""
    room = asyncio.Event()
    gate.on_room = room.set
    fail(gate)
    assert gate.holding
    await asyncio.wait_for(room.wait(), WITHIN_S)
    assert not gate.holding


def waiting_here(gate: UpstreamGate, priority: int = 0) -> asyncio.Task[Passage | None]:
    return asyncio.create_task(gate.enter(priority))


async def test_without_limits_everything_passes() -> None:
    gate = make()
    for _ in range(1000):
        await entered(gate)
    assert not gate.holding


async def test_requests_per_minute_let_the_most_urgent_pass_first() -> None:
    gate = exhausted(requests_per_minute=6000)
    assert await enter_all(gate, 9, 5, 0, 5) == [0, 5, 5, 9]


async def test_a_message_that_claimed_nothing_uses_nothing() -> None:
    gate = make(requests_per_minute=1)
    for _ in range(5):
        (await entered(gate)).close()
    (await entered(gate)).claimed(REQUEST)
    assert gate.requests is not None
    assert gate.requests.wait_s(1) > 50


async def test_few_messages_wait_and_no_others_are_fetched() -> None:
    room = asyncio.Event()
    gate = exhausted(requests_per_minute=600)
    gate.on_room = room.set
    assert not gate.holding
    waiting = [waiting_here(gate) for _ in range(3)]
    await asyncio.sleep(0)
    assert (gate.holding, gate.waiting) == (True, 3)
    await asyncio.wait_for(asyncio.gather(*waiting), WITHIN_S)
    assert room.is_set()


async def test_tokens_per_minute_are_settled_with_the_usage() -> None:
    gate = make(tokens_per_minute=60_000)
    for _ in range(6):  # prompts of 1,000 tokens: the burst
        passage = await entered(gate)
        passage.claimed(REQUEST)
    assert gate.tokens is not None
    assert gate.tokens.wait_s(0) == 0
    passage.settle(Usage(1000, 0, 3000), 0)
    assert gate.tokens.wait_s(0) == pytest.approx(3, abs=0.5)
    passage.settle(Usage(), 0)
    assert gate.tokens.wait_s(0) == pytest.approx(2, abs=0.5), "a request that was not answered used nothing"


async def test_a_resumed_request_is_settled_once() -> None:
    """Its usage is that of the whole answer, and an earlier attempt has counted the prompt and the first tokens."""
    gate = make(tokens_per_minute=60_000)
    assert gate.tokens is not None
    gate.tokens.take(6000)
    for usage, resumed_after in ((Usage(1000, 0, 500), 0), (Usage(1000, 0, 1500), 500)):
        passage = Passage(gate)
        passage.claimed(REQUEST)
        passage.settle(usage, resumed_after)
    assert gate.tokens.wait_s(0) == pytest.approx(2.5, abs=0.3), "1,000 + 1,500 tokens"


async def test_a_waiting_message_whose_run_is_cancelled_keeps_nothing() -> None:
    gate = exhausted(requests_per_minute=6000)
    cancelled = waiting_here(gate)
    await asyncio.sleep(0)
    cancelled.cancel()
    (await entered(gate, 5)).claimed(REQUEST)
    assert gate.waiting == 0


async def test_a_rate_limit_of_the_upstream_holds_back_all_jobs() -> None:
    gate = make()
    gate.limited(0.05)
    at = asyncio.get_running_loop().time()
    await entered(gate)
    assert asyncio.get_running_loop().time() - at >= 0.05
    gate.limited(1e9)
    waiting = waiting_here(gate)
    await asyncio.sleep(0)
    assert gate.holding
    gate.stop()
    assert await asyncio.wait_for(waiting, WITHIN_S) is None


async def test_a_longer_rate_limit_sends_messages_back() -> None:
    """In their order: each goes to the front of the queue. Others are fetched shortly before its end."""
    gate, room = make(), asyncio.Event()
    gate.on_room = room.set
    gate.limited(HELD_S / 2)
    back: list[int] = []

    async def enter(priority: int) -> None:
        assert await gate.enter(priority) is None
        back.append(priority)

    entering = [asyncio.create_task(enter(priority)) for priority in (5, 0, 9)]
    await asyncio.sleep(0)
    assert gate.waiting == 3
    gate.limited(HELD_S + 0.05)
    await asyncio.wait_for(asyncio.gather(*entering), WITHIN_S)
    assert back == [9, 5, 0]
    assert gate.holding
    await asyncio.wait_for(room.wait(), WITHIN_S)
    assert not gate.holding
    gate.stop()


async def test_a_rate_limit_without_a_delay_pauses_for_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each of the queued jobs would be claimed and sent to an upstream that refuses them all."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    gate = make()

    def pause_s() -> float:
        for _ in range(50):  # all requests that were under way are refused
            gate.limited(None)
        return gate._wait_s()

    pauses = []
    for _ in range(8):
        pauses.append(pause_s())
        now += pauses[-1] + 0.001
    first, longest = UNNAMED_S
    assert first * 0.75 <= pauses[0] <= first
    assert all(later >= earlier for earlier, later in pairwise(pauses[:6]))
    assert pauses[-1] <= longest
    gate.succeeded()
    assert pause_s() <= first
    gate.stop()


async def test_the_breaker_opens_after_failures_in_a_row() -> None:
    gate = make()
    fail(gate, FAILURES - 1)
    gate.succeeded()
    fail(gate, FAILURES - 1)
    assert gate.breaker is None
    waiting = await entered(gate)
    waiting.close()
    fail(gate, 1)
    assert gate.breaker is not None
    assert gate.breaker.reason == "HTTP 503"
    assert await gate.enter(0) is None, "its message goes back to the queue, where healthy workers find it"
    gate.succeeded()  # a request that was under way
    assert gate.breaker is None


async def test_one_request_alone_does_not_open_it_unless_the_request_cannot_be_the_cause() -> None:
    for by_request in (True, False):
        gate = make()
        for _ in range(20):
            gate.failed("job_1", "HTTP 500", by_request=by_request)
        assert (gate.breaker is None) == by_request


async def test_a_probe_closes_it() -> None:
    gate = make()
    await half_open(gate)
    probe = await entered(gate)
    probe.claimed(REQUEST)
    other = waiting_here(gate)
    await asyncio.sleep(0)
    assert gate.holding
    assert not other.done()
    gate.succeeded()
    assert await asyncio.wait_for(other, WITHIN_S) is not None
    assert gate.breaker is None


async def test_the_end_of_a_probe_wakes_the_consumer() -> None:
    """Nothing else does, if no message waits at the gate."""
    gate = make()
    await half_open(gate)
    room = asyncio.Event()
    gate.on_room = room.set
    await entered(gate)
    assert gate.holding
    gate.succeeded()
    assert not gate.holding
    assert room.is_set()


async def test_the_end_of_an_earlier_probe_does_not_let_another_one_through() -> None:
    gate = make()
    await half_open(gate)
    earlier = await entered(gate)
    room = asyncio.Event()
    gate.on_room = room.set
    gate.failed("job_probe", "timeout")
    await asyncio.wait_for(room.wait(), WITHIN_S)
    await entered(gate)
    other = waiting_here(gate)
    await asyncio.sleep(0)
    earlier.close()
    await asyncio.sleep(0)
    assert not other.done()
    gate.stop()
    await asyncio.wait_for(other, WITHIN_S)


async def test_a_failed_probe_opens_it_again_for_longer() -> None:
    gate = make()
    await half_open(gate)
    since = gate.breaker and gate.breaker.since
    for _ in range(4):
        room = asyncio.Event()
        gate.on_room = room.set
        probe, other = await entered(gate), waiting_here(gate)
        await asyncio.sleep(0)
        gate.failed("job_probe", "timeout")
        probe.close()
        assert await asyncio.wait_for(other, WITHIN_S) is None
        assert gate.breaker is not None
        assert (gate.breaker.since, gate.breaker.reason) == (since, "timeout")
        at = asyncio.get_running_loop().time()
        await asyncio.wait_for(room.wait(), WITHIN_S)
    assert 0.06 <= asyncio.get_running_loop().time() - at < WITHIN_S, "the longest time"


async def test_a_probe_without_an_outcome_gives_its_turn_to_the_next() -> None:
    gate = make()
    await half_open(gate)
    probe, other = await entered(gate), waiting_here(gate)
    await asyncio.sleep(0)
    probe.close()
    assert await asyncio.wait_for(other, WITHIN_S) is not None


async def test_jobs_that_may_not_wait_are_not_held_back_by_failures() -> None:
    gate = make(max_wait_s=0)
    fail(gate)
    gate.limited(60)
    assert gate.breaker is None, "a rate limit shows that the upstream answers"
    fail(gate)
    assert gate.breaker is not None
    await entered(gate)
    assert not gate.holding


def test_a_bucket_holds_a_tenth_of_a_minute() -> None:
    bucket = TokenBucket(60)
    assert bucket.wait_s(6) == pytest.approx(0, abs=0.1)
    assert bucket.wait_s(7) == pytest.approx(1, abs=0.1)
    bucket.take(10)
    assert bucket.wait_s(1) == pytest.approx(5, abs=0.1)
