"""The minimum interval between two flushes of the logs."""

from __future__ import annotations

# The interval grows with the number of logs, up to a maximum: text that arrives 50 times a second reads as smoothly as
# text that arrives 200 times, at a quarter of the cost.
INTERVAL_PER_LOG_S = 0.002
MAX_INTERVAL_S = 0.02
# While flushes take long, because the worker, Redis or their machine is busy, the maximum is this many times as long as
# one takes: fewer, larger messages then cost less than they delay.
INTERVAL_PER_WRITE = 4
MAX_LOADED_INTERVAL_S = 0.04
# The weight of the last flush in the average.
WEIGHT = 0.2


class FlushInterval:
    """The interval of one process, whose flushes are measured."""

    def __init__(self) -> None:
        self._write_s = 0.0

    def record(self, write_s: float) -> None:
        """Record how long a flush has taken, in seconds."""
        self._write_s += WEIGHT * (min(write_s, MAX_LOADED_INTERVAL_S) - self._write_s)

    def seconds(self, logs: int) -> float:
        """The minimum interval before the next flush, given the number of logs in the last one."""
        loaded = min(INTERVAL_PER_WRITE * self._write_s, MAX_LOADED_INTERVAL_S)
        return min(INTERVAL_PER_LOG_S * logs, max(loaded, MAX_INTERVAL_S))


# A process has one log writer. Engines that read from an upstream pace their reads by the same interval.
_interval = FlushInterval()
record_flush = _interval.record
flush_interval_s = _interval.seconds
