"""Bodies are shown to those who may read them, with an entry in the audit log, or it is said why they are missing."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.keys.principal import Principal, Scope
from api.keys.store import ApiKeyStore
from api.request_log.bodies import Body, Missing, MissingReason
from api.requests.query import RequestQuery
from api.requests.service import OPENED, LoggedRequests
from api.requests.store import LoggedRequestStore
from shared.domain.errors import Forbidden, NotFound
from shared.domain.owner import Owner
from shared.postgres.audit_store import AuditEntry, AuditStore
from shared.telemetry.metrics import Metrics
from tests.support.logged_requests import NOON, bodies_of, job_id_at, logged, write


async def entries(database: AsyncEngine) -> list[AuditEntry]:
    return await AuditStore(database).page(limit=20, action=OPENED)


async def test_a_body_is_opened_and_that_is_recorded(
    database: AsyncEngine, owner: Owner, reader: Principal, requests: LoggedRequests, metrics: Metrics
) -> None:
    one = logged(project_id=owner.project_id, asked="Name a river.")
    await write(database, [one])
    await requests.page(reader, RequestQuery(), limit=5)
    assert await entries(database) == [], "a list opens nothing"
    row, body = await requests.open(reader, one.id)
    assert row.job_id == one.id
    assert isinstance(body, Body)
    assert body.request["messages"][0]["content"] == "Name a river."
    assert body.output[0]["text"] == "The Rhine."
    assert body.size == len(orjson.dumps({"output": body.output, "request": body.request}))
    (entry,) = await entries(database)
    assert (entry.object_id, entry.key_id, entry.project) == (one.id, owner.key_id, "test")
    assert metrics.bodies_opened.labels("shown")._value.get() == 1


async def test_requests_of_other_projects_do_not_exist(
    database: AsyncEngine,
    owner: Owner,
    other_owner: Owner,
    reader: Principal,
    admin: Principal,
    requests: LoggedRequests,
) -> None:
    foreign = logged(project_id=other_owner.project_id, asked="Name a river.")
    await write(database, [foreign])
    for job_id in (foreign.id, job_id_at(NOON), "job_1", "", "a\0b"):
        with pytest.raises(NotFound):
            await requests.open(reader, job_id)
    with pytest.raises(Forbidden):
        await requests.open(replace(reader, scopes=frozenset({Scope.INFERENCE})), foreign.id)
    assert await entries(database) == []
    _, body = await requests.open(admin, foreign.id)
    assert isinstance(body, Body)
    assert len(await entries(database)) == 1


async def test_why_a_body_is_missing(
    database: AsyncEngine, owner: Owner, reader: Principal, requests: LoggedRequests, metrics: Metrics
) -> None:
    rows = {
        MissingReason.LEVEL: logged(project_id=owner.project_id),
        MissingReason.PENDING: logged(project_id=owner.project_id, level="redacted", body="pending"),
        MissingReason.LOST: logged(project_id=owner.project_id, level="redacted", body="lost"),
        MissingReason.DELETED: logged(project_id=owner.project_id, level="redacted", body="deleted"),
        MissingReason.ERASED: logged(project_id=owner.project_id, level="redacted", body="erased"),
        MissingReason.EXPIRED: logged(project_id=owner.project_id, level="redacted", body="kept"),
    }
    sealed = logged(project_id=owner.project_id, asked="Name a river.")
    await write(database, [*rows.values(), sealed])
    for reason, row in rows.items():
        _, body = await requests.open(reader, row.id)
        assert isinstance(body, Missing), reason
        assert body.reason is reason
        assert metrics.bodies_opened.labels(reason.value)._value.get() == 1
    keyless = LoggedRequests(
        database, LoggedRequestStore(database), bodies_of(database, ""), ApiKeyStore(database), metrics
    )
    _, body = await keyless.open(reader, sealed.id)
    assert isinstance(body, Missing)
    assert body.reason is MissingReason.NO_KEY
    async with database.connect() as connection:
        await connection.execute(text("UPDATE request_bodies SET body = body || '\\x00'::bytea"))
    _, body = await requests.open(reader, sealed.id)
    assert isinstance(body, Missing)
    assert body.reason is MissingReason.DAMAGED
    assert await entries(database) == [], "nothing was shown"
