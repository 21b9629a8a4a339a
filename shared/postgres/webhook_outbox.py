"""The outbox of webhooks: the parts of statements that insert deliveries when an event happens.

A delivery is committed with what it reports, so none is lost and none reports what has not happened. It names the
event by an id that depends only on the object and the type (`shared.domain.webhook_events.event_id`).

A project without endpoints pays one look-up in an index per job that ends. No constraint ties a delivery to its
endpoint: a job must be able to end while the endpoint is deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    ColumnElement,
    Select,
    Text,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB, array
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.domain.job import JOB_ID_PREFIX, JobStatus
from shared.domain.response import RESPONSE_ID_PREFIX
from shared.domain.webhook_events import ALL, EventType, matches
from shared.domain.webhook_events import event_id as domain_event_id
from shared.postgres.tables import ResponseRow
from shared.postgres.webhook_tables import WebhookDeliveryRow, WebhookEndpointRow

_COLUMNS = ("event_id", "project_id", "endpoint_id", "url", "type", "object_id", "data")


def insert_deliveries(ended: CTE, responses: Select[Any] | None = None) -> CTE:
    """Insert the deliveries of the events of jobs that end.

    `ended` has the columns `id`, `project_id`, `kind`, `batch_id`, `status` and `webhook`. Internal jobs have no
    events, and the lines of a batch only those that a line itself asks for: the batch has its own.

    `responses` selects the ids of those of the jobs that are responses, if their rows are inserted by the same
    statement; otherwise they are looked up.
    """
    endpoint = WebhookEndpointRow
    to_endpoints = select(
        ended.c.id, ended.c.project_id, ended.c.status,
        endpoint.id.label("endpoint_id"), null().cast(Text).label("url"), endpoint.events.label("events"),
    ).where(
        endpoint.project_id == ended.c.project_id, endpoint.disabled.is_(None),
        ended.c.kind.is_(None), ended.c.batch_id.is_(None),
    )  # fmt: skip
    names = func.jsonb_array_elements_text(_members(ended.c.webhook["events"])).table_valued("name")
    to_urls = select(
        ended.c.id, ended.c.project_id, ended.c.status,
        null().cast(Text), ended.c.webhook["url"].astext,
        # NULL if the request names no events.
        select(func.array_agg(names.c.name, type_=ARRAY(Text))).correlate(ended).scalar_subquery(),
    ).where(ended.c.webhook["url"].astext.is_not(None), ended.c.kind.is_(None))  # fmt: skip
    target = union_all(to_endpoints, to_urls).subquery("target")

    is_response: ColumnElement[bool]
    if responses is None:
        is_response = exists(select(ResponseRow.job_id).where(ResponseRow.job_id == target.c.id).correlate(target))
    else:
        is_response = target.c.id.in_(responses)
    digits = func.substr(target.c.id, literal_column(str(len(JOB_ID_PREFIX) + 1)))
    ends_as = case(
        (target.c.status == _text(JobStatus.EXPIRED), _text(JobStatus.FAILED)), else_=sql_cast(target.c.status, Text)
    )
    # By default, a request is sent the events of the API that it was made with.
    job = select(
        (_text("job.") + target.c.status).label("type"),
        target.c.id.label("object_id"),
        (~is_response).label("by_default"),
    ).correlate(target)
    response = (
        select(_text("response.") + ends_as, _text(RESPONSE_ID_PREFIX) + digits, true())
        .where(is_response)
        .correlate(target)
    )
    event = union_all(job, response).lateral("event")
    rows = (
        select(
            event_id(event.c.type, event.c.object_id), target.c.project_id, target.c.endpoint_id, target.c.url,
            event.c.type, event.c.object_id, null().cast(JSONB),
        )
        .join_from(target, event, true())
        .where(or_(_includes(target.c.events, event.c.type), and_(target.c.events.is_(None), event.c.by_default)))
    )  # fmt: skip
    inserted: CTE = _inserted(rows).cte("webhook_deliveries_inserted")
    return inserted


async def insert_event(
    connection: AsyncConnection,
    project_id: int,
    event_type: EventType,
    object_id: str,
    *,
    data: Mapping[str, Any] | None = None,
    occurrence: str = "",
    webhook: Mapping[str, Any] | None = None,
) -> None:
    """Insert the deliveries of an event of a project, in the transaction that makes it happen.

    `data`: what the body says of the object beside its id. `occurrence`: see `webhook_events.event_id`. `webhook`: the
    one that the request for the object names, as stored in its row.
    """
    endpoint = WebhookEndpointRow
    stored = None if data is None else dict(data)
    if webhook is not None and (webhook["events"] is None or matches(webhook["events"], event_type)):
        values = {
            "event_id": domain_event_id(event_type, object_id, occurrence),
            "project_id": project_id,
            "url": webhook["url"],
            "type": event_type.value,
            "object_id": object_id,
            "data": stored,
        }
        await connection.execute(upsert(WebhookDeliveryRow).values(values).on_conflict_do_nothing())
    rows = select(
        bindparam("event", domain_event_id(event_type, object_id, occurrence), type_=Text),
        endpoint.project_id,
        endpoint.id,
        null().cast(Text),
        bindparam("event_type", event_type.value, type_=Text),
        bindparam("object", object_id, type_=Text),
        bindparam("event_data", stored, type_=JSONB(none_as_null=True)),
    ).where(
        endpoint.project_id == project_id,
        endpoint.disabled.is_(None),
        _includes(endpoint.events, bindparam("event_type", event_type.value, type_=Text)),
    )
    await connection.execute(_inserted(rows))


def event_id(event_type: Any, object_id: Any) -> ColumnElement[str]:
    """`shared.domain.webhook_events.event_id` in SQL, of an event that an object has once."""
    named = func.convert_to(event_type + _text(":") + object_id + _text(":"), _text("UTF8"))
    digits = func.left(func.encode(func.sha256(named), _text("hex")), literal_column("32"))
    identifier: ColumnElement[str] = _text("evt_") + digits
    return identifier


def _inserted(rows: Any) -> Any:
    # An event happens once. If it has deliveries nevertheless, they must not keep its statement from succeeding.
    return upsert(WebhookDeliveryRow).from_select(list(_COLUMNS), rows).on_conflict_do_nothing()


def _includes(patterns: Any, event_type: Any) -> ColumnElement[bool]:
    """`shared.domain.webhook_events.matches` in SQL."""
    event_type = sql_cast(event_type, Text)  # a parameter is a varchar
    group = func.split_part(event_type, _text("."), literal_column("1")) + _text(".*")
    condition: ColumnElement[bool] = patterns.op("&&")(array([event_type, group, _text(ALL)]))
    return condition


def _members(value: Any) -> ColumnElement[Any]:
    """The value if it is an array, and otherwise NULL, which has no members."""
    return case((func.jsonb_typeof(value) == _text("array"), value))


def _text(value: str) -> ColumnElement[str]:
    return literal_column(f"'{value}'::text", Text)
