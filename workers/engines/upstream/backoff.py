"""The delay before a failed request is retried: the server's Retry-After, or exponential backoff."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# First and longest delay.
BACKOFF_S = (0.5, 8.0)
# A request is not retried after a longer Retry-After, because its job occupies a slot meanwhile.
MAX_RETRY_AFTER_S = 60.0


def backoff_s(failures: int, requested_s: float | None) -> float | None:
    """Seconds to wait after `failures` earlier failures, with jitter; None if the request should not be retried.

    `requested_s`: the delay that the server requested.
    """
    first, longest = BACKOFF_S
    delay = min(longest, first * 2.0**failures) * random.uniform(0.5, 1)
    if requested_s is None:
        return delay
    return max(delay, requested_s * random.uniform(1, 1.25)) if requested_s <= MAX_RETRY_AFTER_S else None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The delay in `Retry-After` (seconds or a date); None if it is missing or cannot be parsed."""
    value = headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if seconds == seconds else None
