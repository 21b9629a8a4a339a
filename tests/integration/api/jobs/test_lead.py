"""The lead of a group of identical requests: it moves without writing the other followers, who name their leader."""

from __future__ import annotations

from typing import Any

import pytest

from shared.domain.events import EventType
from shared.domain.job import Job, JobStatus
from shared.postgres.recovery_store import RecoveryStore
from tests.integration.api.jobs.test_coalescing import Coalescing, finished, text_of
from tests.support.steered_engine import text_of_tokens

Versions = dict[str, tuple[Any, ...]]


async def versions(world: Coalescing) -> Versions:
    """What shows that a row was written or locked: its place, and the transactions that wrote and locked it."""
    rows = await world._rows("SELECT id, ctid::text, xmin::text, xmax::text FROM jobs")
    return {row.id: tuple(row)[1:] for row in rows}


async def changed_since(world: Coalescing, before: Versions) -> set[str]:
    return {job_id for job_id, version in (await versions(world)).items() if version != before[job_id]}


async def leaders_of(world: Coalescing, jobs: list[Job]) -> set[tuple[str | None, str | None]]:
    """The leaders of jobs, and those that clients see."""
    rows = [await world.read(job) for job in jobs]
    return {(row.follows, None if row.decisions.cache is None else row.decisions.cache.source) for row in rows}


@pytest.mark.parametrize("runs", [False, True])
async def test_a_change_of_the_leader_writes_two_rows(world: Coalescing, runs: bool) -> None:
    """However many followers there are: a client may cancel thousands of identical jobs, the oldest first."""
    jobs = [await world.ask() for _ in range(12)]
    worker = world.workers[0]
    call = await world.deliver(worker, jobs[0].id, 2) if runs else None
    for number in range(4):
        leader, successor, *others = jobs[number:]
        assert await leaders_of(world, [successor, *others]) == {(leader.id, leader.id)}
        before = await versions(world)
        await world.service.cancel(leader.id, world.owner.project_id)
        if runs:
            await worker.heartbeat.renew()
            await world.until_status(successor, JobStatus.IN_PROGRESS)
        assert await changed_since(world, before) == {leader.id, successor.id}
        assert (await world.read(successor)).follows is None
        assert await leaders_of(world, others) == {(successor.id, successor.id)}
    joining = await world.ask()
    assert joining.follows == jobs[4].id
    assert await leaders_of(world, [joining]) == {(jobs[4].id, jobs[4].id)}
    if call is None:
        call = await world.deliver(worker, jobs[4].id, 2)
        assert call is not None
    await world.finish(worker, call, "stop")
    for job in (*jobs[4:], joining):
        row = await world.read(job)
        assert (row.status, row.output[0].text) == (JobStatus.COMPLETED, text_of_tokens(3))
    assert await leaders_of(world, [*jobs[5:], joining]) == {(jobs[4].id, jobs[4].id)}


async def test_a_follower_that_has_ended_names_the_job_that_it_followed(world: Coalescing) -> None:
    """Its output is the beginning of that one's."""
    call, leader, (ended, heir, other) = await world.lead(3, followers=3)
    await world.service.cancel(ended.id, world.owner.project_id)
    await world.service.cancel(leader.id, world.owner.project_id)
    await world.workers[0].heartbeat.renew()
    await world.until_status(heir, JobStatus.IN_PROGRESS)
    late = await world.ask()
    await world.service.cancel(late.id, world.owner.project_id)
    await world.finish(world.workers[0], call, "stop")
    assert await leaders_of(world, [ended]) == {(leader.id, leader.id)}
    assert await leaders_of(world, [late, other]) == {(heir.id, heir.id)}
    assert (await world.read(ended)).output[0].text == text_of_tokens(3)


async def test_a_follower_that_was_inserted_while_the_lead_moved_follows_the_new_leader(world: Coalescing) -> None:
    """The statement that moved the lead did not see it."""
    call, leader, (heir, late) = await world.lead(2, followers=2)
    await world.detach([late.id])
    await world.service.cancel(leader.id, world.owner.project_id)
    await world.workers[0].heartbeat.renew()
    await world.until_status(heir, JobStatus.IN_PROGRESS)
    await world.detach([late.id], leader.id)
    stream = world.stream(late)
    await world.sweep()
    assert await leaders_of(world, [late]) == {(heir.id, heir.id)}
    await world.finish(world.workers[0], call, "stop")
    events = await finished(stream)
    assert (events[-1].type, text_of(events)) == (EventType.COMPLETED, text_of_tokens(3))


@pytest.mark.parametrize("by", ["the ender", "a reader", "a sweep"])
async def test_a_follower_does_not_wait_for_a_new_leader_with_a_lower_priority(world: Coalescing, by: str) -> None:
    """It was inserted while the lead moved, and is run by itself; the leader keeps its turn."""
    leader, low, urgent, equal = [await world.ask(priority=priority) for priority in (3, 5, 3, 5)]
    await world.detach([urgent.id])
    await world.service.cancel(leader.id, world.owner.project_id)
    world.sent.clear()
    await world.detach([urgent.id], leader.id)
    assert await RecoveryStore(world.database).orphans() == [leader.id]
    if by == "a sweep":
        await world.sweep()
    elif by == "a reader":
        await world.hub._settle(urgent.id)
    else:
        (change,) = await world.store.settle([leader.id])
        assert (change.job_id, change.leader, change.status) == (urgent.id, low.id, JobStatus.QUEUED)
        assert not change.hint.front
    row = await world.read(urgent)
    assert (row.status, row.follows, row.continues) == (JobStatus.QUEUED, None, None)
    assert await leaders_of(world, [equal]) == {(low.id, low.id)}
    assert await RecoveryStore(world.database).orphans() == []
    assert await world.workers[0].deliver(urgent.id) is not None


async def test_the_followers_of_a_group_without_a_leader_continue_the_last_one(world: Coalescing) -> None:
    """Each leader was cancelled, and the last of these statements did not see the follower."""
    call, leader, (heir, left) = await world.lead(2, followers=2)
    await world.detach([left.id])
    for number, job in enumerate((leader, heir)):
        await world.service.cancel(job.id, world.owner.project_id)
        await world.workers[0].heartbeat.renew()
        if number == 0:
            await world.until_status(heir, JobStatus.IN_PROGRESS)
            await world.tokens(world.workers[0], call, 2)
    await world.until_status(heir, JobStatus.CANCELLED)
    await world.detach([left.id], leader.id)
    await world.sweep()
    row = await world.read(left)
    assert (row.status, row.follows, row.continues) == (JobStatus.QUEUED, None, heir.id)
    again = await world.deliver(world.workers[1], left.id)
    assert again is not None
    assert again.prior == text_of_tokens(4)
