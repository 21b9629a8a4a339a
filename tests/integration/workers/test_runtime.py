"""A worker is registered while its engine starts, although that blocks its event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from celery import Celery
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncEngine

from api.admin.fleet.store import FleetStore, WorkerInfo
from shared.config.models.loader import Registry
from shared.config.models.simulated import SimulatedModel
from shared.runtime.reload_signal import ReloadSignal
from tests.conftest import TEST_REDIS_DB, Servers
from tests.support.metrics import worker_metrics
from tests.support.waiting import WITHIN_S, eventually
from workers import runtime
from workers.runtime import WorkerRuntime
from workers.settings import WorkerSettings

MODEL = SimulatedModel(name="m", engine="simulated", slots=4)
LEASE_S = 1.0


class BlockingStart:
    """A start that blocks the event loop of its worker, as vLLM's does, until the test lets it fail."""

    def __init__(self) -> None:
        self.began, self.fails = threading.Event(), threading.Event()

    async def start(self) -> None:
        self.began.set()
        assert self.fails.wait(WITHIN_S)
        raise MemoryError("no memory is left")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[BlockingStart]:
    engine = BlockingStart()
    monkeypatch.setattr(runtime, "make_engine", lambda *_: engine)
    yield engine
    engine.fails.set()


@pytest.fixture
def worker(servers: Servers, database_url: str) -> WorkerRuntime:
    """A worker whose loop may be silent for less than its lease, and whose start takes longer than both."""
    settings = WorkerSettings(
        DATABASE_URL=database_url,
        REDIS_URL=servers.redis(TEST_REDIS_DB),
        lease_s=LEASE_S,
        heartbeat_s=LEASE_S / 10,
        stall_s=LEASE_S / 4,
    )
    return WorkerRuntime(
        Celery(), settings, Registry({"m": MODEL}), MODEL, "w", worker_metrics("m"), CollectorRegistry(), ReloadSignal()
    )


def start(worker: WorkerRuntime) -> Future[None]:
    """Start a worker on an event loop of its own."""
    ended: Future[None] = Future()

    async def run() -> None:
        try:
            await worker.start()
        except Exception as error:
            ended.set_exception(error)
        finally:
            await worker.stop()

    threading.Thread(target=asyncio.run, args=(run(),), daemon=True).start()
    return ended


async def test_a_worker_whose_engine_starts_is_loading_until_that_fails(
    worker: WorkerRuntime, engine: BlockingStart, database: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = FleetStore(database)
    ended = start(worker)
    assert await asyncio.to_thread(engine.began.wait, WITHIN_S)
    first = await fleet.worker("w")
    assert first is not None, "it is registered before its engine starts"
    assert (first.state, first.alive, first.slots) == ("loading", True, 4)

    async def renewed() -> WorkerInfo | None:
        now = await fleet.worker("w")
        assert now is not None
        assert now.alive
        return now if (now.lease_expires_at - first.lease_expires_at).total_seconds() > LEASE_S else None

    later = await eventually(renewed, "a lease that lasts longer than the first one")
    assert (later.state, later.state_since) == ("loading", first.state_since)
    stuck = [record for record in caplog.records if record.levelno >= logging.CRITICAL]
    assert not stuck, "a loop that starts an engine is not stuck"

    engine.fails.set()
    with pytest.raises(MemoryError):
        await asyncio.wrap_future(ended)
    failed = await fleet.worker("w")
    assert failed is not None
    assert (failed.state, failed.alive) == ("loading", False)
    assert failed.last_error == "The engine failed to start: MemoryError: no memory is left"


async def test_a_worker_that_is_stopped_while_its_engine_starts_leaves_no_trace(
    worker: WorkerRuntime, engine: BlockingStart, database: AsyncEngine
) -> None:
    ended = start(worker)
    assert await asyncio.to_thread(engine.began.wait, WITHIN_S)
    await worker.abandon()
    assert await FleetStore(database).workers() == []
    engine.fails.set()
    with pytest.raises(MemoryError):
        await asyncio.wrap_future(ended)
