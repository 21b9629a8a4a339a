"""Reads the request log for principals: of their own project, or of all projects for administrators."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from api.keys.principal import Principal, Scope
from api.keys.store import ApiKeyStore
from api.request_log.bodies import Bodies, Body, Missing
from api.requests.filters import Cursor, RequestFilters
from api.requests.query import RequestQuery, filters_of
from api.requests.store import LoggedRequest, LoggedRequestStore, RequestPage
from shared.domain.errors import NotFound
from shared.domain.job import is_job_id
from shared.postgres.audit_store import record
from shared.postgres.engine import transaction
from shared.telemetry.metrics import Metrics

# The action of the audit log when somebody reads what was asked and answered.
OPENED = "request.open"


class LoggedRequests:
    """Lists requests, and opens their bodies. Each opening is in the audit log; lists show no bodies."""

    def __init__(
        self, engine: AsyncEngine, store: LoggedRequestStore, bodies: Bodies, keys: ApiKeyStore, metrics: Metrics
    ) -> None:
        self._engine = engine
        self._store = store
        self._bodies = bodies
        self._keys = keys
        self._metrics = metrics

    async def filters(self, principal: Principal, query: RequestQuery) -> RequestFilters:
        """The requests that a principal asks for; raises as `filters_of`."""
        return await filters_of(principal, query, self._keys)

    async def page(
        self, principal: Principal, query: RequestQuery, *, limit: int, after: str | None = None
    ) -> RequestPage:
        """A page of requests, newest first; raises as `filters_of`, and `InvalidRequest` if `after` is malformed."""
        cursor = None if after is None else Cursor.read(after)
        return await self._store.page(await self.filters(principal, query), limit=limit, after=cursor)

    async def get(self, principal: Principal, job_id: str) -> LoggedRequest:
        """A request, without its body.

        Raises:
            Forbidden: the key has no scope for the log.
            NotFound: the log has no such request, or it is of another project.
        """
        principal.require(Scope.LOGS)
        found = await self._store.get(job_id, principal.visible_project) if is_job_id(job_id) else None
        if found is None:
            raise NotFound(
                "The request log has no such request: it has not ended, its level was `none`, or it has expired."
            )
        return found

    async def open(self, principal: Principal, job_id: str) -> tuple[LoggedRequest, Body | Missing]:
        """A request with its body, or why there is none; raises as `get`. It is recorded that the key has read it."""
        found = await self.get(principal, job_id)
        bodies = await self._bodies.open_bodies([job_id], since=found.ended_at, until=found.ended_at)
        body = bodies[job_id]
        if isinstance(body, Missing):
            self._metrics.bodies_opened.labels(body.reason.value).inc()
            return found, body
        # Before it is shown: what cannot be recorded is not read.
        async with transaction(self._engine) as connection:
            await record(
                connection, key_id=principal.key_id, action=OPENED, object_id=job_id, project_id=found.project_id
            )
        self._metrics.bodies_opened.labels("shown").inc()
        return found, body
