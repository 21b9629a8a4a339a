"""SQL about the endpoints of webhooks, and the secrets of projects. The audit log has all changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from api.webhooks.secrets import Secret, new_secret, read_secrets, rotated, to_stored
from shared.domain.errors import Conflict
from shared.domain.ids import is_id, new_id
from shared.domain.request_webhook import public_url
from shared.postgres.audit_store import record
from shared.postgres.engine import limit_idle, transaction
from shared.postgres.store import Store
from shared.postgres.tables import ProjectRow
from shared.postgres.webhook_tables import WebhookEndpointRow

ENDPOINT_PREFIX = "endpoint_"
# Each event of a project is matched against all of them.
MAX_ENDPOINTS = 20
# Why an endpoint is disabled, if a client has done it.
BY_OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint. `disabled`: why it is; None: it is enabled. `open_until`: its breaker holds deliveries back."""

    id: str
    project_id: int
    project: str
    url: str
    description: str | None
    events: tuple[str, ...]
    full: bool
    secrets: tuple[Secret, ...]
    disabled: str | None
    failures: int
    open_until: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class NewEndpoint:
    """An endpoint to create."""

    url: str
    description: str | None
    events: tuple[str, ...]
    full: bool


_COLUMNS = (
    WebhookEndpointRow.id,
    WebhookEndpointRow.project_id,
    ProjectRow.name.label("project"),
    WebhookEndpointRow.url,
    WebhookEndpointRow.description,
    WebhookEndpointRow.events,
    WebhookEndpointRow.full,
    WebhookEndpointRow.secrets,
    WebhookEndpointRow.disabled,
    WebhookEndpointRow.failures,
    WebhookEndpointRow.open_until,
    WebhookEndpointRow.created_at,
)
_ENDPOINTS = select(*_COLUMNS).join(ProjectRow, ProjectRow.id == WebhookEndpointRow.project_id)


def is_endpoint_id(text: str) -> bool:
    """Whether a text is a well-formed id of an endpoint."""
    return is_id(ENDPOINT_PREFIX, text)


class EndpointStore(Store):
    """Endpoints in PostgreSQL. Their methods take the project that must own them; None: any, for operators.

    The audit log has changes as those of the key `by`.
    """

    async def page(self, project_id: int | None, *, limit: int, after: str | None = None) -> list[Endpoint]:
        """Return one page of endpoints, newest first."""
        return await self._page(_owned(project_id), WebhookEndpointRow.id, _endpoint, limit=limit, after=after)

    async def get(self, endpoint_id: str, project_id: int | None) -> Endpoint | None:
        """Return an endpoint; None if the project has no such one."""
        return await self._one(_owned(project_id).where(WebhookEndpointRow.id == endpoint_id), _endpoint)

    async def create(self, project_id: int, new: NewEndpoint, *, by: int) -> Endpoint:
        """Create an endpoint with a new secret.

        Raises:
            Conflict: the project has `MAX_ENDPOINTS` already.
        """
        endpoint_id = new_id(ENDPOINT_PREFIX, self._region)
        values: dict[str, Any] = {
            "url": new.url,
            "description": new.description,
            "events": list(new.events),
            "full": new.full,
        }
        async with transaction(self._engine) as connection:
            await _lock_project(connection, project_id)  # another creation must count this one
            of_project = select(func.count()).where(WebhookEndpointRow.project_id == project_id)
            if (await connection.scalar(of_project) or 0) >= MAX_ENDPOINTS:
                raise Conflict(
                    f"This project has {MAX_ENDPOINTS} webhook endpoints, as many as a project may have; delete one"
                    " first."
                )
            columns = {"id": endpoint_id, "project_id": project_id, "secrets": to_stored([Secret(new_secret())])}
            await connection.execute(insert(WebhookEndpointRow).values({**values, **columns}))
            await _record(connection, by, "create", endpoint_id, project_id, after=values)
            return _endpoint((await connection.execute(_ENDPOINTS.where(WebhookEndpointRow.id == endpoint_id))).one())

    async def change(
        self, endpoint_id: str, project_id: int | None, changes: Mapping[str, Any], *, by: int
    ) -> Endpoint | None:
        """Change columns of an endpoint; None if the project has no such one.

        One that is enabled again starts without failures. Another URL is a chance for deliveries that the breaker
        holds back.
        """
        async with transaction(self._engine) as connection:
            row = await _locked(connection, endpoint_id, project_id)
            if row is None:
                return None
            before = {name: getattr(row, name) for name in changes}
            values = dict(changes)
            if before != changes and ({"url", "disabled"} & changes.keys()) and values.get("disabled") is None:
                values |= {"failures": 0, "open_until": None}
            if values:
                statement = update(WebhookEndpointRow).where(WebhookEndpointRow.id == endpoint_id).values(values)
                await connection.execute(statement)
                await _record(connection, by, "change", endpoint_id, row.project_id, before=before, after=changes)
            return _endpoint((await connection.execute(_ENDPOINTS.where(WebhookEndpointRow.id == endpoint_id))).one())

    async def rotate(
        self, endpoint_id: str, project_id: int | None, *, overlap_s: float, by: int
    ) -> tuple[Endpoint, str] | None:
        """Give an endpoint a new secret, which is returned. The old ones also sign for the overlap."""
        async with transaction(self._engine) as connection:
            row = await _locked(connection, endpoint_id, project_id)
            if row is None:
                return None
            secret = new_secret()
            values = rotated(read_secrets(row.secrets), secret, await _now(connection), overlap_s)
            statement = update(WebhookEndpointRow).where(WebhookEndpointRow.id == endpoint_id)
            await connection.execute(statement.values(secrets=to_stored(values)))
            await _record(connection, by, "rotate", endpoint_id, row.project_id, after={"overlap_s": overlap_s})
            found = await connection.execute(_ENDPOINTS.where(WebhookEndpointRow.id == endpoint_id))
            return _endpoint(found.one()), secret

    async def delete(self, endpoint_id: str, project_id: int | None, *, by: int) -> bool:
        """Delete an endpoint with its deliveries. False: the project has no such one."""
        async with transaction(self._engine) as connection:
            row = await _locked(connection, endpoint_id, project_id)
            if row is None:
                return False
            await connection.execute(delete(WebhookEndpointRow).where(WebhookEndpointRow.id == endpoint_id))
            before = {name: getattr(row, name) for name in ("url", "description", "events", "full", "disabled")}
            await _record(connection, by, "delete", endpoint_id, row.project_id, before=before)
            return True


class ProjectSecretStore(Store):
    """The secrets of projects, which sign the webhooks that requests name themselves."""

    async def secrets(self, project_id: int) -> tuple[Secret, ...]:
        """Return the secrets of a project, the current one first. The first one is created at its first need."""
        found = await self._one(_project_secrets(project_id), lambda row: read_secrets(row.webhook_secrets))
        if found:
            return found
        async with transaction(self._engine) as connection:
            row = (await connection.execute(_project_secrets(project_id).with_for_update(key_share=True))).one()
            values = read_secrets(row.webhook_secrets)  # another process may have created it
            if not values:
                values = (Secret(new_secret()),)
                await _set_secrets(connection, project_id, values)
            return values

    async def rotate(self, project_id: int, *, overlap_s: float, by: int) -> tuple[Secret, ...]:
        """Give a project a new secret; return its secrets. The old ones also sign for the overlap."""
        async with transaction(self._engine) as connection:
            row = (await connection.execute(_project_secrets(project_id).with_for_update(key_share=True))).one()
            old = read_secrets(row.webhook_secrets)
            values = rotated(old, new_secret(), await _now(connection), overlap_s)
            await _set_secrets(connection, project_id, values)
            await record(
                connection,
                key_id=by,
                action="webhook_secret.rotate",
                object_id=row.name,
                project_id=project_id,
                after={"overlap_s": overlap_s},
            )
            return values


def _project_secrets(project_id: int) -> Select[Any]:
    return select(ProjectRow.name, ProjectRow.webhook_secrets, limit_idle()).where(ProjectRow.id == project_id)


async def _set_secrets(connection: AsyncConnection, project_id: int, values: Sequence[Secret]) -> None:
    statement = update(ProjectRow).where(ProjectRow.id == project_id).values(webhook_secrets=to_stored(values))
    await connection.execute(statement)


def _owned(project_id: int | None) -> Select[Any]:
    return _ENDPOINTS if project_id is None else _ENDPOINTS.where(WebhookEndpointRow.project_id == project_id)


async def _lock_project(connection: AsyncConnection, project_id: int) -> None:
    project = select(ProjectRow.id, limit_idle()).where(ProjectRow.id == project_id)
    await connection.execute(project.with_for_update(key_share=True))


async def _locked(connection: AsyncConnection, endpoint_id: str, project_id: int | None) -> Row[Any] | None:
    columns: Any = WebhookEndpointRow.__table__.columns
    statement = select(*columns, limit_idle()).where(WebhookEndpointRow.id == endpoint_id)
    if project_id is not None:
        statement = statement.where(WebhookEndpointRow.project_id == project_id)
    row: Any = (await connection.execute(statement.with_for_update())).first()
    found: Row[Any] | None = row
    return found


async def _now(connection: AsyncConnection) -> datetime:
    now: datetime | None = await connection.scalar(select(func.clock_timestamp()))
    assert now is not None
    return now


async def _record(
    connection: AsyncConnection,
    by: int,
    verb: str,
    endpoint_id: str,
    project_id: int,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Record a change in the audit log. URLs lose what may be a secret."""
    old, new = (None if values is None else dict(values) for values in (before, after))
    for values in (old, new):
        if values is not None and "url" in values:
            values["url"] = public_url(values["url"])
    if before is not None and after is not None and before.get("url") != after.get("url"):
        assert old is not None
        assert new is not None
        if old["url"] == new["url"]:
            new["url"] += " (another query)"
    await record(
        connection,
        key_id=by,
        action=f"webhook_endpoint.{verb}",
        object_id=endpoint_id,
        project_id=project_id,
        before=old,
        after=new,
    )


def _endpoint(row: Row[Any]) -> Endpoint:
    return Endpoint(
        id=row.id,
        project_id=row.project_id,
        project=row.project,
        url=row.url,
        description=row.description,
        events=tuple(row.events),
        full=row.full,
        secrets=read_secrets(row.secrets),
        disabled=row.disabled,
        failures=row.failures,
        open_until=row.open_until,
        created_at=row.created_at,
    )
