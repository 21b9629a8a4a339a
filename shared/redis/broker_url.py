"""The address of the broker in the form that Celery expects."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit


def broker_url(redis_url: str) -> str:
    """Convert `unix://[:password@]/path?db=N`, as redis-py expects it, to kombu's form; other URLs are the same."""
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    database = parse_qs(parts.query).get("db", ["0"])[0]
    return f"redis+socket://{parts.netloc}{parts.path}?virtual_host={database}"
