"""The events that an endpoint can subscribe to."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from api.webhooks.schemas import Events
from shared.domain.webhook_events import GROUPS, SUBSCRIBABLE

EVENTS: TypeAdapter[list[str]] = TypeAdapter(Events)


@pytest.mark.parametrize("pattern", [*GROUPS, *(one.value for one in SUBSCRIBABLE), "*"])
def test_types_groups_and_all_are_events(pattern: str) -> None:
    assert EVENTS.validate_python([pattern, pattern]) == [pattern]


@pytest.mark.parametrize("text", ["job", "job.", "job.started", "*.completed", "webhook.test", "webhook.*", "", "**"])
def test_other_texts_are_not(text: str) -> None:
    with pytest.raises(ValidationError, match="unknown event"):
        EVENTS.validate_python([text])
