"""The webhook that a request names itself: a URL to which the events of its job, or of its batch, are sent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MAX_URL = 2048
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


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


def normal_url(url: str) -> str:
    """A URL with its scheme and host in lower case, and without the default port.

    Deliveries to a host share a queue and its limits: whoever writes the host in several ways gets no more of them.
    What is not a URL is returned as it is.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or not scheme.isalpha():
        return url
    scheme = scheme.lower()
    authority = re.match("[^/?#]*", rest)
    assert authority is not None
    host = authority[0].lower().removesuffix(_DEFAULT_PORTS.get(scheme, ""))
    return scheme + separator + host + rest[authority.end() :]


def public_url(url: str) -> str:
    """A URL as logs and the audit log have it: without credentials, query and fragment, which may be secrets."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "(not a URL)"
    place = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{place}{f':{port}' if port else ''}{parts.path}{'?…' if parts.query else ''}"
