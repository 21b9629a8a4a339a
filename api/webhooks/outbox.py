"""SQL of the dispatcher: it leases deliveries that are due, and writes how their tries have ended.

A lease is a `due_at` in the future: if the process that holds it is lost, the delivery is due again. `tries` identifies
the lease, so a process whose lease has ended writes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import (
    BigInteger,
    Boolean,
    Double,
    Integer,
    Select,
    SmallInteger,
    Text,
    and_,
    case,
    delete,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import aliased

from api.webhooks.claim_statement import claim_statement
from api.webhooks.schedule import BREAKER_S, BREAKER_THRESHOLD, LIFETIME_S, MAX_BREAKER_S
from api.webhooks.secrets import Secret, read_secrets
from shared.postgres.prepared import Prepared
from shared.postgres.store import Records, Store, seconds
from shared.postgres.tables import JobRow
from shared.postgres.webhook_tables import WebhookDeliveryRow, WebhookEndpointRow, WebhookTryRow

logger = logging.getLogger(__name__)

# Why an endpoint is disabled that has answered 410.
GONE = "gone"
# Pending deliveries are counted up to this number.
MAX_COUNTED = 100_000


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """A leased delivery. `tries`: with this one. `age_s`: of its event, when it was leased.

    `attempt`, `trying_s`: tries and seconds since its event or, if it was replayed, since then.
    """

    id: int
    event_id: str
    project_id: int
    endpoint_id: str | None
    target: str
    url: str
    type: str
    object_id: str
    data: dict[str, Any] | None
    created_at: datetime
    tries: int
    full: bool
    secrets: tuple[Secret, ...]
    age_s: float
    attempt: int
    trying_s: float


@dataclass(frozen=True, slots=True)
class TryOutcome:
    """How a try has ended. `state`: of the delivery now; `due_in_s`: until its next try, if it is pending.

    `status`: the HTTP status; None if there was no answer. `gone`: the receiver wants no more deliveries.
    """

    delivery: DueDelivery
    state: str
    due_in_s: float
    status: int | None
    error: str | None
    duration_ms: int
    gone: bool = False


@dataclass(frozen=True, slots=True)
class OutboxState:
    """Whether webhooks are in use, and how many deliveries are pending, counted up to `MAX_COUNTED`."""

    in_use: bool
    pending: int


_ROW = WebhookDeliveryRow
_ONE = literal_column("1", Integer)
_PENDING: Any = literal_column("'pending'", Text)


def is_url(target: str) -> bool:
    """Whether a target is the host of requests' own URLs, and not an endpoint."""
    return "://" in target


_OUTCOMES = Records(
    "outcome",
    id=BigInteger,
    tries=SmallInteger,
    endpoint_id=Text,
    state=Text,
    due_in_s=Double,
    status=SmallInteger,
    error=Text,
    duration_ms=Integer,
    gone=Boolean,
)


def _finish() -> Prepared:
    """Write outcomes, those of current leases. Returns their deliveries."""
    outcome = _OUTCOMES
    is_pending = outcome.state == _PENDING
    finished = (
        update(_ROW)
        .where(_ROW.id == outcome.id, _ROW.tries == outcome.tries, _ROW.state == _PENDING)
        .values(
            {
                _ROW.state: outcome.state,
                _ROW.due_at: case((is_pending, func.clock_timestamp() + seconds(outcome.due_in_s)), else_=_ROW.due_at),
                _ROW.ended_at: case((is_pending, None), else_=func.clock_timestamp()),
            }
        )
        .returning(
            _ROW.id, _ROW.endpoint_id, outcome.tries.label("number"), outcome.state.label("outcome"),
            outcome.status.label("status"), outcome.error.label("error"),
            outcome.duration_ms.label("duration_ms"), outcome.gone.label("gone"),
        )
        .cte("finished")
    )  # fmt: skip
    columns = ["delivery_id", "number", "at", "status", "error", "duration_ms"]
    took_s: Any = sql_cast(finished.c.duration_ms, Double) / literal_column("1000.0", Double)
    took = seconds(took_s)
    tries = select(
        finished.c.id, finished.c.number, func.clock_timestamp() - took, finished.c.status, finished.c.error,
        finished.c.duration_ms,
    )  # fmt: skip
    written = upsert(WebhookTryRow).from_select(columns, tries).on_conflict_do_nothing()
    return Prepared(select(finished.c.id).add_cte(written.cte("tries_written"), _count_failures(finished)))


def _count_failures(finished: Any) -> Any:
    """Count failures of endpoints, or forget them after a success. An endpoint that works is not written."""
    endpoint = WebhookEndpointRow
    delivered = finished.c.outcome == literal_column("'delivered'", Text)
    sums = (
        select(
            finished.c.endpoint_id.label("id"),
            func.bool_or(delivered).label("works"),
            func.count().filter(~delivered).label("failed"),
            func.bool_or(finished.c.gone).label("gone"),
        )
        .where(finished.c.endpoint_id.is_not(None))
        .group_by(finished.c.endpoint_id)
        .subquery("sums")
    )
    changes = (
        select(endpoint.id, sums.c.works, sums.c.failed, sums.c.gone)
        .join(sums, sums.c.id == endpoint.id)
        .where(or_(~sums.c.works, sums.c.gone, endpoint.failures > literal_column("0")))
        .order_by(endpoint.id)  # as in other processes, which could otherwise wait for each other
        .with_for_update(key_share=True, of=endpoint)
        .cte("changes")
    )
    failures = case((changes.c.works, literal_column("0")), else_=endpoint.failures + changes.c.failed)
    doublings = func.least(failures - literal_column(str(BREAKER_THRESHOLD)), literal_column("20"))
    pause_s = func.least(
        literal_column(str(MAX_BREAKER_S)),
        literal_column(str(BREAKER_S)) * func.power(literal_column("2.0"), doublings),
    )
    opens = and_(~changes.c.works, failures >= literal_column(str(BREAKER_THRESHOLD)))
    return (
        update(endpoint)
        .where(endpoint.id == changes.c.id)
        .values(
            {
                endpoint.failures: failures,
                endpoint.open_until: case(
                    (opens, func.clock_timestamp() + seconds(sql_cast(pause_s, Double))), else_=None
                ),
                endpoint.disabled: case(
                    (changes.c.gone, func.coalesce(endpoint.disabled, literal_column(f"'{GONE}'", Text))),
                    else_=endpoint.disabled,
                ),
            }
        )
        .cte("endpoints_changed")
    )


_LEASES = Records("lease", id=BigInteger, tries=SmallInteger)
_RELEASE = Prepared(
    update(_ROW)
    .where(_ROW.id == _LEASES.id, _ROW.tries == _LEASES.tries, _ROW.state == _PENDING)
    .values({_ROW.due_at: func.now(), _ROW.tries: _ROW.tries - _ONE})
)
_CLAIM, _FINISH = claim_statement(), _finish()
_STATE = Prepared(
    select(
        select(WebhookEndpointRow.id).where(WebhookEndpointRow.disabled.is_(None)).limit(_ONE).scalar_subquery()
        .is_not(None).label("has_endpoints"),
        select(func.count())
        .select_from(
            select(_ROW.id).where(_ROW.state == _PENDING).limit(literal_column(str(MAX_COUNTED))).subquery("pending")
        )
        .scalar_subquery().label("pending"),
    )
)  # fmt: skip


class Outbox(Store):
    """The deliveries of all projects, as the dispatcher sees them."""

    async def claim(
        self, *, shares: Mapping[str, int], share: int, room: int, lease_s: float, urls: bool = True
    ) -> list[DueDelivery]:
        """Lease deliveries that are due: at most `room`; of each target its number in `shares`, or else `share`.

        `urls`: also those to the URLs that requests name.
        """
        parameters = {
            "shares": orjson.dumps(shares).decode(),
            "share": share,
            "room": room,
            "lease_s": lease_s,
            "urls": urls,
        }
        return [_delivery(row) for row in await _CLAIM.run(self._engine, parameters)]

    async def finish(self, outcomes: Sequence[TryOutcome]) -> list[bool]:
        """Write how tries have ended. False: another process has leased the delivery since."""
        rows = await _FINISH.run(self._engine, _OUTCOMES.parameters([_record(one) for one in outcomes]))
        written = {row.id for row in rows}
        return [one.delivery.id in written for one in outcomes]

    async def release(self, deliveries: Sequence[DueDelivery]) -> None:
        """Give back leases whose deliveries were not tried."""
        if deliveries:
            records = [{"id": one.id, "tries": one.tries} for one in deliveries]
            await _RELEASE.run(self._engine, _LEASES.parameters(records))

    async def state(self) -> OutboxState:
        """Return how webhooks are used."""
        (row,) = await _STATE.run(self._engine, {})
        return OutboxState(row.has_endpoints or row.pending > 0, row.pending)

    async def keeps_content(self, job_id: str) -> bool:
        """Whether the content of a job may be sent: it exists, and its request log level is not `none`."""
        statement = select(JobRow.id).where(
            JobRow.id == job_id, JobRow.deleted_at.is_(None), JobRow.log_level.is_distinct_from("none")
        )
        return await self._first(statement) is not None

    # Upkeep, in portions. Each returns the number of rows.

    async def bury(self, limit: int) -> int:
        """End pending deliveries that nothing has tried in the whole time for which deliveries are tried.

        Their endpoint is disabled, or has failed all the time with others before them. None is due before its event
        happens or is replayed, except test events.
        """
        # A condition on the index alone: the rows of deliveries that wait are not read.
        overdue = func.now() - seconds(LIFETIME_S + 3600)
        rows = select(_ROW.id).where(_ROW.state == _PENDING, _ROW.due_at < overdue)
        statement = update(_ROW).values({_ROW.state: "dead", _ROW.ended_at: func.now()})
        return await self._portion(statement, rows, limit)

    async def delete_ended(self, older_than_s: float, limit: int) -> int:
        """Delete deliveries that ended more than `older_than_s` ago, with their tries."""
        rows = select(_ROW.id).where(_ROW.ended_at < func.now() - seconds(older_than_s))
        return await self._portion(delete(_ROW), rows, limit)

    async def delete_orphans(self, limit: int) -> int:
        """Delete the deliveries of endpoints that were deleted."""
        first = select(_next_endpoint().label("id")).cte("endpoints", recursive=True)
        previous = aliased(first)
        endpoints = first.union_all(select(_next_endpoint(previous.c.id)).where(previous.c.id.is_not(None)))
        known = select(WebhookEndpointRow.id).where(WebhookEndpointRow.id == endpoints.c.id)
        orphaned = select(endpoints.c.id).where(endpoints.c.id.is_not(None), ~known.exists())
        rows = select(_ROW.id).where(_ROW.endpoint_id.in_(orphaned))
        return await self._portion(delete(_ROW), rows, limit)

    async def _portion(self, statement: Any, rows: Select[Any], limit: int) -> int:
        locked = rows.limit(limit).with_for_update(skip_locked=True, of=_ROW)
        async with self._engine.connect() as connection:
            changed = await connection.execute(statement.where(_ROW.id.in_(locked)))
            return int(changed.rowcount)


def _next_endpoint(after: Any = None) -> Any:
    row = aliased(_ROW)
    found = select(row.endpoint_id).where(row.endpoint_id.is_not(None)).order_by(row.endpoint_id).limit(_ONE)
    if after is not None:
        found = found.where(row.endpoint_id > after).correlate_except(row)
    return found.scalar_subquery()


def _delivery(row: Any) -> DueDelivery:
    values = {name: getattr(row, name) for name in DueDelivery.__dataclass_fields__ if name != "secrets"}
    try:
        secrets = read_secrets(row.secrets or ())
    except (LookupError, TypeError, ValueError):
        # Nothing is sent without a secret. The others that were leased with it are.
        logger.error("endpoint=%s project=%d its secrets cannot be read", row.endpoint_id or "-", row.project_id)
        secrets = ()
    return DueDelivery(**values, secrets=secrets)


def _record(outcome: TryOutcome) -> dict[str, Any]:
    return {
        "id": outcome.delivery.id,
        "tries": outcome.delivery.tries,
        "endpoint_id": outcome.delivery.endpoint_id,
        "state": outcome.state,
        "due_in_s": outcome.due_in_s,
        "status": outcome.status,
        "error": outcome.error,
        "duration_ms": outcome.duration_ms,
        "gone": outcome.gone,
    }
