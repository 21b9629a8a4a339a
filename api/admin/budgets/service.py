"""What operators do with budgets."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from zoneinfo import ZoneInfo

from pydantic_core import PydanticCustomError

from api.admin.budgets.schemas import BudgetCreate, BudgetUpdate, BudgetView, check_exceeding
from api.budgets.budgets import Budgets
from api.http.pagination import Page, fetch_page
from api.keys.principal import Principal
from api.keys.store import ApiKeyStore, parse_id
from shared.domain.budgets import OnExceed, window_at
from shared.domain.errors import InvalidRequest, NotFound
from shared.postgres.budget_store import Budget, BudgetStore, NewBudget, format_id
from shared.postgres.budget_windows import BudgetWindowStore, Spending

logger = logging.getLogger(__name__)


class BudgetService:
    """Creates, changes, deletes and lists budgets."""

    def __init__(self, store: BudgetStore, windows: BudgetWindowStore, keys: ApiKeyStore, budgets: Budgets) -> None:
        self._store = store
        self._windows = windows
        self._keys = keys
        self._budgets = budgets

    async def page(self, *, limit: int, after: str | None, project: str | None) -> Page[BudgetView]:
        """Return a page of budgets, newest first.

        Raises:
            InvalidRequest: `after` is not the id of a budget.
        """
        after_id = None if after is None else _number(after)
        if after is not None and after_id is None:
            raise InvalidRequest(f"after: must be a budget id, got {after[:64]!r}", param="after")
        page = await fetch_page(limit, lambda count: self._store.page(limit=count, after=after_id, project=project))
        return Page(await self._views(page.items), page.has_more)

    async def view(self, budget_id: str, end_user: str | None = None) -> BudgetView:
        """Return a budget. Of one that each end user has: what all of them have spent, or one of them.

        Raises:
            NotFound: there is no such budget.
        """
        budget = await self._find(budget_id)
        return (await self._views([budget], end_user if budget.each_end_user else None))[0]

    async def create(self, principal: Principal, body: BudgetCreate) -> BudgetView:
        """Create a budget.

        Raises:
            InvalidRequest: the project does not exist, or the key is not one of the project.
        """
        project = await self._keys.project(body.project)
        if project is None:
            raise InvalidRequest(f"project: there is no project {body.project[:64]!r}", param="project")
        new = NewBudget(
            project_id=project.id,
            key_id=None if body.key is None else await self._key_of(project.id, body.key),
            end_user=body.end_user,
            period=body.period,
            time_zone=body.time_zone,
            limit_usd=body.limit_usd,
            hard=body.hard,
            on_exceed=body.on_exceed,
            alert_at=tuple(body.alert_at),
        )
        budget = await self._store.create(new, by=principal.key_id)
        logger.warning("budget=%s project=%s created by key_%d", format_id(budget.id), project.name, principal.key_id)
        await self._budgets.reload()
        return (await self._views([budget]))[0]

    async def change(self, principal: Principal, budget_id: str, body: BudgetUpdate) -> BudgetView:
        """Change a budget.

        Raises:
            NotFound: there is no such budget.
            InvalidRequest: its `on_exceed` would have no meaning.
        """
        budget, changes = await self._find(budget_id), body.changes()
        try:
            on_exceed = OnExceed(changes.get("on_exceed", budget.on_exceed))
            check_exceeding(budget.period, on_exceed, hard=changes.get("hard", budget.hard))
        except PydanticCustomError as error:
            raise InvalidRequest(f"on_exceed: {error.message()}", param="on_exceed") from None
        if changes and not await self._store.change(budget.id, changes, by=principal.key_id):
            raise _not_found(budget_id)
        if changes:
            logger.warning("budget=%s changed by key_%d: %s", budget_id, principal.key_id, ", ".join(sorted(changes)))
            await self._budgets.reload()
        return await self.view(budget_id)

    async def delete(self, principal: Principal, budget_id: str) -> str:
        """Delete a budget with its windows; return its id.

        Raises:
            NotFound: there is no such budget.
        """
        budget = await self._find(budget_id)
        if not await self._store.delete(budget.id, by=principal.key_id):
            raise _not_found(budget_id)
        logger.warning("budget=%s project=%s deleted by key_%d", budget_id, budget.project, principal.key_id)
        await self._budgets.reload()
        return format_id(budget.id)

    async def _views(self, budgets: Sequence[Budget], end_user: str | None = None) -> list[BudgetView]:
        now = self._budgets.now
        windows = {one.id: window_at(one.period, ZoneInfo(one.time_zone), now) for one in budgets}
        spending = await self._windows.spending(windows, end_user=end_user) if budgets else {}
        return [
            BudgetView.of(
                one,
                windows[one.id],
                spending.get(one.id, Spending()),
                is_sum=one.each_end_user and end_user is None,
            )
            for one in budgets
        ]

    async def _find(self, budget_id: str) -> Budget:
        number = _number(budget_id)
        budget = None if number is None else await self._store.get(number)
        if budget is None:
            raise _not_found(budget_id)
        return budget

    async def _key_of(self, project_id: int, key: str) -> int:
        number = parse_id(key)
        if number is None or await self._store.owner_of_key(number) != project_id:
            raise InvalidRequest(f"key: the project has no key `{key[:64]}`", param="key")
        return number


def _number(budget_id: str) -> int | None:
    match = re.fullmatch(r"budget_([0-9]{1,18})", budget_id)
    return int(match[1]) if match else None


def _not_found(budget_id: str) -> NotFound:
    return NotFound(f"There is no budget `{budget_id[:64]}`.", param="budget_id", code="budget_not_found")
