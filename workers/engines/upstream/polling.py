"""The interval between polls of the state of a job at its upstream."""

from __future__ import annotations

from time import monotonic

GROWTH = 1.5


class PollPace:
    """The intervals between the starts of polls, in seconds: short while there is progress, then longer and longer.

    A poll that the upstream holds open until it has something counts: the next one may follow at once.
    """

    def __init__(self, shortest_s: float, longest_s: float) -> None:
        self._shortest = self._interval = shortest_s
        self._longest = longest_s
        self._last: float | None = None

    def progressed(self) -> None:
        """There was something new: the next interval is the shortest."""
        self._interval = self._shortest

    def delay_s(self) -> float:
        """The wait before the next poll, which is about to be scheduled."""
        now = monotonic()
        delay = 0.0 if self._last is None else max(0.0, self._last + self._interval - now)
        self._last = now + delay
        self._interval = min(self._longest, self._interval * GROWTH)
        return delay
