"""What the jobs and the metrics of followers say about times and tokens."""

from __future__ import annotations

import asyncio

import pytest

from shared.domain.events import EventType, parse_archive
from shared.domain.job import Job, JobStatus, Usage
from shared.domain.request import GenerateRequest, Sampling
from tests.integration.api.jobs.test_coalescing import Coalescing, counted_tokens, finished, text_of
from tests.integration.shared.postgres.test_state_machine import WITHIN_S
from tests.support.ledger import dollars, ledger
from tests.support.steered_engine import text_of_tokens
from tests.support.waiting import eventually
from workers.engines.base import EngineError


@pytest.mark.parametrize("end", ["answered", "failed"])
async def test_the_last_event_of_a_follower_has_its_own_times(world: Coalescing, end: str) -> None:
    """Live, and replayed; also if it was submitted after the first token."""
    leader, early = await world.ask(), await world.ask()
    await world._change("UPDATE jobs SET created_at = created_at - interval '7 s' WHERE id = :id", id=leader.id)
    await world._change("UPDATE jobs SET created_at = created_at - interval '3 s' WHERE id = :id", id=early.id)
    call = await world.deliver(world.workers[0], leader.id, 2)
    assert call is not None
    late = await world.ask()
    streams = [world.stream(job) for job in (early, late)]
    if end == "answered":
        await world.finish(world.workers[0], call, "stop")
    else:
        await world._change("UPDATE jobs SET deaths = 2, suspect = true WHERE id = :id", id=leader.id)
        await world.kill(0)
        await world.sweep()
    archived = parse_archive((await world.row(leader.id)).log)
    assert archived[-1].payload()["timings"] == (await world.read(leader)).timings()
    for follower, stream in zip((early, late), streams, strict=True):
        job = await world.read(follower)
        assert job.status is (JobStatus.COMPLETED if end == "answered" else JobStatus.FAILED)
        events = await finished(stream)
        assert [event.line() for event in events] == [event.line() for event in await finished(world.stream(job))]
        assert events[-1].payload() == {**archived[-1].payload(), "timings": job.timings()}
        assert [event.line() for event in events[:-1]] == [event.line() for event in archived[:-1]]
    early_ms, late_ms = [(await world.read(job)).timings() for job in (early, late)]
    assert 3000 <= early_ms["queued_ms"] < archived[-1].payload()["timings"]["queued_ms"]
    assert early_ms["queued_ms"] <= early_ms["ttft_ms"] <= early_ms["total_ms"]
    assert (late_ms["queued_ms"], late_ms["ttft_ms"]) == (0, 0)


@pytest.mark.parametrize("why", ["its log is lost", "the engine cannot resume it"])
async def test_all_tokens_of_a_released_follower_that_starts_again_are_its_own(world: Coalescing, why: str) -> None:
    lost = why == "its log is lost"
    request = GenerateRequest(prompt="x", sampling=Sampling(n=1 if lost else 2))
    call, _, (follower,) = await world.lead(5, request=request)
    stream = world.stream(follower)
    await world.until_read(follower.id, 2)
    if lost:
        await world.workers[0].hold_flushes()
        call.fail(EngineError("it failed"))
        await asyncio.wait_for(call.ended.wait(), WITHIN_S)
        await eventually(lambda: world.is_released(follower), "it is released")
        await world.wipe_redis()
    else:
        await world.fail(world.workers[0], call)
    assert (await world.read(follower)).decisions.inherits
    again = await world.deliver(world.workers[1], follower.id, 2)
    assert again is not None
    assert again.prior == ""
    worker = world.workers[1]
    if lost:  # another attempt continues what this one has generated
        await world.kill(1)
        await world.sweep()
        worker = world.workers[2]
        continued = await world.deliver(worker, follower.id, 1)
        assert continued is not None
        assert continued.prior == text_of_tokens(2)
        again = continued
    await world.finish(worker, again, "stop")
    job = await world.read(follower)
    expected = 4 if lost else 3 * request.sampling.n
    assert (job.usage, job.decisions.inherits) == (Usage(3, 0, expected), False)
    assert job.decisions.cache is not None
    assert job.decisions.cache.source is not None
    assert counted_tokens(worker) == (3, expected)
    events = await finished(stream)
    restarted = [event.type for event in events].index(EventType.RESTARTED)
    assert text_of(events[restarted:]) == job.output[0].text


@pytest.mark.parametrize("early", [False, True])
async def test_all_tokens_of_a_handed_over_generation_that_starts_again_are_its_own(
    world: Coalescing, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    """Also if it starts again after the end of the leader was committed, but before the worker knows its successor."""
    worker = world.workers[0]
    call, leader, (heir,) = await world.lead(5)
    claimed = worker.store.claimed

    async def restart() -> None:
        assert (await world.read(heir)).decisions.inherits
        call.restart()
        await call.tokens(2)

    async def claimed_late(job_id: str) -> Job | None:
        await restart()
        return await claimed(job_id)

    if early:
        monkeypatch.setattr(worker.store, "claimed", claimed_late)
    await world.service.cancel(leader.id, world.owner.project_id)
    await worker.heartbeat.renew()

    async def continues() -> bool:
        return heir.id in worker.runner._attempts

    await eventually(continues, "it continues for its successor")
    if not early:
        await world.tokens(worker, call, 1)
        await restart()
    call.finish("stop")
    await world.until_status(heir, JobStatus.COMPLETED)
    job = await world.read(heir)
    assert (job.usage, job.decisions.inherits) == (Usage(3, 0, 3), False)

    async def ended() -> bool:  # the worker counts after it has committed the result
        return heir.id not in worker.runner._attempts

    await eventually(ended, "its worker has finished it")
    assert counted_tokens(worker) == (3 + 3, 5 + 3)


async def test_a_continuation_counts_what_it_adds_only(world: Coalescing) -> None:
    call, _, (follower,) = await world.lead(5)
    await world.fail(world.workers[0], call)
    again = await world.deliver(world.workers[1], follower.id, 2)
    assert again is not None
    await world.finish(world.workers[1], again, "stop")
    job = await world.read(follower)
    assert job.decisions.cache is not None
    assert (job.usage, job.decisions.cache.inherited) == (Usage(3, 0, 8), {"completion_tokens": 5})
    assert counted_tokens(world.workers[1]) == (3, 3)


async def test_a_generation_that_was_handed_over_is_charged_once(world: Coalescing) -> None:
    """Its jobs share the cost and the charge; the job that only waited for the answer pays nothing."""
    worker = world.workers[0]
    call, leader, (heir, other) = await world.lead(5, followers=2)
    await world.service.cancel(leader.id, world.owner.project_id)
    await worker.heartbeat.renew()
    await finished(world.stream(leader))
    await world.tokens(worker, call, 2)
    await world.finish(worker, call, "stop")
    await world.until_status(other, JobStatus.COMPLETED)
    (first,), (second,), (third,) = [await ledger(world.database, job.id) for job in (leader, heir, other)]
    assert (first.input_fresh, first.output_text, first.outcome) == (3, 5, "cancelled")
    assert (second.input_fresh, second.output_text, second.source) == (0, 3, "engine")
    assert first.charge == first.cost == dollars(fresh=3, output=5)
    assert second.charge == second.cost == dollars(output=3)
    assert (third.outcome, third.cost, third.charge, third.saved) == ("answered", 0, 0, second.charge)


async def test_a_released_follower_pays_for_what_is_generated_for_it(world: Coalescing) -> None:
    """The beginning of its answer was generated for a leader that has failed, and so pays nothing."""
    call, leader, (follower,) = await world.lead(5)
    stream = world.stream(follower)
    await world.until_read(follower.id, 2)
    await world.fail(world.workers[0], call)
    again = await world.deliver(world.workers[1], follower.id, 2)
    assert again is not None
    assert again.prior == text_of_tokens(5)
    await world.finish(world.workers[1], again, "stop")
    await finished(stream)
    (failed,), (entry,) = [await ledger(world.database, job.id) for job in (leader, follower)]
    assert (failed.cost, failed.charge) == (dollars(fresh=3, output=5), 0)
    assert (entry.input_fresh, entry.output_text) == (3 + 5, 3)
    assert entry.charge == dollars(fresh=3, output=3)
