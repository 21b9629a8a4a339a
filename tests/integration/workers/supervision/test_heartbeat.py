"""The heartbeat's comparison of a worker's claims with its running jobs, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select, update

from api.admin.fleet.schemas import WorkerView
from api.admin.fleet.store import FleetStore
from shared.domain.engine_info import EngineInfo, KVCacheInfo
from shared.domain.job import Job, JobStatus
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.postgres.claim_store import ClaimStore
from shared.postgres.job_store import JobStore
from shared.postgres.tables import WorkerRow
from shared.redis.event_log import EventLog
from tests.conftest import Servers, Workers
from tests.integration.workers.execution.test_runner import WITHIN_S, Worker, working
from workers.engines.base import EngineStats
from workers.settings import WorkerSettings
from workers.supervision.heartbeat import Heartbeat


@pytest.fixture
async def worker(workers: Workers, logs: EventLog) -> AsyncIterator[Worker]:
    async with working("w", workers("w"), logs) as worker:
        yield worker


@pytest.fixture
def heartbeat(worker: Worker, servers: Servers) -> Heartbeat:
    settings = WorkerSettings(DATABASE_URL=servers.postgres_url, REDIS_URL=servers.redis_url)
    return Heartbeat(worker.runner, worker.engine, worker.store, "m", settings)


async def slots_of(store: JobStore, worker: str) -> int | None:
    async with store._engine.connect() as connection:
        return await connection.scalar(select(WorkerRow.slots).where(WorkerRow.id == worker))


async def test_a_heartbeat_reports_slots_that_a_reload_has_changed(workers: Workers, store: JobStore) -> None:
    for slots in (4, 8):
        await workers("w").heartbeat("m", slots=slots, running=0, lease_s=5)
        assert await slots_of(store, "w") == slots


async def test_a_heartbeat_reports_what_the_engine_runs_with(
    workers: Workers, heartbeat: Heartbeat, worker: Worker, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = FleetStore(store._engine)
    await heartbeat.renew()
    (info,) = await fleet.workers()
    assert info.engine_info is None
    runs_with = EngineInfo(engine="vLLM", dtype="bfloat16", quantization=None, kv_cache=KVCacheInfo(blocks=7))
    monkeypatch.setattr(worker.engine, "stats", lambda: EngineStats(0, info=runs_with))
    await heartbeat.renew()
    (info,) = await fleet.workers()
    assert info.engine_info == runs_with
    assert WorkerView.of(info).model_dump(mode="json")["engine_info"]["kv_cache"]["blocks"] == 7


async def test_what_a_worker_of_another_version_reports_is_unknown(workers: Workers, store: JobStore) -> None:
    await workers("w").heartbeat("m", slots=1, running=0, lease_s=5)
    async with store._engine.begin() as connection:
        await connection.execute(update(WorkerRow).values(engine_info={"engine": ["another", "form"]}))
    (info,) = await FleetStore(store._engine).workers()
    assert info.engine_info is None


async def test_a_claim_whose_reply_has_not_arrived_is_not_released(
    worker: Worker, heartbeat: Heartbeat, store: JobStore, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats follow each other at once when the engine restarts: its job would be charged with a death."""
    job, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x")))
    committed, reply = asyncio.Event(), asyncio.Event()
    claim = ClaimStore.claim

    async def delayed(self: ClaimStore, job_id: str, *, suspects: bool = True) -> Job | None:
        claimed = await claim(self, job_id, suspects=suspects)
        committed.set()
        await reply.wait()
        return claimed

    monkeypatch.setattr(ClaimStore, "claim", delayed)
    entered = worker.engine.next_call(job.id)
    run = asyncio.create_task(worker.runner.run(job.id))
    await asyncio.wait_for(committed.wait(), WITHIN_S)
    for _ in range(3):
        await heartbeat.renew()
    reply.set()
    call = await asyncio.wait_for(entered, WITHIN_S)
    call.finish("stop")
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    done = await store.get(job.id)
    assert done is not None
    assert (done.deaths, [item.outcome for item in done.attempts]) == (0, ["completed"])


async def test_a_claim_whose_reply_was_lost_is_released(
    worker: Worker, heartbeat: Heartbeat, store: JobStore, owner: Owner
) -> None:
    job, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x")))
    await worker.store.claim(job.id)
    await heartbeat.renew()
    assert [item.job_id for item in await worker.store.list_claims()] == [job.id]
    await heartbeat.renew()
    assert await worker.store.list_claims() == []


async def test_a_job_whose_end_was_committed_before_the_reply_is_not_taken_for_a_lost_one(
    worker: Worker,
    heartbeat: Heartbeat,
    store: JobStore,
    owner: Owner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    job, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x")))
    committed, reply = asyncio.Event(), asyncio.Event()
    finish = ClaimStore.finish

    async def delayed(self: ClaimStore, *arguments: Any, **options: Any) -> Any:
        ended = await finish(self, *arguments, **options)
        committed.set()
        await reply.wait()
        return ended

    monkeypatch.setattr(ClaimStore, "finish", delayed)
    entered = worker.engine.next_call(job.id)
    run = asyncio.create_task(worker.runner.run(job.id))
    call = await asyncio.wait_for(entered, WITHIN_S)
    call.finish("stop")
    await asyncio.wait_for(committed.wait(), WITHIN_S)
    await heartbeat.renew()
    reply.set()
    assert await asyncio.wait_for(run, WITHIN_S) is JobStatus.COMPLETED
    assert [record.message for record in caplog.records if record.name == "workers.supervision.heartbeat"] == []
