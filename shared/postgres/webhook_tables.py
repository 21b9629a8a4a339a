"""The tables of webhooks: endpoints of projects, and the outbox with what is delivered to them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Computed, ForeignKey, Identity, Index, SmallInteger, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.postgres.tables import Base as Base  # migrations read all tables through this module
from shared.postgres.tables import Timestamp


class WebhookEndpointRow(Base):
    """A URL of a project to which events are delivered."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    url: Mapped[str] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    # Types of events, such as `job.completed`, or groups of them, such as `job.*`.
    events: Mapped[list[str]] = mapped_column(ARRAY(Text))
    # `{"secret": "whsec_...", "expires_at": null}`: the current one first, then those that it replaces.
    secrets: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    # Whether bodies have the object that the event is about, instead of its id.
    full: Mapped[bool] = mapped_column(server_default=text("false"))
    # NULL while it is enabled; or why it is not: `operator`, `gone`.
    disabled: Mapped[str | None] = mapped_column(Text)
    # Failures since the last success, and until when its breaker holds deliveries back.
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    open_until: Mapped[datetime | None] = mapped_column(Timestamp)
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())

    __table_args__ = (Index("webhook_endpoints_project", "project_id"),)


class WebhookDeliveryRow(Base):
    """The outbox: an event that is to be, or was, delivered to an endpoint, or to the URL that its request names.

    Written by the statement that makes the event happen, such as the one that ends a job.
    """

    __tablename__ = "webhook_deliveries"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    # The same for all deliveries of an event: the `webhook-id`.
    event_id: Mapped[str] = mapped_column(Text(collation="C"))
    project_id: Mapped[int] = mapped_column(BigInteger)
    # NULL: to `url`, signed with the project's own secret. Not a foreign key: a job must be able to end while an
    # endpoint is deleted. The deliveries of a deleted endpoint are deleted later.
    endpoint_id: Mapped[str | None] = mapped_column(Text(collation="C"))
    url: Mapped[str | None] = mapped_column(Text)
    # What shares a queue: the deliveries to an endpoint, or to the host that a URL names.
    target: Mapped[str] = mapped_column(
        Text(collation="C"), Computed("COALESCE(endpoint_id, \"substring\"(url, '^[^:]+://[^/?#]*'::text))")
    )
    type: Mapped[str] = mapped_column(Text)
    # The id of the job, response, batch or budget.
    object_id: Mapped[str] = mapped_column(Text(collation="C"))
    # What the body says of the object beside its id.
    data: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    # `pending`, `delivered` or `dead`.
    state: Mapped[str] = mapped_column(Text, server_default=text("'pending'"))
    # When a process may try to deliver it next: later while one tries.
    due_at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    tries: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    ended_at: Mapped[datetime | None] = mapped_column(Timestamp)
    # When a client has let it be tried again, and the tries before: retries count from then.
    replayed_at: Mapped[datetime | None] = mapped_column(Timestamp)
    tries_before: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))

    __table_args__ = (
        Index("webhook_deliveries_due", "target", "due_at", postgresql_where=text("state = 'pending'")),
        Index("webhook_deliveries_of", "event_id", "endpoint_id", unique=True, postgresql_nulls_not_distinct=True),
        Index("webhook_deliveries_project", "project_id", "id"),
        # Few among all of a project: what is looked for when a receiver has failed.
        Index("webhook_deliveries_dead", "project_id", "id", postgresql_where=text("state = 'dead'")),
        Index("webhook_deliveries_endpoint", "endpoint_id", "id"),
        Index("webhook_deliveries_ended", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    )


class WebhookTryRow(Base):
    """A try of a delivery."""

    __tablename__ = "webhook_tries"

    delivery_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    number: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(Timestamp, server_default=func.now())
    # The HTTP status; NULL if there was no answer.
    status: Mapped[int | None] = mapped_column(SmallInteger)
    error: Mapped[str | None] = mapped_column(Text)
    duration_ms: Mapped[int]
