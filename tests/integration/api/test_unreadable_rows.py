"""Rows that only a newer version can read: lists and authentication work for all others."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches.batch import Batch
from api.batches.store import BatchStore
from api.files.store import FileStore, Purpose, StoredFile
from api.keys.changes import KeyChanges
from api.keys.principal import Scope
from api.keys.store import ApiKeyStore
from api.keys.valid_keys import ValidKey
from shared.domain.answer_options import CacheOptions, ContextOptions, KeyOptions, TokenLimits
from shared.domain.errors import UnreadableRow
from shared.domain.job import Job, JobSummary
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.postgres.job_store import JobStore
from tests.support.job_rows import jobs_of


class Lists:
    """The lists of a project."""

    def __init__(self, database: AsyncEngine, store: JobStore, owner: Owner) -> None:
        self._owner, self._jobs = owner, store
        self._files, self._batches = FileStore(database), BatchStore(database)

    async def create(self, table: str) -> str:
        """Create an item; return its id."""
        item: Job | StoredFile | Batch | None
        if table == "jobs":
            item, _ = await self._jobs.insert(NewJob(self._owner, "m", 3, GenerateRequest(prompt="x")))
            return item.id
        item = await self._files.insert(self._files.new_id(), self._owner, Purpose.BATCH, "a", 1, None)
        if table == "batches":
            item = await self._batches.insert(self._owner, "/v1/completions", item.id, "24h", 3600, None)
            assert item is not None
        return item.id

    async def page(self, table: str, limit: int, after: str | None) -> list[str]:
        """The ids of a page, newest first."""
        project = self._owner.project_id
        items: list[JobSummary] | list[StoredFile] | list[Batch]
        match table:
            case "jobs":
                items = await jobs_of(self._jobs, project, limit=limit, after=after)
            case "files":
                items = await self._files.page(project, purpose=None, limit=limit, after=after)
            case _:
                items = await self._batches.page(project, limit=limit, after=after)
        return [item.id for item in items]


DAMAGE = {"jobs": "status = 'held'", "files": "purpose = 'novel'", "batches": "status = 'novel'"}


@pytest.mark.parametrize("table", DAMAGE)
async def test_lists_go_on_after_an_unreadable_row(
    database: AsyncEngine, store: JobStore, owner: Owner, table: str
) -> None:
    lists = Lists(database, store, owner)
    ids = [await lists.create(table) for _ in range(4)]
    newest_first = ids[::-1]
    async with database.begin() as connection:
        statement = text(f"UPDATE {table} SET {DAMAGE[table]} WHERE id = ANY(:ids)")  # noqa: S608
        await connection.execute(statement, {"ids": newest_first[1:3]})
    readable = [newest_first[0], newest_first[3]]
    assert await lists.page(table, 9, None) == readable
    assert await lists.page(table, 2, None) == readable, "a page is full as long as rows follow"
    assert await lists.page(table, 1, readable[0]) == readable[1:]
    assert await lists.page(table, 1, readable[1]) == []


async def test_an_unreadable_file_is_an_outage_of_that_file(
    database: AsyncEngine, store: JobStore, owner: Owner
) -> None:
    file_id = await Lists(database, store, owner).create("files")
    async with database.begin() as connection:
        await connection.execute(text("UPDATE files SET purpose = 'novel'"))
    with pytest.raises(UnreadableRow, match=file_id):
        await FileStore(database).get(file_id, owner.project_id)


async def test_keys_with_scopes_of_a_newer_version_work_for_the_known_ones(database: AsyncEngine) -> None:
    """Lookups share a query, so an error about one key would refuse the others."""
    keys = ApiKeyStore(database)
    for name in ("old", "new"):
        await keys.create(name, f"{name}-key-that-was-chosen")
    async with database.begin() as connection:
        await connection.execute(text("UPDATE api_keys SET scopes = '{inference,novel}' WHERE name = 'new'"))
    found = await asyncio.gather(*(keys.find(f"{name}-key-that-was-chosen") for name in ("old", "new")))
    assert [key.principal.scopes for key in found if key is not None] == [frozenset({Scope.INFERENCE})] * 2
    assert [key.scopes for key in await keys.all()] == [(Scope.INFERENCE,)] * 2


WINDOW = ContextOptions(strategy="sliding_window")
LIMITS = {"max_input": 10, "later": 2}
NEWER_OPTIONS: list[tuple[dict[str, Any], KeyOptions | None]] = [
    ({"cache": {"ttl": 1, "later": 2}, "later": 1}, KeyOptions(cache=CacheOptions(ttl=1))),
    ({"cache": {"ttl": 1, "scope": "later"}}, KeyOptions(no_cache=True)),
    ({"context": {"strategy": "later"}, "token_limits": LIMITS}, KeyOptions(token_limits=TokenLimits(max_input=10))),
    ({"context": {"strategy": "sliding_window", "later": []}}, KeyOptions(context=WINDOW)),
    ({"token_limits": {"max_input": "later"}}, None),
    ({"token_limits": {"max_input": 10, "on_exceed": "later"}}, None),
]


async def test_options_of_a_newer_version_fail_no_other_key(database: AsyncEngine) -> None:
    """Limits of tokens that cannot be read must not be ignored: then the key itself cannot be used."""
    keys = ApiKeyStore(database)
    for name in ("old", "new"):
        await keys.create(name, f"{name}-key-that-was-chosen")

    async def stored_options(stored: dict[str, Any] | None = None) -> dict[str, Any]:
        async with database.begin() as connection:
            if stored is not None:
                changed = text("UPDATE api_keys SET options = CAST(:options AS jsonb) WHERE name = 'new'")
                await connection.execute(changed, {"options": json.dumps(stored)})
            query = text("SELECT options FROM api_keys WHERE name = 'new'")
            return dict((await connection.execute(query)).scalar_one())

    for stored, read in NEWER_OPTIONS:
        await stored_options(stored)
        lookups = [keys.find(f"{name}-key-that-was-chosen") for name in ("old", "new")]
        old, new = await asyncio.gather(*lookups, return_exceptions=True)
        assert isinstance(old, ValidKey)
        assert [key.options for key in await keys.all()] == [KeyOptions(), read]
        if read is None:
            assert isinstance(new, UnreadableRow)
            assert "API key key_2 cannot be read" in str(new)
            with pytest.raises(UnreadableRow):
                await keys.change(2, KeyChanges(options=lambda options: options))
            continue
        assert isinstance(new, ValidKey)
        assert new.principal.options == read
        assert await keys.change(2, KeyChanges(options=_without_cache))
        gone = {"cache"} if read.cache is not None else set()
        assert await stored_options() == {name: value for name, value in stored.items() if name not in gone}


def _without_cache(options: KeyOptions) -> KeyOptions:
    return options.model_copy(update={"no_cache": False, "cache": None})
