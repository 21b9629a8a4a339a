"""A job that kills its engine fails alone: its neighbours complete and are not charged with the deaths."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.events import Delta, EventType, delta_event, event
from shared.domain.job import AttemptOutcome, Job, JobStatus
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.priorities import BATCH_PRIORITY
from shared.domain.request import GenerateRequest
from shared.domain.result import exhausted
from shared.domain.suspects import LATE_FACTOR
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.sweeper import Sweeper
from shared.recovery.terminator import JobTerminator
from shared.redis import keys as redis_keys
from shared.redis.carried_requests import CarriedRequests, carried
from shared.redis.event_log import Append, EventLog
from tests.conftest import Workers
from tests.integration.workers.execution.test_runner import WITHIN_S, Run, Worker, read, working
from tests.support.metrics import api_metrics
from tests.support.steered_engine import Call, text_of_tokens
from tests.support.waiting import eventually
from workers.execution import runner as runner_module
from workers.execution.slots import SlotPool

MAX_ATTEMPTS = 3


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running jobs are set aside at once."""
    monkeypatch.setattr(runner_module, "PATIENCE_S", 0)


@pytest.fixture
async def worker(workers: Workers, logs: EventLog) -> AsyncIterator[Worker]:
    async with working("w", workers("w"), logs) as worker:
        yield worker


@pytest.fixture
def sweeper(recovery_store: RecoveryStore, logs: EventLog, redis: Redis) -> Sweeper:
    metrics = api_metrics()
    terminator = JobTerminator(recovery_store, logs, 60, metrics)
    return Sweeper(
        recovery_store,
        terminator,
        lambda _: None,
        metrics,
        interval_s=1,
        lease_s=60,
        max_attempts=MAX_ATTEMPTS,
        requests=CarriedRequests(redis),
    )


async def submit(store: JobStore, owner: Owner, priority: int = 3) -> Job:
    return (await store.insert(NewJob(owner, "m", priority, GenerateRequest(prompt="x"))))[0]


async def start(worker: Worker, *jobs: Job) -> list[tuple[Run, Call]]:
    return [await worker.start(job) for job in jobs]


async def crash(worker: Worker, *started: tuple[Run, Call]) -> None:
    """The engine dies while it runs these jobs, and is restarted."""
    worker.engine.die()
    await asyncio.wait_for(asyncio.gather(*(run for run, _ in started)), WITHIN_S)
    await worker.engine.start()


async def complete(run: Run, call: Call) -> None:
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED


class TestEngineDeath:
    async def test_only_the_job_without_a_token_is_charged(self, worker: Worker, store: JobStore, owner: Owner) -> None:
        """The neighbour survives more deaths than it has attempts, and continues where it was."""
        neighbour, poisons = await submit(store, owner), [await submit(store, owner) for _ in range(MAX_ATTEMPTS + 1)]
        for number, poison in enumerate(poisons):
            [(run, call), poisoned] = await start(worker, neighbour, poison)
            assert call.prior == text_of_tokens(number)
            await call.tokens(1)
            await crash(worker, (run, call), poisoned)
            await worker.log_writer.drain(WITHIN_S)
            row = await read(store, poison)
            assert (row.deaths, row.exposures, row.suspect) == (1, 0, True)
        row = await read(store, neighbour)
        assert (row.status, row.deaths, row.exposures) == (JobStatus.QUEUED, 0, MAX_ATTEMPTS + 1)

    async def test_a_suspect_that_dies_alone_fails_after_its_last_attempt(
        self, worker: Worker, store: JobStore, owner: Owner
    ) -> None:
        poison = await submit(store, owner)
        for _ in range(MAX_ATTEMPTS):
            await crash(worker, *await start(worker, poison))
        failed = await read(store, poison)
        assert (failed.status, failed.error) == (JobStatus.FAILED, exhausted(MAX_ATTEMPTS))
        assert [item.outcome for item in failed.attempts] == ["engine_lost", "engine_lost", "failed"]

    async def test_a_burst_is_tried_one_by_one(self, worker: Worker, store: JobStore, owner: Owner) -> None:
        """All jobs had just started, so all are suspects. Each runs alone until its first token."""
        jobs = [await submit(store, owner) for _ in range(4)]
        await crash(worker, *await start(worker, *jobs))
        for job in jobs:
            row = await read(store, job)
            assert (row.deaths, row.exposures, row.suspect) == (0, 1, True)
        calls = {job.id: worker.engine.next_call(job.id) for job in jobs}
        runs = {job.id: asyncio.create_task(worker.runner.run(job.id)) for job in jobs}
        seen: list[str] = []
        while len(seen) < len(jobs):
            waiting = [call for job_id, call in calls.items() if job_id not in seen]
            await asyncio.wait(waiting, timeout=WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
            (call,) = [call.result() for call in waiting if call.done()]
            assert list(worker.engine.calls) == [(call.job_id, 2)], "it runs alone"
            seen.append(call.job_id)
            await call.tokens(1)
            await eventually(self.cleared(store, call.job_id), "it is not a suspect any more")
        # Each but the last was set aside for the next one, after its first token.
        assert [await runs[job_id] for job_id in seen[:-1]] == [None] * 3
        resumed = await start(worker, *[job for job in jobs if job.id != seen[-1]])
        assert {call.prior for _, call in resumed} == {text_of_tokens(1)}
        for run, call in [*resumed, (runs[seen[-1]], calls[seen[-1]].result())]:
            await complete(run, call)

    @staticmethod
    def cleared(store: JobStore, job_id: str):  # type: ignore[no-untyped-def]
        async def probe() -> bool:
            row = await store.get(job_id)
            return row is not None and not row.suspect

        return probe

    async def test_others_wait_for_a_suspect_and_are_not_lost_with_it(
        self, worker: Worker, store: JobStore, owner: Owner
    ) -> None:
        poison, running, new = [await submit(store, owner) for _ in range(3)]
        await crash(worker, *await start(worker, poison))
        [(run, call)] = await start(worker, running)
        await call.tokens(3)
        suspected, _ = await worker.start(poison)
        assert await asyncio.wait_for(run, WITHIN_S) is None, "it was set aside"
        entering = asyncio.create_task(worker.runner.run(new.id))
        await asyncio.wait({entering}, timeout=0.1)
        assert list(worker.engine.calls) == [(poison.id, 2)]
        assert (await read(store, new)).status is JobStatus.QUEUED

        worker.engine.die()
        assert await asyncio.wait_for(suspected, WITHIN_S) is None
        await worker.engine.start()
        assert (await read(store, poison)).deaths == 2
        await eventually(lambda: _truth(bool(worker.engine.calls)), "the other job enters")
        for job in (running, new):
            assert (await read(store, job)).deaths == 0
        [resumed] = await start(worker, running)
        assert resumed[1].prior == text_of_tokens(3)
        await complete(*resumed)
        await complete(entering, worker.engine.calls[new.id, 1])

    async def test_a_request_to_a_dead_engine_is_no_casualty(
        self, worker: Worker, store: JobStore, owner: Owner
    ) -> None:
        job = await submit(store, owner)
        worker.engine.die()
        assert await asyncio.wait_for(worker.runner.run(job.id), WITHIN_S) is None
        row = await read(store, job)
        assert (row.status, row.deaths, row.exposures, row.suspect) == (JobStatus.QUEUED, 0, 0, False)
        assert [item.outcome for item in row.attempts] == ["handed_back"]

    async def test_a_job_that_kills_late_is_isolated_in_the_end(
        self, worker: Worker, store: JobStore, owner: Owner
    ) -> None:
        """It has tokens whenever it kills. Its neighbours are never charged, and the number of deaths is bounded."""
        poison = await submit(store, owner)
        for _ in range(LATE_FACTOR * MAX_ATTEMPTS):
            neighbour = await submit(store, owner)
            started = await start(worker, neighbour, poison)
            for _, call in started:
                await call.tokens(1)
            await crash(worker, *started)
            row = await read(store, neighbour)
            assert (row.deaths, row.suspect) == (0, False)
        assert (await read(store, poison)).suspect
        for _ in range(MAX_ATTEMPTS):
            [(run, call)] = await start(worker, poison)
            await call.tokens(1)
            entering = asyncio.create_task(worker.runner.run(neighbour.id))
            await asyncio.wait({entering}, timeout=0.05)
            assert list(worker.engine.calls) == [(poison.id, call.attempt)], "its first token does not clear it"
            worker.engine.die()
            await asyncio.wait_for(run, WITHIN_S)
            await worker.engine.start()
            await eventually(lambda: _truth(bool(worker.engine.calls)), "the neighbour enters")
            await worker.runner.requeue_all()
        failed = await read(store, poison)
        assert failed.error == exhausted(MAX_ATTEMPTS)
        assert (await read(store, neighbour)).deaths == 0


async def _truth(value: bool) -> bool:
    return value


class TestWaiting:
    async def test_suspects_that_wait_leave_slots_to_others(
        self, workers: Workers, logs: EventLog, store: JobStore, owner: Owner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runner_module, "LATER_S", 0.01)
        jobs = [await submit(store, owner) for _ in range(6)]
        async with working("w", workers("w"), logs, slots=4) as worker:
            await crash(worker, *await start(worker, *jobs))
            worker.sent.clear()
            runs = {job.id: asyncio.create_task(worker.runner.run(job.id)) for job in jobs}
            # Two stay where the first is still claiming its job while the last is refused, and three where it runs.
            await eventually(
                lambda: _truth(
                    len(ended := {job_id for job_id, run in runs.items() if run.done()}) >= 3
                    and {hint.job_id for hint in worker.sent} == ended
                ),
                "the messages of the others are sent again",
            )
            assert len(worker.sent) <= 4, "each was sent once"
            assert all(hint.front for hint in worker.sent)
            await worker.runner.drain(0)
            await asyncio.gather(*runs.values())

    async def test_a_duplicate_of_a_message_that_waits_takes_no_slot(
        self, worker: Worker, store: JobStore, owner: Owner
    ) -> None:
        poison, suspect, new = [await submit(store, owner) for _ in range(3)]
        await crash(worker, *await start(worker, poison, suspect))
        [(first, call)] = await start(worker, poison)
        runs = [asyncio.create_task(worker.runner.run(job.id)) for job in (suspect, new)]
        await eventually(lambda: _truth(worker.runner.waiting == {suspect.id, new.id}), "they wait")
        for job in (suspect, new):
            assert await asyncio.wait_for(worker.runner.run(job.id), WITHIN_S) is None
        assert not any(run.done() for run in runs)
        await call.tokens(1)
        await asyncio.wait_for(first, WITHIN_S)  # set aside for the second suspect
        assert await asyncio.wait_for(worker.engine.next_call(suspect.id), WITHIN_S)
        await worker.runner.drain(0)
        assert worker.runner.waiting == set()
        await asyncio.gather(*runs)


class TestWorkerDeath:
    async def test_jobs_with_tokens_are_not_suspects(
        self, workers: Workers, store: JobStore, logs: EventLog, owner: Owner, sweeper: Sweeper
    ) -> None:
        claimed = []
        for _ in range(3):
            job = await submit(store, owner)
            assert await workers("dead").claim(job.id)
            await logs.append([Append(job.id, 1, [event(1, EventType.STARTED, {"attempt": 1})])])
            claimed.append(job)
        talking, *silent = claimed
        await logs.append([Append(talking.id, 1, [delta_event(2, Delta(0, "so far", (7, 8)))])])
        assert await sweeper.sweep() == 3
        row = await read(store, talking)
        assert (row.deaths, row.exposures, row.suspect) == (0, 1, False)
        for job in silent:
            row = await read(store, job)
            assert (row.deaths, row.exposures, row.suspect) == (0, 1, True)

    async def test_a_token_of_an_earlier_attempt_is_no_proof(
        self, workers: Workers, store: JobStore, logs: EventLog, owner: Owner, sweeper: Sweeper
    ) -> None:
        job, other = await submit(store, owner), await submit(store, owner)
        await workers("dead").claim(job.id)
        started = event(1, EventType.STARTED, {"attempt": 1})
        await logs.append([Append(job.id, 1, [started, delta_event(2, Delta(0, "so far", (7, 8)))])])
        await workers("dead").claim(other.id)
        await sweeper.sweep()
        assert not (await read(store, job)).suspect
        assert (await read(store, other)).deaths == 1, "only it can have killed the worker"
        await workers("dead").claim(job.id)
        await sweeper.sweep()
        assert (await read(store, job)).suspect

    async def test_a_poison_fails_and_its_neighbours_never_do(
        self, workers: Workers, store: JobStore, logs: EventLog, owner: Owner, sweeper: Sweeper
    ) -> None:
        """As workers that do not isolate suspects would run them, for instance those of an older version."""
        poison, neighbour = await submit(store, owner), await submit(store, owner)
        for number in range(1, MAX_ATTEMPTS + 1):
            for job in (poison, neighbour):
                assert await workers("dead").claim(job.id)
            seq = 3 * number
            tokens = [event(seq, EventType.STARTED, {"attempt": number}), delta_event(seq + 1, Delta(0, "a", (7,)))]
            await logs.append([Append(neighbour.id, number, tokens, force=True)])
            await sweeper.sweep()
        failed = await read(store, poison)
        assert failed.error == exhausted(MAX_ATTEMPTS)
        assert (await read(store, neighbour)).deaths == 0

    async def test_a_job_that_the_worker_had_not_claimed_yet_may_have_killed_it(
        self, workers: Workers, store: JobStore, owner: Owner, redis: Redis, sweeper: Sweeper
    ) -> None:
        """It was started while its claim was being committed."""
        ended, neighbor, early = await submit(store, owner), await submit(store, owner), await submit(store, owner)
        requests = CarriedRequests(redis)
        for job in (ended, early):
            await redis.set(redis_keys.carried_request(job.id), carried(job) or b"")
            assert await requests.take(job.id, "dead")
        assert await workers("dead").claim(ended.id)
        assert await workers("dead").requeue(ended.id, 1, tokens=0, outcome=AttemptOutcome.HANDED_BACK)
        assert await workers("dead").claim(neighbor.id)
        assert await sweeper.sweep() == 1
        row = await read(store, neighbor)
        assert (row.deaths, row.exposures, row.suspect) == (0, 1, True)
        for job in (ended, early):
            row = await read(store, job)
            assert (row.status, row.deaths, row.exposures, row.suspect) == (JobStatus.QUEUED, 0, 0, False)

        await workers("live").heartbeat("m", slots=1, running=1, lease_s=60)
        assert await workers("live").claim(early.id)
        assert await workers("dead").claim(ended.id)
        assert await sweeper.sweep() == 1
        row = await read(store, ended)
        assert (row.deaths, row.exposures, row.suspect) == (0, 1, True), "a live worker has it now"

    async def test_a_job_that_it_had_claimed_and_left_cannot_have_killed_it(
        self, workers: Workers, store: JobStore, owner: Owner, redis: Redis, sweeper: Sweeper
    ) -> None:
        left, poison = await submit(store, owner), await submit(store, owner)
        await redis.set(redis_keys.carried_request(left.id), carried(left) or b"")
        assert await CarriedRequests(redis).take(left.id, "dead")
        assert await workers("dead").claim(left.id)
        assert await workers("dead").requeue(left.id, 1, tokens=0, outcome=AttemptOutcome.HANDED_BACK)
        assert await workers("dead").claim(poison.id)
        assert await sweeper.sweep() == 1
        assert (await read(store, poison)).deaths == 1

    async def test_a_released_claim_is_counted_and_raises_no_suspicion(
        self, workers: Workers, store: JobStore, owner: Owner, sweeper: Sweeper
    ) -> None:
        await workers("w").heartbeat("m", slots=1, running=1, lease_s=60)
        jobs = [await submit(store, owner) for _ in range(2)]
        for job in jobs:
            await workers("w").claim(job.id)
            await workers("w").release_claim(job.id, 1)
        assert await sweeper.sweep() == 2
        for job in jobs:
            row = await read(store, job)
            assert (row.deaths, row.suspect) == (1, False)


async def test_an_engine_that_relays_does_not_isolate(
    workers: Workers, store: JobStore, logs: EventLog, owner: Owner
) -> None:
    """Setting its jobs aside would be charged twice, so suspects run beside others; they are the first to blame."""
    async with working("w", workers("w"), logs) as worker:
        worker.runner = type(worker.runner)(worker.runner._context, SlotPool(64, yields=False))
        poison, neighbour = await submit(store, owner), await submit(store, owner)
        for _ in range(MAX_ATTEMPTS + 1):
            await crash(worker, *await start(worker, poison, neighbour))
            if (await read(store, neighbour)).suspect:
                [(run, call)] = await start(worker, neighbour)
                await call.tokens(1)
                await eventually(TestEngineDeath.cleared(store, neighbour.id), "the neighbour is cleared")
                await worker.runner.requeue_all()
                await run
        assert (await read(store, poison)).error == exhausted(MAX_ATTEMPTS)
        assert (await read(store, neighbour)).deaths < MAX_ATTEMPTS


async def test_a_drain_ends_the_waits_of_suspects(worker: Worker, store: JobStore, owner: Owner) -> None:
    jobs = [await submit(store, owner) for _ in range(3)]
    await crash(worker, *await start(worker, *jobs))
    runs = [asyncio.create_task(worker.runner.run(job.id)) for job in jobs]
    await eventually(lambda: _truth(bool(worker.engine.calls)), "one of them runs")
    await asyncio.wait_for(worker.runner.drain(0), WITHIN_S)
    assert await asyncio.gather(*runs) == [None] * 3
    rows = [await read(store, job) for job in jobs]
    assert {(row.status, row.deaths, row.suspect) for row in rows} == {(JobStatus.QUEUED, 0, True)}


async def test_a_suspect_of_a_batch_waits_for_urgent_jobs(
    worker: Worker, store: JobStore, owner: Owner, database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, urgent = await submit(store, owner, BATCH_PRIORITY), await submit(store, owner)
    await crash(worker, *await start(worker, batch))
    [(run, call)] = await start(worker, urgent)
    await call.tokens(1)
    suspected = asyncio.create_task(worker.runner.run(batch.id))
    await asyncio.wait({suspected}, timeout=0.1)
    assert list(worker.engine.calls) == [(urgent.id, 1)]
    await complete(run, call)
    await eventually(lambda: _truth((batch.id, 2) in worker.engine.calls), "the suspect runs")
    await worker.runner.requeue_all()
    await suspected
