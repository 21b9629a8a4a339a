"""What the pages of webhooks show, and how their forms are read. Pure functions.

URLs are shown without their query, which may be a secret that only the API's own responses have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from api.console.actions import Form, errors_of
from api.console.keys.view import FormInvalid
from api.console.overview.view import Badge
from api.webhooks.delivery_store import Delivery, DeliveryState, format_id
from api.webhooks.schemas import EndpointCreate, SecretRotate
from api.webhooks.secrets import old_secret_expires_at
from api.webhooks.store import Endpoint
from shared.config.durations import seconds_of
from shared.domain.request_webhook import public_url

_UNITS = ("d", "h", "m", "s")
_DURATION = "Must be a duration such as 24h, 30m or 3d."
_MAX_S = 3650 * 24 * 3600.0
_STATES = {
    DeliveryState.PENDING: Badge("pending", "info"),
    DeliveryState.DELIVERED: Badge("delivered", "good"),
    DeliveryState.DEAD: Badge("dead", "bad"),
}
_DISABLED = {"operator": "by a request", "gone": "it responded with 410"}


@dataclass(frozen=True, slots=True)
class EndpointLine:
    """An endpoint as it is shown."""

    id: str
    project: str
    url: str
    description: str | None
    events: Sequence[str]
    full: bool
    state: Badge
    note: str
    is_enabled: bool
    open_until: datetime | None
    old_secret_until: datetime | None


@dataclass(frozen=True, slots=True)
class DeliveryLine:
    """A delivery as it is shown. `object_page`: the page of what the event is about, if it has one."""

    id: str
    event_id: str
    project: str
    type: str
    object_id: str
    object_page: str | None
    endpoint_id: str | None
    url: str
    state: Badge
    tries: int
    outcome: str
    created_at: datetime
    next_try_at: datetime | None


def endpoint_line(endpoint: Endpoint) -> EndpointLine:
    """An endpoint as it is shown."""
    is_enabled, note = endpoint.disabled is None, ""
    if endpoint.disabled is not None:
        state, note = Badge("disabled", "plain"), _DISABLED.get(endpoint.disabled, endpoint.disabled)
    elif endpoint.failures:
        state, note = Badge("failing", "near"), f"{endpoint.failures} failed since the last success"
    else:
        state = Badge("enabled", "good")
    return EndpointLine(
        id=endpoint.id,
        project=endpoint.project,
        url=public_url(endpoint.url),
        description=endpoint.description,
        events=endpoint.events,
        full=endpoint.full,
        state=state,
        note=note,
        is_enabled=is_enabled,
        open_until=endpoint.open_until if is_enabled else None,
        old_secret_until=old_secret_expires_at(endpoint.secrets),
    )


def delivery_line(delivery: Delivery) -> DeliveryLine:
    """A delivery as it is shown."""
    outcome = " ".join(str(one) for one in (delivery.status, delivery.error) if one is not None)
    return DeliveryLine(
        id=format_id(delivery.id),
        event_id=delivery.event_id,
        project=delivery.project,
        type=delivery.type,
        object_id=delivery.object_id,
        object_page=_page_of(delivery.object_id),
        endpoint_id=delivery.endpoint_id,
        url=public_url(delivery.url),
        state=_STATES[delivery.state],
        tries=delivery.tries,
        outcome=outcome or "–",
        created_at=delivery.created_at,
        next_try_at=delivery.next_try_at,
    )


def _page_of(object_id: str) -> str | None:
    kind = object_id.partition("_")[0]
    pages = {"job": "jobs", "batch": "batches"}
    return f"{pages[kind]}/{object_id}" if kind in pages else None


def endpoint_to_create(form: Form) -> EndpointCreate:
    """The endpoint that a form describes.

    Raises:
        FormInvalid: a field has no valid value.
    """
    values = {
        "url": form["url"],
        "events": [part.strip() for part in form["events"].split(",") if part.strip()],
        "description": form["description"] or None,
        "full": form["full"] == "true",
    }
    errors = dict(form.errors)
    try:
        body = EndpointCreate.model_validate(values)
    except ValidationError as error:
        raise FormInvalid({**errors_of(error, values), **errors}) from None
    if errors:
        raise FormInvalid(errors)
    return body


def rotation(form: Form) -> SecretRotate:
    """How a form replaces a secret. Raises as `endpoint_to_create`."""
    try:
        return SecretRotate.model_validate({"overlap_s": int(duration_of(form, "overlap_s"))})
    except ValidationError as error:
        raise FormInvalid(errors_of(error, ["overlap_s"])) from None


def duration_of(form: Form, name: str) -> float:
    """The seconds of a field. Raises as `endpoint_to_create`."""
    seconds = seconds_of(form[name], _UNITS)
    if seconds is None or seconds > _MAX_S:  # more may be before the first date
        raise FormInvalid({name: _DURATION})
    return seconds
