"""Schemas of the API of webhooks."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from api.http.pagination import PageView
from api.http.webhook_parameters import MAX_PATTERNS, WebhookUrl, event_patterns
from api.webhooks.delivery_store import MAX_REPLAYED, Delivery, DeliveryState, Try, format_id
from api.webhooks.secrets import Secret, old_secret_expires_at
from api.webhooks.store import Endpoint
from shared.domain.field_types import UnicodeText
from shared.domain.webhook_events import SUBSCRIBABLE, EventType

MAX_OVERLAP_S = 7 * 24 * 3600
DEFAULT_OVERLAP_S = 24 * 3600

Events = Annotated[list[str], Field(min_length=1, max_length=MAX_PATTERNS), event_patterns(SUBSCRIBABLE)]
Description = Annotated[UnicodeText, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
_EVENTS = "The events that it receives: types such as `job.completed`, groups such as `batch.*`, or `*` for all."
_FULL = "Whether `data` is the object that the event is about, instead of its id."


class EndpointCreate(BaseModel):
    """An endpoint to create."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "url": "https://hooks.example.com/headrace",
                    "events": ["response.*", "batch.completed"],
                    "description": "The shop's backend",
                }
            ]
        },
    )

    url: WebhookUrl = Field(description="Where events are sent: https, to a public address.")
    events: Events = Field(description=_EVENTS)
    description: Description | None = None
    full: bool = Field(False, description=_FULL)


class EndpointUpdate(BaseModel):
    """Changes of an endpoint: a JSON Merge Patch (RFC 7396). What is absent remains as it is."""

    is_merge_patch: ClassVar[bool] = True
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"events": ["job.*"], "full": True}, {"enabled": True}]}
    )

    # The defaults stand for absent fields, which cannot be null; they are never read.
    url: WebhookUrl = Field(default_factory=str, description="Where events are sent from now on, retries included.")
    events: Events = Field(default_factory=list, description=_EVENTS)
    description: Description | None = Field(None, description="Null removes it.")
    full: bool = Field(default_factory=bool, description=_FULL)
    enabled: bool = Field(
        default_factory=bool, description="A disabled endpoint receives nothing; events are not kept for it."
    )


class SecretRotate(BaseModel):
    """How a secret is replaced."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"overlap_s": 3600}, {}]})

    overlap_s: int = Field(
        DEFAULT_OVERLAP_S,
        ge=0,
        le=MAX_OVERLAP_S,
        description="Seconds for which deliveries are signed with the old secret too. 0: it stops at once.",
    )


class EndpointView(BaseModel):
    """An endpoint."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    url: str
    description: str | None
    events: list[str]
    full: bool
    enabled: bool
    disabled_reason: str | None = Field(
        description="`operator`: a request has disabled it; `gone`: the endpoint has responded with status 410."
        " Null while it is enabled."
    )
    failures: int = Field(description="Failed tries since the last success.")
    paused_until: datetime | None = Field(
        description="After repeated failures: when the next delivery is tried. Null if none is held back."
    )
    old_secret_expires_at: datetime | None = Field(
        description="Until when deliveries are signed with a replaced secret too. Null if there is none."
    )
    created_at: datetime

    @classmethod
    def of(cls, endpoint: Endpoint, **values: Any) -> Self:
        """The JSON form."""
        return cls(
            id=endpoint.id,
            url=endpoint.url,
            description=endpoint.description,
            events=list(endpoint.events),
            full=endpoint.full,
            enabled=endpoint.disabled is None,
            disabled_reason=endpoint.disabled,
            failures=endpoint.failures,
            paused_until=endpoint.open_until,
            old_secret_expires_at=old_secret_expires_at(endpoint.secrets),
            created_at=endpoint.created_at,
            **values,
        )


class EndpointCreated(EndpointView):
    """An endpoint with its current secret, which no other response has."""

    secret: str = Field(description="Verifies deliveries, by Standard Webhooks: `whsec_` and a key in base64.")


class EndpointList(PageView[EndpointView]):
    """A page of endpoints, newest first."""


class EndpointDeleted(BaseModel):
    """An endpoint that was deleted, with its deliveries."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class ProjectSecretView(BaseModel):
    """The secret of the webhooks that the requests of a project name themselves."""

    object: Literal["webhook_secret"] = "webhook_secret"
    secret: str = Field(description="Verifies deliveries, by Standard Webhooks: `whsec_` and a key in base64.")
    old_secret_expires_at: datetime | None = Field(
        description="Until when deliveries are signed with a replaced secret too. Null if there is none."
    )

    @classmethod
    def of(cls, secrets: tuple[Secret, ...]) -> Self:
        """The JSON form."""
        return cls(secret=secrets[0].secret, old_secret_expires_at=old_secret_expires_at(secrets))


class DeliveryView(BaseModel):
    """An event on its way to an endpoint, or to the URL that a request names."""

    id: str
    object: Literal["webhook_delivery"] = "webhook_delivery"
    event_id: str = Field(description="The `webhook-id` of all its tries.")
    type: str
    object_id: str = Field(description="The job, response, batch or budget that the event is about.")
    endpoint: str | None = Field(description="Null if the request names the URL.")
    url: str
    state: DeliveryState = Field(description="`dead`: its last try has failed, and it is not tried again by itself.")
    tries: int
    last_status: int | None = Field(description="The HTTP status of the last try; null if there was no answer.")
    last_error: str | None = Field(description="Why the last try has failed; null if it has not.")
    next_try_at: datetime | None = Field(description="Null if it has ended.")
    created_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, delivery: Delivery, **values: Any) -> Self:
        """The JSON form."""
        return cls(
            id=format_id(delivery.id),
            event_id=delivery.event_id,
            type=delivery.type,
            object_id=delivery.object_id,
            endpoint=delivery.endpoint_id,
            url=delivery.url,
            state=delivery.state,
            tries=delivery.tries,
            last_status=delivery.status,
            last_error=delivery.error,
            next_try_at=delivery.next_try_at,
            created_at=delivery.created_at,
            ended_at=delivery.ended_at,
            **values,
        )


class TryView(BaseModel):
    """A try of a delivery."""

    number: int
    at: datetime
    status: int | None = Field(description="The HTTP status; null if there was no answer.")
    error: str | None
    duration_ms: int


class DeliveryWithTries(DeliveryView):
    """A delivery with its tries, in their order."""

    try_log: list[TryView]

    @classmethod
    def with_tries(cls, delivery: Delivery, tries: list[Try]) -> Self:
        """The JSON form."""
        return cls.of(delivery, try_log=[TryView.model_validate(one, from_attributes=True) for one in tries])


class DeliveryList(PageView[DeliveryView]):
    """A page of deliveries, newest first."""


class ReplayDead(BaseModel):
    """Which dead deliveries are sent again."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"since": "2026-11-30T08:00:00Z", "type": "batch.completed"}]}
    )

    since: AwareDatetime = Field(description="Those of events since then, with a time zone.")
    endpoint: str | None = Field(None, max_length=64, description="Only those of this endpoint.")
    type: EventType | None = Field(None, description="Only those of this type.")


class Replayed(BaseModel):
    """How many deliveries are sent again."""

    object: Literal["webhook_replay"] = "webhook_replay"
    replayed: int = Field(description=f"At most {MAX_REPLAYED}, those of the oldest events.")
    has_more: bool = Field(description="There may be more: repeat the request for them.")
