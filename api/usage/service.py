"""Reports of usage for principals: of their own project, or of all projects for administrators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakValueDictionary

from api.keys.principal import Principal, Scope
from api.keys.projects import readable_projects
from api.keys.store import ApiKeyStore, parse_id
from api.usage.report import Report
from api.usage.store import Dimension, UsageFilters, UsageReportStore, UsageSelection
from shared.domain.database_text import storable
from shared.domain.errors import InvalidRequest, Unavailable
from shared.domain.owner import end_user_name

# Reports that are read at the same time, and how long others wait for that.
AT_ONCE = 2
LONGEST_WAIT_S = 10.0


class UsageService:
    """Reads reports, few at a time, so that they take no connections from submits.

    Those of a project are read one after the other, so that it does not delay those of others for long.
    """

    def __init__(self, store: UsageReportStore, keys: ApiKeyStore) -> None:
        self._store = store
        self._keys = keys
        self._room = asyncio.Semaphore(AT_ONCE)
        # Of projects with a report, by their ids; of reports about several projects, under None.
        self._locks = WeakValueDictionary[int | None, asyncio.Lock]()

    async def filters(
        self,
        principal: Principal,
        *,
        projects: Sequence[str] = (),
        keys: Sequence[str] = (),
        users: Sequence[str] = (),
        models: Sequence[str] = (),
        batch: bool | None = None,
        names: tuple[str, str] = ("project", "key"),
    ) -> UsageFilters:
        """The usage that a principal asks for: of its own project, unless it is an administrator. Without names: all.

        `names`: what the request calls the parameters of projects and keys.

        Raises:
            InvalidRequest: there is no such project, or a key's id is malformed.
            Forbidden: the query is about another project, and the key has no admin scope.
        """
        return UsageFilters(
            project_ids=await readable_projects(principal, projects, self._keys, "usage", names[0]),
            key_ids={_key_id(key, names[1]) for key in keys} if keys else None,
            end_users={end_user_name(user) or "" for user in users} if users else None,
            models=set(map(storable, models)) if models else None,
            batch=batch,
        )

    async def report(
        self, selection: UsageSelection, period: str | None = None, *, reader: Principal | None = None
    ) -> Report:
        """All rows of a selection. `period`: what its periods are called. `reader`: only to administrators does the
        report show the cost.

        Raises:
            InvalidRequest: there are too many rows.
            Unavailable: other reports take too long.
        """
        async with self._turn(selection):
            rows = await self._store.all_rows(selection)
        return await self._named(selection, rows, period, reader)

    async def page(
        self,
        selection: UsageSelection,
        period: str | None,
        *,
        limit: int,
        offset: int,
        reader: Principal | None = None,
    ) -> tuple[Report, bool]:
        """`limit` rows of a selection after the first `offset`, and whether there are more; as `report`."""
        async with self._turn(selection):
            rows = await self._store.rows(selection, limit=limit, offset=offset)
        return await self._named(selection, rows[:limit], period, reader), len(rows) > limit

    async def own_or_named_project(self, principal: Principal, name: str | None) -> tuple[int, str]:
        """The id and the name of a project: by default that of the principal; raises as `filters`."""
        found = await readable_projects(principal, [name] if name is not None else [], self._keys, "usage")
        project_id = principal.project_id if name is None or found is None else next(iter(found))
        names = await self._store.project_names([project_id])
        return project_id, names.get(project_id, "")

    async def is_complete(self, project_id: int, end: datetime) -> bool:
        """Whether a time is over, and everything that a project has used until its end is in the sums."""
        # A job may end a moment before its entry is committed.
        if end > datetime.now(UTC) - timedelta(minutes=1):
            return False
        return await self._store.is_complete(project_id, end)

    @asynccontextmanager
    async def _turn(self, selection: UsageSelection) -> AsyncIterator[None]:
        projects = selection.filters.project_ids
        whose = next(iter(projects)) if projects is not None and len(projects) == 1 else None
        lock = self._locks.setdefault(whose, asyncio.Lock())
        async with AsyncExitStack() as turn:
            try:
                async with asyncio.timeout(LONGEST_WAIT_S):
                    await turn.enter_async_context(lock)
                    await turn.enter_async_context(self._room)
            except TimeoutError:
                raise Unavailable("Other reports of usage take too long; try again.") from None
            yield

    async def _named(
        self, selection: UsageSelection, rows: Sequence[Any], period: str | None, reader: Principal | None
    ) -> Report:
        ids = {row.project_id for row in rows} if Dimension.PROJECT in selection.group_by else set()
        shows_cost = reader is not None and Scope.ADMIN in reader.scopes
        return Report(selection, rows, await self._store.project_names(ids), period, shows_cost)


def _key_id(text: str, param: str) -> int:
    if (key_id := parse_id(text)) is None:
        raise InvalidRequest(f"{param}: must be the id of a key, such as key_12, got {text[:64]!r}", param=param)
    return key_id
