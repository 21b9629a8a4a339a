"""The audit log: committed with the change, without secrets, and read in pages."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.owner import Owner
from shared.postgres.audit_store import AuditEntry, AuditStore, record
from shared.postgres.engine import transaction


async def write(database: AsyncEngine, action: str, object_id: str = "x", **values: Any) -> None:
    async with transaction(database) as connection:
        await record(connection, **{"key_id": 7, "action": action, "object_id": object_id, **values})


async def entries(database: AsyncEngine, **filters: Any) -> list[AuditEntry]:
    return await AuditStore(database).page(**{"limit": 100, **filters})


async def test_an_entry_has_what_the_change_has_given_another_value(database: AsyncEngine, owner: Owner) -> None:
    before = {"limit_usd": Decimal("10.50"), "period": "day", "end_user": None, "at": datetime(2026, 11, 1, tzinfo=UTC)}
    after = {**before, "limit_usd": Decimal("12"), "end_user": "*"}
    await write(database, "budget.change", "budget_3", project_id=owner.project_id, before=before, after=after)
    (entry,) = await entries(database, action="budget")
    assert (entry.key_id, entry.action, entry.object_id) == (7, "budget.change", "budget_3")
    assert entry.before == {"limit_usd": "10.50", "end_user": None}
    assert entry.after == {"limit_usd": "12", "end_user": "*"}
    assert entry.project is not None
    assert abs((datetime.now(UTC) - entry.at).total_seconds()) < 60


async def test_a_change_without_effect_is_not_recorded(database: AsyncEngine) -> None:
    await write(database, "key.change", before={"name": "a"}, after={"name": "a"})
    assert await entries(database) == []


async def test_what_is_created_or_deleted_is_recorded_without_secrets(database: AsyncEngine) -> None:
    key = {"name": "web", "sha256": "5e", "secret": "hr_1", "at": datetime(2026, 11, 1, tzinfo=UTC)}
    await write(database, "key.create", key_id=None, after=key)
    await write(database, "project.create", after={"name": "web", "salt": "s"})
    project, created = await entries(database)
    assert (created.key_id, created.project) == (None, None)
    assert (created.before, created.after) == (None, {"name": "web", "at": "2026-11-01T00:00:00Z"})
    assert project.after == {"name": "web"}


async def test_a_change_that_is_rolled_back_is_not_recorded(database: AsyncEngine) -> None:
    async def fail() -> None:
        async with transaction(database) as connection:
            await record(connection, key_id=1, action="key.create", object_id="key_1", after={})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await entries(database) == []


async def test_the_log_is_read_in_pages_and_filtered(database: AsyncEngine, owner: Owner) -> None:
    newest = (await entries(database, limit=1))[0]
    assert (newest.action, newest.key_id) == ("key.create", None), "of the owner's key, at the command line"
    await write(database, "budget.create", "budget_1", project_id=owner.project_id)
    await write(database, "budget.delete", "budget_1", key_id=8)
    await write(database, "budgetary.create", "x", key_id=None)
    first = await entries(database, limit=2)
    assert [entry.action for entry in first] == ["budgetary.create", "budget.delete"], "newest first"
    last = (await entries(database, after=first[-1].id))[0]
    assert last.action == "budget.create"

    async def actions(**filters: Any) -> list[str]:
        return [entry.action for entry in await entries(database, **filters)]

    assert await actions(action="budget") == ["budget.delete", "budget.create"], "a kind of object, not a beginning"
    assert await actions(action="budget.create") == ["budget.create"]
    assert await actions(key_id=8) == ["budget.delete"]
    assert await actions(object_id="budget_1") == ["budget.delete", "budget.create"]
    assert await actions(project=last.project) == ["budget.create", "key.create", "project.create"]
    assert await actions(project="nothing") == []
