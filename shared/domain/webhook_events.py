"""The events that webhooks deliver: their types, ids and bodies.

An event is sent once something has ended, and never while it runs. Its body has OpenAI's shape. It names the object
that the event is about; with the option `full` it has the object itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

EVENT_ID_PREFIX = "evt_"
# All types.
ALL = "*"
_ID_DIGITS = 32


def group_of(event_type: str) -> str:
    """The group of a type: `job.*` for `job.completed`."""
    return event_type.partition(".")[0] + ".*"


class EventType(StrEnum):
    """The types of events. What precedes the dot is the group: `job.*` names all types of `job`."""

    JOB_COMPLETED = "job.completed"
    JOB_INCOMPLETE = "job.incomplete"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    JOB_EXPIRED = "job.expired"

    # Beside the job's event, if the job is a response of the Responses API. A response whose job expires has failed.
    RESPONSE_COMPLETED = "response.completed"
    RESPONSE_INCOMPLETE = "response.incomplete"
    RESPONSE_FAILED = "response.failed"
    RESPONSE_CANCELLED = "response.cancelled"

    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_EXPIRED = "batch.expired"
    BATCH_CANCELLED = "batch.cancelled"

    # A share of the limit has been spent; the whole limit has been spent.
    BUDGET_THRESHOLD = "budget.threshold"
    BUDGET_EXCEEDED = "budget.exceeded"

    # Sent to one endpoint at a client's request, whatever it subscribes to.
    WEBHOOK_TEST = "webhook.test"

    @property
    def group(self) -> str:
        """The group that the type belongs to, as a subscription names it: `job.*`."""
        return group_of(self.value)


# What endpoints can subscribe to.
SUBSCRIBABLE: tuple[EventType, ...] = tuple(one for one in EventType if one is not EventType.WEBHOOK_TEST)
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(one.group for one in SUBSCRIBABLE))
# What a request can ask for: the events of its own job.
OF_JOBS: tuple[EventType, ...] = tuple(one for one in EventType if one.group in ("job.*", "response.*"))


def matches(patterns: Iterable[str], event_type: str) -> bool:
    """Whether a subscription with these patterns includes the type."""
    included = {event_type, group_of(event_type), ALL}
    return any(pattern in included for pattern in patterns)


def event_id(event_type: str, object_id: str, occurrence: str = "") -> str:
    """The id of an event: always the same for the same object and type, so that a receiver recognizes repetitions.

    `occurrence` distinguishes events that an object can have several times. `shared.postgres.webhook_outbox.event_id`
    is the same in SQL.
    """
    digest = hashlib.sha256(f"{event_type}:{object_id}:{occurrence}".encode()).hexdigest()
    return EVENT_ID_PREFIX + digest[:_ID_DIGITS]


def event_body(
    identifier: str, event_type: str, created_at: datetime, object_id: str, data: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The body of an event. `data`: the members of its `data` beside the object's id, or the whole object."""
    return {
        "id": identifier,
        "object": "event",
        "created_at": int(created_at.timestamp()),
        "type": event_type,
        "data": {"id": object_id, **(data or {})},
    }
