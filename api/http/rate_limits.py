"""What is left of the rate limits that apply to a request, and the headers that say so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_NAMES = [(unit, value) for unit in ("requests", "tokens") for value in ("limit", "remaining", "reset")]
OPENAI_HEADERS = tuple(f"x-ratelimit-{value}-{unit}" for unit, value in _NAMES)
ANTHROPIC_HEADERS = tuple(f"anthropic-ratelimit-{unit}-{value}" for unit, value in _NAMES)


@dataclass(frozen=True, slots=True)
class LeftOfLimit:
    """What is left of a limit a minute, and the seconds until it is full again."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(slots=True)
class RateLimitStatus:
    """The tightest limit of requests, and of tokens, that applies to a request; None if none does."""

    requests: LeftOfLimit | None = None
    tokens: LeftOfLimit | None = None

    def openai_headers(self) -> dict[str, str]:
        """The headers of OpenAI's API."""
        headers: dict[str, str] = {}
        for unit, left in self._units():
            headers[f"x-ratelimit-limit-{unit}"] = str(left.limit)
            headers[f"x-ratelimit-remaining-{unit}"] = str(left.remaining)
            headers[f"x-ratelimit-reset-{unit}"] = _duration(left.reset_s)
        return headers

    def anthropic_headers(self) -> dict[str, str]:
        """The headers of Anthropic's API."""
        headers: dict[str, str] = {}
        for unit, left in self._units():
            reset = datetime.now(UTC) + timedelta(seconds=math.ceil(left.reset_s))
            headers[f"anthropic-ratelimit-{unit}-limit"] = str(left.limit)
            headers[f"anthropic-ratelimit-{unit}-remaining"] = str(left.remaining)
            headers[f"anthropic-ratelimit-{unit}-reset"] = f"{reset:%Y-%m-%dT%H:%M:%SZ}"
        return headers

    def _units(self) -> Iterator[tuple[str, LeftOfLimit]]:
        if self.requests is not None:
            yield "requests", self.requests
        if self.tokens is not None:
            yield "tokens", self.tokens


# That of the request that the running task handles; tasks that it starts share it. None outside of requests.
RATE_LIMIT_STATUS: ContextVar[RateLimitStatus | None] = ContextVar("rate_limit_status", default=None)


def retry_headers(seconds: float) -> dict[str, str]:
    """The headers that say when a request that was refused can succeed: in whole seconds, and exactly."""
    return {"Retry-After": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}


def _duration(seconds: float) -> str:
    """A duration as OpenAI writes it: `250ms`, `7.66s` or `1m1s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{math.ceil(seconds * 100) / 100:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"
