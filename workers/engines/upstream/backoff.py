"""How long to wait before a request is sent again: as long as the server asks, else twice as long each time."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

BACK_OFF_S = (0.5, 8.0)
# A server that asks for more is not waited for: the job holds a slot meanwhile.
LONGEST_S = 60.0


def wait_s(failures: int, asked_s: float | None) -> float | None:
    """Seconds to wait after so many failures before this one; None: it is not worth it. Many clients do not meet."""
    first, longest = BACK_OFF_S
    back_off = min(longest, first * 2.0**failures) * random.uniform(0.5, 1)
    if asked_s is None:
        return back_off
    return max(back_off, asked_s * random.uniform(1, 1.25)) if asked_s <= LONGEST_S else None


def asked_wait_s(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` (seconds, or a date) asks for; None where it asks for nothing that can be read."""
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
