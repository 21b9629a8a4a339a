"""The webhook that a request names itself: a URL to which the events of its job, or of its batch, are sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MAX_URL = 2048


@dataclass(frozen=True, slots=True)
class RequestWebhook:
    """A URL, and the types of events that are sent to it; None: all that its object has.

    Types are as in subscriptions: `job.completed`, `job.*`, `*`.
    """

    url: str
    events: tuple[str, ...] | None = None

    def stored(self) -> dict[str, Any]:
        """The value of the column `webhook` of jobs and batches."""
        return {"url": self.url, "events": None if self.events is None else list(self.events)}


def public_url(url: str) -> str:
    """A URL as logs and the audit log have it: without credentials, query and fragment, which may be secrets."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "(not a URL)"
    place = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{place}{f':{port}' if port else ''}{parts.path}{'?…' if parts.query else ''}"
