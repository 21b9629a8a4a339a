"""The bounds of the response cache, its purge, and its secret."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.cache import store as cache_store
from api.cache.__main__ import main
from api.cache.response_cache import ResponseCache
from api.cache.store import CacheSize, CacheStore
from api.cache.upkeep import CacheUpkeep
from shared.config.models.loader import Registry
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.postgres.job_store import JobStore
from tests.support.database import make_owner
from tests.support.metrics import api_metrics


async def add(
    database: AsyncEngine, owner: Owner, key: int, *, model: str = "m", age_s: int = 0, ttl_s: int = 60
) -> None:
    """Add an entry of 100 bytes that was stored and last used some time ago."""
    statement = """
        INSERT INTO cached_answers (key, project_id, model, job_id, bytes, created_at, used_at, expires_at)
        VALUES (:key, :project, :model, 'job', 100, now() - :age * interval '1 s', now() - :age * interval '1 s',
                now() + :ttl * interval '1 s')
    """
    values = {"key": bytes([key]), "project": owner.project_id, "model": model, "age": age_s, "ttl": ttl_s}
    async with database.connect() as connection:
        await connection.execute(text(statement), values)


async def keys(database: AsyncEngine) -> list[int]:
    async with database.connect() as connection:
        return [row.key[0] for row in await connection.execute(text("SELECT key FROM cached_answers ORDER BY key"))]


@pytest.fixture
def cache(database: AsyncEngine) -> ResponseCache:
    return ResponseCache(Registry({}), CacheStore(database), JobStore(database), api_metrics())


async def test_expired_answers_are_deleted_and_then_the_least_recently_used(
    database: AsyncEngine, owner: Owner, cache: ResponseCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_store, "PORTION", 2)
    for key in range(5):
        await add(database, owner, key, ttl_s=-1)
    for key, age_s in ((5, 50), (6, 10), (7, 40), (8, 20), (9, 30)):
        await add(database, owner, key, age_s=age_s)
    metrics = api_metrics()
    store = CacheStore(database)
    await asyncio.gather(*(CacheUpkeep(cache, store, metrics, max_bytes=250).clean_up() for _ in range(3)))
    assert await keys(database) == [6, 8]
    assert await store.size() == CacheSize(2, 200)
    assert metrics.cache_entries._value.get() == 2
    assert metrics.cache_bytes._value.get() == 200
    evictions = {reason: metrics.cache_evictions.labels(reason)._value.get() for reason in ("expired", "size")}
    assert evictions == {"expired": 5, "size": 3}


async def test_hits_are_counted_and_keep_an_answer(
    database: AsyncEngine, owner: Owner, cache: ResponseCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts of a write that failed are written with the next."""
    for key, age_s in ((1, 50), (2, 10)):
        await add(database, owner, key, age_s=age_s)
    new = NewJob(owner, "m", 3, GenerateRequest(prompt="x"))
    hits = {b"\x01": 3, b"\x09": 1}  # one of them was evicted meanwhile

    async def hit(jobs: JobStore, new: NewJob, *_: Any, **__: Any) -> tuple[Any, bool] | None:
        return None if new.cache_key == b"\x02" else ("a job", new.cache_key != b"\x03")

    async def any_size(*_: Any) -> int:
        return 1

    monkeypatch.setattr(JobStore, "cached_bytes", any_size)
    monkeypatch.setattr(JobStore, "answer", hit)
    # Two more have no answer, and an idempotency key that was used.
    for cache_key, number in {**hits, b"\x02": 1, b"\x03": 1}.items():
        for _ in range(number):
            await cache.answer(replace(new, cache_key=cache_key), None)
    store = CacheStore(database)
    upkeep = CacheUpkeep(cache, store, api_metrics(), max_bytes=100)
    with monkeypatch.context() as broken:
        broken.setattr(store, "record_uses", AsyncMock(side_effect=ConnectionResetError))
        with pytest.raises(ConnectionResetError):
            await upkeep.record_uses()
    await asyncio.gather(upkeep.record_uses(), upkeep.record_uses())
    async with database.connect() as connection:
        rows = await connection.execute(text("SELECT key, hits FROM cached_answers"))
        assert {row.key: row.hits for row in rows} == {b"\x01": 3, b"\x02": 0}
    await upkeep.clean_up()
    assert await keys(database) == [1]


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        ({"model": "m"}, [3, 4]),
        ({"older_than_s": 60}, [1, 3]),
        ({"project_id": True, "model": "m"}, [3, 4]),
        ({"project_id": True}, [4]),
        ({}, []),
    ],
    ids=str,
)
async def test_a_purge_removes_what_all_conditions_select(
    database: AsyncEngine, owner: Owner, selection: dict[str, Any], left: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_store, "PORTION", 1)
    other = await make_owner(database, "other")
    await add(database, owner, 1)
    await add(database, owner, 2, age_s=120)
    await add(database, owner, 3, model="m2")
    await add(database, other, 4, model="m2", age_s=120)
    if "project_id" in selection:
        selection = {**selection, "project_id": owner.project_id}
    assert await CacheStore(database).purge(**selection) == 4 - len(left)
    assert await keys(database) == left


async def test_the_command_purges(
    database_url: str,
    database: AsyncEngine,
    owner: Owner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    await add(database, owner, 1)
    await add(database, owner, 2, model="m2")

    async def run(*arguments: str) -> int:
        return await asyncio.to_thread(main, arguments)

    assert await run("purge", "--project", "nobody") == 1
    assert await run("purge", "--model", "m", "--older-than", "7d") == 0
    assert await keys(database) == [1, 2]
    assert await run("purge", "--model", "m", "--project", "test") == 0
    assert await keys(database) == [2]
    assert await run("purge", "--all") == 0
    assert await keys(database) == []
    assert capsys.readouterr().out.splitlines()[-1] == "removed 1 answers from the response cache"
    for refused in ([], ["--all", "--model", "m"], ["--older-than", "x"]):
        with pytest.raises(SystemExit):
            main(["purge", *refused])


async def test_all_processes_use_the_secret_of_the_first(database: AsyncEngine) -> None:
    candidates = [bytes([n]) * 32 for n in range(4)]
    found = await asyncio.gather(*(CacheStore(database).secret(candidate) for candidate in candidates))
    assert len(set(found)) == 1
    assert found[0] in candidates
