"""The readiness check, which needs no key."""

from __future__ import annotations

import asyncio
from pathlib import Path

from redis.asyncio import Redis
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from api.monitoring.readiness import OK, WARMING, ReadinessCheck
from shared.config.models.loader import load_registry
from shared.domain.job import WorkerState
from shared.postgres.job_store import JobStore
from tests.conftest import Workers
from tests.support.stack import write_models


async def test_concurrent_checks_share_their_queries(
    database: AsyncEngine, store: JobStore, redis: Redis, workers: Workers, tmp_path: Path
) -> None:
    """Otherwise, whoever can connect can keep the connections to the database from all others."""
    registry = load_registry(write_models(tmp_path / "models.yaml", [{"name": "m", "engine": "simulated"}]))
    check = ReadinessCheck(store, redis, registry)
    statements: list[str] = []
    event.listen(database.sync_engine, "before_cursor_execute", lambda *call: statements.append(call[2]))

    assert (await check.run())["model m"] == "no live worker"
    alone = len(statements)
    await workers("w").heartbeat("m", slots=1, running=0, lease_s=60, state=WorkerState.WARMING)
    assert (await check.run())["model m"] == WARMING
    assert not check.is_ready(WARMING)
    await workers("w").heartbeat("m", slots=1, running=0, lease_s=60)
    statements.clear()
    results = await asyncio.gather(*(check.run() for _ in range(100)))
    assert results == [{"database": OK, "redis": OK, "model m": OK}] * 100
    assert len(statements) == alone

    first, second = (asyncio.create_task(check.run()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second)["database"] == OK, "a caller that disconnects does not end the check of the others"
