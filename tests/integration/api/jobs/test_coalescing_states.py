"""No interleaving of identical requests, cancellations, deadlines, failures and lost workers leaves a job waiting.

Hypothesis generates the interleavings, as in `tests.integration.shared.postgres.test_state_machine`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import Row

from shared.domain.decisions import NO_DECISIONS
from shared.domain.events import Event, EventType, parse_archive
from shared.domain.job import Job, JobStatus
from shared.postgres.recovery_store import RecoveryStore
from shared.runtime.aio import cancel_and_wait
from tests.conftest import TEST_REDIS_DB, Servers
from tests.integration.api.jobs.test_coalescing import Coalescing, text_of
from tests.integration.api.jobs.test_follower_settlement import fail_settlement
from tests.integration.shared.postgres.test_state_machine import ROUTED, WITHIN_S, WORKERS, Worker, open_world
from tests.support.examples import LONG, example_count
from tests.support.interleavings import Interleavings
from tests.support.ledger import check_entries, ledger
from tests.support.request_log import check_logged, log_rows
from tests.support.steered_engine import Call, text_of_tokens
from tests.support.waiting import eventually

OPEN = 5
SETTINGS = settings(
    example_count(8, long=1000),
    stateful_step_count=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
a_job = st.integers(0, OPEN)
a_worker = st.integers(0, WORKERS - 1)
a_run = st.integers(0, OPEN)


class Requests(Interleavings):
    """Rules that Hypothesis runs in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world: Coalescing = self._do(open_world(self.database_url, self.redis_url, Coalescing))
        self.world.prepare()
        self.jobs: list[Job] = []
        self.streams: dict[str, asyncio.Task[list[Event]]] = {}
        self.ends: dict[str, Row[Any]] = {}

    async def _close(self) -> None:
        await cancel_and_wait(*self.streams.values())
        await self.world.close()

    @property
    def _runs(self) -> list[tuple[Worker, Call]]:
        return [(worker, call) for worker in self.world.workers for call in worker.engine.calls.values()]

    @property
    def _open(self) -> list[Job]:
        return [job for job in self.jobs if job.id not in self.ends]

    async def _ask(self, **changes: Any) -> None:
        if len(self._open) < OPEN:
            job = await self.world.ask(**changes)
            self.jobs.append(job)
            self.streams[job.id] = self.world.stream(job)

    async def _deliver(self, job: Job, worker: Worker, count: int) -> None:
        row = await self.world.row(job.id)
        call = await self.world.deliver(worker, job.id, count)
        assert call is None or row.follows is None, "a follower is not run"

    async def _cancel(self, job: Job) -> None:
        await self.world.service.cancel(job.id, self.world.owner.project_id)
        await self._heartbeats()

    async def _finish(self, number: int, how: str) -> None:
        if runs := self._runs:
            worker, call = runs[number % len(runs)]
            await (self.world.fail(worker, call) if how == "error" else self.world.finish(worker, call, how))

    async def _finish_in_an_outage(self, number: int, how: str) -> None:
        """No process but a sweep settles the followers of a job whose end is committed."""
        for worker in self.world.workers:
            fail_settlement(worker.store)
        await self._finish(number, how)
        for worker in self.world.workers:
            worker.store.__dict__.pop("settle", None)
        await self.world.sweep()

    async def _reconnect(self, job: Job) -> None:
        self.streams[job.id].cancel()
        self.streams[job.id] = self.world.stream(job)
        await asyncio.sleep(0)

    async def _heartbeats(self) -> None:
        """Let the workers find cancellations, and carry them out."""
        for worker in self.world.workers:
            await worker.heartbeat.renew()

        async def is_quiet() -> bool:
            attempts = [one for worker in self.world.workers for one in worker.runner._attempts.values()]
            return not any(one.handing_over or one.interrupt_reason for one in attempts)

        await eventually(is_quiet, "stopped attempts end, or continue for a follower")
        for worker in self.world.workers:
            await worker.flush()

    @initialize()
    def two_requests(self) -> None:
        self._do(self._ask())
        self._do(self._ask())

    @rule(priority=st.sampled_from([3, 3, 3, 1, 5]), late=st.booleans(), routed=st.booleans())
    def ask(self, priority: int, late: bool, routed: bool) -> None:
        """A job of a route moves to another model if it fails without a token."""
        decisions = ROUTED if routed else NO_DECISIONS
        self._do(self._ask(priority=priority, finish_within_s=600 if late else None, decisions=decisions))

    @rule(job=a_job, worker=a_worker, count=st.integers(0, 5))
    def deliver_a_message(self, job: int, worker: int, count: int) -> None:
        if jobs := self._open:
            self._do(self._deliver(jobs[job % len(jobs)], self.world.workers[worker], count))

    @rule(run=a_run, count=st.integers(1, 5))
    def tokens(self, run: int, count: int) -> None:
        if runs := self._runs:
            worker, call = runs[run % len(runs)]
            self._do(self.world.tokens(worker, call, count))

    @rule(run=a_run, how=st.sampled_from(["stop", "length", "error"]))
    def finish(self, run: int, how: str) -> None:
        self._do(self._finish(run, how))

    @rule(run=a_run, how=st.sampled_from(["stop", "error"]))
    def finish_in_an_outage(self, run: int, how: str) -> None:
        self._do(self._finish_in_an_outage(run, how))

    @rule(job=a_job)
    def reconnect_a_reader(self, job: int) -> None:
        if jobs := self._open:
            self._do(self._reconnect(jobs[job % len(jobs)]))

    @rule(job=a_job)
    def cancel(self, job: int) -> None:
        if jobs := self._open:
            self._do(self._cancel(jobs[job % len(jobs)]))

    @rule(job=a_job)
    def pass_a_deadline(self, job: int) -> None:
        if jobs := self._open:
            self._do(self.world.pass_deadline(jobs[job % len(jobs)].id))
            self._do(self.world.sweep())

    @rule(worker=a_worker)
    def lose_a_worker(self, worker: int) -> None:
        self._do(self.world.kill(worker))
        self._do(self.world.sweep())

    @rule(
        what=st.lists(st.sampled_from(["ask", "ask", "cancel", "finish", "error"]), min_size=2, max_size=4),
        job=a_job,
        run=a_run,
    )
    def at_the_same_time(self, what: list[str], job: int, run: int) -> None:
        jobs = self._open
        targets = itertools.count(job)

        def action(name: str) -> Coroutine[Any, Any, None]:
            if name == "ask":
                return self._ask()
            if name == "cancel" and jobs:
                return self._cancel(jobs[next(targets) % len(jobs)])
            return self._finish(run, "error" if name == "error" else "stop")

        names = [name for number, name in enumerate(what) if name in ("ask", "cancel") or name not in what[:number]]
        names = [name for name in names if name != "error" or "finish" not in names]

        async def race() -> None:
            await asyncio.gather(*map(action, names))
            await self._heartbeats()

        self._do(race())

    @invariant()
    def invariants_hold(self) -> None:
        self._do(self._check())

    async def _check(self) -> None:
        assert await RecoveryStore(self.world.database).orphans() == [], "no follower waits for a job that has ended"
        for job in self.jobs:
            row = await self.world.row(job.id)
            if JobStatus(row.status).terminal:
                assert self.ends.setdefault(job.id, row) == row, "exactly one end"
                archived = parse_archive(row.log)
                assert [event.type.terminal for event in archived] == [False] * (len(archived) - 1) + [True]
                assert archived[-1].type.value == row.status
                assert "".join(choice["text"] for choice in row.output) == text_of(archived)
                assert text_of(archived) == text_of_tokens(row.usage["completion_tokens"]), "each token once"
            elif (follows := (await self.world.read(job)).follows) is not None:
                leader = await self.world.row(follows)
                assert (row.status, row.attempt, row.dispatched_at) == ("queued", 0, None)
                assert leader.finished_at is None
                assert leader.follows is None
                assert leader.cache_key == row.cache_key
                has_begun = leader.attempt > 0 or leader.continues is not None
                assert leader.status != "queued" or has_begun or leader.priority <= row.priority

    async def _check_ledger(self) -> None:
        """Each token is in one entry, and each answered job has one final entry: its own, or that of an answer."""
        entries: dict[str, list[Any]] = {job.id: [] for job in self.jobs}
        for entry in await ledger(self.world.database):
            entries[entry.job_id].append(entry)
        for job_id, own in entries.items():
            row = self.ends[job_id]
            check_logged(row, [dict(one._mapping) for one in await log_rows(self.world.database, job_id)])
            if row.attempts:
                check_entries([entry._mapping for entry in own], row.attempts)
            elif row.status in ("completed", "incomplete"):
                (answered,) = own
                (charge,) = [one.charge for one in entries[row.decisions["cache"]["source"]] if one.final]
                assert (answered.attempt, answered.outcome, answered.final) == (0, "answered", True)
                assert (answered.total_tokens, answered.charge, answered.saved) == (0, 0, charge)
            else:
                assert own == []
            assert sum(entry.charge for entry in own) <= sum(entry.cost for entry in own)

    async def _finish_all(self) -> None:
        """Every job can still end, and every reader receives the end."""
        while self._open:
            await self.world.sweep()
            for job in self._open:
                await self.world.deliver(self.world.workers[0], job.id)
            for number in range(len(self._runs)):
                await self._finish(number, "stop")
            open_before = len(self._open)
            await self._check()
            assert len(self._open) < open_before, "a job is stuck"
        await self._check_ledger()
        for job in self.jobs:
            row = self.ends[job.id]
            events = await asyncio.wait_for(self.streams[job.id], WITHIN_S)
            numbers = [event.seq for event in events]
            assert numbers == sorted(set(numbers))
            assert EventType.RESTARTED not in {event.type for event in events}
            assert events[-1].type.value == row.status
            if row.status in ("completed", "incomplete"):
                archived = parse_archive(await self.world.store.archived_log(job.id) or "")
                assert [event.line() for event in events] == [event.line() for event in archived]
                assert events[-1].payload()["timings"] == (await self.world.read(job)).timings()

        async def has_no_readers() -> bool:
            return not self.world.hub._readers

        await eventually(has_no_readers, "streams that have ended or were closed leave no readers")


# A failure is made small first, which takes a while.
@pytest.mark.timeout(7200 if LONG else 900)
@pytest.mark.hypothesis
def test_no_interleaving_leaves_a_job_waiting(servers: Servers, database_url: str) -> None:
    class LocalRequests(Requests):
        pass

    LocalRequests.database_url = database_url
    LocalRequests.redis_url = servers.redis(TEST_REDIS_DB)
    run_state_machine_as_test(LocalRequests, settings=SETTINGS)
