"""Ids that sort in the order of their creation, so that an id also serves as a pagination cursor.

Those of large tables are made by `new_id`; others are the number of a row with a prefix, such as `key_12`.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from datetime import datetime

_HEX = "[0-9a-f]{32}"
# A region code, the last part of an id that was created in that region.
REGION = "[a-z][a-z0-9]{0,15}"

_COUNTER_BITS = 12
_RANDOM_BITS = 62
# Longer than the steps by which a clock is usually corrected, shorter than what redelivery takes for a lost message.
_MAX_AHEAD_MS = 1000


class _Clock:
    """A timestamp in milliseconds and a counter that together strictly increase.

    RFC 9562, section 6.2, method 1 (fixed bit-length dedicated counter): the counter fills `rand_a` and starts at a
    random value with its highest bit clear in each new millisecond. If it overflows, or if the system clock steps
    back a little, the timestamp runs ahead of the system clock until the clock catches up. A larger step back is
    followed at once: ids that are far ahead of those of other processes would break the order of the queue.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._milliseconds = 0
        self._counter = 0

    def tick(self) -> tuple[int, int]:
        """The next timestamp (48 bits) and counter (12 bits)."""
        now = time.time_ns() // 1_000_000
        with self._lock:
            if now > self._milliseconds or now < self._milliseconds - _MAX_AHEAD_MS:
                self._milliseconds, self._counter = now, secrets.randbits(_COUNTER_BITS - 1)
            elif self._counter + 1 < 1 << _COUNTER_BITS:
                self._counter += 1
            else:
                self._milliseconds, self._counter = self._milliseconds + 1, secrets.randbits(_COUNTER_BITS - 1)
            return self._milliseconds, self._counter


_clock = _Clock()


def new_id(prefix: str, region: str = "") -> str:
    """Return the prefix, a UUIDv7 (RFC 9562) in hex, and the region code if there is one: `job_<hex>_eu`.

    Ids of one process sort in the order of their creation; ids of different processes sort by millisecond. The region
    code comes last, so that ids of all regions, and those without one, sort by time together.
    """
    milliseconds, counter = _clock.tick()
    value = (milliseconds << 80) | (0x7 << 76) | (counter << 64) | (0x2 << 62) | secrets.randbits(_RANDOM_BITS)
    return f"{prefix}{value:032x}{_suffix(region)}"


def first_id(prefix: str, at: datetime) -> str:
    """A text that sorts before all ids of this prefix that were created since then, and after all earlier ones."""
    return f"{prefix}{int(at.timestamp() * 1000):012x}"


def is_id(prefix: str, text: str) -> bool:
    """Whether `text` has the form of an id with this prefix."""
    return re.fullmatch(f"{prefix}{_HEX}(_{REGION})?", text) is not None


def number_of(prefix: str, text: str) -> int | None:
    """The number of a row in an id with this prefix; None if the text is no such id."""
    match = re.fullmatch(f"{prefix}([0-9]{{1,18}})", text)
    return int(match[1]) if match else None


def region_of(prefix: str, text: str) -> str:
    """The region code of an id; empty if it has none."""
    return text.removeprefix(prefix).partition("_")[2]


def sibling(text: str, old: str, new: str, digit: str) -> str:
    """Derive an id from another: with a different prefix and last digit, and the same region.

    The 62 random bits are at the end of an id, so that ids of the same millisecond have different siblings.
    """
    body = text.removeprefix(old).partition("_")[0]
    return f"{new}{body[:-1]}{digit}{_suffix(region_of(old, text))}"


def _suffix(region: str) -> str:
    return f"_{region}" if region else ""
