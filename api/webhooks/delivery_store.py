"""SQL about deliveries of webhooks, as clients see them: lists, tries, replays and test events.

What creates deliveries is in `shared.postgres.webhook_outbox`, and what delivers them in `api.webhooks.dispatcher`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, Text, and_, func, insert, literal_column, select, true, update

from shared.domain.database_text import storable
from shared.domain.ids import number_of
from shared.domain.webhook_events import EventType, event_id
from shared.postgres.engine import transaction
from shared.postgres.store import Store, seconds
from shared.postgres.tables import ProjectRow
from shared.postgres.webhook_tables import WebhookDeliveryRow, WebhookEndpointRow, WebhookTryRow

# Deliveries that one request replays.
MAX_REPLAYED = 10_000
# A delivery that was tried so often is not replayed: its tries are read together, and their number is a `smallint`.
MAX_TRIES = 1000
# So long before other events of its time a test event is due.
_AHEAD_S = 24 * 3600.0
_ROW = WebhookDeliveryRow


class DeliveryState(StrEnum):
    """Where a delivery stands. `dead`: its last try has failed, and there are no more."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event on its way to an endpoint, or to the URL of a request. `status`, `error`: of its last try."""

    id: int
    event_id: str
    project_id: int
    project: str
    endpoint_id: str | None
    url: str
    type: str
    object_id: str
    created_at: datetime
    state: DeliveryState
    due_at: datetime
    tries: int
    ended_at: datetime | None
    status: int | None
    error: str | None

    @property
    def next_try_at(self) -> datetime | None:
        """When it may be tried next; None if it has ended."""
        return max(self.due_at, self.created_at) if self.state is DeliveryState.PENDING else None


@dataclass(frozen=True, slots=True)
class Try:
    """A try of a delivery. `status`: the HTTP status; None if there was no answer."""

    number: int
    at: datetime
    status: int | None
    error: str | None
    duration_ms: int


@dataclass(frozen=True, slots=True)
class DeliveryQuery:
    """Conditions on deliveries; all must hold. `project_id`: None: those of all projects."""

    project_id: int | None
    endpoint_id: str | None = None
    state: DeliveryState | None = None
    type: str | None = None

    def narrow(self, statement: Any) -> Any:
        """A statement about these deliveries only."""
        for column, value in (
            (_ROW.project_id, self.project_id),
            (_ROW.endpoint_id, self.endpoint_id and storable(self.endpoint_id)),
            (_ROW.state, None if self.state is None else _constant(self.state)),
            (_ROW.type, self.type and storable(self.type)),
        ):
            if value is not None:
                statement = statement.where(column == value)
        return statement


def _constant(state: DeliveryState) -> ColumnElement[str]:
    """A state that is no parameter, so that PostgreSQL sees whether the condition of an index holds."""
    return literal_column(f"'{state.value}'", Text)


def format_id(number: int) -> str:
    """The id of a delivery as clients see it."""
    return f"delivery_{number}"


def parse_id(text: str) -> int | None:
    """The number of a delivery's id; None if the text is no such id."""
    return number_of("delivery_", text)


class DeliveryStore(Store):
    """Reads deliveries, and makes them due again."""

    async def page(self, query: DeliveryQuery, *, limit: int, after: int | None = None) -> list[Delivery]:
        """Return one page of deliveries, newest first."""
        statement = query.narrow(_deliveries()).order_by(_ROW.id.desc()).limit(limit)
        if after is not None:
            statement = statement.where(_ROW.id < after)
        return await self._all(statement, _delivery)

    async def get(self, delivery_id: int, project_id: int | None) -> Delivery | None:
        """Return a delivery; None if the project has no such one."""
        statement = DeliveryQuery(project_id).narrow(_deliveries()).where(_ROW.id == delivery_id)
        return await self._one(statement, _delivery)

    async def tries(self, delivery_id: int) -> Sequence[Try]:
        """Return the tries of a delivery, in their order."""
        row = WebhookTryRow
        statement = select(row.number, row.at, row.status, row.error, row.duration_ms)
        statement = statement.where(row.delivery_id == delivery_id).order_by(row.number)
        return await self._all(statement, lambda found: Try(**found._asdict()))

    async def replay(self, delivery_id: int) -> bool:
        """Make a delivery that has ended due again. False: it has not ended, or was tried `MAX_TRIES` times."""
        return await self._changes(_replayed().where(_ROW.id == delivery_id))

    async def replay_dead(self, query: DeliveryQuery, since: datetime) -> int:
        """Make the dead deliveries of events since a time due again, the oldest first, at most `MAX_REPLAYED`.

        Those of disabled endpoints remain, and those that were tried `MAX_TRIES` times. Returns their number.
        """
        enabled = select(WebhookEndpointRow.id).where(WebhookEndpointRow.disabled.is_(None))
        found = (
            query.narrow(select(_ROW.id))
            .where(
                _ROW.state == _constant(DeliveryState.DEAD),
                _CAN_BE_REPLAYED,
                _ROW.created_at >= since,
                _ROW.endpoint_id.is_(None) | _ROW.endpoint_id.in_(enabled),
            )
            .order_by(_ROW.id)
            .limit(MAX_REPLAYED)
            .with_for_update(skip_locked=True)
        )
        statement = _replayed().where(_ROW.id.in_(found.scalar_subquery()))
        async with self._engine.connect() as connection:
            return (await connection.execute(statement)).rowcount

    async def send_test(self, endpoint_id: str, project_id: int) -> int:
        """Let a test event be delivered to an endpoint, whatever it subscribes to. Returns the delivery's id.

        It is due before what waits for the endpoint, and does not wait for its breaker: it is how somebody who has
        repaired the endpoint sees whether it works.
        """
        event_type = EventType.WEBHOOK_TEST.value
        statement = (
            insert(_ROW)
            .values(
                event_id=event_id(event_type, endpoint_id, secrets.token_hex(16)),
                project_id=project_id,
                endpoint_id=endpoint_id,
                type=event_type,
                object_id=endpoint_id,
                due_at=func.now() - seconds(_AHEAD_S),
            )
            .returning(_ROW.id)
        )
        endpoint = WebhookEndpointRow
        held_back = update(endpoint).where(endpoint.id == endpoint_id, endpoint.open_until.is_not(None))
        async with transaction(self._engine) as connection:
            await connection.execute(held_back.values(open_until=None))
            return int((await connection.execute(statement)).scalar_one())


_CAN_BE_REPLAYED = and_(_ROW.ended_at.is_not(None), _ROW.tries < MAX_TRIES)


def _replayed() -> Any:
    ended = update(_ROW).where(_CAN_BE_REPLAYED)
    return ended.values(
        state=DeliveryState.PENDING.value,
        due_at=func.now(),
        ended_at=None,
        replayed_at=func.now(),
        tries_before=_ROW.tries,
    )


def _deliveries() -> Select[Any]:
    last = (
        select(WebhookTryRow.status, WebhookTryRow.error)
        .where(WebhookTryRow.delivery_id == _ROW.id)
        .order_by(WebhookTryRow.number.desc())
        .limit(1)
        .lateral("last")
    )
    columns = (
        _ROW.id,
        _ROW.event_id,
        _ROW.project_id,
        ProjectRow.name.label("project"),
        _ROW.endpoint_id,
        func.coalesce(_ROW.url, WebhookEndpointRow.url).label("url"),
        _ROW.type,
        _ROW.object_id,
        _ROW.created_at,
        _ROW.state,
        _ROW.due_at,
        _ROW.tries,
        _ROW.ended_at,
        last.c.status,
        last.c.error,
    )
    return (
        select(*columns)
        .join(ProjectRow, ProjectRow.id == _ROW.project_id)
        .outerjoin(WebhookEndpointRow, WebhookEndpointRow.id == _ROW.endpoint_id)
        .outerjoin(last, true())
        # The deliveries of a deleted endpoint are deleted some time after it.
        .where(_ROW.endpoint_id.is_(None) | WebhookEndpointRow.id.is_not(None))
    )


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(**{**row._asdict(), "state": DeliveryState(row.state)})
