"""The parameters by which a request names a webhook of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator

from shared.domain.field_types import contradiction, unicode_text
from shared.domain.request_webhook import MAX_URL, RequestWebhook, normal_url
from shared.domain.webhook_events import ALL, OF_JOBS, EventType

MAX_PATTERNS = 32


# Whether anything may be sent to it depends on the settings of the installation: `api.webhooks.request_webhooks`.
WebhookUrl = Annotated[
    str, Field(min_length=1, max_length=MAX_URL), AfterValidator(unicode_text), AfterValidator(normal_url)
]


def event_patterns(types: Sequence[EventType]) -> Any:
    """The validator of a list of these types, of their groups such as `job.*`, or of `*`. Repetitions are removed."""
    known = list(dict.fromkeys((*(one.value for one in types), *(one.group for one in types), ALL)))

    def check(patterns: list[str]) -> list[str]:
        for pattern in patterns:
            if pattern not in known:
                raise ValueError(f"unknown event {pattern[:64]!r}; known are {', '.join(known)}")
        return list(dict.fromkeys(patterns))

    return AfterValidator(check)


def events_filter(example: str) -> Any:
    """The field of the events that are sent to `webhook`."""
    return Field(
        None,
        min_length=1,
        max_length=MAX_PATTERNS,
        description=f"The events that are sent to `webhook`: types such as `{example}`, or groups such as"
        f" `{example.partition('.')[0]}.*`. By default those of the API that the request is made with.",
        examples=[[example]],
    )


Patterns = Annotated[list[str], Field(fail_fast=True)]


class WebhookParameters(BaseModel):
    """The webhook of a request for a job or a batch."""

    webhook: WebhookUrl | None = Field(
        None,
        description="The URL to which events are sent, such as that of the end. They are signed with the secret of"
        " `GET /v1/webhooks/secret`.",
        examples=["https://hooks.example.com/headrace"],
    )
    webhook_events_filter: Patterns | None = None

    @model_validator(mode="after")
    def _filters_a_webhook(self) -> Self:
        if self.webhook_events_filter is not None and self.webhook is None:
            raise contradiction("webhook_events_filter", "webhook_events_filter requires webhook")
        return self

    @property
    def request_webhook(self) -> RequestWebhook | None:
        """The webhook; None if the request names none."""
        if self.webhook is None:
            return None
        events = self.webhook_events_filter
        return RequestWebhook(self.webhook, None if events is None else tuple(events))


class JobWebhookParameters(WebhookParameters):
    """The webhook of a request that is run as a job, in all dialects."""

    webhook_events_filter: Annotated[Patterns, event_patterns(OF_JOBS)] | None = events_filter("job.failed")
