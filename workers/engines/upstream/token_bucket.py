"""A limit per minute, as a bucket that fills steadily."""

from __future__ import annotations

import time

# A bucket holds what it gets in this time. It starts full, so a minute may get a tenth more than its limit.
BURST_S = 6.0


class TokenBucket:
    """Holds what may be used now; its balance may become negative, and is paid back over time."""

    def __init__(self, per_minute: float) -> None:
        self.per_second = per_minute / 60
        self._capacity = max(1.0, self.per_second * BURST_S)
        self._balance = self._capacity
        self._at = time.monotonic()

    def change(self, per_minute: float) -> None:
        """Change the limit. What has been used stays used."""
        self._refill()
        self.per_second = per_minute / 60
        self._capacity = max(1.0, self.per_second * BURST_S)
        self._balance = min(self._capacity, self._balance)

    def take(self, amount: float) -> None:
        """Use an amount, or return one if it is negative."""
        self._refill()
        self._balance = min(self._capacity, self._balance - amount)

    def wait_s(self, least: float) -> float:
        """Seconds until the balance is at least this."""
        self._refill()
        return max(0.0, (least - self._balance) / self.per_second)

    def _refill(self) -> None:
        now = time.monotonic()
        self._balance = min(self._capacity, self._balance + (now - self._at) * self.per_second)
        self._at = now
