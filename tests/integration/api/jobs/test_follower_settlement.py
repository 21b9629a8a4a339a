"""The followers of a job that has ended: all of them end or are released, whatever their number, size and failures."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from api.jobs.disconnect import cancel_abandoned
from api.jobs.removed_models import RemovedModels
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.domain.errors import ErrorCode
from shared.domain.events import Event, EventType, event
from shared.domain.job import Failure, JobStatus, JobSummary
from shared.domain.owner import Owner
from shared.domain.priorities import Hint, to_front
from shared.domain.request import GenerateRequest
from shared.domain.result import JobResult, exhausted
from shared.postgres import job_row_store
from shared.postgres.claim_store import ClaimStore
from shared.postgres.job_row_store import JobRowStore
from shared.postgres.job_store import JobStore
from shared.recovery.terminator import COPIES
from shared.redis.event_log import Append
from tests.integration.api.cache.test_cached_answers import KEY, completed, new_job
from tests.integration.api.jobs.test_coalescing import Coalescing, finished, text_of
from tests.integration.shared.postgres.test_state_machine import FALLBACK, MODEL, ROUTED, WITHIN_S
from tests.support.database import make_owner
from tests.support.steered_engine import text_of_tokens
from tests.support.waiting import eventually


def lost_connection() -> OperationalError:
    return OperationalError("", None, Exception("connection lost"))


def fail_settlement(store: JobRowStore) -> None:
    """Let the next settlement fail as in an outage: the end before it is committed."""
    settle = store.settle

    async def fail(leaders: Any) -> Any:
        store.settle = settle  # type: ignore[method-assign]
        raise lost_connection()

    store.settle = fail  # type: ignore[method-assign]


def ended_with(log: str) -> JobResult:
    return replace(completed(log), leads=True)


async def test_the_answers_of_many_followers_are_copied_in_portions(
    world: Coalescing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader ends at once, and so do followers with a reader; sweeps end the others."""
    monkeypatch.setattr(job_row_store, "PORTION_BYTES", 30_000)
    leader, *followed = [await world.ask() for _ in range(8)]
    worker = ClaimStore(world.database, "w")
    assert await worker.claim(leader.id) is not None
    # It does not compress well, so that a portion is two or three followers.
    random_text = random.Random(1).randbytes(10_000).hex()
    last = event(3, EventType.COMPLETED, {})
    log = f'1 started {{"attempt":1}}\n2 delta {{"index":0,"text":"{random_text}"}}\n{last.line().decode()}'
    waiting = asyncio.create_task(world.service.wait_for_end(followed[-1].id))
    stream = world.stream(followed[-2])
    ended = await worker.finish(leader.id, 1, ended_with(log))
    assert ended is not None
    assert 1 <= len(ended.followers) <= 3
    assert {change.status for change in ended.followers} == {JobStatus.COMPLETED}
    assert (await world.read(leader)).status is JobStatus.COMPLETED
    await world.logs.append([Append(leader.id, 1, [last], 60)])
    assert (await finished(stream))[-1].type is EventType.COMPLETED
    await asyncio.wait_for(waiting, WITHIN_S)
    left = [job for job in followed if (await world.read(job)).status is JobStatus.QUEUED]
    assert left, "one statement did not settle all of them"
    await world.sweep()
    rows = [await world.row(job.id) for job in followed]
    assert {(row.status, row.log == log) for row in rows} == {("completed", True)}


async def test_followers_that_get_no_copy_are_released_together(
    world: Coalescing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large the log of their leader is."""
    monkeypatch.setattr(job_row_store, "PORTION_BYTES", 1)
    leader, *followed = [await world.ask() for _ in range(8)]
    worker = ClaimStore(world.database, "w")
    assert await worker.claim(leader.id) is not None
    failed = replace(
        ended_with(f'1 failed {{"text":"{"x" * 10_000}"}}'),
        status=JobStatus.FAILED,
        error=Failure(ErrorCode.ENGINE_ERROR, "broken"),
        cacheable=False,
    )
    ended = await worker.finish(leader.id, 1, failed)
    assert ended is not None
    assert [change.status for change in ended.followers] == [JobStatus.QUEUED] * len(followed)


async def test_identical_jobs_of_a_client_that_disconnects_are_cancelled_without_a_successor(world: Coalescing) -> None:
    """The newest first, so that none takes the lead before it is cancelled too."""
    jobs = [await world.ask() for _ in range(4)]
    await cancel_abandoned(world.service, jobs)
    rows = [await world.row(job.id) for job in jobs]
    assert [row.status for row in rows] == ["cancelled"] * 4
    assert [row.follows for row in rows] == [None, *[jobs[0].id] * 3]


@pytest.mark.parametrize("how", ["answered", "failed"])
async def test_an_outage_after_the_end_was_committed(world: Coalescing, how: str) -> None:
    """The end is reported, once; readers and sweeps settle the followers."""
    call, leader, (read, unread) = await world.lead(2, followers=2)
    fail_settlement(world.workers[0].store)
    stream, own = world.stream(read), world.stream(leader)
    await world.until_read(read.id, 2)
    await (world.finish(world.workers[0], call, "stop") if how == "answered" else world.fail(world.workers[0], call))
    assert (await finished(own))[-1].type is (EventType.COMPLETED if how == "answered" else EventType.FAILED)
    assert (await world.logs.read(leader.id))[-1].type.terminal, "the end was published, not only found in the row"
    if how == "answered":
        assert text_of(await finished(stream)) == text_of_tokens(3)
    else:
        await eventually(lambda: world.is_released(read), "its reader settles it")
        assert [hint.front for hint in world.sent] == []
    assert (await world.read(unread)).follows == leader.id
    await world.sweep()
    row = await world.read(unread)
    assert (row.status, row.follows) == (
        (JobStatus.COMPLETED, leader.id) if how == "answered" else (JobStatus.QUEUED, None)
    )
    stream.cancel()


async def test_an_outage_after_the_hand_over(world: Coalescing) -> None:
    """The generation continues for the follower that was claimed."""
    call, leader, (heir, other) = await world.lead(2, followers=2)
    fail_settlement(world.workers[0].store)
    stream = world.stream(other)
    await world.service.cancel(leader.id, world.owner.project_id)
    await world.workers[0].heartbeat.renew()
    await world.until_status(heir, JobStatus.IN_PROGRESS)
    await world.finish(world.workers[0], call, "stop")
    assert text_of(await finished(stream)) == text_of_tokens(3)
    assert (await world.read(heir)).deaths == 0


async def test_followers_get_their_answer_before_it_is_deleted(
    world: Coalescing, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, leader, followed = await world.lead(followers=3)
    monkeypatch.setattr(job_row_store, "PORTION_BYTES", 1)
    await world.finish(world.workers[0], call, "stop")
    assert [(await world.read(job)).status for job in followed].count(JobStatus.COMPLETED) == 1
    await world.service.delete(leader.id, world.owner.project_id)
    for job in followed:
        assert (await world.read(job)).output[0].text == text_of_tokens(1)


async def test_a_settlement_that_always_fails_stops_neither_the_sweep_nor_other_settlements(
    world: Coalescing, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await world.lead(1)
    second = await world.lead(1, request=GenerateRequest(prompt="y"))
    for call, leader, (follower,) in (first, second):
        await world.detach([follower.id])
        await world.finish(world.workers[0], call, "stop")
        await world.detach([follower.id], leader.id)
    recovery: Any = world.sweeper._store
    settle = recovery.settle

    async def time_out(leaders: list[str]) -> Any:
        if first[1].id in leaders:
            raise TimeoutError
        return await settle(leaders)

    monkeypatch.setattr(recovery, "settle", time_out)
    await world.sweep()
    await world.sweep()
    assert (await world.read(second[2][0])).status is JobStatus.COMPLETED
    assert (await world.read(first[2][0])).status is JobStatus.QUEUED


async def test_a_follower_never_gets_the_answer_of_another_model(world: Coalescing) -> None:
    """Its leader has moved, and has completed there, before the follower was found."""
    leader = await world.ask(decisions=ROUTED)
    call = await world.workers[0].deliver(leader.id)
    assert call is not None
    follower = await world.ask()
    await world.detach([follower.id])
    await world.fail(world.workers[0], call)
    await world.detach([follower.id], leader.id)
    run = await world.workers[0].deliver(leader.id)
    assert run is not None
    await world.finish(world.workers[0], run, "stop")
    await world.sweep()
    done, row = await world.read(leader), await world.read(follower)
    assert (done.status, done.model) == (JobStatus.COMPLETED, FALLBACK)
    assert (row.status, row.model, row.follows, row.continues) == (JobStatus.QUEUED, MODEL, None, "")


async def test_followers_are_released_in_the_statement_that_moves_their_leader(world: Coalescing) -> None:
    leader = await world.ask(decisions=ROUTED)
    call = await world.workers[0].deliver(leader.id)
    assert call is not None
    followed = [await world.ask() for _ in range(2)]
    fail_settlement(world.workers[0].store)
    await world.fail(world.workers[0], call)
    assert (await world.read(leader)).model == FALLBACK
    assert [(await world.read(job)).follows for job in followed] == [None, None]


async def test_followers_of_a_removed_model_move_too(world: Coalescing) -> None:
    leader, follower = await world.ask(decisions=ROUTED), await world.ask(decisions=ROUTED)
    assert follower.follows == leader.id
    for worker in world.workers:
        await worker.store.end_lease()
    sweeper = world.sweeper
    kept = Registry({FALLBACK: SimulatedModel(name=FALLBACK, engine="simulated")})
    removed = RemovedModels(kept, sweeper._store, sweeper._terminator, world.redis, grace_s=0)
    await removed.check()
    await removed.check()
    rows = [await world.read(job) for job in (leader, follower)]
    assert [(row.model, row.status) for row in rows] == [(FALLBACK, JobStatus.QUEUED)] * 2


async def test_a_follower_whose_leader_has_changed_is_not_ended_by_what_was_read(world: Coalescing) -> None:
    leader, follower = [await world.ask() for _ in range(2)]
    await world.service.cancel(leader.id, world.owner.project_id)
    assert not await world.sweeper._terminator.end(follower, JobStatus.CANCELLED, exhausted(1))
    assert (await world.read(follower)).status is JobStatus.QUEUED


@pytest.mark.parametrize("runs", [False, True])
async def test_the_most_urgent_follower_takes_the_lead(world: Coalescing, runs: bool) -> None:
    """Otherwise a request with a low priority would delay the others."""
    leader = await world.ask(priority=1)
    if runs:
        await world.workers[0].deliver(leader.id)
    low, urgent, later = [await world.ask(priority=priority) for priority in (7, 1, 1)]
    await world.service.cancel(leader.id, world.owner.project_id)
    if runs:
        await world.workers[0].heartbeat.renew()
        await world.until_status(urgent, JobStatus.IN_PROGRESS)
    else:
        assert world.sent == [to_front(Hint(urgent.id, MODEL, 1))]
    assert [(await world.read(job)).follows for job in (low, urgent, later)] == [urgent.id, None, urgent.id]


async def test_followers_of_a_job_that_kills_engines(world: Coalescing) -> None:
    """Those that cannot move fail with it: the same request would kill as many engines again."""
    _, leader, (first,) = await world.lead()
    routed, last = await world.ask(decisions=ROUTED), await world.ask()
    stream = world.stream(last)
    await world._change("UPDATE jobs SET deaths = 2, suspect = true WHERE id = :id", id=leader.id)
    await world.kill(0)
    await world.sweep()
    assert (await world.read(leader)).error == exhausted(3)
    for job in (first, last):
        row = await world.read(job)
        assert (row.status, row.error) == (JobStatus.FAILED, exhausted(3))
    assert (await finished(stream))[-1].type is EventType.FAILED
    row = await world.read(routed)
    assert (row.status, row.follows, row.suspect, row.deaths) == (JobStatus.QUEUED, None, True, 2)


async def test_one_of_the_released_followers_takes_the_turn_of_its_leader(world: Coalescing) -> None:
    """The others wait for theirs, behind jobs of others."""
    call, leader, (first, last) = await world.lead(followers=2)
    low = await world.ask(priority=7)
    ended: list[Hint] = []
    worker = world.workers[0]
    worker.runner._context = replace(worker.runner._context, send=ended.append)
    worker.runner._attempts[leader.id]._state.context = worker.runner._context
    await world.fail(worker, call)
    assert sorted(ended, key=lambda hint: hint.job_id) == [
        to_front(Hint(first.id, MODEL, 3)), Hint(last.id, MODEL, 3), Hint(low.id, MODEL, 7),
    ]  # fmt: skip


async def test_a_job_follows_none_of_another_project_or_model(store: JobStore, owner: Owner, database: Any) -> None:
    """Even if their keys were the same."""
    stranger = await make_owner(database, "stranger")
    leader = await store.coalesce(new_job(owner, cache_key=KEY))
    assert leader is not None
    assert await store.coalesce(new_job(stranger, cache_key=KEY)) is None
    assert await store.coalesce(new_job(owner, cache_key=KEY, model="m2")) is None


async def test_a_released_follower_has_been_started_even_if_it_is_deferred(world: Coalescing) -> None:
    call, _, (follower,) = await world.lead(1)
    await world.fail(world.workers[0], call)
    started_at = (await world.read(follower)).started_at
    assert started_at is not None
    for job, expected in ((follower, started_at), (await world.ask(priority=4), None)):
        claimed = await world.workers[1].store.claim(job.id)
        assert claimed is not None
        assert await world.workers[1].store.defer(job.id, claimed.attempt, 0)
        assert (await world.read(job)).started_at == expected


async def test_few_of_many_cancelled_followers_read_the_log_of_their_leader_at_a_time(
    world: Coalescing, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, leader, followed = await world.lead(1, followers=COPIES + 4)
    reading, most, full = 0, 0, asyncio.Event()
    terminator = world.sweeper._terminator
    read = terminator._beginning

    async def count(job: JobSummary) -> list[Event]:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        if reading == COPIES:
            full.set()
        try:
            await asyncio.wait_for(full.wait(), WITHIN_S)
            return await read(job)
        finally:
            reading -= 1

    monkeypatch.setattr(terminator, "_beginning", count)
    cancelled = await asyncio.gather(*(world.service.cancel(job.id, world.owner.project_id) for job in followed))
    assert {job.status for job in cancelled} == {JobStatus.CANCELLED}
    assert most == COPIES
    assert (await world.read(leader)).status is JobStatus.IN_PROGRESS


async def test_an_attempt_that_is_handed_over_to_nobody_is_cleaned_up(
    world: Coalescing, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = world.workers[0]
    leader = await world.ask(finish_within_s=3600)
    call = await worker.deliver(leader.id)
    assert call is not None
    attempt = worker.runner._attempts[leader.id]

    async def has_followers(job_id: str) -> bool:
        return True  # they end before the job does

    monkeypatch.setattr(worker.store, "has_followers", has_followers)
    await world.service.cancel(leader.id, world.owner.project_id)
    await worker.heartbeat.renew()
    await worker.wait_ended(call, "it was cancelled")
    assert attempt._deadline is not None
    assert attempt._deadline.cancelled()
