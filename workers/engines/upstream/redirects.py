"""Redirects of an upstream: followed only within its own origin, so that the key reaches no other server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urljoin, urlsplit

from workers.engines.upstream.exchange import Call

MAX_REDIRECTS = 20
# To the result of the request, which a GET reads; and of the request itself, to another path.
SEE_OTHER, TEMPORARY = 303, 307


def redirected(call: Call, status: int, headers: Mapping[str, str], url: str, base_url: str) -> Call | None:
    """The request that follows a redirect from `url`; None if the status or the target does not allow it.

    The target must have the scheme, host and port of `base_url`.
    """
    location = headers.get("Location")
    if status not in (SEE_OTHER, TEMPORARY) or location is None:
        return None
    try:
        target = urljoin(url, location)
        if _origin(target) != _origin(base_url):
            return None
    except ValueError:
        return None
    if status == SEE_OTHER:
        return Call(target, headers=call.headers)
    return replace(call, path=target, delay_s=0.0)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("a redirect with credentials")
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
