"""The delay before a failed request is repeated by the same attempt."""

from __future__ import annotations

import random

# First and longest delay.
BACKOFF_S = (0.5, 8.0)
# After a longer delay that the server named, the job is run again instead, because it occupies a slot meanwhile.
MAX_NAMED_S = 2.0


def backoff_s(failures: int, named_s: float | None, *, limited: bool = False) -> float | None:
    """Seconds to wait after `failures` earlier failures, with jitter; None if the request should not be repeated here.

    `named_s`: the delay that the server named. `limited`: the failure is a rate limit, whose end only the server knows.
    """
    first, longest = BACKOFF_S
    delay_s = min(longest, first * 2.0**failures) * random.uniform(0.5, 1)
    if named_s is None:
        return None if limited else delay_s
    return max(delay_s, named_s * random.uniform(1, 1.25)) if named_s <= MAX_NAMED_S else None
