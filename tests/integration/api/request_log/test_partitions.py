"""Partitions are created ahead and dropped after their time, without keeping jobs from ending."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Self

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.request_log import partitions
from api.request_log import store as store_module
from api.request_log.bodies import MissingReason
from api.request_log.data_keys import DataKeys
from api.request_log.encryption import MasterKeys
from api.request_log.partitions import AHEAD_DAYS, BODIES, LOG, Partitions, PartitionUpkeep
from api.request_log.store import RequestLogStore
from shared.domain.log_level import LogLevel
from shared.domain.owner import Owner
from shared.postgres.engine import transaction
from shared.postgres.job_store import JobStore
from shared.telemetry.metrics import Metrics
from tests.conftest import Workers
from tests.integration.api.request_log.test_bodies import KEY, opened, reason, writer_of
from tests.integration.api.request_log.test_rows import ended, result
from tests.support.metrics import api_metrics
from tests.support.request_log import log_rows
from tests.support.waiting import eventually

TODAY = datetime.now(UTC).date()
FILL = """
INSERT INTO request_log (job_id, ended_at, project_id, key_id, model, requested_model, status, created_at, level, body)
SELECT 'job_' || n, CAST(:ended_at AS timestamptz), 1, 1, 'm', 'm', 'completed', now(), 'full', CAST(:body AS text)
FROM generate_series(1, CAST(:count AS int)) AS n
"""

WAITING = """
SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted
"""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "PAUSE_S", 0)


def upkeep(database: AsyncEngine, *, bodies: int = 2, rows: int = 5, metrics: Metrics | None = None) -> PartitionUpkeep:
    return PartitionUpkeep(database, metrics or api_metrics(), body_days=bodies, row_days=rows)


def noon(days_ago: int) -> datetime:
    return datetime.now(UTC).replace(hour=12) - timedelta(days=days_ago)


async def fill(database: AsyncEngine, ended_at: datetime, count: int = 3, body: str = "none") -> None:
    async with database.begin() as connection:
        await connection.execute(text(FILL), {"ended_at": ended_at, "count": count, "body": body})


async def tables(database: AsyncEngine) -> dict[str, int]:
    """The tables that have rows of the log, and their numbers."""
    query = text("SELECT tableoid::regclass::text AS name, count(*) AS rows FROM request_log GROUP BY 1")
    async with database.connect() as connection:
        return {row.name: row.rows for row in await connection.execute(query)}


def named(day: date) -> str:
    return f"request_log_{day:%Y%m%d}"


async def test_partitions_exist_for_the_next_days(database: AsyncEngine) -> None:
    await upkeep(database).step()
    expected = {TODAY + timedelta(days=ahead) for ahead in range(AHEAD_DAYS + 1)}
    for parent in (LOG, BODIES):
        assert await Partitions(database).days(parent) == expected
    await upkeep(database).step()
    await fill(database, noon(0))
    assert await tables(database) == {named(TODAY): 3}


async def test_processes_that_start_together_create_each_partition_once(database: AsyncEngine) -> None:
    await asyncio.gather(*(upkeep(database).step() for _ in range(4)))
    assert len(await Partitions(database).days(LOG)) == AHEAD_DAYS + 1


async def test_rows_of_a_day_without_a_partition_are_moved_to_it(database: AsyncEngine) -> None:
    await fill(database, noon(0))
    await fill(database, noon(1))
    await upkeep(database).step()
    assert await tables(database) == {named(TODAY): 3, "request_log_default": 3}


async def test_too_many_rows_stay_in_the_default_partition(
    database: AsyncEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(partitions, "MOST_MOVED", 2)
    await fill(database, noon(0))
    once = upkeep(database)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            await once.step()
    assert await tables(database) == {"request_log_default": 3}
    assert caplog.text.count("stay in the default partition") == 1
    assert TODAY not in await Partitions(database).days(LOG)
    assert TODAY + timedelta(days=1) in await Partitions(database).days(LOG)


async def test_old_partitions_are_dropped_with_their_data_keys(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    """Bodies are kept for 2 days, and rows for 5."""
    jobs = {}
    for days in (0, 2, 3, 6):
        for parent in (LOG, BODIES):
            await Partitions(database).create(parent, noon(days).date())
        job = await ended(store, workers, owner, result(finished_at=noon(days)), log_level=LogLevel.FULL)
        jobs[days] = job.id
    await writer_of(database).step()
    await upkeep(database).step()
    assert await Partitions(database).days(BODIES) == {TODAY + timedelta(days=n) for n in (-2, 0, 1, 2, 3)}
    assert await Partitions(database).days(LOG) == {TODAY + timedelta(days=n) for n in (-3, -2, 0, 1, 2, 3)}
    assert [row.job_id for row in await log_rows(database)] == [jobs[0], jobs[2], jobs[3]]
    for days in (0, 2):
        assert (await opened(database, jobs[days])).job_id == jobs[days]
    assert await reason(database, jobs[3]) is MissingReason.EXPIRED
    assert await reason(database, jobs[6]) is MissingReason.NOT_LOGGED
    async with database.connect() as connection:
        days_left = (await connection.execute(text("SELECT day FROM data_keys ORDER BY day"))).scalars().all()
    assert days_left == [noon(2).date(), TODAY]


async def test_old_rows_of_the_default_partition_are_deleted(
    database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "DELETED", 2)
    await fill(database, noon(6), count=5)
    await fill(database, noon(4), count=2, body="pending")
    metrics = api_metrics()
    await upkeep(database, metrics=metrics).step()
    assert metrics.log_bodies.labels("lost")._value.get() == 2
    rows = await log_rows(database)
    assert {row.ended_at.date() for row in rows} == {noon(4).date()}
    assert [row.body for row in rows] == ["lost", "lost"], "their bodies are not written any more"


async def test_neither_waits_for_statements_that_end_jobs(
    database: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """A transaction that has written to the log keeps its partition from being dropped, and the round ends."""
    await Partitions(database).create(LOG, noon(6).date())
    async with transaction(database) as connection:
        await connection.execute(text(FILL), {"ended_at": noon(6), "count": 1, "body": "none"})
        with caplog.at_level(logging.WARNING):
            await upkeep(database).step()
        assert noon(6).date() in await Partitions(database).days(LOG)
    assert "cannot drop the partition" in caplog.text
    await upkeep(database).step()
    assert noon(6).date() not in await Partitions(database).days(LOG)


async def test_partitions_are_dropped_between_transactions_that_write_bodies(database: AsyncEngine) -> None:
    """Such transactions may follow each other without a pause, in several processes: none begins meanwhile."""
    await Partitions(database).create(LOG, noon(6).date())
    log = RequestLogStore(database)
    async with transaction(database) as writing:
        assert await log.may_write(writing)
        await writing.execute(text(FILL), {"ended_at": noon(6), "count": 1, "body": "none"})
        dropping = asyncio.create_task(upkeep(database).step())

        async def is_waiting() -> bool:
            async with database.connect() as connection:
                return bool((await connection.execute(text(WAITING))).scalar_one() == 1)

        await eventually(is_waiting, "the upkeep waits for the writer")
        async with transaction(database) as other:
            assert not await log.may_write(other)
    await dropping
    assert noon(6).date() not in await Partitions(database).days(LOG)
    async with transaction(database) as other:
        assert await log.may_write(other)


async def test_a_body_that_takes_too_long_is_not_waited_for(
    database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "WRITERS_WAIT_MS", 1)
    await Partitions(database).create(LOG, noon(6).date())
    async with transaction(database) as writing:
        assert await RequestLogStore(database).may_write(writing)
        await upkeep(database).step()
    assert noon(6).date() not in await Partitions(database).days(LOG), "the writer had no lock on the table"


async def test_the_partition_of_today_is_never_dropped(database: AsyncEngine) -> None:
    await upkeep(database, bodies=1, rows=1).step()
    assert TODAY in await Partitions(database).days(LOG)


async def test_a_process_with_a_wrong_clock_drops_nothing(
    database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(days=400)

    monkeypatch.setattr(partitions, "datetime", Ahead)
    await upkeep(database).step()
    await DataKeys(database, MasterKeys.of(KEY)).of_day(TODAY)
    await fill(database, noon(0))
    await upkeep(database).step()
    assert await tables(database) == {named(TODAY): 3}
    async with database.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM data_keys"))).scalar_one() == 1


@pytest.mark.parametrize(
    "call", ["create_log_partition('jobs', '2026-11-30', 0)", "drop_log_partition('jobs', now()::date)"]
)
async def test_only_partitions_of_the_log_are_created_and_dropped(database: AsyncEngine, call: str) -> None:
    async with database.connect() as connection:
        with pytest.raises(DBAPIError, match="must be allowed to delete rows"):
            await connection.execute(text(f"SELECT {call}"))


async def test_a_role_without_rights_cannot_drop_partitions(database: AsyncEngine) -> None:
    await Partitions(database).create(LOG, TODAY)
    async with database.begin() as connection:
        await connection.execute(text("CREATE ROLE nobody_in_particular"))
    try:
        async with database.connect() as connection:
            await connection.execute(text("SET SESSION AUTHORIZATION nobody_in_particular"))
            with pytest.raises(DBAPIError, match=r"must be allowed to delete rows|permission denied"):
                await connection.execute(text("SELECT drop_log_partition('request_log', now()::date)"))
            await connection.execute(text("RESET SESSION AUTHORIZATION"))
    finally:
        async with database.begin() as connection:
            await connection.execute(text("DROP ROLE nobody_in_particular"))
    assert TODAY in await Partitions(database).days(LOG)


async def test_a_data_key_of_an_old_day_is_deleted_without_a_partition(database: AsyncEngine) -> None:
    await DataKeys(database, MasterKeys.of(KEY)).of_day(noon(9).date())
    await upkeep(database).step()
    async with database.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM data_keys"))).scalar_one() == 0
