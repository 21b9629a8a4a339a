"""A reload of models.yaml in a worker, on a real database and with a stand-in for the upstream."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.config.models.reload import ReloadResult
from shared.config.models.simulated import SimulatedModel
from shared.domain.job import AttemptOutcome, Job
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.postgres.job_store import JobStore, NewJob
from shared.postgres.recovery_store import RecoveryStore
from tests.conftest import Workers
from tests.support.metrics import worker_metrics
from workers.engines.factory import make_engine
from workers.execution.attempt import AttemptContext
from workers.execution.current_engine import CurrentEngine
from workers.execution.runner import Runner
from workers.execution.slots import SlotPool
from workers.supervision.model_reload import ModelReload


class NoConsumer:
    """Celery's consumer, of which there is none."""

    def poll(self) -> None:
        pass


class Worker:
    """The parts of a worker that a reload concerns."""

    def __init__(self, model: Any, workers: Workers, recovery_store: RecoveryStore, grace_s: float = 0) -> None:
        self.metrics = worker_metrics("m")
        self.current = CurrentEngine(make_engine(model, self.metrics))
        context = AttemptContext(
            worker="w",
            engine=self.current.engine,
            store=workers("w"),
            logs=None,  # type: ignore[arg-type]  # no job runs
            log_writer=None,  # type: ignore[arg-type]
            log_ttl_s=1,
            max_attempts=3,
            send=lambda _: None,
            on_engine_death=lambda: None,
            metrics=self.metrics,
        )
        self.runner = Runner(context, SlotPool(model.slots, yields=model.yields))
        self.ended = 0
        self.reload = ModelReload(
            model,
            self.current,
            self.runner,
            recovery_store,
            NoConsumer(),  # type: ignore[arg-type]
            self.metrics,
            self._end,
            grace_s=grace_s,
        )

    def _end(self) -> None:
        self.ended += 1

    async def apply(self, *models: Any) -> ReloadResult:
        return await self.reload.apply({model.name: model for model in models})


SIMULATED = SimulatedModel(name="m", engine="simulated")


@pytest.fixture
async def worker(workers: Workers, recovery_store: RecoveryStore) -> AsyncIterator[Worker]:
    worker = Worker(SIMULATED, workers, recovery_store)
    await worker.current.start()
    yield worker
    await worker.current.stop()


async def submit(store: JobStore, owner: Owner) -> Job:
    return (await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x"))))[0]


async def test_a_worker_of_a_removed_model_stays_until_no_job_is_left_anywhere(
    worker: Worker, store: JobStore, owner: Owner, workers: Workers
) -> None:
    """A job that runs on another worker may be requeued, and then needs this one."""
    job = await submit(store, owner)
    await worker.apply()
    await worker.reload._check()
    assert not worker.ended, "a job is queued"
    other = workers("other")
    await other.claim(job.id)
    await worker.reload._check()
    assert not worker.ended, "a job runs elsewhere"
    await other.requeue(job.id, 1, tokens=0, outcome=AttemptOutcome.HANDED_BACK)
    await worker.reload._check()
    assert not worker.ended, "it has been requeued"
    await other.claim(job.id)
    await store.mark_cancelling(job.id)
    await worker.reload._check()
    assert not worker.ended, "it is being cancelled"


async def test_a_worker_of_a_removed_model_ends_once(worker: Worker) -> None:
    await worker.apply()
    with worker.runner._counted():  # a message whose job is not yet claimed
        await worker.reload._check()
        assert not worker.ended
    for _ in range(2):
        await worker.reload._check()
    assert worker.ended == 1


async def test_a_worker_of_a_removed_model_waits_for_other_api_processes(
    workers: Workers, recovery_store: RecoveryStore
) -> None:
    worker = Worker(SIMULATED, workers, recovery_store, grace_s=60)
    await worker.apply()
    await worker.reload._check()
    assert not worker.ended
    worker.reload._removed_at = time.monotonic() - 60
    await worker.reload._check()
    assert worker.ended


async def test_a_model_that_is_back_keeps_its_worker(worker: Worker) -> None:
    await worker.apply()
    assert await worker.apply(SIMULATED) is ReloadResult.APPLIED
    await worker.reload._check()
    assert not worker.ended
