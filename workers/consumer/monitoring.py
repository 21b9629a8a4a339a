"""Celery's events, with a bounded buffer.

Celery keeps events that it cannot send, and sends them again with later ones. Its buffer has no limit: while Redis
refuses events, for example because its user may not publish them, every job would add to it. Events are only for
monitoring, so the oldest are dropped.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from celery import Celery
from celery.events import EventDispatcher

# Entries, of up to 24 events of about 1 KB each.
MAX_BUFFERED = 100


class BoundedDispatcher(EventDispatcher):  # type: ignore[misc]
    """A dispatcher that keeps only the latest unsent events."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._outbound_buffer: deque[Any] = deque(maxlen=MAX_BUFFERED)


def bound_event_buffer(app: Celery) -> None:
    """Use such dispatchers in an application."""
    app.events.dispatcher_cls = f"{__name__}:{BoundedDispatcher.__name__}"
