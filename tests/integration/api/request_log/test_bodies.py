"""Bodies are written after the end of a job, encrypted, exactly once, and read back as they were."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import orjson
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.request_log import body_writer
from api.request_log.bodies import Bodies, Body, Missing, MissingReason
from api.request_log.body_writer import BodyWriter
from api.request_log.content import BodyRedactor
from api.request_log.data_keys import DataKeys
from api.request_log.encryption import MasterKeys
from api.request_log.store import RequestLogStore
from shared.domain.log_level import LogLevel
from shared.domain.master_key import generate_master_key
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.postgres import engine
from shared.postgres.job_store import JobStore
from shared.telemetry.metrics import Metrics
from tests.conftest import Workers
from tests.integration.api.cache.test_cached_answers import OUTPUT, answer, new_job, run
from tests.integration.api.request_log.test_rows import ended, result
from tests.support.metrics import api_metrics
from tests.support.request_log import body_rows, log_rows

PROMPT = "a prompt with the number 4242"
KEY, OTHER_KEY = generate_master_key(), generate_master_key()


class Replaced:
    """Replaces a text in all strings."""

    def __init__(self, found: str) -> None:
        self._found = found.encode()

    def redact_body(self, body: dict[str, Any]) -> tuple[dict[str, Any], Mapping[str, int]]:
        encoded = orjson.dumps(body)
        return orjson.loads(encoded.replace(self._found, b"[X]")), {"x": encoded.count(self._found)}


def new_redactor(rules: Mapping[str, Any] | None) -> BodyRedactor:
    return Replaced(rules["word"] if rules else "4242")


def writer_of(
    database: AsyncEngine, key: str = KEY, previous: str = "", *, days: int = 30, metrics: Metrics | None = None
) -> BodyWriter:
    keys = DataKeys(database, MasterKeys.of(key, previous))
    return BodyWriter(database, keys, metrics or api_metrics(), new_redactor, retention_days=days)


def reader_of(database: AsyncEngine, key: str = KEY, previous: str = "") -> Bodies:
    return Bodies(RequestLogStore(database), MasterKeys.of(key, previous))


async def opened(database: AsyncEngine, job_id: str, key: str = KEY) -> Body:
    body = await reader_of(database, key).open_body(job_id)
    assert isinstance(body, Body), body
    return body


async def reason(database: AsyncEngine, job_id: str, key: str = KEY) -> MissingReason:
    body = await reader_of(database, key).open_body(job_id)
    assert isinstance(body, Missing)
    assert body.explanation
    return body.reason


def counted(metrics: Metrics, outcome: str) -> float:
    return float(metrics.log_bodies.labels(outcome)._value.get())


async def logged(
    store: JobStore, workers: Workers, owner: Owner, level: LogLevel = LogLevel.FULL, **changes: Any
) -> str:
    changes = {"request": GenerateRequest(prompt=PROMPT), "log_level": level, **changes}
    return (await ended(store, workers, owner, **changes)).id


async def test_a_body_is_encrypted_and_read_back(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    job_id = await logged(store, workers, owner, metadata={"ticket": "7"})
    assert await reason(database, job_id) is MissingReason.PENDING
    metrics = api_metrics()
    assert await writer_of(database, metrics=metrics).step() == 1
    body = await opened(database, job_id)
    (row,), (stored,) = await log_rows(database), await body_rows(database)
    assert (row.body, counted(metrics, "kept"), counted(metrics, "lost")) == ("kept", 1, 0)
    assert (stored.job_id, stored.ended_at, stored.project_id) == (job_id, row.ended_at, owner.project_id)
    assert b"4242" not in stored.body
    assert b"prompt" not in stored.body
    assert (body.job_id, body.ended_at, body.level) == (job_id, row.ended_at, LogLevel.FULL)
    assert GenerateRequest.model_validate(body.request) == GenerateRequest(prompt=PROMPT)
    assert body.output == [choice.stored() for choice in OUTPUT]
    assert (body.metadata, body.error_message, body.redactions) == ({"ticket": "7"}, None, {})
    assert await writer_of(database).step() == 0, "there is nothing left to write"


async def test_a_redacted_body_is_redacted_before_it_is_written(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    job_id = await logged(store, workers, owner, LogLevel.REDACTED)
    metrics = api_metrics()
    await writer_of(database, metrics=metrics).step()
    body = await opened(database, job_id)
    assert body.request["prompt"] == "a prompt with the number [X]"
    assert body.redactions == {"x": 1}
    assert metrics.redactions.labels("own")._value.get() == 1


async def test_the_rules_are_those_of_the_project(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    async with database.begin() as connection:
        await connection.execute(text("""UPDATE projects SET options = '{"redaction": {"word": "number"}}'"""))
    job_id = await logged(store, workers, owner, LogLevel.REDACTED)
    await writer_of(database).step()
    assert (await opened(database, job_id)).request["prompt"] == "a prompt with the [X] 4242"


async def test_what_cannot_be_redacted_is_lost_and_does_not_keep_others_from_being_kept(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    bad = await logged(store, workers, owner, LogLevel.REDACTED)
    good = await logged(store, workers, owner)
    metrics = api_metrics()
    writer = writer_of(database, metrics=metrics)

    def no_redactor(rules: Mapping[str, Any] | None) -> BodyRedactor:
        raise ValueError(f"cannot read {PROMPT}")

    writer._new_redactor = no_redactor
    with caplog.at_level(logging.ERROR):
        assert await writer.step() == 2
    assert await reason(database, bad) is MissingReason.LOST
    assert await opened(database, good)
    assert (counted(metrics, "kept"), counted(metrics, "lost")) == (1, 1)
    assert bad in caplog.text
    assert PROMPT not in caplog.text


async def test_the_body_of_a_job_that_is_gone_is_lost_and_counted(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    """After the retention of jobs, which deletes most of them, and purges those that the cache may have shared."""
    purged, deleted = [await logged(store, workers, owner) for _ in range(2)]
    async with database.begin() as connection:
        await connection.execute(text("UPDATE jobs SET deleted_at = now() WHERE id = :id"), {"id": purged})
        await connection.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": deleted})
    metrics = api_metrics()
    assert await writer_of(database, metrics=metrics).step() == 2
    for job_id in (purged, deleted):
        assert await reason(database, job_id) is MissingReason.LOST
    assert (counted(metrics, "lost"), await body_rows(database)) == (2, [])


async def test_a_body_outlives_its_job(store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine) -> None:
    job_id = await logged(store, workers, owner)
    await writer_of(database).step()
    async with database.begin() as connection:
        await connection.execute(text("DELETE FROM jobs"))
    assert (await opened(database, job_id)).request["prompt"] == PROMPT


async def test_an_answer_of_the_response_cache_has_the_body_of_its_source(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    await run(store, workers, new_job(owner))
    job = await answer(store, owner, log_level=LogLevel.FULL)
    assert job is not None
    await writer_of(database).step()
    assert (await opened(database, job.id)).output == [choice.stored() for choice in OUTPUT]


async def test_processes_that_write_at_the_same_time_write_each_body_once(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_writer, "BATCH", 7)
    jobs = [await logged(store, workers, owner) for _ in range(40)]
    metrics = api_metrics()
    writers = [writer_of(database, metrics=metrics) for _ in range(3)]
    assert sum(await asyncio.gather(*(writer.step() for writer in writers))) == 40
    found = await reader_of(database).open_bodies(jobs)
    assert all(isinstance(body, Body) for body in found.values())
    assert (counted(metrics, "kept"), len(await body_rows(database))) == (40, 40)
    async with database.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM data_keys"))).scalar_one() == 1


async def test_large_contents_are_written_a_page_at_a_time(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_writer, "PAGE_BYTES", 1)
    pages = []
    contents = RequestLogStore.contents

    async def recorded(self: RequestLogStore, connection: Any, job_ids: Any) -> Any:
        pages.append(list(job_ids))
        return await contents(self, connection, job_ids)

    monkeypatch.setattr(RequestLogStore, "contents", recorded)
    large = GenerateRequest(prompt="word " * 20_000)
    jobs = [await logged(store, workers, owner, request=large) for _ in range(3)]
    assert await writer_of(database).step() == 3
    assert pages == [[job_id] for job_id in jobs]
    assert (await opened(database, jobs[2])).request["prompt"] == large.prompt


async def test_a_transaction_ends_after_some_time(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise slow rules, of which a batch takes longer than a transaction may, would keep all bodies from being
    written."""
    monkeypatch.setattr(body_writer, "BATCH_S", 0.0)
    locked = []
    lock_pending = RequestLogStore.lock_pending

    async def recorded(self: RequestLogStore, *arguments: Any) -> Any:
        found = await lock_pending(self, *arguments)
        locked.append(len(found))
        return found

    monkeypatch.setattr(RequestLogStore, "lock_pending", recorded)
    jobs = [await logged(store, workers, owner) for _ in range(3)]
    assert await writer_of(database).step() == 3
    assert locked == [3, 2, 1, 0]
    assert all(isinstance(body, Body) for body in (await reader_of(database).open_bodies(jobs)).values())


@pytest.mark.parametrize(("large", "loads"), [(False, False), (True, False), (False, True)])
async def test_a_body_may_take_longer_than_a_transaction_may_be_idle(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, monkeypatch: pytest.MonkeyPatch,
    large: bool, loads: bool,
) -> None:  # fmt: skip
    """Rules of a project run in a thread, as do the rules for large requests, and the loading of what rules need. The
    transaction goes on meanwhile."""
    monkeypatch.setattr(engine, "MAX_IDLE_MS", 1000)
    monkeypatch.setattr(body_writer, "KEEP_ALIVE_S", 0.15)
    kept_alive, enough = 0, threading.Event()

    async def counted_keep_alive(connection: Any) -> None:
        nonlocal kept_alive
        await engine.keep_alive(connection)
        kept_alive += 1
        if kept_alive == 8:  # after 1.2 s
            enough.set()

    monkeypatch.setattr(body_writer, "keep_alive", counted_keep_alive)

    class Slow:
        def redact_body(self, body: dict[str, Any]) -> tuple[dict[str, Any], Mapping[str, int]]:
            assert loads or enough.wait(30), "the event loop has run meanwhile"
            return body, {}

    def load(rules: Mapping[str, Any] | None) -> Slow:
        assert not loads or enough.wait(30), "the event loop has run meanwhile"
        return Slow()

    if not large:
        rules = """{"redaction": {"own": [{"name": "word", "words": ["word"]}]}}"""
        async with database.begin() as connection:
            await connection.execute(text("UPDATE projects SET options = CAST(:rules AS jsonb)"), {"rules": rules})
    request = GenerateRequest(prompt="word " * 20_000 if large else PROMPT)
    job_id = await logged(store, workers, owner, LogLevel.REDACTED, request=request)
    writer = writer_of(database)
    monkeypatch.setattr(writer, "_new_redactor", load)
    assert await writer.step() == 1
    assert (await opened(database, job_id)).request["prompt"] == request.prompt


async def test_bodies_of_other_levels_are_missing_by_their_level(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    metadata = await logged(store, workers, owner, LogLevel.METADATA)
    none = await logged(store, workers, owner, LogLevel.NONE)
    assert await writer_of(database).step() == 0
    assert await reason(database, metadata) is MissingReason.LEVEL
    assert await reason(database, none) is MissingReason.NOT_LOGGED
    assert await reason(database, "job_unknown") is MissingReason.NOT_LOGGED


async def test_without_the_right_key_nothing_is_shown(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    job_id = await logged(store, workers, owner)
    await writer_of(database).step()
    assert await reason(database, job_id, OTHER_KEY) is MissingReason.NO_KEY
    assert await reason(database, job_id, "") is MissingReason.NO_KEY


async def test_a_process_without_the_key_of_a_day_leaves_its_bodies_to_others(
    store: JobStore,
    workers: Workers,
    owner: Owner,
    database: AsyncEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It writes those of other days, although they wait behind."""
    monkeypatch.setattr(body_writer, "BATCH", 2)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    old = []
    for _ in range(5):
        job = await ended(store, workers, owner, result(finished_at=yesterday), log_level=LogLevel.FULL)
        old.append(job.id)
    await DataKeys(database, MasterKeys.of(KEY)).of_day(yesterday.date())
    new = await logged(store, workers, owner)
    with caplog.at_level(logging.ERROR):
        assert await writer_of(database, OTHER_KEY).step() == 1
    assert f"cannot write bodies of {yesterday.date()}" in caplog.text
    assert await opened(database, new, OTHER_KEY)
    assert [await reason(database, job_id) for job_id in old] == [MissingReason.PENDING] * 5
    assert await writer_of(database).step() == 5


async def test_a_body_is_not_shown_as_that_of_another_job(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    one, other = [await logged(store, workers, owner, request=GenerateRequest(prompt=name)) for name in "ab"]
    await writer_of(database).step()
    async with database.begin() as connection:
        swap = """
            UPDATE request_bodies b SET body = o.body FROM request_bodies o WHERE o.job_id = :one AND b.job_id = :other
        """
        await connection.execute(text(swap), {"one": one, "other": other})
    assert (await opened(database, one)).request["prompt"] == "a"
    assert await reason(database, other) is MissingReason.DAMAGED


async def test_a_deleted_body_or_data_key_is_expired(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    job_id = await logged(store, workers, owner)
    await writer_of(database).step()
    async with database.begin() as connection:
        await connection.execute(text("DELETE FROM data_keys"))
    assert await reason(database, job_id) is MissingReason.EXPIRED
    async with database.begin() as connection:
        await connection.execute(text("DELETE FROM request_bodies"))
    assert await reason(database, job_id) is MissingReason.EXPIRED
    async with database.begin() as connection:
        await connection.execute(text("UPDATE request_log SET body = 'erased'"))
    assert await reason(database, job_id) is MissingReason.ERASED


async def test_no_body_older_than_the_retention_is_written(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
) -> None:
    ago = datetime.now(UTC) - timedelta(days=3)
    job = await ended(store, workers, owner, result(finished_at=ago), log_level=LogLevel.FULL)
    assert await writer_of(database, days=2).step() == 0
    assert await reason(database, job.id) is MissingReason.PENDING
    assert await RequestLogStore(database).give_up(ago + timedelta(seconds=1)) == 1
    assert await reason(database, job.id) is MissingReason.LOST


async def test_the_backlog_is_measured(store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine) -> None:
    ago = datetime.now(UTC) - timedelta(hours=5)
    await ended(store, workers, owner, result(finished_at=ago), log_level=LogLevel.FULL)
    await logged(store, workers, owner)
    await DataKeys(database, MasterKeys.of(OTHER_KEY)).of_day(ago.date())
    await DataKeys(database, MasterKeys.of(OTHER_KEY)).of_day(datetime.now(UTC).date())
    metrics = api_metrics()
    await writer_of(database, metrics=metrics).step()
    assert metrics.log_pending._value.get() == 2
    assert metrics.log_pending_age._value.get() == pytest.approx(5 * 3600, abs=60)


async def test_the_backlog_is_measured_while_it_is_worked_off(
    store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise nobody would see that a round does not end, because more is added than written."""
    monkeypatch.setattr(body_writer, "BATCH", 1)
    monkeypatch.setattr(body_writer, "COUNT_S", 0.0)
    for _ in range(3):
        await logged(store, workers, owner)
    metrics, measured = api_metrics(), list[int]()
    monkeypatch.setattr(metrics.log_pending, "set", measured.append)
    assert await writer_of(database, metrics=metrics).step() == 3
    assert measured == [2, 1, 0, 0]


class TestRotation:
    async def test_bodies_are_read_with_the_new_key_once_the_data_keys_are_rotated(
        self, store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
    ) -> None:
        job_id = await logged(store, workers, owner)
        await writer_of(database).step()
        (before,) = await body_rows(database)
        assert isinstance(await reader_of(database, OTHER_KEY, KEY).open_body(job_id), Body), "while it is replaced"
        keys = DataKeys(database, MasterKeys.of(OTHER_KEY, KEY))
        done = await keys.rotate()
        assert (done.changed, done.unreadable) == (1, 0)
        assert (await keys.rotate()).changed == 0, "it can be repeated"
        assert (await opened(database, job_id, OTHER_KEY)).request["prompt"] == PROMPT
        assert await reason(database, job_id, KEY) is MissingReason.NO_KEY
        assert await body_rows(database) == [before], "bodies are not touched"

    async def test_a_key_that_cannot_be_read_is_left_and_reported(self, database: AsyncEngine) -> None:
        days = [date(2026, 11, day) for day in (1, 2)]
        lost = await DataKeys(database, MasterKeys.of(generate_master_key())).of_day(days[0])
        await DataKeys(database, MasterKeys.of(KEY)).of_day(days[1])
        keys = DataKeys(database, MasterKeys.of(OTHER_KEY, KEY))
        done = await keys.rotate()
        assert (done.changed, done.unreadable) == (1, 1)
        counts = await keys.count_by_master()
        assert sorted(counts.values()) == [1, 1]
        assert counts[MasterKeys.of(OTHER_KEY).current or ""] == 1
        assert lost.id

    async def test_writers_with_the_old_key_go_on_with_the_keys_that_they_have(
        self, store: JobStore, workers: Workers, owner: Owner, database: AsyncEngine
    ) -> None:
        """A rolling restart: one process has the new key already."""
        old = writer_of(database)
        first = await logged(store, workers, owner)
        await old.step()
        await DataKeys(database, MasterKeys.of(OTHER_KEY, KEY)).rotate()
        second = await logged(store, workers, owner)
        assert await old.step() == 1
        for job_id in (first, second):
            assert await opened(database, job_id, OTHER_KEY)


async def test_data_keys_of_processes_that_start_together_are_the_same(database: AsyncEngine) -> None:
    day = date(2026, 11, 30)
    stores = [DataKeys(database, MasterKeys.of(KEY)) for _ in range(8)]
    keys = await asyncio.gather(*(keys.of_day(day) for keys in stores))
    assert len({key.id for key in keys}) == 1
    assert keys[0].cipher.decrypt(keys[7].cipher.encrypt(b"x", "job"), "job") == b"x"
