"""Operations on limits. This process applies changes at once, others within seconds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticCustomError

from api.admin.limits.schemas import LimitCreate, LimitUpdate, check_values
from api.http.pagination import Page, fetch_page, number_after
from api.http.rate_limits import LeftOfLimit
from api.keys.principal import Principal
from api.keys.projects import named_project
from api.keys.store import parse_id
from api.limits.limiter import RateLimiter
from api.limits.reload import LimitReload
from api.limits.rules import Measure
from api.limits.store import LimitStore, StoredLimit
from shared.config.models.loader import Registry
from shared.domain.errors import InvalidRequest, NotFound
from shared.domain.ids import number_of
from shared.domain.owner import end_user_name

logger = logging.getLogger(__name__)


class LimitService:
    """Creates, changes, deletes and lists limits."""

    def __init__(self, store: LimitStore, reload: LimitReload, limiter: RateLimiter, registry: Registry) -> None:
        self._store = store
        self._reload = reload
        self._limiter = limiter
        self._registry = registry

    async def page(self, *, limit: int, after: str | None, project: str | None) -> Page[StoredLimit]:
        """Return a page of limits, newest first.

        Raises:
            InvalidRequest: `after` is not the id of a limit.
        """
        number = number_after(after, "limit", _number)
        return await fetch_page(limit, lambda count: self._store.page(limit=count, after=number, project=project))

    async def get(self, limit_id: str) -> StoredLimit:
        """Return a limit.

        Raises:
            NotFound: there is no such limit.
        """
        number = _number(limit_id)
        limit = await self._store.get(number) if number is not None else None
        if limit is None:
            raise NotFound(f"There is no limit `{limit_id[:64]}`.", param="limit_id", code="limit_not_found")
        return limit

    async def left(self, limit: StoredLimit) -> Mapping[str, LeftOfLimit] | None:
        """What is left of a limit's rates; see `RateLimiter.left`."""
        return await self._limiter.left(limit.limit())

    async def create(self, principal: Principal, body: LimitCreate) -> StoredLimit:
        """Create a limit; return it.

        Raises:
            InvalidRequest: the project, the key or the model does not exist, or the key is of another project.
            Conflict: there is a limit of this scope.
        """
        project_id, key_id = await self._owner(body)
        if body.model is not None and body.model not in self._registry.models:
            raise InvalidRequest(f"model: there is no model {body.model[:64]!r}", param="model")
        values: dict[str, Any] = {
            "project_id": project_id,
            "key_id": key_id,
            "end_user": end_user_name(body.end_user),
            "model": body.model,
            "mode": body.mode.value,
            **body.values(),
        }
        number = await self._store.create(values, by=principal.key_id)
        await self._reload.load()
        created = await self._store.get(number)
        if created is None:
            raise NotFound("The limit was deleted.", code="limit_not_found")
        logger.warning("limit=%s created by key_%d", created.id, principal.key_id)
        return created

    async def change(self, principal: Principal, limit_id: str, body: LimitUpdate) -> StoredLimit:
        """Change the values or the mode of a limit; return it.

        Raises:
            NotFound: as `get`.
            InvalidRequest: without a value, or a soft limit of something that cannot wait.
        """
        limit, changes = await self.get(limit_id), body.changes()
        if changes:
            values = {measure.value: getattr(limit, measure) for measure in Measure} | changes
            try:
                check_values(values, values.get("mode", limit.mode))
            except PydanticCustomError as error:
                param = str((error.context or {})["param"])
                raise InvalidRequest(f"{param}: {error.message()}", param=param) from None
            if not await self._store.change(limit.number, changes, by=principal.key_id):
                return await self.get(limit_id)  # raises NotFound
            await self._reload.load()
            logger.warning("limit=%s changed by key_%d: %s", limit_id, principal.key_id, ", ".join(sorted(changes)))
        return await self.get(limit_id)

    async def delete(self, principal: Principal, limit_id: str) -> None:
        """Delete a limit.

        Raises:
            NotFound: as `get`.
        """
        limit = await self.get(limit_id)
        if await self._store.delete(limit.number, by=principal.key_id):
            await self._reload.load()
            logger.warning("limit=%s deleted by key_%d", limit_id, principal.key_id)

    async def _owner(self, body: LimitCreate) -> tuple[int | None, int | None]:
        """The ids of the project and of the key that a limit is for."""
        project_id = key_id = None
        if body.project is not None:
            project_id = await named_project(self._store, body.project)
        if body.key_id is not None:
            key_id = parse_id(body.key_id)
            owner = await self._store.project_of_key(key_id) if key_id is not None else None
            if owner is None:
                raise InvalidRequest(f"key_id: there is no key {body.key_id!r}", param="key_id")
            if project_id not in (None, owner):
                raise InvalidRequest(
                    f"key_id: the key {body.key_id} is not one of the project {(body.project or '')[:64]!r}",
                    param="key_id",
                )
            project_id = owner
        return project_id, key_id


def _number(limit_id: str) -> int | None:
    return number_of("limit_", limit_id)
