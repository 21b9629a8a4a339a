"""When deliveries are tried again, and when an endpoint that fails is left alone."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# A try takes at most this long, from the look-up of the host to the end of the response's headers.
TIMEOUT_S = 10.0
# Open requests of one process to one endpoint, or one host; and after successes, while more deliveries wait.
CONCURRENCY, MAX_CONCURRENCY = 4, 16
# Until the first retry, and at most between two. Each pause is this many times as long as the one before.
FIRST_RETRY_S = 5.0
LAST_RETRY_S = 12 * 3600.0
RETRY_FACTOR = 4.0
# The share by which pauses vary, so that deliveries which have failed together are not repeated together.
JITTER = 0.2
# A delivery that has not succeeded this long after its event, or its replay, is dead.
LIFETIME_S = 72 * 3600.0
# After this many failures in a row, an endpoint is left alone for a time, which doubles with each further one. Then it
# gets one delivery.
BREAKER_THRESHOLD = 5
BREAKER_S = 15.0
MAX_BREAKER_S = 900.0


def retry_pause_s(tries: int, retry_after_s: float | None = None) -> float:
    """Seconds until the next try, after `tries` tries. `retry_after_s`: the receiver's `Retry-After`, if any."""
    pause_s = FIRST_RETRY_S * RETRY_FACTOR ** min(max(tries, 1) - 1, 20) * random.uniform(1 - JITTER, 1 + JITTER)
    return min(max(pause_s, retry_after_s or 0.0), LAST_RETRY_S)


def breaker_pause_s(failures: int) -> float:
    """Seconds without tries after `failures` failures of an endpoint in a row; 0 below `BREAKER_THRESHOLD`."""
    if failures < BREAKER_THRESHOLD:
        return 0.0
    return min(BREAKER_S * 2.0 ** min(failures - BREAKER_THRESHOLD, 20), MAX_BREAKER_S)


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """The seconds of a `Retry-After` header: a number, or a date. None if it is absent or invalid."""
    if value is None or len(value) > 64:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - now).total_seconds())
