"""The statement by which a dispatcher leases deliveries that are due."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Boolean,
    Double,
    Integer,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import aliased

from api.webhooks.schedule import BREAKER_THRESHOLD
from shared.postgres.prepared import Prepared
from shared.postgres.store import seconds
from shared.postgres.tables import ProjectRow
from shared.postgres.webhook_tables import WebhookDeliveryRow, WebhookEndpointRow

_ROW = WebhookDeliveryRow
_ONE = literal_column("1", Integer)
_PENDING: Any = literal_column("'pending'", Text)


def claim_statement() -> Prepared:
    """Build the statement that leases deliveries which are due, those of each target in their order.

    Parameters:
        shares: JSON of an object: the number of deliveries to lease, by target.
        share: this number for all other targets.
        room: the number of all deliveries together.
        lease_s: seconds until another process may lease them.
        urls: whether to lease deliveries to the URLs that requests name.
    """
    names = _targets()
    endpoint = WebhookEndpointRow
    # Read once, and searched for each target.
    shares = select(sql_cast(bindparam("shares", type_=Text), JSONB)).scalar_subquery()
    share = func.coalesce(
        sql_cast(func.jsonb_object_field_text(shares, names.c.name, type_=Text), Integer),
        bindparam("share", type_=Integer),
    )
    # In an order of chance: if there is no room for all, it is not always the same ones that wait.
    targets = (
        select(names.c.name, endpoint.failures, share.label("share"))
        .select_from(names)
        .outerjoin(endpoint, endpoint.id == names.c.name)
        .where(
            names.c.due_at <= func.now(),
            share > literal_column("0"),
            or_(
                and_(names.c.name.like(literal_column("'%://%'", Text)), bindparam("urls", type_=Boolean)),
                and_(
                    endpoint.id.is_not(None),
                    endpoint.disabled.is_(None),
                    or_(endpoint.open_until.is_(None), endpoint.open_until <= func.now()),
                ),
            ),
        )
        .order_by(func.random())
        .subquery("open_targets")
    )
    row = aliased(_ROW, name="waiting")
    due = (
        select(row.id)
        .where(row.state == _PENDING, row.target == targets.c.name, row.due_at <= func.now())
        .order_by(row.due_at)
        # After a pause, one delivery shows whether the endpoint works again.
        .limit(case((targets.c.failures >= literal_column(str(BREAKER_THRESHOLD)), _ONE), else_=targets.c.share))
        .with_for_update(skip_locked=True)
        .correlate(targets)
        .lateral("due")
    )
    room = bindparam("room", type_=Integer)
    claimed = select(due.c.id).select_from(targets).join(due, true()).limit(room).cte("claimed")
    leased = (
        update(_ROW)
        .where(_ROW.id == func.any(func.array(select(claimed.c.id).scalar_subquery())), _ROW.state == _PENDING)
        .values(
            {
                _ROW.due_at: func.clock_timestamp() + seconds(bindparam("lease_s", type_=Double)),
                _ROW.tries: _ROW.tries + _ONE,
            }
        )
        .returning(
            _ROW.id, _ROW.event_id, _ROW.project_id, _ROW.endpoint_id, _ROW.target, _ROW.url, _ROW.type,
            _ROW.object_id, _ROW.data, _ROW.created_at, _ROW.tries, _ROW.replayed_at, _ROW.tries_before,
        )
        .cte("leased")
    )  # fmt: skip
    begun_at = func.coalesce(leased.c.replayed_at, leased.c.created_at)
    return Prepared(
        select(
            *(column for column in leased.c if column.key != "url"),
            func.coalesce(leased.c.url, endpoint.url).label("url"),
            func.coalesce(endpoint.full, literal_column("false")).label("full"),
            func.coalesce(endpoint.secrets, ProjectRow.webhook_secrets).label("secrets"),
            sql_cast(func.extract("epoch", func.clock_timestamp() - leased.c.created_at), Double).label("age_s"),
            (leased.c.tries - leased.c.tries_before).label("attempt"),
            sql_cast(func.extract("epoch", func.clock_timestamp() - begun_at), Double).label("trying_s"),
        )
        .select_from(leased)
        .outerjoin(endpoint, endpoint.id == leased.c.endpoint_id)
        .outerjoin(ProjectRow, and_(ProjectRow.id == leased.c.project_id, leased.c.endpoint_id.is_(None)))
        .order_by(leased.c.id)
    )


def _targets() -> Any:
    """The targets of pending deliveries, each with the time at which its first one is due, or was.

    One look-up in the index for each: however many deliveries wait for one of them, they do not delay the others.
    """
    targets = _first(None).cte("targets", recursive=True)
    previous = aliased(targets)
    after = _first(previous.c.name).lateral("next_target")
    return targets.union_all(select(after.c.name, after.c.due_at).select_from(previous).join(after, true()))


def _first(after: Any) -> Any:
    row = aliased(_ROW)
    found = select(row.target.label("name"), row.due_at).where(row.state == _PENDING)
    if after is not None:
        found = found.where(row.target > after)
    return found.order_by(row.target, row.due_at).limit(_ONE)
